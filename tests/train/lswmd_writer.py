"""Writes pickles in the format of Kaggle's LSWMD.pkl (Python 2.7, pandas 0.19), opcode by opcode."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("waferMap", "dieSize", "lotName", "waferIndex", "trianTestLabel", "failureType")


class Python2Writer:
    """Emits protocol 2 as Python 2's cPickle does: byte strings, and a memo entry for each object."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._memo = file, 0

    def raw(self, data: bytes) -> None:
        self._file.write(data)

    def name(self, module: str, name: str) -> None:
        self.raw(f"c{module}\n{name}\n".encode())

    def string(self, value: bytes) -> None:
        head = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
        self.raw(head + value)

    def number(self, value: int) -> None:
        self.raw(b"J" + struct.pack("<i", value))

    def remember(self) -> None:
        self.raw(b"r" + struct.pack("<I", self._memo))
        self._memo += 1

    def dtype(self, code: str, order: str = "<") -> None:
        self.name("numpy", "dtype")
        self.string(code.encode())
        self.number(0)
        self.number(1)
        self.raw(b"\x87R")
        self.remember()
        self.raw(b"(")
        self.number(3)
        self.string(order.encode())
        self.raw(b"NNN")
        for value in (-1, -1, 0):
            self.number(value)
        self.raw(b"tb")

    def begin_array(self, shape: Sequence[int], code: str, order: str = "<") -> None:
        self.name("numpy.core.multiarray", "_reconstruct")
        self.name("numpy", "ndarray")
        self.number(0)
        self.raw(b"\x85")
        self.string(b"b")
        self.raw(b"\x87R")
        self.remember()
        self.raw(b"(")
        self.number(1)
        self.raw(b"(")
        for side in shape:
            self.number(side)
        self.raw(b"t")
        self.dtype(code, order)
        self.raw(b"\x89")

    def array(self, values: NDArray[np.generic], code: str, order: str = "<") -> None:
        self.begin_array(values.shape, code, order)
        self.string(values.tobytes())
        self.raw(b"tb")

    def nested(self, value: str) -> None:
        """A label in an array of its own: (1, 1) of text, (0, 0) of floats where there is none."""
        if value:
            self.array(np.array([[value]]), f"U{len(value)}")
        else:
            self.array(np.zeros((0, 0)), "f8")

    def names(self, values: Sequence[str]) -> None:
        self.name("pandas.indexes.base", "_new_Index")
        self.name("pandas.indexes.base", "Index")
        self.raw(b"}(")
        self.string(b"data")
        self.begin_array([len(values)], "O8", "|")
        self.raw(b"](")
        for value in values:
            self.string(value.encode())
        self.raw(b"etb")
        self.string(b"name")
        self.raw(b"Nu\x86R")


def write_python2_pickle(
    path: Path,
    grids: Sequence[NDArray[np.uint8]],
    labels: Sequence[str],
    lots: Sequence[str],
    parts: Sequence[str],
) -> None:
    """Write a table of len(grids) rows with Kaggle's columns."""
    with path.open("wb") as file:
        out = Python2Writer(file)
        out.raw(b"\x80\x02")
        out.name("pandas.core.frame", "DataFrame")
        out.raw(b")\x81}(")
        out.string(b"_data")
        out.name("pandas.core.internals", "BlockManager")
        out.raw(b")\x81(]]]}")
        out.string(b"0.14.1")
        out.raw(b"}(")
        out.string(b"axes")
        out.raw(b"](")
        out.names(COLUMNS)
        out.raw(b"e")
        out.string(b"blocks")
        out.raw(b"](")
        _block(out, (1, 3), lambda: out.array(np.ones((2, len(grids))), "f8"))
        _block(out, (0, 2, 4, 5), lambda: _objects(out, grids, labels, lots, parts))
        out.raw(b"eustb")  # blocks, the dictionary under 0.14.1, that key, the manager's state
        out.raw(b"ub.")


def _block(out: Python2Writer, places: Iterable[int], values: object) -> None:
    out.raw(b"}(")
    out.string(b"mgr_locs")
    out.array(np.array(list(places), dtype=np.int64), "i8")
    out.string(b"values")
    assert callable(values)
    values()
    out.raw(b"u")


def _objects(
    out: Python2Writer,
    grids: Sequence[NDArray[np.uint8]],
    labels: Sequence[str],
    lots: Sequence[str],
    parts: Sequence[str],
) -> None:
    out.begin_array([4, len(grids)], "O8", "|")
    out.raw(b"](")
    for grid in grids:
        out.array(grid, "u1", "|")
    for lot in lots:
        out.string(lot.encode())
        out.remember()
    for values in (parts, labels):
        for value in values:
            out.nested(value)
    out.raw(b"etb")
