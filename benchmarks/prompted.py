"""The contenders that run a transformers checkpoint: one forward for all labels, and generate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.contenders import Answer, Contender, timed
from train.encoding import encode
from train.loading import Checkpoint, load_checkpoint
from train.scorer import TreePass
from wafervlm.render import RgbImage
from wafervlm.task import Task

PRECISIONS = ("float32", "bfloat16")
_TRIALS = 3


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

        return timed(path, self._task, run)


class Generate(Prompted):
    """transformers' ``generate``, greedy to the end of the turn, with its key-value cache."""

    def __init__(self, checkpoint: Checkpoint, task: Task) -> None:
        super().__init__(checkpoint, task)
        answers = [task.answer(label) for label in task.labels]
        ids = checkpoint.tokenizer(answers, add_special_tokens=False)["input_ids"]
        # An answer of the task, its end of turn, and a few to spare; a model off the rails stops there.
        self._limit = max(len(answer) for answer in ids) + 4
        self.about = f"transformers, generate to the end of the turn, {_precision(checkpoint)}"

    def __call__(self, path: Path) -> Answer:
        return timed(path, self._task, lambda image: self.label_in(self.text(image)))

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

    def label_in(self, text: str) -> str:
        """The label that an answer names, "" where it names none of the task."""
        return next((label for label in self._task.labels if self._task.answer(label).strip() == text), "")


def fastest(
    kind: Callable[[Checkpoint, Task], Contender],
    models: Mapping[str, Checkpoint],
    task: Task,
    paths: list[Path],
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


def _precision(checkpoint: Checkpoint) -> str:
    return str(checkpoint.model.dtype).removeprefix("torch.")
