"""What can be measured on the dies: zones, clock positions, clusters, rings, lines.

Positions are those of the image: row 0 is at the top, 12 o'clock is up. The radius of a die is its
distance from the wafer's centre over the wafer's radius, both taken on the box around all dies, so a
wafer of non-square dies is round. Needs scipy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.errors import MissingDependencyError
from wafervlm.wafermap import FAIL, NO_DIE, DieGrid

Floats = NDArray[np.float64]

ZONES = ("inner", "middle", "outer")
ZONE_RADII = (0.35, 0.72)
HOURS = 12
GRID = 5
RINGS = 6
RIM_RADIUS = 0.85
RING_SHARE, RING_HOURS = 0.3, 8
LINE_LENGTH, LINE_ASPECT = 0.25, 0.25
_EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Failing dies that touch, sides or corners. ``share`` is of all failing dies; ``radius`` and ``hour``
    (1 to 12) are those of the centroid; ``length`` and ``width`` are four standard deviations along the
    principal axes, in wafer diameters; ``rim`` says that it reaches a radius of 0.9."""

    size: int
    share: float
    radius: float
    hour: int
    length: float
    width: float
    rim: bool

    @property
    def is_line(self) -> bool:
        """Long and thin: at least a quarter diameter long, at most a quarter as wide as long."""
        return self.length >= LINE_LENGTH and self.width <= LINE_ASPECT * self.length

    @property
    def zone(self) -> str:
        """The zone in which the centroid lies."""
        return ZONES[int(np.searchsorted(ZONE_RADII, self.radius, side="right"))]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Measured on one die grid; every share is failing dies over dies of the part, 0 to 1.

    ``zones`` (3,) inner, middle, outer; ``rim_hours`` (radius 0.85 and more) and ``middle_hours`` (the
    middle zone), each (12,), by clock sector, 12 o'clock first; ``grid`` (5, 5) row-major; ``rings`` (6,)
    of equal width from the centre; ``lonely`` is the share of failing dies with at most one failing
    neighbour; ``clusters`` are sorted by size, the largest first, those of fewer than four dies left out.
    """

    share: float
    zones: Floats
    rim_hours: Floats
    middle_hours: Floats
    grid: Floats
    rings: Floats
    lonely: float
    clusters: tuple[Cluster, ...]

    @property
    def ring_hours(self) -> int:
        """Clock sectors in which at least 30 % of the dies at the rim fail."""
        return int((self.rim_hours >= RING_SHARE).sum())

    @property
    def has_ring(self) -> bool:
        """Whether failing dies go round the rim: eight sectors or more, and fewer fail further in."""
        return self.ring_hours >= RING_HOURS and float(self.rim_hours.mean()) > 1.5 * self.zones[:2].mean()


def measure(dies: DieGrid) -> Geometry:
    """Measure ``dies`` (H, W) uint8. Raises MissingDependencyError where scipy is not installed."""
    ndimage = _ndimage()
    radius, hour, cell = _places(dies)
    on_wafer, failing = dies != NO_DIE, dies == FAIL
    neighbours = (
        ndimage.convolve(failing.astype(np.int8), np.ones((3, 3), np.int8), mode="constant") - failing
    )
    zone = np.searchsorted(ZONE_RADII, radius, side="right")
    ring = np.minimum((radius * RINGS).astype(int), RINGS - 1)

    def shares(part: NDArray[Any], count: int, where: NDArray[np.bool_]) -> Floats:
        dies_in = np.bincount(part[on_wafer & where], minlength=count)
        fails_in = np.bincount(part[failing & where], minlength=count)
        return fails_in / np.maximum(dies_in, 1)

    everywhere = np.ones_like(on_wafer)
    fails = int(failing.sum())
    return Geometry(
        share=fails / max(int(on_wafer.sum()), 1),
        zones=shares(zone, 3, everywhere),
        rim_hours=shares(hour, HOURS, radius >= RIM_RADIUS),
        middle_hours=shares(hour, HOURS, zone == 1),
        grid=shares(cell, GRID * GRID, everywhere).reshape(GRID, GRID),
        rings=shares(ring, RINGS, everywhere),
        lonely=float((failing & (neighbours <= 1)).sum() / max(fails, 1)),
        clusters=_clusters(failing & (neighbours >= 1), fails, radius, ndimage),
    )


def _clusters(mask: NDArray[np.bool_], fails: int, radius: Floats, ndimage: Any) -> tuple[Cluster, ...]:
    marked, count = ndimage.label(mask, structure=_EIGHT)
    if not count:
        return ()
    sizes = np.bincount(marked.ravel(), minlength=count + 1)
    order = [int(i) for i in np.argsort(-sizes[1:], kind="stable") + 1 if sizes[i] >= 4][:8]
    return tuple(_cluster(np.nonzero(marked == i), mask.shape, fails, radius) for i in order)


def _cluster(
    dies: tuple[NDArray[np.intp], ...], shape: tuple[int, ...], fails: int, radius: Floats
) -> Cluster:
    down, right = (2 * (dies[axis] + 0.5) / shape[axis] - 1 for axis in (0, 1))
    y, x = float(down.mean()), float(right.mean())
    spread = np.cov(np.stack([down, right]), bias=True) + np.diag([(2 / n) ** 2 / 12 for n in shape[:2]])
    minor, major = np.sqrt(np.linalg.eigvalsh(spread))
    return Cluster(
        size=len(dies[0]),
        share=len(dies[0]) / max(fails, 1),
        radius=float(np.hypot(x, y)),
        hour=int(_hour(np.array(y), np.array(x))) or HOURS,
        length=float(2 * major),
        width=float(2 * minor),
        rim=bool((radius[dies] >= 0.9).any()),
    )


def _hour(down: Floats, right: Floats) -> NDArray[np.int64]:
    """Clock sector 0 to 11 of a position, 0 for 12 o'clock; sectors are centred on the hours."""
    turn = np.arctan2(right, -down) / (2 * np.pi) * HOURS
    return np.floor(turn + 0.5).astype(np.int64) % HOURS


def _places(dies: DieGrid) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Radius, clock sector and cell of the 5x5 grid of every die."""
    rows, columns = np.flatnonzero(dies.any(axis=1)), np.flatnonzero(dies.any(axis=0))
    return _places_in_box(dies.shape, (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])))


@lru_cache(maxsize=4096)
def _places_in_box(
    shape: tuple[int, int], box: tuple[int, int, int, int]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    top, bottom, left, right_edge = box
    down = 2 * (np.arange(shape[0]) - top + 0.5) / (bottom - top + 1) - 1
    right = 2 * (np.arange(shape[1]) - left + 0.5) / (right_edge - left + 1) - 1
    y, x = np.meshgrid(down, right, indexing="ij")
    rows, columns = (np.clip(((v + 1) / 2 * GRID).astype(np.int64), 0, GRID - 1) for v in (y, x))
    return np.hypot(x, y), _hour(y, x), rows * GRID + columns


def _ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError:
        raise MissingDependencyError("measuring dies needs scipy: pip install scipy") from None
    return ndimage
