"""WM-811K as it is downloaded: Kaggle's LSWMD.pkl and mirlab's WM811K.pkl.

Both hold one row for each of 811,457 wafers. Kaggle's copy was written by Python 2, nests labels in
arrays and spells a column ``trianTestLabel``; mirlab's holds plain strings. Neither is unpickled blindly:
see train.sources.unpickle.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.progress import track
from train.sources.rows import Rows, texts
from train.sources.tables import plain, read_table, text
from train.sources.unpickle import Array, refusing
from wafervlm.errors import FileFormatError
from wafervlm.wafermap import FAIL, DieGrid, canonical_digest, grid_digest

log = logging.getLogger(__name__)

CLASSES = ("Center", "Donut", "Edge-Loc", "Edge-Ring", "Loc", "Near-full", "Random", "Scratch", "none")
_SPELLED = {name.lower(): name for name in CLASSES}
_PARTS = {"training": "Training", "test": "Test"}


def read_lswmd(path: Path, *, labelled: bool = True) -> Rows:
    """Read a WM-811K pickle of either kind; only labelled rows unless ``labelled`` is False.

    ``source_index`` is the row of the file, ``part`` its Training or Test. Raises FileFormatError where the
    file asks to run anything, is broken, or has other columns or labels.
    """
    path = Path(path)
    with refusing(path):
        return _read(path, read_table(path), labelled)


def _read(path: Path, columns: dict[str, list[Any]], labelled: bool) -> Rows:
    maps = _column(path, columns, "wafermap")
    labels = [_label(path, value) for value in _column(path, columns, "failuretype")]
    lots = [text(value) for value in _column(path, columns, "lotname")]
    parts = [_PARTS.get(text(value).lower(), "") for value in _part_column(path, columns)]
    columns.clear()
    chosen = [row for row, label in enumerate(labels) if label or not labelled]
    log.info("%s: %d rows, %d taken", path, len(labels), len(chosen))
    kept = set(chosen)
    for row in range(len(maps)):
        if row not in kept:
            maps[row] = None
    return _rows(path, maps, chosen, labels, lots, parts)


def _rows(
    path: Path,
    maps: list[Any],
    chosen: list[int],
    labels: Sequence[str],
    lots: Sequence[str],
    parts: Sequence[str],
) -> Rows:
    """Move the chosen maps into one flat array; each is dropped from ``maps`` as it is moved."""
    shapes = np.array([_shape(path, row, maps[row]) for row in chosen], dtype=np.int64).reshape(-1, 2)
    sizes = shapes.prod(axis=1)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    dies = np.empty(int(starts[-1]), dtype=np.uint8)
    digests, canonical = [], []
    for place, row in enumerate(track(chosen, "check maps")):
        grid = _grid(path, row, maps[row])
        maps[row] = None
        dies[starts[place] : starts[place + 1]] = grid.ravel()
        digests.append(grid_digest(grid))
        canonical.append(canonical_digest(grid))
    return Rows(
        dies=dies,
        starts=starts[:-1],
        heights=shapes[:, 0],
        widths=shapes[:, 1],
        labels=texts(labels[row] for row in chosen),
        source_index=np.array(chosen, dtype=np.int64),
        lots=texts(lots[row] for row in chosen),
        part=texts(parts[row] for row in chosen),
        digests=texts(digests),
        canonical=texts(canonical),
        disputed=np.zeros(len(chosen), dtype=bool),
    )


def _column(path: Path, columns: dict[str, list[Any]], wanted: str) -> list[Any]:
    for name, column in columns.items():
        if name.lower() == wanted:
            return column
    raise FileFormatError(f"{path} has no column {wanted!r}; its columns are {', '.join(sorted(columns))}")


def _part_column(path: Path, columns: dict[str, list[Any]]) -> list[Any]:
    misspelt = any(name.lower() == "triantestlabel" for name in columns)
    return _column(path, columns, "triantestlabel" if misspelt else "traintestlabel")


def _label(path: Path, value: Any) -> str:
    label = text(value)
    if label and label.lower() not in _SPELLED:
        raise FileFormatError(f"{path} has the label {label!r}, which is none of {', '.join(CLASSES)}")
    return _SPELLED[label.lower()] if label else ""


def _shape(path: Path, row: int, value: Any) -> tuple[int, int]:
    shape = value.state[1] if isinstance(value, Array) and value.state else ()
    if not (
        isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(n, int) and n > 0 for n in shape)
    ):
        raise FileFormatError(f"{path}: row {row} holds no die grid")
    return shape


def _grid(path: Path, row: int, value: Array) -> DieGrid:
    cells = plain(value)
    if isinstance(cells, list) or cells.dtype.kind not in "iu" or not _within(cells):
        raise FileFormatError(f"{path}: the map of row {row} holds other values than 0, 1 and 2")
    return np.ascontiguousarray(cells, dtype=np.uint8)


def _within(cells: NDArray[Any]) -> bool:
    return bool(cells.min() >= 0 and cells.max() <= FAIL)
