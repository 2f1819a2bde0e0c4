"""Reading the bytes of an untrusted file, and naming the file in whatever then goes wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wafervlm.errors import FileFormatError, InputError, WaferVLMError
from wafervlm.wafermap import MAX_SIDE

# The largest die grid at eight bytes a die, or the largest image at four bytes a pixel, and a header.
MAX_FILE_BYTES = 8 * MAX_SIDE * MAX_SIDE + (1 << 20)


def read_bytes(path: Path, error: type[InputError] = FileFormatError, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file. Raises ``error`` where there is none, or more than ``limit`` bytes."""
    try:
        # A pipe or a device would block or never end.
        regular = path.is_file() or not path.exists()
        data = read_head(path, limit + 1) if regular else b""
    except (OSError, ValueError) as reason:  # ValueError: a name that no file can have
        why = getattr(reason, "strerror", None) or str(reason)
        raise error(f"cannot read {path}: {why}") from None
    if not regular:
        raise error(f"{path} is not a file")
    if not data:
        raise error(f"{path} is empty")
    if len(data) > limit:
        raise error(f"{path} is larger than {limit >> 20} MiB, more than any wafer map needs")
    return data


def read_head(path: Path, size: int) -> bytes:
    """The first ``size`` bytes of a file, or all where it has fewer. Raises OSError."""
    with path.open("rb") as file:
        # Python allocates as much as it is asked for, whatever the file holds.
        return file.read(min(size, os.fstat(file.fileno()).st_size))


@contextmanager
def decoding(path: Path, what: str, error: type[InputError] = FileFormatError) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into ``error``, naming the file.

    numpy, zipfile and Pillow raise a dozen classes there, SyntaxError and IndexError among them.
    """
    try:
        yield
    except (WaferVLMError, MemoryError):
        raise
    except Exception as reason:
        text = " ".join(str(reason).split()) or type(reason).__name__
        raise error(f"{path} is not a readable {what}: {text[:200]}; write or copy it again") from reason
