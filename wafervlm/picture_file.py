"""The PNG file that an answer is drawn to: nothing else is ever written over."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from wafervlm.errors import UsageError
from wafervlm.files import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

_PNG = b"\x89PNG\r\n\x1a\n"


def check_picture_file(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse to draw to ``path`` where it is not named .png, is one of ``inputs``, is there and no PNG file,
    or lies in a folder that is not there or cannot be written. Raises UsageError."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot writes a PNG file, and {path} is not named as one; end its name in .png")
    if any(_same(path, each) for each in inputs):
        raise UsageError(f"--plot would write over {path}, the wafer itself; name another file")
    if path.exists() and not _is_png(path):
        raise UsageError(f"--plot would write over {path}, which is no PNG file; name another file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"--plot {path}: there is no such folder; make it, or name a file elsewhere")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--plot {path}: its folder cannot be written; name a file elsewhere")


def save_picture(picture: Image, path: Path) -> None:
    """Write ``picture`` to ``path`` as PNG, whole or not at all."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_whole(path.resolve(), buffer.getvalue(), sync=False)


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _is_png(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_PNG)) == _PNG
    except OSError:
        return False
