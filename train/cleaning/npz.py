"""Writing rows in WM-811K's .npz layout, as train.sources.npz reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from train.sources.rows import Rows


def write_npz(rows: Rows, path: Path) -> None:
    """Write ``rows`` with their labels, source rows, lots and digests, and whether source rows are in the
    order of lots, to ``path``."""
    grids = [rows.grid(row).ravel() for row in range(len(rows))]
    np.savez_compressed(
        path,
        allow_pickle=False,
        maps=np.concatenate(grids) if grids else np.zeros(0, np.uint8),
        offsets=np.cumsum([0, *(grid.size for grid in grids)], dtype=np.int64),
        heights=rows.heights.astype(np.int16),
        widths=rows.widths.astype(np.int16),
        labels=rows.labels,
        source_index=rows.source_index,
        lot_name=rows.lots,
        map_sha256_24=rows.digests,
        canon_sha256_24=rows.canonical,
        dup_label_conflict=rows.disputed,
        ordered=np.bool_(rows.ordered),
    )
