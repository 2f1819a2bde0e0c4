"""What is said of a wafer, as choices: of every kind of claim, which value is true of the dies.

A place on the clock is one word in twenty of a description, so a training on text alone hardly learns it.
Here the vision tower learns all of them at once, from the measurements that the descriptions are written
from (``wafervlm.geometry``). No class enters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.claims.check_structures import DIRECTIONS, turned
from wafervlm.claims.measured import counted_clusters
from wafervlm.geometry import HOURS, PATTERNS, ZONES, Geometry, measure
from wafervlm.wafermap import DieGrid

# Steps of a number of dies, each a fifth over the one before: what a reader tells apart.
_SIZES = np.array([4 * 1.2**step for step in range(36)])
# Steps of 2.5 points below a share of 20 percent, of 5 above, and of 5 points of a length or radius.
_SHARES = np.concatenate([np.arange(0.025, 0.2, 0.025), np.arange(0.2, 1.0, 0.05)])
_LENGTHS = np.arange(0.05, 1.25, 0.05)
_BACKGROUNDS = np.array([0.02, 0.035, 0.05, 0.08, 0.11, 0.15])


def _hour(hour: int | None) -> int:
    return 0 if hour is None else hour


def _step(steps: NDArray[np.float64]) -> Callable[[float | None], int]:
    """0 for nothing, otherwise 1 and above by the step that the value has reached."""
    return lambda value: 0 if value is None else 1 + int(np.searchsorted(steps, value, side="right"))


def _of_first(parts: Any, value: Callable[[Any], Any]) -> Any:
    return value(parts[0]) if parts else None


def _ring(g: Geometry) -> int:
    if g.ring_list:
        return 3 if g.ring_list[0].closed else 2
    return 1 if any(cluster.arc for cluster in g.clusters) else 0


def _line(g: Geometry) -> int:
    if not g.lines:
        return 0
    line = g.lines[0]
    if line.curvature:
        return 1 + len(DIRECTIONS)
    return 1 + int(np.argmin([turned(line.direction, degrees) for degrees in DIRECTIONS.values()]))


def _span(g: Geometry, end: str) -> int:
    """The clock position of one end of the dominating arc or, without one, of the largest cluster."""
    found = g.main if getattr(g.main, "arc", False) else next(iter(g.clusters), None)
    return 0 if found is None else int(getattr(found, end))


def _second(g: Geometry) -> int:
    """The clock position of a second cluster that a reader counts, where it has one."""
    placed = len(counted_clusters(g)) > 1 and g.clusters[1].zone != "center"
    return g.clusters[1].hour if placed else 0


# How many values there are to choose from, and which it is.
CHOICES: dict[str, tuple[int, Callable[[Geometry], int]]] = {
    "pattern": (len(PATTERNS), lambda g: PATTERNS.index(g.pattern)),
    "zone": (1 + len(ZONES), lambda g: 0 if g.main_zone is None else 1 + ZONES.index(g.main_zone)),
    "clock": (1 + HOURS, lambda g: _hour(g.main_hour)),
    "first hour": (1 + HOURS, lambda g: _span(g, "first_hour")),
    "last hour": (1 + HOURS, lambda g: _span(g, "last_hour")),
    "gap": (1 + HOURS, lambda g: _hour(_of_first(g.ring_list, lambda ring: ring.gap_hour))),
    "second": (1 + HOURS, _second),
    "clusters": (4, lambda g: min(len(counted_clusters(g)), 3) if g.clusters else 0),
    "ring": (4, _ring),
    "line": (2 + len(DIRECTIONS), _line),
    "share": (2 + len(_SHARES), lambda g: _step(_SHARES)(g.share)),
    "background": (2 + len(_BACKGROUNDS), lambda g: _step(_BACKGROUNDS)(g.background)),
    "lonely": (12, lambda g: 1 + round(10 * g.lonely)),
    "size": (2 + len(_SIZES), lambda g: _step(_SIZES)(_of_first(g.clusters, lambda c: c.size))),
    "density": (12, lambda g: _of_first(g.clusters, lambda c: 1 + round(10 * c.density)) or 0),
    "length": (2 + len(_LENGTHS), lambda g: _step(_LENGTHS)(getattr(g.main, "length", None))),
    "radius": (2 + len(_LENGTHS), lambda g: _step(_LENGTHS)(getattr(g.main, "radius", None))),
}


def wafer_choices(dies: DieGrid) -> NDArray[np.int64]:
    """The index of the true value of each of ``CHOICES``, (len(CHOICES),) int64, of ``dies`` (H, W) uint8."""
    geometry = measure(dies)
    return np.array([chosen(geometry) for _, chosen in CHOICES.values()], dtype=np.int64)
