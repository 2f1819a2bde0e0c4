"""Files of many maps: .npz archives and Parquet files, counted by their headers and read in pieces."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from wafervlm.errors import FileFormatError, MissingDependencyError
from wafervlm.readers.files import decoding

INSTALL = "pip install 'wafervlm[archive]'"
PARQUET = ".parquet"
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


# Name, height, width and dies of a map, as the file has them.
Row = tuple[str, Any, Any, Any]


def import_pyarrow() -> Any:
    """Import pyarrow with its Parquet reader. Raises MissingDependencyError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(f"Parquet needs pyarrow ({error}); install it with: {INSTALL}") from None
    return pa


def npz_count(path: Path) -> int | None:
    """How many maps an .npz archive holds; None for one wafer's file. Reads headers only. Raises
    FileFormatError."""
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


def npz_rows(piece: Piece) -> Iterator[Row]:
    """The maps of a ``piece`` of an .npz archive. Raises FileFormatError."""
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


def parquet_count(path: Path) -> int:
    """How many maps a Parquet file holds; reads its footer only. Raises FileFormatError where it has no dies,
    MissingDependencyError."""
    file = _parquet(path)
    names = set(file.schema_arrow.names)
    if "dies" not in names:
        raise FileFormatError(f"{path} has no column 'dies'; it needs dies, or dies with height and width")
    return int(file.metadata.num_rows)


def _parquet(path: Path) -> Any:
    pyarrow = import_pyarrow()
    with decoding(path, "Parquet file"):
        return pyarrow.parquet.ParquetFile(path)


def parquet_rows(piece: Piece) -> Iterator[Row]:
    """The maps of a ``piece`` of a Parquet file. Raises FileFormatError and MissingDependencyError."""
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
