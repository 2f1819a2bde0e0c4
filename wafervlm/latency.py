"""How a call is timed: on distinct wafers, after warm-up, whole calls and their parts.

A call that repeats one input is answered from warm caches and says little about a tool that sees a
new wafer each time, so inputs must be distinct.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from wafervlm.errors import UsageError
from wafervlm.prediction import Prediction
from wafervlm.wafermap import WaferMap

PARTS = ("total", "read", "render", "run")

Input = TypeVar("Input")
Output = TypeVar("Output")


class Predictor(Protocol):
    """Anything that answers for one wafer and times the parts, as WaferVLM does."""

    def predict(self, wafer: WaferMap, /) -> Prediction: ...


class FilePredictor(Protocol):
    """Anything that answers for the map in a file, and for those in several at once, as WaferVLM does."""

    def predict(self, wafer: Path, /) -> Prediction: ...

    def predict_batch(self, wafers: Sequence[Path], /) -> list[Prediction]: ...


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds per call over ``calls`` calls: percentiles (linear interpolation), mean and extremes."""

    calls: int
    p50: float
    p90: float
    p99: float
    mean: float
    minimum: float
    maximum: float

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


def summarise(milliseconds: ArrayLike) -> Latency:
    """The Latency of calls that took ``milliseconds`` (N,). Raises UsageError where there is none."""
    times = np.asarray(milliseconds, dtype=np.float64).ravel()
    if not times.size or not np.isfinite(times).all():
        raise UsageError("no finite time to summarise; time at least one call")
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return Latency(times.size, p50, p90, p99, float(times.mean()), float(times.min()), float(times.max()))


def time_calls(
    call: Callable[[Input], Output],
    inputs: Sequence[Input],
    *,
    calls: int | None = None,
    warmup: int = 5,
    report: Callable[[int, int], None] | None = None,
) -> tuple[list[float], list[Output]]:
    """Call ``call`` on each of ``inputs`` in turn; return the milliseconds and the result of each call.

    ``warmup`` calls go first and are not counted. ``calls`` (as many as inputs when None) goes round the
    inputs again where it exceeds them. ``report`` is told, between calls, how many are done and of how many.
    Raises UsageError.
    """
    count = len(inputs) if calls is None else calls
    if not len(inputs) or count < 1 or warmup < 0:
        raise UsageError(f"cannot time {count} calls on {len(inputs)} inputs after {warmup} to warm up")
    for item in islice(cycle(inputs), warmup):
        call(item)
    milliseconds, results = [], []
    for item in islice(cycle(inputs), count):
        started = time.perf_counter_ns()
        result = call(item)
        milliseconds.append((time.perf_counter_ns() - started) / 1e6)
        results.append(result)
        if report is not None:
            report(len(results), count)
    return milliseconds, results


def measure(
    model: Predictor, wafers: Sequence[WaferMap], *, calls: int | None = None, warmup: int = 5
) -> Mapping[str, Latency]:
    """Time ``model.predict`` on ``wafers``, which must be distinct: the whole call as ``total``, seen from
    outside, and ``read``, ``render`` and ``run`` as the predictions say. Raises UsageError."""
    if len({wafer.digest for wafer in wafers}) < len(wafers):
        raise UsageError("some wafers to be timed are the same map; pass distinct ones")
    milliseconds, predictions = time_calls(model.predict, wafers, calls=calls, warmup=warmup)
    parts = {part: [prediction.timing_ms[part] for prediction in predictions] for part in PARTS[1:]}
    return {part: summarise(times) for part, times in {"total": milliseconds, **parts}.items()}


def measure_files(
    model: FilePredictor,
    paths: Sequence[Path],
    *,
    batch: int = 1,
    warmup: int = 5,
    report: Callable[[int, int], None] | None = None,
) -> Mapping[str, Latency]:
    """Time ``model.predict`` on each of the files ``paths``, or ``model.predict_batch`` on ``batch`` of them
    at a time: the whole call as ``total``, seen from outside, and what all its wafers together took to
    ``read``, ``render`` and ``run``. The first ``warmup`` batches are not timed, and no file is read twice;
    files that do not fill a batch are left out. ``report`` is as in time_calls. Raises UsageError."""

    def call(some: Sequence[Path]) -> list[Prediction]:
        return model.predict_batch(some) if batch > 1 else [model.predict(some[0])]

    batches = [paths[i : i + batch] for i in range(0, len(paths) - batch + 1, batch)]
    for some in batches[:warmup]:
        call(some)
    milliseconds, results = time_calls(call, batches[warmup:], warmup=0, report=report)
    parts = {part: [sum(p.timing_ms[part] for p in found) for found in results] for part in PARTS[1:]}
    return {part: summarise(times) for part, times in {"total": milliseconds, **parts}.items()}


def vary(wafers: Sequence[WaferMap], count: int, *, share: float = 0.02, seed: int = 0) -> list[WaferMap]:
    """``count`` distinct maps made from ``wafers``: turned, mirrored, and each die with probability ``share``
    passing for failing and failing for passing. Their labels are those of no one. Raises UsageError where
    ``wafers`` are too small for so many."""
    rng = np.random.default_rng(seed)
    found: dict[str, WaferMap] = {}
    for _ in range(10 * count + 100):
        if len(found) == count:
            return list(found.values())
        dies = np.rot90(wafers[int(rng.integers(len(wafers)))].dies, int(rng.integers(4)))
        dies = dies[:, ::-1] if rng.random() < 0.5 else dies
        changed = (dies > 0) & (rng.random(dies.shape) < share)
        wafer = WaferMap(np.where(changed, 3 - dies, dies))
        found[wafer.digest] = wafer
    raise UsageError(f"{count} distinct maps cannot be made from these {len(wafers)}; ask for fewer")
