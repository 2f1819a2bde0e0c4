"""Which maps must be judged together: those of one lot, and those that show the same dies."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from train.sources.rows import Ints, Rows
from train.splits import MARGIN, lot_blocks

# Four lots' reach: few lots are cut by the border of two blocks. Fewer maps are cut into at least forty.
BLOCK, LEAST_BLOCKS = 4 * MARGIN, 40


def judged_together(rows: Rows) -> Ints:
    """A group number for each row (N,): rows of one known lot, of one block of lot order where lots are not
    known, and rows of the same map, rotated and mirrored too, have the same."""
    named = rows.lots != ""
    if in_lot_order(rows):
        span = int(rows.source_index.max() - rows.source_index.min()) + 1
        size = min(BLOCK, max(MARGIN, span // LEAST_BLOCKS))
        blocks = lot_blocks(rows.source_index, size=size).astype(np.str_)
    else:
        blocks = rows.canonical
    lots = np.unique(np.where(named, np.char.add("lot ", rows.lots), blocks), return_inverse=True)[1]
    maps = np.unique(rows.canonical, return_inverse=True)[1] + int(lots.max(initial=0)) + 1
    size = int(maps.max(initial=0)) + 1
    links = coo_array((np.ones(len(rows), dtype=np.int8), (lots, maps)), shape=(size, size))
    numbers = connected_components(links, directed=False)[1][lots]
    return np.asarray(np.unique(numbers, return_inverse=True)[1].reshape(-1), dtype=np.int64)


def in_lot_order(rows: Rows) -> bool:
    """Whether neighbouring rows may be of one lot: the source says so, and is not merely sorted by class."""
    if not rows.ordered or not len(rows):
        return False
    labels = rows.labels[np.argsort(rows.source_index, kind="stable")]
    return int((labels[1:] != labels[:-1]).sum()) > 2 * len(np.unique(labels))
