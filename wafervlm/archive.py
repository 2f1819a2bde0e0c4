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
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from wafervlm.errors import FileFormatError, InputError, MissingDependencyError, UsageError
from wafervlm.readers import ARRAY_SUFFIXES, GRID_SUFFIXES, IMAGE_SUFFIXES, read_file
from wafervlm.readers.files import decoding
from wafervlm.render import RenderSpec
from wafervlm.wafermap import WaferMap

INSTALL = "pip install 'wafervlm[archive]'"
PARQUET = ".parquet"
_SUFFIXES = (*ARRAY_SUFFIXES, *GRID_SUFFIXES, *IMAGE_SUFFIXES, PARQUET)
_LAYOUT = ("maps", "offsets", "heights", "widths")

Kind = Literal["file", "npz", "parquet"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Maps ``first`` to ``first + count - 1`` of the file ``path``, called ``name`` in the archive."""

    path: Path
    name: str
    kind: Kind
    first: int = 0
    count: int = 1


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


def import_pyarrow() -> Any:
    """Import pyarrow with its Parquet reader. Raises MissingDependencyError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(f"Parquet needs pyarrow ({error}); install it with: {INSTALL}") from None
    return pa


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
            return Piece(path, name, "parquet", 0, _parquet_count(path))
        if suffix == ".npz" and (count := _npz_count(path)) is not None:
            return Piece(path, name, "npz", 0, count)
    except (InputError, OSError):
        pass  # reading it says why, in the row that stands for it
    return Piece(path, name, "file")


def _read_piece(piece: Piece, spec: RenderSpec, bins: Mapping[str, int] | None) -> Iterator[Found]:
    try:
        if piece.kind == "file":
            yield _checked(piece.name, lambda: _read_one(piece, spec, bins))
            return
        read = _npz_rows if piece.kind == "npz" else _parquet_rows
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
        _parquet_count(piece.path)
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


Row = tuple[str, Any, Any, Any]


def _npz_count(path: Path) -> int | None:
    """How many maps an .npz archive holds; None for one wafer's file. Reads headers only."""
    with decoding(path, ".npz file"), zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if "maps.npy" not in names:
            return None
        shape = _npy_shape(archive, "maps.npy")
        if len(shape) == 3:
            return shape[0]
        if len(shape) != 1 or not {f"{key}.npy" for key in _LAYOUT} <= names:
            return None
        return _npy_shape(archive, "heights.npy")[0]


def _npy_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as stream:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape: tuple[int, ...] = read(stream)[0]
        return shape


def _npz_rows(piece: Piece) -> Iterator[Row]:
    arrays = _npz_arrays(piece.path, piece.path.stat().st_mtime_ns)
    maps = arrays["maps"]
    for row in range(piece.first, piece.first + piece.count):
        name = f"{piece.name}#{row}"
        if maps.ndim == 3:
            yield name, maps.shape[1], maps.shape[2], maps[row].ravel()
        else:
            start, end = int(arrays["offsets"][row]), int(arrays["offsets"][row + 1])
            yield name, int(arrays["heights"][row]), int(arrays["widths"][row]), maps[start:end]


# A part is a small piece of an archive that must be unpacked whole; the next part is often of the same one.
@functools.lru_cache(maxsize=1)
def _npz_arrays(path: Path, _: int) -> dict[str, NDArray[Any]]:
    with decoding(path, ".npz archive"), np.load(path, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in _LAYOUT if key in stored.files}
        if arrays["maps"].ndim == 1:
            offsets, heights, widths = (arrays[key].astype(np.int64) for key in _LAYOUT[1:])
            fits = (
                heights.ndim == 1 and widths.shape == heights.shape and offsets.shape == (len(heights) + 1,)
            )
            end = arrays["maps"].size
            if not fits or offsets[0] < 0 or offsets[-1] > end or (np.diff(offsets) < 0).any():
                raise FileFormatError(f"{path}: offsets, heights, widths and maps do not fit together")
    return arrays


def _parquet_count(path: Path) -> int:
    file = _parquet(path)
    names = set(file.schema_arrow.names)
    if "dies" not in names:
        raise FileFormatError(f"{path} has no column 'dies'; it needs dies, or dies with height and width")
    return int(file.metadata.num_rows)


def _parquet(path: Path) -> Any:
    pyarrow = import_pyarrow()
    with decoding(path, "Parquet file"):
        return pyarrow.parquet.ParquetFile(path)


def _parquet_rows(piece: Piece) -> Iterator[Row]:
    metadata = _parquet(piece.path).metadata
    end = piece.first + piece.count
    start = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if start < end and start + rows > piece.first:
            low, high = max(piece.first - start, 0), min(end - start, rows)
            table = _row_group(piece.path, piece.path.stat().st_mtime_ns, group)
            yield from _table_rows(table.slice(low, high - low).to_pydict(), piece, start + low)
        start += rows


# A row group is read whole and often holds many parts; the next part is often of the same one.
@functools.lru_cache(maxsize=1)
def _row_group(path: Path, _: int, group: int) -> Any:
    file = _parquet(path)
    wanted = [name for name in ("id", "dies", "height", "width") if name in file.schema_arrow.names]
    with decoding(path, "Parquet file"):
        return file.read_row_group(group, columns=wanted)


def _table_rows(columns: dict[str, list[Any]], piece: Piece, first: int) -> Iterable[Row]:
    for index, dies in enumerate(columns["dies"]):
        known = columns["id"][index] if "id" in columns else None
        name = f"{piece.name}#{first + index}" if known is None else str(known)
        if "height" in columns and "width" in columns:
            yield name, columns["height"][index], columns["width"][index], dies
            continue
        rows = dies if isinstance(dies, list) and all(isinstance(row, list) for row in dies) else []
        width = len(rows[0]) if rows else 0
        even = all(len(row) == width for row in rows)
        yield name, len(rows), width, [die for row in rows for die in row] if even else []
