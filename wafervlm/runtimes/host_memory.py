"""Memory of this process that a build is done with, given back to the system on Linux; elsewhere nothing."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

LARGE = 1 << 18
_M_MMAP_THRESHOLD = -3


def map_large_blocks() -> None:
    """Have malloc map each large block on its own, so that it goes back to the system when it is freed.

    glibc by itself raises the size from which it does so up to 32 MiB; copies of a 4B's weights, freed in the
    middle of a build, then take 1 GB until the process ends.
    """
    if sys.platform == "linux":
        # C libraries other than glibc have no such function, or one that does nothing.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, LARGE)


def release_mapped(folder: Path) -> int:
    """Let go of what is in memory of files of ``folder`` that are mapped to be read; return the bytes mapped.
    Whoever reads a page again gets it from the file."""
    if sys.platform != "linux":
        return 0
    within, released = f"{folder.resolve()}/", 0
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        # What may be written could hold values that the file does not have.
        if len(fields) == 6 and fields[1].startswith("r-") and fields[5].startswith(within):
            start, end = (int(place, 16) for place in fields[0].split("-"))
            if not ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED
            ):
                released += end - start
    return released
