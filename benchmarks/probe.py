"""Load time and peak memory of one contender, measured in a process that does nothing else::

    python -m benchmarks.probe bundle BUNDLE THREADS MAP.npy

prints one line of JSON. Imports are inside the functions: they are part of what is measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = 3


def peak_memory_mib() -> float:
    """The largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would tell of the process that started this one, where that was larger.
        line = next(text for text in status.read_text(encoding="ascii").splitlines() if text.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def probe(name: str, target: Path, threads: int, path: Path) -> dict[str, float]:
    """Milliseconds to import, to load and for the first answer, and the peak memory in MiB after a few."""
    started = time.perf_counter()
    make = _station(target, threads) if name in ("bundle", "static_full_precision") else _other(name, target, threads)
    imported = time.perf_counter()
    answer = make()
    loaded = time.perf_counter()
    answer(path)
    answered = time.perf_counter()
    for _ in range(CALLS - 1):
        answer(path)
    return {
        "import_ms": 1e3 * (imported - started),
        "load_ms": 1e3 * (loaded - imported),
        "first_answer_ms": 1e3 * (answered - loaded),
        "peak_mib": peak_memory_mib(),
    }


def _station(bundle: Path, threads: int) -> Callable[[], Callable[[Path], Any]]:
    import wafervlm

    return lambda: wafervlm.load(bundle, threads=threads).predict


def _other(name: str, target: Path, threads: int) -> Callable[[], Callable[[Path], Any]]:
    import torch

    from benchmarks.contenders import OPENVINO, Generate, OneForward, OpenVino

    torch.set_num_threads(threads)
    if name == OPENVINO:
        return lambda: OpenVino(target, threads)
    from train.dataset import TASK
    from train.loading import load_checkpoint
    from wafervlm.task import Task

    # The task lies beside the map, written there by whoever asks.
    kind = Generate if name == "reference_generate" else OneForward
    checkpoint, _, precision = str(target).rpartition("@")
    task = Task.from_file(Path(sys.argv[4]).with_name(TASK))
    return lambda: kind(load_checkpoint(Path(checkpoint), dtype=precision), task)


if __name__ == "__main__":
    found = probe(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    sys.stdout.write(json.dumps(found) + "\n")
