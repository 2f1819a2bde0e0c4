"""MixedWM38: 52x52 maps of 38 patterns, several of which may be on one wafer. For evaluation only: no
licence is stated, and its authors say that part of it is generated. It names no lots."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from train.sources.npz import load_arrays
from train.sources.rows import Rows, rows_of_grids
from wafervlm.errors import FileFormatError
from wafervlm.wafermap import FAIL

NEEDED = ("maps", "labels8", "label_names")
JOIN = "+"


def read_mixedwm38(path: Path) -> Rows:
    """Read a .npz with maps (N, 52, 52) uint8, labels8 (N, 8) multi-hot and label_names (8,).

    A row's label joins the names of its patterns in the order of ``label_names``, such as "Center+Edge-Loc",
    and is "none" where it has none. Raises FileFormatError where the arrays do not fit together.
    """
    path = Path(path)
    arrays = load_arrays(path, NEEDED)
    maps, hot, names = arrays["maps"], arrays["labels8"], [str(name) for name in arrays["label_names"]]
    if maps.ndim != 3 or maps.dtype != np.uint8 or (maps.size and int(maps.max()) > FAIL):
        raise FileFormatError(f"{path}: maps must be (N, H, W) uint8 of 0 no die, 1 pass, 2 fail")
    if hot.shape != (len(maps), len(names)) or not np.isin(hot, (0, 1)).all():
        raise FileFormatError(f"{path}: labels8 must be (N, {len(names)}) of 0 and 1 for {len(maps)} maps")
    labels = [JOIN.join(np.array(names)[row.astype(bool)]) or "none" for row in hot]
    return rows_of_grids(list(maps), labels, ordered=False)
