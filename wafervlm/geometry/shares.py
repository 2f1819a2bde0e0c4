"""Shares of failing dies by part of the wafer."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wafervlm.geometry.places import PARTS, Mask, Places, places
from wafervlm.geometry.types import GRID, Shares
from wafervlm.wafermap import FAIL, DieGrid

_STARTS = np.cumsum([0, *PARTS.values()])


def measure_shares(dies: DieGrid) -> Shares:
    """The shares of ``dies`` (H, W) uint8 alone, without looking for structures; numpy is enough."""
    failing = dies == FAIL
    return shares(places(dies), failing, neighbours(failing))


def shares(where: Places, failing: Mask, beside: NDArray[np.uint8]) -> Shares:
    """The shares of a wafer in ``where`` with ``failing`` dies (H, W) and their neighbours ``beside``."""
    fails = np.flatnonzero(failing)
    counts = np.bincount(where.parts[:, fails].ravel(), minlength=len(where.part_dies))
    found = counts / where.part_dies
    by_part = {name: found[first:last] for name, (first, last) in zip(PARTS, pairwise(_STARTS), strict=True)}
    return Shares(
        shape=where.shape,
        dies=where.dies,
        failing=len(fails),
        share=len(fails) / where.dies,
        lonely=int(np.count_nonzero(beside.ravel()[fails] <= 1)) / max(len(fails), 1),
        **{**by_part, "grid": by_part["grid"].reshape(GRID, GRID)},
    )


def neighbours(failing: Mask) -> NDArray[np.uint8]:
    """How many of the eight neighbours of each cell of the grid fail: (H, W) uint8."""
    return box_sums(failing, 1) - failing.astype(np.uint8)


def box_sums(mask: Mask, reach: int) -> NDArray[np.uint8]:
    """How many cells are set in the square of 2 * ``reach`` + 1 cells a side around each cell: (H, W) uint8.
    ``reach`` is 7 at most."""
    rows, columns = mask.shape
    padded = np.zeros((rows + 2 * reach, columns + 2 * reach), dtype=np.uint8)
    padded[reach : reach + rows, reach : reach + columns] = mask
    down = padded[:rows].copy()
    for step in range(1, 2 * reach + 1):
        down += padded[step : step + rows]
    across: NDArray[np.uint8] = down[:, :columns].copy()
    for step in range(1, 2 * reach + 1):
        across += down[:, step : step + columns]
    return across
