"""What the vision tower is taught before it is asked in words: everything measured on the dies at once.

An answer of a few words says little of an image. Here every patch learns what lies in it, and the whole
image all measurements behind the questions of ``train.nano.corpus``. No class enters: the values depend on
the dies alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from train.nano.raw_clusters import LINE_ASPECT, LINE_LENGTH, RawCluster, sight
from wafervlm.wafermap import FAIL, NO_DIE, DieGrid

Floats = NDArray[np.float32]

PATCH_VALUES = ("failing", "clustered", "in a line", "alone", "along the axes", "along the diagonals")
RANKED_CLUSTERS = 3
_EIGHT = np.ones((3, 3), dtype=bool)
_SIZES = (1, 2, 3, 4, 8, 16, 32)


def patch_targets(dies: DieGrid, pixels: int, patch: int) -> Floats:
    """What lies in each patch of a square image of ``pixels``: (pixels / patch, pixels / patch,
    len(PATCH_VALUES)) float32, row-major.

    Shares of the patch covered by failing dies: all, those in clusters of four and more, those in long thin
    clusters, those without a failing neighbour; and the clusters' elongation 1 - width / length times cosine
    and sine of twice the angle of their longer axis. A pixel counts as the die under its centre, which is
    what it shows where no side of the grid is longer than the image's.
    """
    values = _die_values(dies)
    side = pixels // patch
    rows, columns = (((np.arange(pixels) + 0.5) * n / pixels).astype(int) for n in dies.shape)
    drawn = values[np.ix_(rows, columns)]
    return np.asarray(
        drawn.reshape(side, patch, side, patch, len(PATCH_VALUES)).mean(axis=(1, 3)), np.float32
    )


def wafer_targets(dies: DieGrid) -> Floats:
    """The measurements of ``train.nano.raw_clusters`` on ``dies`` as one vector, with the shares of failing
    dies by number of failing neighbours (9) and by size of their cluster."""
    found = sight(dies)
    shares = found.shares
    failing = dies == FAIL
    count = max(int(failing.sum()), 1)
    neighbours = ndimage.convolve(failing.astype(np.int8), _EIGHT.astype(np.int8), mode="constant")[failing]
    marked, _ = ndimage.label(failing, structure=_EIGHT)
    sizes = np.bincount(marked.ravel())[marked[failing]]
    parts = [
        [shares.share, shares.lonely, np.log1p(count), np.log1p(len(found.clusters))],
        [found.ring_hours / 12, float(found.has_ring), sum(c.is_line for c in found.clusters)],
        shares.zones,
        shares.rings,
        shares.rim_hours,
        shares.middle_hours,
        shares.grid.ravel(),
        np.bincount(neighbours - 1, minlength=9)[:9] / count,
        np.bincount(np.searchsorted(_SIZES, sizes, side="right"), minlength=len(_SIZES) + 1) / count,
        *(
            _cluster_values(found.clusters[rank] if rank < len(found.clusters) else None)
            for rank in range(RANKED_CLUSTERS)
        ),
    ]
    return np.concatenate([np.asarray(part, dtype=np.float32) for part in parts])


def _cluster_values(cluster: RawCluster | None) -> list[float]:
    if cluster is None:
        return [0.0] * 10
    angle = 2 * np.pi * cluster.hour / 12
    return [
        1.0,
        cluster.share,
        float(np.log1p(cluster.size)),
        cluster.radius,
        cluster.radius * float(np.cos(angle)),
        cluster.radius * float(np.sin(angle)),
        cluster.length,
        cluster.width,
        float(cluster.rim),
        float(cluster.is_line),
    ]


def _die_values(dies: DieGrid) -> NDArray[np.float64]:
    """(H, W, len(PATCH_VALUES)) of every die."""
    failing = dies == FAIL
    marked, count = ndimage.label(failing, structure=_EIGHT)
    sizes = np.bincount(marked.ravel(), minlength=count + 1)
    length, width, angle = _axes(marked, sizes, dies)
    stretched = np.where(sizes >= 4, 1 - width / np.maximum(length, 1e-9), 0.0)
    stretched[0] = 0.0
    line = (sizes >= 4) & (length >= LINE_LENGTH) & (width <= LINE_ASPECT * length)
    return np.stack(
        [
            failing,
            failing & (sizes >= 4)[marked],
            failing & line[marked],
            failing & (sizes == 1)[marked],
            failing * (stretched * np.cos(2 * angle))[marked],
            failing * (stretched * np.sin(2 * angle))[marked],
        ],
        axis=-1,
    ).astype(np.float64)


def _axes(
    marked: NDArray[np.integer[Any]], sizes: NDArray[np.integer[Any]], dies: DieGrid
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Length and width (four standard deviations, in wafer diameters) and angle of the longer axis of every
    cluster; index 0 is what is in none."""
    on_wafer = dies != NO_DIE
    rows, columns = np.flatnonzero(on_wafer.any(axis=1)), np.flatnonzero(on_wafer.any(axis=0))
    spans = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
    y, x = np.meshgrid(*(2 * np.arange(n) / s for n, s in zip(dies.shape, spans, strict=True)), indexing="ij")
    names, number = marked.ravel(), np.maximum(sizes, 1)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.bincount(names, weights=values.ravel(), minlength=len(sizes))
        return np.asarray(sums / number, dtype=np.float64)

    down, right = mean(y), mean(x)
    # A die is not a point: its own spread is that of a uniform square.
    yy = mean(y * y) - down**2 + (2 / spans[0]) ** 2 / 12
    xx = mean(x * x) - right**2 + (2 / spans[1]) ** 2 / 12
    yx = mean(y * x) - down * right
    middle, apart = (yy + xx) / 2, np.hypot((yy - xx) / 2, yx)
    longer, shorter = np.sqrt(middle + apart), np.sqrt(np.maximum(middle - apart, 0))
    return 2 * longer, 2 * shorter, np.arctan2(2 * yx, xx - yy) / 2
