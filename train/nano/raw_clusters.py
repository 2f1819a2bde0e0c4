"""What nano's base is taught to see in failing dies that touch, noise included.

The base looks at the dies as they are: clusters here are connected failing dies, where those of
``wafervlm.geometry`` are told from the background first. Zones are called inner, middle and outer, since
the base must not read the name of a class. Its weights were trained with these definitions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wafervlm.geometry import ZONE_RADII, Shares, measure_shares
from wafervlm.geometry.places import Mask, places
from wafervlm.geometry.shares import neighbours
from wafervlm.wafermap import FAIL, DieGrid

ZONES = ("inner", "middle", "outer")
LINE_LENGTH, LINE_ASPECT = 0.25, 0.25
LARGEST, SMALLEST = 8, 4
_RING_SHARE, _RING_HOURS = 0.3, 8
_EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class RawCluster:
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
class Sighting:
    """The shares of a die grid, and its clusters by size, the largest first, those of fewer than four dies
    left out."""

    shares: Shares
    clusters: tuple[RawCluster, ...]

    @property
    def ring_hours(self) -> int:
        """Clock sectors in which at least 30 % of the dies at the rim fail."""
        return int((self.shares.rim_hours >= _RING_SHARE).sum())

    @property
    def has_ring(self) -> bool:
        """Whether failing dies go round the rim: eight sectors or more, and fewer fail further in."""
        rim, inside = self.shares.rim_hours.mean(), self.shares.zones[:2].mean()
        return self.ring_hours >= _RING_HOURS and float(rim) > 1.5 * inside


def sight(dies: DieGrid) -> Sighting:
    """What is seen on ``dies`` (H, W) uint8."""
    failing = dies == FAIL
    return Sighting(measure_shares(dies), _clusters(failing & (neighbours(failing) >= 1), dies))


def _clusters(mask: Mask, dies: DieGrid) -> tuple[RawCluster, ...]:
    marked, count = ndimage.label(mask, structure=_EIGHT)
    if not count:
        return ()
    sizes = np.bincount(marked.ravel(), minlength=count + 1)
    order = [int(i) for i in np.argsort(-sizes[1:], kind="stable") + 1 if sizes[i] >= SMALLEST][:LARGEST]
    fails = int(np.count_nonzero(dies == FAIL))
    radius = places(dies).radius.reshape(dies.shape)
    return tuple(_cluster(np.nonzero(marked == i), mask.shape, fails, radius) for i in order)


def _cluster(
    dies: tuple[NDArray[np.intp], ...], shape: tuple[int, ...], fails: int, radius: NDArray[np.float64]
) -> RawCluster:
    down, right = (2 * (dies[axis] + 0.5) / shape[axis] - 1 for axis in (0, 1))
    y, x = float(down.mean()), float(right.mean())
    spread = np.cov(np.stack([down, right]), bias=True) + np.diag([(2 / n) ** 2 / 12 for n in shape[:2]])
    minor, major = np.sqrt(np.linalg.eigvalsh(spread))
    return RawCluster(
        size=len(dies[0]),
        share=len(dies[0]) / max(fails, 1),
        radius=float(np.hypot(x, y)),
        hour=int(np.floor(np.arctan2(x, -y) / (2 * np.pi) * 12 + 0.5)) % 12 or 12,
        length=float(2 * major),
        width=float(2 * minor),
        rim=bool((radius[dies] >= 0.9).any()),
    )
