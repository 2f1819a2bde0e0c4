"""Load time and peak memory of one contender, measured in a process that does nothing else::

    python -m benchmarks.probe bundle BUNDLE THREADS MAP.npy

prints one line of JSON. Imports are inside the functions: they are part of what is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Load = Callable[[], Callable[[Path], Any]]

CALLS = 3


def probe(
    name: str, target: Path, threads: int, path: Path, precision: str, task_file: Path
) -> dict[str, float]:
    """Milliseconds to import, to load and for the first answer, and the peak memory in MiB after a few."""
    started = time.perf_counter()
    if name in ("reference_one_forward", "reference_generate"):
        load = _checkpoint(name, target, threads, precision, task_file)
    else:
        load = _openvino(target, threads) if name == "openvino" else _station(target, threads)
    imported = time.perf_counter()
    answer = load()
    loaded = time.perf_counter()
    answer(path)
    answered = time.perf_counter()
    for _ in range(CALLS - 1):
        answer(path)
    return {
        "import_ms": 1e3 * (imported - started),
        "load_ms": 1e3 * (loaded - imported),
        "first_answer_ms": 1e3 * (answered - loaded),
        "peak_mib": _peak_mib(),
    }


def _peak_mib() -> float:
    from wafervlm.machine import peak_memory_mib

    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset) / 2**20
    return peak_memory_mib() or 0.0


def _station(bundle: Path, threads: int) -> Load:
    import wafervlm

    return lambda: wafervlm.load(bundle, threads=threads).predict


def _openvino(bundle: Path, threads: int) -> Load:
    from benchmarks.contenders import OpenVino

    return lambda: OpenVino(bundle, threads)


def _checkpoint(name: str, target: Path, threads: int, precision: str, task_file: Path) -> Load:
    import torch

    from benchmarks.prompted import Generate, OneForward
    from train.loading import load_checkpoint
    from wafervlm.task import Task

    torch.set_num_threads(threads)
    kind = Generate if name == "reference_generate" else OneForward
    return lambda: kind(load_checkpoint(target, dtype=precision), Task.from_file(task_file))


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("target", type=Path, help="bundle or checkpoint folder")
    parser.add_argument("threads", type=int)
    parser.add_argument("map", type=Path, help="die grid, .npy")
    parser.add_argument("--precision", default="float32", help="of a checkpoint")
    parser.add_argument("--task", type=Path, default=Path("task.json"), help="task file, for a checkpoint")
    given = parser.parse_args()
    found = probe(given.name, given.target, given.threads, given.map, given.precision, given.task)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
