"""Synthetic wafers of known make: what the geometry is measured against.

Positions are on the box around all dies, x to the right and y down, -1 to 1; lengths are in wafer radii. A
clock angle is in degrees, 0 at 12 o'clock, clockwise; a direction is 0 horizontal, 90 vertical, 45 rising.
Everything here is computed by itself: no line is shared with what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

SMALLEST_SIDE, LARGEST_SIDE = 20, 80
MOST_NOISE = 0.05
LEAST_DIES = 6


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What was planted on one wafer.

    ``kind`` is one of KINDS. ``dies`` (N, 2) are rows and columns of the planted failing dies, ``noise`` the
    share of the other dies that fail, ``x`` and ``y`` the mean position of the planted dies. Rings have the
    ``radius`` of the middle of their band, its ``width`` and the clock ``angle`` of the middle of their gap,
    arcs the clock ``angle`` of their middle; ``extent`` is how many degrees both cover. Lines have ``length``
    along the curve, ``width``, the ``direction`` of their chord and the ``bend`` 1 / radius of the curve, 0
    where straight. Repeats have a ``period`` in dies, down and across. What a kind does not have is 0.
    """

    kind: str
    dies: NDArray[np.intp]
    noise: float
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0
    width: float = 0.0
    angle: float = 0.0
    extent: float = 0.0
    length: float = 0.0
    direction: float = 0.0
    bend: float = 0.0
    period: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Blank:
    """An empty wafer: (H, W) positions of its dies, and which cells are dies."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    dies: Mask

    @property
    def pitch(self) -> float:
        """The larger side of a die."""
        return float(2 / min(self.dies.shape))


def blank(rows: int, columns: int) -> Blank:
    """A round wafer whose outermost dies touch all four sides of a grid of ``rows`` by ``columns``."""
    down = [(2 * i - rows + 1) / rows for i in range(rows)]
    right = [(2 * i - columns + 1) / columns for i in range(columns)]
    x, y = np.tile(np.array(right), (rows, 1)), np.tile(np.array(down)[:, None], (1, columns))
    return Blank(x, y, x * x + y * y <= 1.0)


def _cluster(wafer: Blank, rng: Rng) -> tuple[Mask, dict[str, float]]:
    across = max(rng.uniform(0.1, 0.25), 1.3 * wafer.pitch)
    long, short = across, max(across * rng.uniform(0.6, 1), 1.2 * wafer.pitch)
    distance, angle, turn = rng.uniform(0, 0.85), rng.uniform(0, 2 * math.pi), rng.uniform(0, math.pi)
    dx, dy = wafer.x - distance * math.sin(angle), wafer.y + distance * math.cos(angle)
    u, v = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
    planted = _some((u / long) ** 2 + (v / short) ** 2 <= 1, rng.uniform(0.75, 1), rng)
    # At the rim little of it may lie on the wafer.
    return (planted, {}) if np.count_nonzero(planted & wafer.dies) >= LEAST_DIES else _cluster(wafer, rng)


def _within(wafer: Blank, angle: float, extent: float) -> Mask:
    """Dies no more than half of ``extent`` degrees from the clock ``angle``."""
    turn = math.radians(angle)
    along = wafer.x * math.sin(turn) - wafer.y * math.cos(turn)
    return np.asarray(along >= np.hypot(wafer.x, wafer.y) * math.cos(math.radians(extent / 2)))


def _band(wafer: Blank, radius: float, width: float) -> Mask:
    return np.asarray(np.abs(np.sqrt(wafer.x**2 + wafer.y**2) - radius) <= width / 2)


def _arc(wafer: Blank, rng: Rng) -> tuple[Mask, dict[str, float]]:
    width = max(rng.uniform(0.08, 0.2), 2 * wafer.pitch)
    angle, extent = rng.uniform(0, 360), rng.uniform(60, 180)
    planted = _band(wafer, 1 - width / 2, width) & _within(wafer, angle, extent)
    return _some(planted, rng.uniform(0.8, 1), rng), {"angle": angle, "extent": extent}


def _ring(wafer: Blank, rng: Rng, gap: float = 0.0) -> tuple[Mask, dict[str, float]]:
    width = max(rng.uniform(0.06, 0.18), 1.5 * wafer.pitch)
    radius = rng.uniform(0.45, 1 - width / 2)
    angle = rng.uniform(0, 360)
    planted = _band(wafer, radius, width)
    if gap:
        planted &= ~_within(wafer, angle, gap)
    figures = {"radius": radius, "width": width, "angle": angle if gap else 0.0, "extent": 360 - gap}
    return _some(planted, rng.uniform(0.75, 1), rng), figures


def _open_ring(wafer: Blank, rng: Rng) -> tuple[Mask, dict[str, float]]:
    return _ring(wafer, rng, rng.uniform(60, 100))


def _annulus(wafer: Blank, rng: Rng) -> tuple[Mask, dict[str, float]]:
    width = max(rng.uniform(0.24, 0.36), 2 * wafer.pitch)
    radius = rng.uniform(0.2 + width / 2, 0.6)
    figures = {"radius": radius, "width": width, "extent": 360.0}
    return _some(_band(wafer, radius, width), rng.uniform(0.7, 1), rng), figures


def _line(wafer: Blank, rng: Rng, bend: float = 0.0) -> tuple[Mask, dict[str, float]]:
    length, width = rng.uniform(0.6, 1.2), wafer.pitch * rng.uniform(1.0, 1.6)
    direction = rng.uniform(0, 180)
    middle, turn = 1 - length / 2 - 0.05, math.radians(direction)
    distance, angle = rng.uniform(0, middle), rng.uniform(0, 2 * math.pi)
    # Along the chord from its middle, and to its left with y up.
    dx, dy = wafer.x - distance * math.sin(angle), -wafer.y - distance * math.cos(angle)
    u, v = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
    if bend:
        # A piece of a circle about (0, -1 / bend) in that frame, the chord parallel to u.
        along = np.arctan2(u, v + 1 / bend) / bend
        across = np.sqrt(u**2 + (v + 1 / bend) ** 2) - 1 / bend
    else:
        along, across = u, v
    planted = (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2)
    figures = {"length": length, "width": width, "direction": direction, "bend": bend}
    return _some(planted, rng.uniform(0.9, 1), rng), figures


def _curve(wafer: Blank, rng: Rng) -> tuple[Mask, dict[str, float]]:
    return _line(wafer, rng, rng.uniform(1.0, 1.6))


def _scatter(wafer: Blank, rng: Rng) -> tuple[Mask, dict[str, float]]:
    return _some(wafer.dies, rng.uniform(0.3, 0.5), rng), {}


def _full(wafer: Blank, rng: Rng) -> tuple[Mask, dict[str, float]]:
    return _some(wafer.dies, rng.uniform(0.85, 1), rng), {}


def _none(wafer: Blank, rng: Rng) -> tuple[Mask, dict[str, float]]:
    return np.zeros_like(wafer.dies), {}


def _repeat(wafer: Blank, rng: Rng) -> tuple[Mask, dict[str, float]]:
    rows, columns = (int(rng.integers(3, min(6, side // 5) + 1)) for side in wafer.dies.shape)
    first, second = int(rng.integers(rows)), int(rng.integers(columns))
    planted = np.zeros_like(wafer.dies)
    planted[first::rows, second::columns] = True
    return _some(planted, rng.uniform(0.85, 1), rng), {"rows": rows, "columns": columns}


def _some(planted: Mask, share: float, rng: Rng) -> Mask:
    return np.asarray(planted & (rng.random(planted.shape) < share))


_MAKERS: dict[str, Callable[[Blank, Rng], tuple[Mask, dict[str, float]]]] = {
    "cluster": _cluster,
    "arc": _arc,
    "closed ring": _ring,
    "open ring": _open_ring,
    "annulus": _annulus,
    "line": _line,
    "curved line": _curve,
    "scatter": _scatter,
    "full": _full,
    "none": _none,
    "repeat": _repeat,
}
KINDS = tuple(_MAKERS)


def plant(
    kind: str, rng: Rng, shape: tuple[int, int] | None = None, noise: float | None = None
) -> tuple[Grid, Truth]:
    """A wafer with one structure of a ``kind`` of KINDS: dies (H, W) uint8, 0 no die, 1 pass, 2 fail, and its
    truth. The grid has ``shape``, else 20 to 80 dies a side; ``noise`` is the failing share of the other
    dies, else drawn up to 5 percent."""
    rows, columns = shape or _shape(rng)
    wafer = blank(rows, columns)
    planted, figures = _MAKERS[kind](wafer, rng)
    planted &= wafer.dies
    share = rng.uniform(0, MOST_NOISE) if noise is None else noise
    failing = planted | (wafer.dies & (rng.random(planted.shape) < share))
    dies = np.where(wafer.dies, np.where(failing, 2, 1), 0).astype(np.uint8)
    place = (
        {"x": float(wafer.x[planted].mean()), "y": float(wafer.y[planted].mean())} if planted.any() else {}
    )
    period = int(figures.pop("rows", 0)), int(figures.pop("columns", 0))
    return dies, Truth(kind, np.argwhere(planted), share, period=period, **place, **figures)


def _shape(rng: Rng) -> tuple[int, int]:
    """Half of the grids are square; dies of the others are up to twice as long as wide."""
    rows = int(rng.integers(SMALLEST_SIDE, LARGEST_SIDE + 1))
    if rng.random() < 0.5:
        return rows, rows
    columns = rows * 2 ** rng.uniform(-1, 1)
    return rows, int(np.clip(round(columns), SMALLEST_SIDE, LARGEST_SIDE))
