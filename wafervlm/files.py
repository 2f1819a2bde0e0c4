"""Files and folders that stand whole under their name or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


def write_whole(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write ``data`` beside ``path`` and rename it to ``path``: nobody ever reads half of it. Without
    ``sync`` it may be lost where the power fails, but not halved."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        beside.write_bytes(data)
        if sync:
            flush(beside)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def replace_folder(work: Path, out: Path) -> None:
    """Rename ``work`` to ``out``, moving what stood there aside first so that either one is whole."""
    aside = out.parent / f".{out.name}.{os.getpid()}.replaced"
    if out.exists():
        out.rename(aside)
    work.rename(out)
    shutil.rmtree(aside, ignore_errors=True)
    flush(out.parent)


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder``, and itself, to the disk."""
    for path in [*sorted(folder.rglob("*")), folder]:
        if not path.is_symlink():
            flush(path)


def flush(path: Path) -> None:
    """Flush the file or the folder's list of names ``path`` to the disk."""
    # Windows opens no folders, and flushes a file's name with the file.
    if os.name == "nt" and path.is_dir():
        return
    # Windows flushes only what was opened for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
