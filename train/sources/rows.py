"""Rows: many labelled die grids in one flat array, with what is known of where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from wafervlm.wafermap import DieGrid, WaferMap, canonical_digest, grid_digest

Ints = NDArray[np.int64]
Texts = NDArray[np.str_]
Bools = NDArray[np.bool_]
Index = NDArray[np.int64] | NDArray[np.bool_] | Sequence[int] | slice


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """N wafer maps. ``dies`` is 1-D uint8, all grids row-major one after the other; map i begins at
    ``starts[i]`` and has ``heights[i]`` x ``widths[i]`` dies. ``labels`` are "" where unlabelled, ``lots``
    "" where unknown. ``source_index`` is the row in the original file, which is lot order where ``ordered``.
    ``part`` says "Training" or "Test" where the source does, else "". ``digests`` and ``canonical`` (equal
    for all eight rotations and mirrors) are those of wafervlm.wafermap. ``disputed`` says where the source
    itself knows that the map carries another label elsewhere.
    """

    dies: NDArray[np.uint8]
    starts: Ints
    heights: Ints
    widths: Ints
    labels: Texts
    source_index: Ints
    lots: Texts
    part: Texts
    digests: Texts
    canonical: Texts
    disputed: Bools
    ordered: bool = True

    def __len__(self) -> int:
        return len(self.starts)

    def grid(self, row: int) -> DieGrid:
        """The die grid of ``row``, (H, W) uint8, a view."""
        height, width = int(self.heights[row]), int(self.widths[row])
        start = int(self.starts[row])
        return self.dies[start : start + height * width].reshape(height, width)

    def wafer(self, row: int) -> WaferMap:
        """The wafer map of ``row``; its id is the row's place in the source."""
        return WaferMap(self.grid(row), id=str(self.source_index[row]), lot=str(self.lots[row]))

    def take(self, index: Index) -> Rows:
        """The rows of ``index``, sharing the dies."""
        chosen, whole = np.arange(len(self))[index], ("dies", "ordered")
        return replace(
            self, **{f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name not in whole}
        )

    def conflicting(self) -> Bools:
        """Which rows show a map, rotations and mirrors included, that carries another label elsewhere."""
        _, group = np.unique(self.canonical, return_inverse=True)
        _, label = np.unique(self.labels, return_inverse=True)
        pairs = np.unique(np.stack([group, label], axis=1)[self.labels != ""], axis=0)
        several = np.bincount(pairs[:, 0], minlength=group.max(initial=0) + 1) > 1
        return np.asarray(self.disputed | (several[group] & (self.labels != "")))

    def class_counts(self) -> dict[str, int]:
        """How many labelled rows each class has, in the order of the names."""
        names, counts = np.unique(self.labels[self.labels != ""], return_counts=True)
        return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def rows_of_grids(
    grids: Iterable[DieGrid],
    labels: Sequence[str],
    *,
    lots: Sequence[str] | None = None,
    source_index: Sequence[int] | None = None,
    part: Sequence[str] | None = None,
    ordered: bool = True,
) -> Rows:
    """Rows of separate die grids (H, W) uint8, with digests computed here."""
    grids = list(grids)
    count = len(grids)
    sizes = np.array([grid.size for grid in grids], dtype=np.int64)
    return Rows(
        dies=np.concatenate([grid.ravel() for grid in grids]) if grids else np.zeros(0, np.uint8),
        starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])[:count],
        heights=np.array([grid.shape[0] for grid in grids], dtype=np.int64),
        widths=np.array([grid.shape[1] for grid in grids], dtype=np.int64),
        labels=texts(labels),
        source_index=np.arange(count) if source_index is None else np.asarray(source_index, dtype=np.int64),
        lots=texts([""] * count if lots is None else lots),
        part=texts([""] * count if part is None else part),
        digests=texts([grid_digest(grid) for grid in grids]),
        canonical=texts([canonical_digest(grid) for grid in grids]),
        disputed=np.zeros(count, dtype=bool),
        ordered=ordered,
    )


def texts(values: Iterable[object]) -> Texts:
    """A 1-D array of str, of dtype str even where it is empty."""
    return np.array([str(value) for value in values], dtype=np.str_)
