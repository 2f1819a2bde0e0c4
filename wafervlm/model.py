"""WaferVLM: a bundle made ready to answer, and verifying that it answers as it did where it was made."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wafervlm.bundle import Bundle, open_bundle
from wafervlm.engine import Engine, open_engine
from wafervlm.errors import ClosedError, ImageError, InputError, UsageError, VerificationError
from wafervlm.golden import Golden, read_golden
from wafervlm.manifest import Manifest
from wafervlm.prediction import Prediction
from wafervlm.render import RgbImage, render
from wafervlm.runtimes import Runtime, choose_runtime, open_runtime
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap, check_dies

if TYPE_CHECKING:
    from wafervlm.words.description import Description
    from wafervlm.words.stream import DescriptionStream, Speaker

log = logging.getLogger(__name__)

Wafer = WaferMap | ArrayLike | str | Path

CHUNK = 16
"""Images in one run; longer lists are cut, so that memory does not grow with the list."""

EXACT_LEVEL, EXACT_TOLERANCE = 0, 1e-3


def load(
    bundle: str | Path | None = None,
    *,
    runtime: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    engine: str | Path | None = None,
    runtime_cache: str | Path | None = None,
) -> WaferVLM:
    """Open the bundle folder ``bundle`` (the embedded nano one when None) and make it ready to answer.

    ``runtime`` is "onnx", "onnx-cuda", "openvino", "tensorrt" or "auto"; None is "tensorrt" where
    ``engine``, a folder that ``wafervlm engine`` built, is given, else "onnx". "auto" takes the fastest that
    can run here, "openvino" excepted, and logs which and why. ``runtime_cache`` is a folder in which
    tensorrt_rtx keeps compiled kernels. ``threads`` is how many threads one prediction uses on the CPU, one
    per core when None.

    Every file's digest is compared before anything parses it; nothing is fetched, and nothing is written
    outside ``runtime_cache``. Raises IntegrityError where bundle or engine is not as it was written,
    VerificationError for an engine that has not reproduced the golden maps here, LockError where the task is
    not as it was, ProviderError and MissingDependencyError for what this machine lacks, ResourceError where
    memory runs out, UsageError for an argument that cannot be meant.
    """
    opened = open_bundle(bundle)
    compiled = None if engine is None else open_engine(engine, opened)
    name, why = (runtime or ("onnx" if compiled is None else "tensorrt")), ""
    if name == "auto":
        name, why = choose_runtime(opened, compiled)
        log.info("runtime auto is %s: %s", name, why)
        # What was not chosen is not opened.
        compiled = compiled if name == "tensorrt" else None
    check = name == "tensorrt" and compiled is not None and _needs_verification(compiled, opened)
    cache = Path(runtime_cache) if runtime_cache is not None and (name == "tensorrt" or not why) else None
    ready = open_runtime(name, opened, device=device, threads=threads, engine=compiled, runtime_cache=cache)
    device = "cuda" if name == "onnx-cuda" else device
    # What computes may differ from one processor to the next, and is said.
    why = "; ".join(filter(None, (why, getattr(ready, "about", ""))))
    text = f"{name} ({why})" if why else name
    model = WaferVLM(opened, ready, device=device, threads=threads, runtime_name=text)
    if check and compiled is not None:
        _accept(model, compiled)
    return model


def _needs_verification(engine: Engine, bundle: Bundle) -> bool:
    from wafervlm.acceptance import needs_verification

    return needs_verification(engine, bundle)


def _accept(model: WaferVLM, engine: Engine) -> None:
    """Run the golden maps before the first answer; a model that fails them is closed."""
    from wafervlm.acceptance import accept
    from wafervlm.runtimes.tensorrt import find_place

    try:
        accept(model, read_golden(model._bundle), engine, find_place(engine, model._bundle))
    except BaseException:
        model.close()
        raise


class WaferVLM:
    """A model that answers what is wrong with a wafer. Made by ``wafervlm.load``; threads may share it."""

    def __init__(
        self,
        bundle: Bundle,
        runtime: Runtime,
        *,
        device: str = "cpu",
        threads: int | None = None,
        runtime_name: str = "",
    ) -> None:
        self._bundle = bundle
        self._runtime_name = runtime_name
        self._chunk = min(CHUNK, runtime.max_batch or CHUNK)
        self._task_digest = bundle.manifest.task_digest
        self._runtime: Runtime | None = runtime
        self._words_on, self._words_lock = (device, threads), threading.Lock()
        self._speaker: Speaker | None = None

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def runtime(self) -> str:
        """What executes the graph; where "auto" chose it, why."""
        return self._runtime_name

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

    def describe(
        self,
        wafer: Wafer,
        question: str,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        timeout: float | None = None,
        cancelled: Callable[[], bool] | None = None,
        foreign: bool = False,
        bins: Mapping[str, int] | None = None,
    ) -> Description:
        """Generate an answer to ``question`` about one wafer, in the bundle's own words.

        Takes a bundle that was exported with words, and the extra ``[words]``; the first call opens the
        graphs for it, on ONNX Runtime, also where an engine classifies. Greedy at ``temperature`` 0; above
        it tokens are drawn, among the ``top_k`` likeliest (0: all) that make up the probability ``top_p``,
        the same for the same ``seed``. It ends at the model's own end, at ``max_tokens`` or the end of the
        context, or once ``cancelled``, asked before each token, says yes. The wafer, ``timeout``,
        ``foreign`` and ``bins`` are as in ``predict``.
        Raises UsageError for a bundle without words and an argument that cannot be meant, InputError for a
        question longer than the context, PredictionTimeout, MissingDependencyError and ClosedError.
        """
        stream = self.describe_stream(
            wafer,
            question,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            timeout=timeout,
            cancelled=cancelled,
            foreign=foreign,
            bins=bins,
        )
        for _ in stream:
            pass
        return stream.result

    def describe_stream(
        self,
        wafer: Wafer,
        question: str,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        timeout: float | None = None,
        cancelled: Callable[[], bool] | None = None,
        foreign: bool = False,
        bins: Mapping[str, int] | None = None,
    ) -> DescriptionStream:
        """Generate as ``describe`` does, and return the answer as an iterator over pieces of its text, each
        as soon as it is certain; no piece ends in half a character. Closing it, from any thread, ends it.
        Arguments and errors are those of ``describe``."""
        from wafervlm.words.generation import Limits
        from wafervlm.words.sampling import Sampling
        from wafervlm.words.stream import Asked

        sampling = Sampling(temperature, top_k, top_p, seed)
        limits = Limits(max_tokens, _deadline(timeout), cancelled)
        speaker = self._words()
        view = _view(wafer, self.task, foreign, bins)
        image = self._checked(view.image[None])
        spent = {"read": view.read / 1e6, "render": view.render / 1e6}
        name = view.wafer.id if view.wafer is not None else view.name
        asked = Asked(image, question, name, view.wafer is not None, spent)
        return speaker.answer(asked, sampling, limits)

    def label_log_probs(self, images: RgbImage, *, timeout: float | None = None) -> NDArray[np.float32]:
        """Label log-probabilities float32 (B, L), in the order of the task's labels, before temperature.

        ``images`` are uint8 (B, H, W, 3) RGB of the size that the task draws. Raises ImageError,
        VerificationError where the graph gives no probabilities, PredictionTimeout and ClosedError.
        """
        deadline = _deadline(timeout)
        images = self._checked(images)
        chunk = self._chunk
        parts = [self._run(images[i : i + chunk], deadline) for i in range(0, len(images), chunk)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.task.labels)), np.float32)

    def close(self) -> None:
        """Free the model's memory; predictions of other threads end first. Closing twice does nothing."""
        with self._words_lock:  # or what a describe is opening just now would stay
            runtime, self._runtime, self._speaker = self._runtime, None, None
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
        for first in range(0, len(wafers), self._chunk):
            started = time.perf_counter_ns()
            views = []
            for index, wafer in enumerate(wafers[first : first + self._chunk], first):
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

    def _words(self) -> Speaker:
        """What generates text, opened at the first call: its weights are memory of their own."""
        from wafervlm.words.stream import Speaker

        with self._words_lock:
            self._ready()
            if self._speaker is None:
                device, threads = self._words_on
                self._speaker = Speaker(self._bundle, device=device, threads=threads)
            return self._speaker

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


def verify(
    bundle: str | Path | None = None,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    engine: str | Path | None = None,
    runtime_cache: str | Path | None = None,
) -> dict[str, Any]:
    """Run the bundle's golden maps on this machine and compare with the scores of the checkpoint.

    At exact accuracy every label log-probability must lie within 1e-3 of the reference; as deployed,
    within the manifest's ``verify_tolerance``. A graph whose vision tower computes in integers has no exact
    form: it is verified as deployed alone. ``runtime`` is one that runs the graph itself: "onnx" (also where
    None), "onnx-cuda" or "openvino". With ``engine`` they run on that engine alone, within its own
    tolerance, and what came out is kept in its folder, where it can be written ("recorded"), so that ``load``
    takes it from then on. Returns the figures as plain values. Raises VerificationError where they do not
    come out, and what ``load`` raises.
    """
    opened = open_bundle(bundle)
    if engine is not None:
        if runtime not in (None, "tensorrt"):
            raise UsageError(f"an engine is verified on runtime 'tensorrt' alone, and runtime is {runtime!r}")
        from wafervlm.acceptance import verify_engine

        cache = None if runtime_cache is None else Path(runtime_cache)
        found, recorded = verify_engine(opened, open_engine(engine, opened), runtime_cache=cache)
        return {"bundle": opened.digest, "recorded": recorded, **found.to_dict()}
    if runtime_cache is not None or runtime == "auto":
        raise UsageError("without an engine a bundle is verified on a runtime that is named, with no cache")
    golden = read_golden(opened)
    graph = opened.manifest.graph
    levels = {"deployed": (graph.accuracy_level, opened.manifest.verify_tolerance)}
    if graph.vision == "float32":
        levels = {"exact": (EXACT_LEVEL, EXACT_TOLERANCE), **levels}
    on = runtime or "onnx"
    report: dict[str, Any] = {"bundle": opened.digest, "runtime": on, "maps": len(golden.maps)}
    for name, (level, tolerance) in levels.items():
        ready = open_runtime(on, opened, threads=threads, accuracy_level=level)
        with WaferVLM(opened, ready) as model:
            report[name] = {"accuracy_level": level, "tolerance": tolerance, **_compare(model, golden)}
    for name in levels:
        far, tolerance = report[name]["max_abs_difference"], report[name]["tolerance"]
        if far > tolerance:
            raise VerificationError(
                f"bundle {opened.path} does not reproduce its golden maps here on {on}, {name}: label "
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
