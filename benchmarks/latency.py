"""Latency of a bundle against the strongest simple alternatives, in one run.

The contenders take turns in short blocks, so that whatever else the machine does hits all alike. Each block
begins with a call that is not counted, which brings back the caches and the threads of the contender before
it. Every call is on a wafer map of its own.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contenders import (
    BUNDLE,
    GENERATE,
    ONE_FORWARD,
    OPENVINO,
    STATIC,
    Answer,
    Contender,
    OpenVino,
    Station,
)
from benchmarks.prompted import Generate, OneForward, fastest, precisions_of
from benchmarks.statistics import Floats, ratio_interval
from train.progress import Progress
from wafervlm.errors import SetupError, UsageError
from wafervlm.latency import PARTS, summarise
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap

log = logging.getLogger(__name__)

ROUNDS = 10


@dataclass
class Race:
    """Milliseconds and answers of each contender, call by call."""

    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def figures(self, name: str) -> dict[str, Any]:
        """Percentiles of the whole call, seen from outside, and the median of each of its parts."""
        answers = self.answers[name]
        parts = {part: [a.timing_ms[part] for a in answers] for part in PARTS if part != "total"}
        medians = {part: summarise(times).p50 for part, times in parts.items()}
        return {**summarise(self.milliseconds[name]).to_dict(), "parts": medians}

    def ratios(self, name: str) -> dict[str, float]:
        """Medians over the bundle's, of the whole call and of the run alone, each with its 95 % interval over
        resampled calls of both."""
        found = {}
        for what, of in (("call", self._calls), ("run", self._runs)):
            theirs, ours = of(name), of(BUNDLE)
            found[what] = float(np.median(theirs) / np.median(ours))
            # Against itself there is nothing to draw.
            low, high = (1.0, 1.0) if name == BUNDLE else ratio_interval(theirs, ours)
            found |= {f"{what}_low": low, f"{what}_high": high}
        return found

    def _calls(self, name: str) -> Floats:
        return np.array(self.milliseconds[name])

    def _runs(self, name: str) -> Floats:
        return np.array([answer.timing_ms["run"] for answer in self.answers[name]])


def race(contenders: Mapping[str, Contender], paths: Sequence[Path], calls: Mapping[str, int]) -> Race:
    """Time ``calls[name]`` calls of each contender on the first of ``paths``, in alternating blocks.

    Raises UsageError where there are fewer paths than calls.
    """
    if not paths or not 1 <= min(calls.values()) <= max(calls.values()) <= len(paths):
        raise UsageError(f"cannot time {dict(calls)} calls on {len(paths)} maps")
    shares = {name: np.array_split(np.arange(count), min(ROUNDS, count)) for name, count in calls.items()}
    result = Race({name: [] for name in contenders}, {name: [] for name in contenders})
    names = list(contenders)
    with Progress("time the contenders", sum(calls.values())) as progress, _undisturbed():
        for turn in range(ROUNDS):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                share = shares[name][turn].tolist() if turn < len(shares[name]) else []
                _block(contenders[name], paths, share, result.milliseconds[name], result.answers[name])
                progress.advance(len(share), note=name)
    return result


def _block(
    contender: Contender,
    paths: Sequence[Path],
    share: Sequence[int],
    spent: list[float],
    answers: list[Answer],
) -> None:
    if not share:
        return
    contender(paths[share[0] - 1])
    for place in share:
        started = time.perf_counter_ns()
        answer = contender(paths[place])
        spent.append((time.perf_counter_ns() - started) / 1e6)
        answers.append(answer)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the collector away from what the workshop's libraries hold: a station does not have them."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True)
class LatencySettings:
    """How many calls are timed of each contender, of generate, and with how many threads."""

    maps: int = 200
    generate_maps: int = 20
    threads: int = 2


def measure_latency(
    bundle: Path | None,
    full_precision: Path,
    reference: Path,
    task: Task,
    wafers: Sequence[WaferMap],
    settings: LatencySettings,
) -> dict[str, Any]:
    """Time the five contenders on distinct ``wafers``.

    Returns ``latency_ms`` (figures of each), ``about`` (what each is, in words), ``absent`` (reasons why one
    is missing), ``precisions`` (what was tried for the transformers contenders), ``agreement`` (share of
    calls with the bundle's label) and ``ratios`` (its median over the bundle's: whole call and run alone,
    each with its 95 % interval).
    """
    chosen = _distinct(wafers, settings.maps)
    with tempfile.TemporaryDirectory() as folder, _torch_threads(settings.threads):
        paths = _write(Path(folder), chosen)
        contenders, absent, precisions = _contenders(bundle, full_precision, reference, task, paths, settings)
        most = len(paths)
        calls = {name: min(settings.generate_maps, most) if name == GENERATE else most for name in contenders}
        result = race(contenders, paths, calls)
    figures = {name: result.figures(name) for name in contenders}
    return {
        "latency_ms": figures,
        "about": {name: contender.about for name, contender in contenders.items()},
        "absent": absent,
        "precisions": precisions,
        "agreement": {name: _agreement(result, name) for name in contenders},
        "ratios": {name: result.ratios(name) for name in contenders},
        "threads": settings.threads,
    }


def _contenders(
    bundle: Path | None,
    full_precision: Path,
    reference: Path,
    task: Task,
    paths: list[Path],
    settings: LatencySettings,
) -> tuple[dict[str, Contender], dict[str, str], dict[str, dict[str, float]]]:
    precisions: dict[str, dict[str, float]] = {}
    models = precisions_of(reference)

    def sooner(name: str, kind: Callable[..., Contender]) -> Contender:
        contender, precisions[name] = fastest(kind, models, task, paths)
        return contender

    makers: dict[str, Callable[[], Contender]] = {
        BUNDLE: lambda: Station(bundle, settings.threads),
        STATIC: lambda: Station(full_precision, settings.threads),
        ONE_FORWARD: lambda: sooner(ONE_FORWARD, OneForward),
        GENERATE: lambda: sooner(GENERATE, Generate),
        OPENVINO: lambda: OpenVino(bundle, settings.threads),
    }
    contenders, absent = {}, {}
    for name, make in makers.items():
        try:
            contenders[name] = make()
        except SetupError as error:
            if name != OPENVINO:
                raise
            log.warning("%s is left out: %s", name, error)
            absent[name] = str(error)
    return contenders, absent, precisions


def _distinct(wafers: Sequence[WaferMap], count: int) -> list[WaferMap]:
    """At most ``count`` different maps, drawn from all of ``wafers``."""
    different = list({wafer.digest: wafer for wafer in wafers}.values())
    return [different[i] for i in np.random.default_rng(0).permutation(len(different))[:count]]


def _write(folder: Path, wafers: Sequence[WaferMap]) -> list[Path]:
    paths = []
    for number, wafer in enumerate(wafers):
        paths.append(folder / f"{number}.npy")
        np.save(paths[-1], wafer.dies)
    return paths


def _agreement(result: Race, name: str) -> float:
    pairs = zip(result.answers[BUNDLE], result.answers[name], strict=False)
    return float(np.mean([ours.label == theirs.label for ours, theirs in pairs]))


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
