"""Files and folders that stand whole under their name or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from wafervlm.errors import UsageError


def check_writable(out: Path) -> None:
    """Refuse a file or folder ``out`` that could not be made where it is named, before any work is done.
    Raises UsageError."""
    above = out.resolve().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise UsageError(f"{out} cannot be written, since {above} is no folder; name a place elsewhere")
    # Windows' own access lists are not asked: there writing tells.
    if os.name != "nt" and not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(
            f"{out} cannot be written, since you may not write in {above}; name a place where you may, or "
            "change its permissions"
        )


def write_whole(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write ``data`` beside ``path`` and rename it to ``path``: nobody ever reads half of it. Without
    ``sync`` it may be lost where the power fails, but not halved."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        beside.write_bytes(data)
        if sync:
            flush(beside)
        beside.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            # A failed write names no file, and nobody asked for the one beside.
            error.filename, error.filename2 = str(path), None
        raise


def replace_folder(work: Path, out: Path) -> None:
    """Rename ``work`` to ``out``, moving what stood there aside first so that either one is whole."""
    aside = out.parent / f".{out.name}.{os.getpid()}.replaced"
    if out.exists():
        out.rename(aside)
    work.rename(out)
    shutil.rmtree(aside, ignore_errors=True)
    flush(out.parent)


def open_to_others(folder: Path) -> None:
    """Give the files below ``folder``, which this process made, the permissions that the umask leaves: some
    libraries write files that nobody else may read."""
    usual = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 != usual:
            path.chmod(usual)


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
