"""An archive: many wafer maps in folders of map files, .npz archives and Parquet files, cut into parts.

An .npz archive holds its maps under ``maps``: stacked, (N, H, W), or one after the other, 1-D, with
``offsets`` (N + 1), ``heights`` and ``widths`` (N), as WM-811K and MixedWM38 come. A Parquet file holds a
die grid in each row: a column ``dies`` of lists of rows, or of flat lists or bytes, row-major, with columns
``height`` and ``width``; a column ``id`` names the maps. Dies are 0 no die, 1 pass, 2 fail.

Cutting looks at names and headers only; ``read_part`` then reads the maps of one part. What cannot be read
is a map with an error.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wafervlm.archive_files import (
    PARQUET,
    Piece,
    npz_count,
    npz_rows,
    parquet_count,
    parquet_rows,
)
from wafervlm.errors import FileFormatError, InputError, UsageError
from wafervlm.readers import ARRAY_SUFFIXES, GRID_SUFFIXES, IMAGE_SUFFIXES, read_file
from wafervlm.render import RenderSpec
from wafervlm.wafermap import WaferMap

_SUFFIXES = (*ARRAY_SUFFIXES, *GRID_SUFFIXES, *IMAGE_SUFFIXES, PARQUET)


@dataclass(frozen=True, slots=True)
class Found:
    """A map of an archive: its ``id`` there and its ``wafer``, or why it cannot be read."""

    id: str
    wafer: WaferMap | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Archive:
    """The files of an archive, and ``fingerprint``: 64 hex digits over their names, sizes and times."""

    pieces: tuple[Piece, ...]
    fingerprint: str

    @property
    def count(self) -> int:
        """How many maps there are; a file that cannot be opened counts as one."""
        return sum(piece.count for piece in self.pieces)

    def parts(self, size: int) -> list[list[Piece]]:
        """The maps in order, ``size`` to a part and what is left in the last."""
        parts: list[list[Piece]] = []
        room = 0
        for piece in self.pieces:
            first, end = piece.first, piece.first + piece.count
            while first < end:
                if room == 0:
                    parts.append([])
                    room = size
                count = min(room, end - first)
                parts[-1].append(Piece(piece.path, piece.name, piece.kind, first, count))
                first, room = first + count, room - count
        return parts


def find_archive(paths: Sequence[Path]) -> Archive:
    """The archive of files and folders ``paths``, folders searched through, in the order of names. A file's
    name is its path below the one folder that is named, or below the one that holds all that are named.

    Raises UsageError where a path does not exist or holds no map, MissingDependencyError where there are
    Parquet files and pyarrow is not installed.
    """
    whole = hashlib.sha256()
    pieces = []
    for path, name in _files(paths):
        state = path.stat()
        whole.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        pieces.append(_piece(path, name))
    return Archive(tuple(pieces), whole.hexdigest())


def read_part(part: Sequence[Piece], spec: RenderSpec, bins: Mapping[str, int] | None = None) -> list[Found]:
    """The maps of one part. ``spec`` is the task's render spec, by which image files are read back to their
    dies; ``bins`` maps the codes of files to 0, 1 and 2. Raises UsageError for bins."""
    return [found for piece in part for found in _read_piece(piece, spec, bins)]


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Every file once, with its name: its path below the folder that holds all of ``paths``."""
    seen, common = set(), _common(paths)
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
            if not found:
                raise UsageError(f"folder {path} holds no file named {', '.join(_SUFFIXES)}")
        elif path.is_file():
            found = [path]
        else:
            raise UsageError(f"{path} does not exist; name folders, map files, .npz or Parquet files")
        for file in found:
            whole = _absolute(file)
            if whole not in seen:
                seen.add(whole)
                yield file, whole.relative_to(common).as_posix() if common else whole.as_posix()


def _common(paths: Sequence[Path]) -> Path | None:
    """The folder that holds all of ``paths``, itself one of them perhaps; None for several drives."""
    try:
        return Path(os.path.commonpath([_absolute(p if p.is_dir() else p.parent) for p in paths]))
    except ValueError:
        return None


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  (resolved, a link would lose its name here)


def _piece(path: Path, name: str) -> Piece:
    suffix = path.suffix.lower()
    try:
        if suffix == PARQUET:
            return Piece(path, name, "parquet", 0, parquet_count(path))
        if suffix == ".npz" and (count := npz_count(path)) is not None:
            return Piece(path, name, "npz", 0, count)
    except (InputError, OSError):
        pass  # reading it says why, in the row that stands for it
    return Piece(path, name, "file")


def _read_piece(piece: Piece, spec: RenderSpec, bins: Mapping[str, int] | None) -> Iterator[Found]:
    try:
        if piece.kind == "file":
            yield _checked(piece.name, lambda: _read_one(piece, spec, bins))
            return
        read = npz_rows if piece.kind == "npz" else parquet_rows
        rows = list(read(piece))
    except (InputError, OSError) as error:
        # The count is known from the header, so that every map has its row.
        for row in range(piece.first, piece.first + piece.count):
            yield Found(f"{piece.name}#{row}", None, str(error))
        return
    for name, height, width, dies in rows:
        yield _checked(name, functools.partial(_shaped, name, height, width, dies, bins))


def _checked(name: str, read: Any) -> Found:
    try:
        wafer = read()
    except (InputError, OSError) as error:
        return Found(name, None, str(error))
    return Found(name, wafer)


def _read_one(piece: Piece, spec: RenderSpec, bins: Mapping[str, int] | None) -> WaferMap:
    if piece.path.suffix.lower() == PARQUET:
        parquet_count(piece.path)
    read = read_file(piece.path, spec, bins=bins)
    if not isinstance(read, WaferMap):
        raise FileFormatError(f"{piece.path} is a picture and no wafer map; score maps, not pictures")
    return WaferMap(read.dies, orientation=read.orientation, id=piece.name, lot=read.lot)


def _shaped(name: str, height: Any, width: Any, dies: Any, bins: Mapping[str, int] | None) -> WaferMap:
    if isinstance(dies, bytes):
        dies = np.frombuffer(dies, np.uint8)
    try:
        flat, sides = np.asarray(dies), (int(height), int(width))
    except (TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(f"{name} cannot be read as a grid of dies: {error}") from None
    if min(sides) < 1 or flat.ndim != 1 or flat.size != sides[0] * sides[1]:
        raise FileFormatError(
            f"{name} is {height}x{width} and has {flat.size} dies; write them row by row, rows of one length"
        )
    grid = flat.reshape(sides)
    if bins is not None:
        from wafervlm.readers.bins import map_bins

        grid = map_bins(grid, bins, name)
    return WaferMap(grid, id=name)
