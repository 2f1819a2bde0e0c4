"""What is measured on the dies as a vector of numbers that a turned or mirrored wafer keeps.

Shares of failing dies are those of wafervlm.geometry. Clusters here are all failing dies that touch: what
stands out from the background is what a description needs, and tells labels apart less well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wafervlm.geometry import measure_shares
from wafervlm.wafermap import FAIL, NO_DIE, DieGrid

Floats = NDArray[np.float64]

LARGEST, LEAST = 3, 4
RIM = 0.9
_CLUSTER = ("of_wafer", "of_failing", "radius", "length", "width", "slender", "rim")
_BAND = ("high", "low", "mean", "deviation", "arc")
NAMES = (
    *("log_dies", "share", "lonely"),
    *(f"zone_{i}" for i in range(3)),
    *(f"ring_{i}" for i in range(6)),
    *(f"{band}_{what}" for band in ("rim", "middle") for what in _BAND),
    *(f"{band}_wave_{i}" for band in ("rim", "middle") for i in range(1, 5)),
    *("clusters", "clustered"),
    *(f"cluster_{i}_{what}" for i in range(LARGEST) for what in _CLUSTER),
)


def geometry_features(dies: DieGrid) -> Floats:
    """The values of ``NAMES`` for ``dies`` (H, W) uint8, (len(NAMES),) float64."""
    found = measure_shares(dies)
    values = [np.log(found.dies), found.share, found.lonely, *found.zones, *found.rings]
    bands = (found.rim_hours, found.middle_hours)
    for hours in bands:
        values += [hours.max(), hours.min(), hours.mean(), hours.std(), longest_arc(hours)]
    for hours in bands:
        # The magnitudes of a circular signal's harmonics do not change when it is turned or mirrored.
        values += list(np.abs(np.fft.rfft(hours))[1:5] / len(hours))
    return np.array([*values, *_clusters(dies, found.failing, found.dies)], dtype=np.float64)


def longest_arc(hours: Floats) -> float:
    """The longest run round the clock, as a share of it, of sectors (12,) that fail as much as their mean and
    more than one die in ten."""
    above = hours > max(float(hours.mean()) * 0.999, 0.1)
    if above.all():
        return 1.0
    # Begun at a gap, no run goes over the end.
    turned = np.roll(above, -int(np.flatnonzero(~above)[0]))
    edges = np.flatnonzero(np.diff(np.r_[False, turned, False].astype(np.int8)))
    return float(max(edges[1::2] - edges[::2], default=0) / len(hours))


def _clusters(dies: DieGrid, failing: int, count: int) -> list[float]:
    """Number, share of the failing dies, and figures of the largest clusters of four dies or more."""
    mask = dies == FAIL
    marked, found = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(marked.ravel(), minlength=found + 1)[1:]
    order = [int(i) for i in np.argsort(-sizes, kind="stable")[:8] if sizes[i] >= LEAST]
    values = [float(len(order)), float(sizes[order].sum() / max(failing, 1))]
    box = _box(dies)
    for i in order[:LARGEST]:
        values += _cluster(np.nonzero(marked == i + 1), box, failing, count)
    return values + [0.0] * (2 + len(_CLUSTER) * LARGEST - len(values))


def _cluster(
    places: tuple[NDArray[np.intp], ...], box: tuple[slice, ...], failing: int, count: int
) -> list[float]:
    sides = np.array([side.stop - side.start for side in box])
    down, right = (
        2 * (at - side.start + 0.5) / (side.stop - side.start) - 1
        for at, side in zip(places, box, strict=True)
    )
    # A die is a square, not a point: that is the variance of its own extent.
    spread = np.cov(np.stack([down, right]), bias=True) + np.diag((2 / sides) ** 2 / 12)
    minor, major = np.sqrt(np.linalg.eigvalsh(spread))
    size, reach = len(down), float(np.hypot(down, right).max())
    radius = float(np.hypot(down.mean(), right.mean()))
    slender = min(float(major / max(minor, 1e-6)), 20.0)
    return [size / count, size / failing, radius, 2 * major, 2 * minor, slender, float(reach >= RIM)]


def _box(dies: DieGrid) -> tuple[slice, ...]:
    """Rows and columns of the box around all dies."""
    found: list[tuple[slice, ...]] = ndimage.find_objects((dies != NO_DIE).astype(np.int8))
    return found[0]
