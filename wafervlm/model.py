"""WaferVLM: a bundle made ready to answer, and verifying that it answers as it did where it was made."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wafervlm.bundle import Bundle, open_bundle
from wafervlm.errors import ClosedError, ImageError, InputError, UsageError, VerificationError
from wafervlm.golden import Golden, read_golden
from wafervlm.manifest import Manifest
from wafervlm.prediction import Prediction
from wafervlm.render import RgbImage, render
from wafervlm.runtimes import Runtime, open_runtime
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap, check_dies

Wafer = WaferMap | ArrayLike | str | Path

CHUNK = 16
"""Images in one run; longer lists are cut, so that memory does not grow with the list."""

EXACT_LEVEL, EXACT_TOLERANCE = 0, 1e-3


def load(
    bundle: str | Path | None = None,
    *,
    runtime: str = "onnx",
    device: str = "cpu",
    threads: int | None = None,
) -> WaferVLM:
    """Open the bundle folder ``bundle`` (the embedded nano one when None) and make it ready to answer.

    ``threads`` is how many threads one prediction uses, one per core when None. Every file's digest is
    compared before anything parses it; nothing is written and nothing is fetched. Raises IntegrityError
    where the bundle is not as it was written, LockError where its task is not, ProviderError and
    MissingDependencyError for what this machine lacks, UsageError for an argument that cannot be meant.
    """
    opened = open_bundle(bundle)
    return WaferVLM(opened, open_runtime(runtime, opened, device=device, threads=threads))


class WaferVLM:
    """A model that answers what is wrong with a wafer. Made by ``wafervlm.load``; threads may share it."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self._bundle = bundle
        self._task_digest = bundle.manifest.task_digest
        self._runtime: Runtime | None = runtime

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def task(self) -> Task:
        """The question the model is locked to."""
        return self._bundle.manifest.task

    @property
    def digest(self) -> str:
        """sha256 of the bundle's manifest, 64 hex digits: the bundle's name in an audit trail."""
        return self._bundle.digest

    def predict(
        self,
        wafer: Wafer,
        *,
        timeout: float | None = None,
        foreign: bool = False,
        bins: Mapping[str, int] | None = None,
    ) -> Prediction:
        """Answer for one wafer: a WaferMap, an (H, W) array of 0 no die / 1 pass / 2 fail, or a path.

        ``timeout`` is in seconds and stops the call. ``foreign`` lets an image file in whose colours are
        not the task's; its answer has ``locked`` False. ``bins`` maps the bin codes of a text file to
        0, 1 and 2. Raises InputError, PredictionTimeout and ClosedError.
        """
        return next(self._answers([wafer], timeout, foreign, bins))

    def predict_batch(
        self,
        wafers: Iterable[Wafer],
        *,
        timeout: float | None = None,
        foreign: bool = False,
        bins: Mapping[str, int] | None = None,
    ) -> list[Prediction]:
        """Answer for each of ``wafers``, in order; ``timeout`` is for all together.

        Arguments and errors are those of ``predict``. In ``timing_ms`` the time of a run is shared
        equally by the images that it took at once.
        """
        if isinstance(wafers, (str, Path, WaferMap)):
            raise UsageError(f"predict_batch takes a list, not one {type(wafers).__name__}; use predict")
        return list(self._answers(list(wafers), timeout, foreign, bins))

    def label_log_probs(self, images: RgbImage, *, timeout: float | None = None) -> NDArray[np.float32]:
        """Label log-probabilities float32 (B, L), in the order of the task's labels, before temperature.

        ``images`` are uint8 (B, H, W, 3) RGB of the size that the task draws. Raises ImageError,
        VerificationError where the graph gives no probabilities, PredictionTimeout and ClosedError.
        """
        deadline = _deadline(timeout)
        images = self._checked(images)
        parts = [self._run(images[i : i + CHUNK], deadline) for i in range(0, len(images), CHUNK)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.task.labels)), np.float32)

    def close(self) -> None:
        """Free the model's memory; predictions of other threads end first. Closing twice does nothing."""
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.close()

    def __enter__(self) -> WaferVLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        graph, state = self.manifest.graph, "closed" if self._runtime is None else "ready"
        return f"<WaferVLM {self.manifest.name} {graph.precision} {self.digest[:12]}, {state}>"

    def _answers(
        self, wafers: Sequence[Wafer], timeout: float | None, foreign: bool, bins: Mapping[str, int] | None
    ) -> Iterator[Prediction]:
        deadline = _deadline(timeout)
        self._ready()
        for first in range(0, len(wafers), CHUNK):
            started = time.perf_counter_ns()
            views = []
            for index, wafer in enumerate(wafers[first : first + CHUNK], first):
                try:
                    views.append(_view(wafer, self.task, foreign, bins))
                except InputError as error:
                    if len(wafers) == 1:
                        raise
                    raise type(error)(f"item {index} of the batch: {error}") from error
            before_run = time.perf_counter_ns()
            scores = self._run(self._checked(np.stack([view.image for view in views])), deadline)
            probabilities = softmax(scores, self.manifest.temperature)
            now = time.perf_counter_ns()
            run = now - before_run
            rest = now - started - run - sum(view.read + view.render for view in views)
            for view, row in zip(views, probabilities, strict=True):
                yield self._prediction(view, row, run / len(views), rest / len(views))

    def _prediction(self, view: _View, row: NDArray[np.float64], run: float, rest: float) -> Prediction:
        best = int(row.argmax())
        spent = {"read": view.read, "render": view.render, "run": run}
        return Prediction(
            label=self.task.labels[best],
            confidence=float(row[best]),
            scores=dict(zip(self.task.labels, row.tolist(), strict=True)),
            timing_ms={key: ns / 1e6 for key, ns in {**spent, "total": sum(spent.values()) + rest}.items()},
            id=view.wafer.id if view.wafer is not None else view.name,
            locked=view.wafer is not None,
            task=self._task_digest,
            bundle=self.digest,
            wafer=view.wafer,
            image=view.image if view.wafer is None else None,
        )

    def _ready(self) -> Runtime:
        if self._runtime is None:
            raise ClosedError("this model was closed; load it again")
        return self._runtime

    def _checked(self, images: RgbImage) -> RgbImage:
        spec = self.task.render
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            kind = getattr(images, "dtype", type(images).__name__)
            raise ImageError(f"images are {kind}; they must be a uint8 array of shape (B, H, W, 3)")
        if images.ndim != 4 or images.shape[1:] != (spec.height, spec.width, 3):
            raise ImageError(
                f"images have shape {images.shape}; this model takes (B, {spec.height}, {spec.width}, 3), "
                "as wafervlm draws them"
            )
        return np.ascontiguousarray(images)

    def _run(self, images: RgbImage, deadline: float | None) -> NDArray[np.float32]:
        scores = self._ready().run(images, deadline)
        wanted = (len(images), len(self.task.labels))
        good = scores.shape == wanted and bool(np.isfinite(scores).all())
        # 1e-3 leaves room for float32 over hundreds of labels and for nothing else.
        if not good or np.abs(np.exp(scores.astype(np.float64)).sum(axis=1) - 1).max() > 1e-3:
            raise VerificationError(
                f"bundle {self._bundle.path} gave scores that are no probabilities over {wanted[1]} labels "
                "(not finite, or not summing to 1); run: wafervlm verify"
            )
        return scores


def softmax(log_probs: NDArray[np.floating[Any]], temperature: float) -> NDArray[np.float64]:
    """Probabilities float64 (B, L): softmax over the last axis of ``log_probs / temperature``."""
    scaled = log_probs.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def verify(bundle: str | Path | None = None, *, threads: int | None = None) -> dict[str, Any]:
    """Run the bundle's golden maps on this machine and compare with the scores of the checkpoint.

    At exact accuracy every label log-probability must lie within 1e-3 of the reference; as deployed,
    within the manifest's ``verify_tolerance``. A graph whose vision tower computes in integers has no exact
    form: it is verified as deployed alone. Returns the figures as plain values. Raises
    VerificationError where they do not come out, and what ``load`` raises.
    """
    opened = open_bundle(bundle)
    golden = read_golden(opened)
    graph = opened.manifest.graph
    levels = {"deployed": (graph.accuracy_level, opened.manifest.verify_tolerance)}
    if graph.vision == "float32":
        levels = {"exact": (EXACT_LEVEL, EXACT_TOLERANCE), **levels}
    report: dict[str, Any] = {"bundle": opened.digest, "maps": len(golden.maps)}
    for name, (level, tolerance) in levels.items():
        runtime = open_runtime("onnx", opened, threads=threads, accuracy_level=level)
        with WaferVLM(opened, runtime) as model:
            report[name] = {"accuracy_level": level, "tolerance": tolerance, **_compare(model, golden)}
    for name in levels:
        far, tolerance = report[name]["max_abs_difference"], report[name]["tolerance"]
        if far > tolerance:
            raise VerificationError(
                f"bundle {opened.path} does not reproduce its golden maps here, {name}: label "
                f"log-probabilities are {far:.2g} off where {tolerance:g} is allowed; report it with the "
                "output of: wafervlm doctor"
            )
    return report


def _compare(model: WaferVLM, golden: Golden) -> dict[str, float]:
    images = np.stack([render(wafer, model.task.render) for wafer in golden.maps])
    scores = model.label_log_probs(images)
    return {
        "max_abs_difference": float(np.abs(scores - golden.reference).max()),
        "label_agreement": float((scores.argmax(1) == golden.reference.argmax(1)).mean()),
    }


@dataclass(slots=True)
class _View:
    """What the model sees of one wafer, and the nanoseconds it took to read and to render."""

    image: RgbImage
    wafer: WaferMap | None
    name: str
    read: int
    render: int


def _view(item: Wafer, task: Task, foreign: bool, bins: Mapping[str, int] | None) -> _View:
    started = time.perf_counter_ns()
    name = Path(item).stem if isinstance(item, (str, Path)) else ""
    read = _read(item, task, foreign, bins)
    middle = time.perf_counter_ns()
    if isinstance(read, WaferMap):
        image = render(read, task.render)
        return _View(image, read, name, middle - started, time.perf_counter_ns() - middle)
    return _View(read, None, name, middle - started, 0)


def _read(item: Wafer, task: Task, foreign: bool, bins: Mapping[str, int] | None) -> WaferMap | RgbImage:
    if isinstance(item, WaferMap):
        return item
    if not isinstance(item, (str, Path)):
        return WaferMap(check_dies(item))
    from wafervlm.readers import read_file

    return read_file(item, task.render, bins=bins, foreign=foreign)


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise UsageError(f"timeout is {timeout!r}; it must be a number of seconds greater than 0, or None")
    return time.monotonic() + timeout
