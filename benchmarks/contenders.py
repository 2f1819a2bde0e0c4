"""The ways to answer for one wafer that are timed against each other. Each takes the path of a die grid and
goes the whole way: read the file, draw the image, run the model, name the label."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from train.loading import Checkpoint, encode, load_checkpoint
from train.scorer import TreePass
from train.tree import label_tree
from wafervlm.bundle import open_bundle
from wafervlm.errors import MissingDependencyError, ProviderError
from wafervlm.model import load, softmax
from wafervlm.readers import read_wafer
from wafervlm.render import RgbImage, render
from wafervlm.task import Task

BUNDLE, STATIC, ONE_FORWARD = "bundle", "static_full_precision", "reference_one_forward"
GENERATE, OPENVINO = "reference_generate", "openvino"
NAMES = (BUNDLE, STATIC, ONE_FORWARD, GENERATE, OPENVINO)
PRECISIONS = ("float32", "bfloat16")
_TRIALS = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """The ``label`` answered ("" where the text names none) and the milliseconds of read, render and run."""

    label: str
    timing_ms: Mapping[str, float] = field(default_factory=dict)


class Contender(Protocol):
    """A way to answer for the wafer map in a .npy file. ``about`` says in words what runs."""

    about: str

    def __call__(self, path: Path) -> Answer: ...


class Station:
    """A bundle through the public ``predict``."""

    def __init__(self, bundle: Path | None, threads: int) -> None:
        self.model = load(bundle, threads=threads)
        graph = self.model.manifest.graph
        self.about = f"wafervlm.predict, ONNX Runtime, {graph.precision}"
        if graph.precision != "float32":
            computed = "8-bit integers" if graph.accuracy_level else "float32"
            self.about += f" weights in groups of {graph.group_size}, products in {computed}"

    def __call__(self, path: Path) -> Answer:
        prediction = self.model.predict(path)
        return Answer(prediction.label, prediction.timing_ms)


class OpenVino:
    """The bundle's own ONNX file in OpenVINO, at batch 1, optimised for latency."""

    def __init__(self, bundle: Path | None, threads: int) -> None:
        opened = open_bundle(bundle)
        self._task, self._temperature = opened.manifest.task, opened.manifest.temperature
        graph, spec = opened.manifest.graph, self._task.render
        try:
            import openvino
        except ImportError as error:
            raise MissingDependencyError(f"openvino is not installed ({error}); pip install openvino") from None
        core = openvino.Core()
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        try:
            model = core.read_model(opened.path / graph.file)
            model.reshape({graph.input: [1, spec.height, spec.width, 3]})
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise ProviderError(f"OpenVINO cannot run the graph: {str(error).strip().splitlines()[-1]}") from None
        self._request = compiled.create_infer_request()
        precision = str(compiled.get_property("INFERENCE_PRECISION_HINT")).strip("<>").split("'")[1:2]
        self.about = f"OpenVINO on the bundle's ONNX, batch 1, computing in {''.join(precision) or 'its default'}"

    def __call__(self, path: Path) -> Answer:
        def run(image: RgbImage) -> str:
            scores = self._request.infer([image[None]], share_inputs=True)[0]
            return self._task.labels[int(softmax(scores, self._temperature).argmax())]

        return _timed(path, self._task, run)


class Prompted:
    """A transformers checkpoint whose constant text is tokenised beforehand: a call only draws the image and
    cuts it into patches with the model's own image processor."""

    def __init__(self, checkpoint: Checkpoint, task: Task) -> None:
        self.checkpoint, self._task = checkpoint, task
        blank = np.zeros((task.render.height, task.render.width, 3), dtype=np.uint8)
        self._constant = encode(checkpoint, task, [blank])

    def inputs(self, image: RgbImage) -> dict[str, torch.Tensor]:
        """The model's inputs for one image (H, W, 3) uint8."""
        processor = self.checkpoint.processor.image_processor
        pixels = processor(images=[Image.fromarray(image)], return_tensors="pt")["pixel_values"]
        return {**self._constant, "pixel_values": pixels}


class OneForward(Prompted):
    """One forward in transformers with the label tree after the prompt."""

    def __init__(self, checkpoint: Checkpoint, task: Task) -> None:
        super().__init__(checkpoint, task)
        self._plan = TreePass.of(checkpoint, task)
        self.about = f"transformers, one forward, {_precision(checkpoint)}"

    def __call__(self, path: Path) -> Answer:
        def run(image: RgbImage) -> str:
            scores = self._plan.score(self.checkpoint, self.inputs(image))
            return self._task.labels[int(scores[0].argmax())]

        return _timed(path, self._task, run)


class Generate(Prompted):
    """transformers' ``generate``, greedy to the end of the turn, with its key-value cache."""

    def __init__(self, checkpoint: Checkpoint, task: Task) -> None:
        super().__init__(checkpoint, task)
        tree = label_tree(checkpoint.tokenizer, task)
        answers = [task.answer(label) for label in task.labels]
        ids = checkpoint.tokenizer(answers, add_special_tokens=False)["input_ids"]
        # An answer of the task, its end of turn, and a few to spare; a model off the rails stops there.
        self._limit = max(len(answer) for answer in ids) + 4
        self._prefix_tokens = len(tree.prefix_ids)
        self.about = f"transformers, generate to the end of the turn, {_precision(checkpoint)}"

    def __call__(self, path: Path) -> Answer:
        return _timed(path, self._task, lambda image: self._label(self.text(image)))

    @torch.inference_mode()
    def text(self, image: RgbImage) -> str:
        """The answer in words."""
        inputs, tokenizer = self.inputs(image), self.checkpoint.tokenizer
        tokens = self.checkpoint.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self._limit,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        text: str = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text.strip()

    def _label(self, text: str) -> str:
        return next((label for label in self._task.labels if self._task.answer(label).strip() == text), "")


def fastest(
    kind: Callable[[Checkpoint, Task], Contender], models: Mapping[str, Checkpoint], task: Task, paths: list[Path]
) -> tuple[Contender, dict[str, float]]:
    """``kind`` on the one of ``models`` (by precision) that answers sooner here, and the median milliseconds
    of a few calls on each."""
    found: dict[str, tuple[float, Contender]] = {}
    for precision, checkpoint in models.items():
        contender = kind(checkpoint, task)
        contender(paths[0])
        spent = []
        for path in paths[1 : _TRIALS + 1] or paths[:1]:
            started = time.perf_counter_ns()
            contender(path)
            spent.append((time.perf_counter_ns() - started) / 1e6)
        found[precision] = float(np.median(spent)), contender
    best = min(found.values(), key=lambda pair: pair[0])[1]
    return best, {precision: pair[0] for precision, pair in found.items()}


def precisions_of(reference: Path) -> dict[str, Checkpoint]:
    """The checkpoint in float32 and in bfloat16."""
    return {precision: load_checkpoint(reference, dtype=precision) for precision in PRECISIONS}


def _timed(path: Path, task: Task, run: Callable[[RgbImage], str]) -> Answer:
    started = time.perf_counter_ns()
    wafer = read_wafer(path)
    read = time.perf_counter_ns()
    image = render(wafer, task.render)
    drawn = time.perf_counter_ns()
    label = run(image)
    ends = (started, read, drawn, time.perf_counter_ns())
    parts = ("read", "render", "run")
    spent = {part: (b - a) / 1e6 for part, a, b in zip(parts, ends, ends[1:], strict=False)}
    return Answer(label, spent)


def _precision(checkpoint: Checkpoint) -> str:
    return str(checkpoint.model.dtype).removeprefix("torch.")
