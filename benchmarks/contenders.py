"""The ways to answer for one wafer that are timed against each other. Each takes the path of a die grid and
goes the whole way: read the file, draw the image, run the model, name the label. Those that need torch are in
prompted.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wafervlm.bundle import open_bundle
from wafervlm.errors import ProviderError
from wafervlm.loading import load
from wafervlm.prediction import softmax
from wafervlm.readers import read_wafer
from wafervlm.render import RgbImage, render
from wafervlm.runtimes.openvino import import_openvino
from wafervlm.task import Task

BUNDLE, STATIC, ONE_FORWARD = "bundle", "static_full_precision", "reference_one_forward"
GENERATE, OPENVINO = "reference_generate", "openvino"
NAMES = (BUNDLE, STATIC, ONE_FORWARD, GENERATE, OPENVINO)


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
        if graph.vision != "float32":
            self.about += ", vision tower in 8-bit integers"

    def __call__(self, path: Path) -> Answer:
        prediction = self.model.predict(path)
        return Answer(prediction.label, prediction.timing_ms)


class OpenVino:
    """The bundle's own ONNX file in OpenVINO, at batch 1, optimised for latency and left to choose what it
    computes in, which a station's runtime does not do where accuracy would suffer."""

    def __init__(self, bundle: Path | None, threads: int) -> None:
        opened = open_bundle(bundle)
        self._task, self._temperature = opened.manifest.task, opened.manifest.temperature
        graph, spec = opened.manifest.graph, self._task.render
        core = import_openvino().Core()
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        try:
            model = core.read_model(opened.path / graph.file)
            model.reshape({graph.input: [1, spec.height, spec.width, 3]})
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise ProviderError(
                f"OpenVINO cannot run the graph: {str(error).strip().splitlines()[-1]}"
            ) from None
        self._request = compiled.create_infer_request()
        precision = str(compiled.get_property("INFERENCE_PRECISION_HINT")).strip("<>").split("'")[1:2]
        self.about = (
            f"OpenVINO on the bundle's ONNX, batch 1, computing in {''.join(precision) or 'its default'}"
        )

    def __call__(self, path: Path) -> Answer:
        def run(image: RgbImage) -> str:
            scores = self._request.infer([image[None]], share_inputs=True)[0]
            return self._task.labels[int(softmax(scores, self._temperature).argmax())]

        return timed(path, self._task, run)


def timed(path: Path, task: Task, run: Callable[[RgbImage], str]) -> Answer:
    """The answer of ``run`` for the map in ``path``, drawn as ``task`` says, with the time of each part."""
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
