"""Checkpoints that survive a kill at any moment.

A checkpoint is written into a folder of another name, gets a manifest with the size and digest of every
file, is flushed to the disk and then renamed; one whose manifest does not hold is not a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train import processes
from train.artefact import folder_digest
from wafervlm.errors import ResourceError
from wafervlm.files import flush, flush_tree

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


@contextlib.contextmanager
def writing_checkpoint(root: Path, step: int, keep: int = 2) -> Iterator[Path]:
    """Yield a folder to fill with the state at ``step``; when the block ends well it becomes a checkpoint
    under ``root``, and all but the newest ``keep`` are removed.

    Raises ResourceError where the disk is full; the checkpoints before it stay.
    """
    work, final = _work(root, step), root / f"step-{step:08d}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        yield work
        (work / MANIFEST).write_text(json.dumps(_manifest(work), indent=1), encoding="utf-8")
        flush_tree(work)
        # Training resumed before this step, so what may stand under its name was found broken.
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
        flush(root)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ResourceError(
                f"the disk is full while writing a checkpoint to {root}; free space and run the same "
                "command again"
            ) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _prune(root, keep)


@contextlib.contextmanager
def writing_together(root: Path, step: int, keep: int = 2) -> Iterator[Path]:
    """``writing_checkpoint`` for all processes of a training: each fills the same folder, and the main one
    makes it a checkpoint when its own block ends, before which it must wait for what the others write."""
    if processes.is_main():
        with writing_checkpoint(root, step, keep) as folder:
            processes.wait()
            yield folder
    else:
        processes.wait()
        yield _work(root, step)
    processes.wait()


def last_checkpoint(root: Path) -> Path | None:
    """The newest whole checkpoint under ``root``, None where there is none. Broken ones are passed over."""
    for path in reversed(_checkpoints(root)):
        if is_whole(path):
            return path
        logger.warning("checkpoint %s is not whole and is passed over", path)
    return None


def is_whole(path: Path) -> bool:
    """Whether the checkpoint ``path`` holds exactly the files, sizes and contents of its manifest."""
    try:
        wanted = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found: dict[str, Any] = _manifest(path)
    except (OSError, ValueError):
        return False
    return bool(wanted == found)


def step_of(path: Path) -> int:
    """The optimizer step at which the checkpoint ``path`` was written."""
    return int(path.name.removeprefix("step-"))


def _work(root: Path, step: int) -> Path:
    return root / f".step-{step:08d}.writing"


def _manifest(folder: Path) -> dict[str, Any]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    return {p.relative_to(folder).as_posix(): [p.stat().st_size, folder_digest(p)] for p in files}


def _checkpoints(root: Path) -> list[Path]:
    """Folders under ``root`` that have a checkpoint's name, oldest first."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if _NAME.fullmatch(p.name)), key=step_of)


def _prune(root: Path, keep: int) -> None:
    for path in _checkpoints(root)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
