"""What a pickled pandas table says: its columns, from the stand-ins that it was unpickled into."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.sources.unpickle import (
    Array,
    ArrowArray,
    ArrowStrings,
    Blocks,
    Dtype,
    Table,
    Wrapped,
    load_pickle,
    refusing,
)
from wafervlm.errors import FileFormatError

_DTYPE = re.compile(r"[biufOUS]\d{0,4}")


def read_table(path: Path) -> dict[str, list[Any]]:
    """Read a pickled DataFrame: column name to the list of its values.

    Cells are Python values, or Array for an array within a cell (see ``plain``). Raises FileFormatError
    where the file is not a pickled table of that kind, asks for anything else, or is cut off.
    """
    with refusing(path):
        return _columns(load_pickle(Path(path)))


def plain(array: Array) -> NDArray[Any] | list[Any]:
    """The numpy array that ``array`` stands for, sharing its bytes; a flat list where it holds objects or
    text.

    Use within ``refusing``: a crafted state raises whatever numpy does.
    """
    _, shape, dtype, fortran, raw = array.state
    if not isinstance(dtype, Dtype) or not isinstance(shape, tuple):
        raise FileFormatError("an array in the pickle has no shape or dtype")
    code = _text(dtype.given[0])
    if not _DTYPE.fullmatch(code):
        raise FileFormatError(f"an array in the pickle has dtype {code!r}")
    if code.startswith("O"):
        return _ordered(list(raw), shape, bool(fortran))
    order = _text(dtype.state[1]) if dtype.state else "|"
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    if code.startswith("U"):
        return _ordered(_decoded(data, 4 * int(code[1:]), order), shape, bool(fortran))
    flat = np.frombuffer(data, dtype=np.dtype((order if order in "<>" else "") + code))
    return flat.reshape(shape, order="F" if fortran else "C")


def text(value: Any) -> str:
    """A cell as text: strings of either Python, and what stands first in a nested array; "" for nothing."""
    if isinstance(value, Array):
        inner = plain(value)
        flat = inner if isinstance(inner, list) else inner.ravel().tolist()
        return text(flat[0]) if flat else ""
    if isinstance(value, list | tuple):
        return text(value[0]) if value else ""
    return _text(value).strip() if isinstance(value, str | bytes) else ""


def _columns(table: Any) -> dict[str, list[Any]]:
    if not isinstance(table, Table):
        raise FileFormatError("it does not hold one pandas DataFrame")
    state = _named(table.state)
    manager = state.get("_mgr", state.get("_data"))
    if not isinstance(manager, Blocks):
        raise FileFormatError("its DataFrame has no block manager")
    axes, blocks = _parts(manager)
    names = [_text(name) for name in _values(_named(axes[0].given[1])["data"])]
    columns: dict[str, list[Any]] = {}
    for values, places in blocks:
        for place, column in zip(_places(places), _split(values), strict=True):
            columns[names[place]] = column
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or len(columns) != len(names):
        raise FileFormatError("its columns are not all there or not equally long")
    return columns


def _parts(manager: Blocks) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """The axes and the (values, column places) of a block manager, in both layouts."""
    if manager.given:
        blocks, axes = manager.given[:2]
        return list(axes), [(block.given[0], block.given[1]) for block in blocks]
    state = _named(_named(manager.state[3])["0.14.1"])
    named = [_named(block) for block in state["blocks"]]
    return list(state["axes"]), [(block["values"], block["mgr_locs"]) for block in named]


def _split(values: Any) -> list[list[Any]]:
    """The columns of one block; its values are (columns, rows)."""
    if isinstance(values, ArrowStrings):
        return [_values(values)]
    shape = values.state[1]
    cells = plain(values)
    if not isinstance(cells, list):
        return [row.tolist() for row in cells]
    columns, rows = shape
    return [cells[i * rows : (i + 1) * rows] for i in range(columns)]


def _values(column: Any) -> list[Any]:
    if isinstance(column, ArrowStrings):
        return _strings(_named(column.state)["_pa_array"])
    cells = plain(column)
    return cells if isinstance(cells, list) else list(cells.tolist())


def _strings(array: ArrowArray) -> list[str]:
    """The texts of an Arrow string array: buffers are validity, 64-bit (32-bit) offsets and UTF-8 data."""
    kind, length, _, first, buffers = array.given[0][:5]
    ends, data = _bytes(buffers[1]), _bytes(buffers[2])
    wide = np.dtype("<i8" if _text(kind.given[0]).startswith("large") else "<i4")
    places = np.frombuffer(ends, wide)[first : first + length + 1].tolist()
    return [data[a:b].decode() for a, b in pairwise(places)]


def _bytes(wrapped: Any) -> bytes:
    while isinstance(wrapped, Wrapped):
        wrapped = wrapped.given[0]
    if not isinstance(wrapped, bytes):
        raise FileFormatError("a column of texts in the pickle has no bytes")
    return wrapped


def _places(places: Any) -> list[int]:
    if isinstance(places, slice):
        return list(range(places.start, places.stop, places.step or 1))
    return [int(place) for place in _values(places)]


def _ordered(cells: list[Any], shape: tuple[int, ...], fortran: bool) -> list[Any]:
    if len(cells) != int(np.prod(shape)):
        raise FileFormatError(f"an array of shape {shape} in the pickle has {len(cells)} values")
    if not fortran or len(shape) < 2:
        return cells
    places = np.arange(len(cells)).reshape(shape, order="F").ravel()
    return [cells[place] for place in places]


def _decoded(data: bytes, width: int, order: str) -> list[str]:
    # numpy would pass impossible code points on to Python, which then fails within.
    codec = "utf-32-be" if order == ">" else "utf-32-le"
    return [data[i : i + width].decode(codec).rstrip("\0") for i in range(0, len(data), max(width, 1))]


def _named(state: Any) -> dict[str, Any]:
    return {_text(key): value for key, value in state.items()}


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
