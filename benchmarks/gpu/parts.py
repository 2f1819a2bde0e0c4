"""Parts: every shape, and the bundles, each in a process of its own.

After a recording that failed, or a kernel that read where it must not, nothing else runs on the device in
that process; so it takes its own part with it, and no other.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import Device
from benchmarks.gpu.nvml import Telemetry
from benchmarks.gpu.results import FAILED, Results
from benchmarks.gpu.run import describe_device, run
from benchmarks.gpu.settings import Settings
from wafervlm import console

Measure = Callable[[Settings, Path], Any]


def run_parts(settings: Settings, out: Path, measure: Measure = run) -> Results:
    """Measure everything that ``settings`` ask for, part by part, and keep it in ``out``. What one part
    leaves of its share of the budget the next ones have. Raises as ``run`` does."""
    device = Device(settings.device)
    machine = describe_device(device, Telemetry(device))
    parts, end = parts_of(settings), time.time() + settings.budget
    results = Results(out, settings.to_dict(), machine)
    results.write()
    for number, (name, part) in enumerate(parts):
        share = max(end - time.time(), 0.0) / (len(parts) - number)
        code = _in_process(measure, part, out, time.time() + share)
        results = Results(out, settings.to_dict(), machine)
        _note(results, name, code)
    return results


def parts_of(settings: Settings) -> Sequence[tuple[str, Settings]]:
    """The parts by name: one for each shape, one for all bundles."""
    shapes = [(name, replace(settings, shapes=(name,), bundles=(), engines=())) for name in settings.shapes]
    return [*shapes, ("bundles", replace(settings, shapes=()))] if settings.bundles else shapes


def _in_process(measure: Measure, settings: Settings, out: Path, end: float) -> int | None:
    # Spawned: a process that was forked cannot use CUDA.
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(measure, settings, out, end))
    process.start()
    try:
        process.join()
    finally:
        process.kill()
        process.join()
    return process.exitcode


def _work(measure: Measure, settings: Settings, out: Path, end: float) -> None:
    """In the process: ``measure`` until ``end``, a time.time(), so that starting it counts too."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    measure(replace(settings, budget=max(end - time.time(), 1e-3)), out)


def _end_with_parent() -> None:
    # Else a process whose parent was killed would hold the GPU and write into the next run's results.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _note(results: Results, name: str, code: int | None) -> None:
    key = f"{name}/process"
    if not code:
        results.drop(key)
        return
    ended = f"by signal {-code}" if code < 0 else f"with {code}"
    console.say(f"{name}: the process that measured it ended {ended}; the rows before that are kept")
    known = {"kind": "process", "shape": name}
    results.put(key, {**known, "status": f"{FAILED}: the process ended {ended}"})
