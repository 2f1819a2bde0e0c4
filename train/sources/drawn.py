"""Synthetic wafer maps as a source, for where no real ones are at hand."""

from __future__ import annotations

from train.sources.lswmd import CLASSES
from train.sources.rows import Rows, rows_of_grids
from train.synthetic import wafers

PER_CLASS = 180


def drawn_rows(per_class: int = PER_CLASS, seed: int = 811) -> Rows:
    """``per_class`` drawn maps of each of WM-811K's nine classes, in lots of 25 that mix the classes."""
    labels = list(CLASSES) * per_class
    maps = wafers(labels, seed=seed)
    return rows_of_grids(
        [wafer.dies for wafer in maps], labels, lots=[wafer.lot for wafer in maps], ordered=False
    )
