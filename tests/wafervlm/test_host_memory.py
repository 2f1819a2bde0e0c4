"""Memory goes back to the system."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from wafervlm.runtimes.host_memory import release_mapped

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is tested is done on Linux only")
SIZE = 64 << 20
# Blocks of 8 MiB, freed but for the last: those before it stay in glibc's heap once it has seen larger ones.
FREED = """
import ctypes, sys
from wafervlm.runtimes.host_memory import map_large_blocks
if sys.argv[1] == "mapped":
    map_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def block(size):
    place = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(place, 1, size)
    return place
libc.free(block(30 << 20))
blocks = [block(8 << 20) for _ in range(17)]
for place in blocks[:-1]:
    libc.free(place)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
"""


def test_pages_of_a_mapped_file_are_let_go_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    path.write_bytes(b"wafer" * (SIZE // 5))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:: mmap.PAGESIZE]
        before = _resident("RssFile")
        assert release_mapped(tmp_path / "other") == 0
        assert release_mapped(tmp_path) >= path.stat().st_size
        assert _resident("RssFile") < before - 0.9 * SIZE
        assert mapped[:] == path.read_bytes()


def test_a_mapping_that_may_be_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(mmap.PAGESIZE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[0] = 7
        assert release_mapped(tmp_path) == 0
        assert mapped[0] == 7


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_large_blocks_go_back_when_they_are_freed() -> None:
    def kilobytes(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert kilobytes("mapped") < kilobytes("as it is") - 100_000


def _resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(kind))) * 1024
