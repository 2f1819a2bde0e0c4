"""The processor cores that this process may use, and how many threads that allows."""

from __future__ import annotations

import os

from wafervlm.errors import UsageError


def usable_cores() -> int:
    """Cores that this process may use: fewer than there are under taskset or in some containers."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(threads: object) -> None:
    """Refuse a number of threads that is none, or more than there are cores: threads that wait for each other
    in turns on one core make a prediction many times slower. Raises UsageError."""
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise UsageError(
            f"threads is {threads!r}; it must be a whole number from 1, or None for one per core"
        )
    cores = usable_cores()
    if threads > cores:
        raise UsageError(
            f"threads is {threads}, and the cores that this process may use are {cores}; more threads than "
            f"cores only slow each other down: take at most {cores}, or leave it out"
        )
