"""Labelled wafer maps written in WM-811K's .npz layout, for tests that need a small source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train.synthetic import wafers
from wafervlm.task import WAFER_DEFECTS
from wafervlm.wafermap import DieGrid


def write_npz(
    path: Path,
    grids: Sequence[DieGrid],
    labels: Sequence[str],
    source_index: Sequence[int] | None = None,
    lots: Sequence[str] | None = None,
) -> Path:
    """Write the needed arrays, and source_index and lot_name where given."""
    arrays = {
        "maps": np.concatenate([grid.ravel() for grid in grids]),
        "offsets": np.cumsum([0, *(grid.size for grid in grids)]),
        "heights": np.array([grid.shape[0] for grid in grids], dtype=np.int16),
        "widths": np.array([grid.shape[1] for grid in grids], dtype=np.int16),
        "labels": np.array(labels),
    }
    if source_index is not None:
        arrays["source_index"] = np.array(source_index, dtype=np.int32)
    if lots is not None:
        arrays["lot_name"] = np.array(lots)
    np.savez_compressed(path, **arrays)
    return path


def write_synthetic(path: Path, per_class: int = 40, seed: int = 5) -> Path:
    """Nine classes in lots of 18 consecutive rows, 30 rows between lots, lots not named."""
    labels = list(WAFER_DEFECTS.labels) * per_class
    grids = [wafer.dies for wafer in wafers(labels, seed=seed)]
    index = [48 * (i // 18) + i % 18 for i in range(len(labels))]
    return write_npz(path, grids, labels, index)
