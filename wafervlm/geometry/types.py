"""What is measured on the dies of one wafer: Geometry and its parts.

Positions are taken on the box around all dies: x to the right and y down, both -1 to 1 at the edges of the
box, so that a wafer of non-square dies is round. The radius of a position is hypot(x, y), 0 at the centre
and 1 at the edge of the wafer. The clock angle is in degrees, 0 at 12 o'clock, clockwise; hour h is the
sector of 30 degrees centred on h o'clock, and a position on the border of two sectors belongs to the later
one. ``angle`` is a clock angle; ``direction`` is that of an axis, 0 to 180 degrees: 0 horizontal, 45 rising
(from lower left to upper right), 90 vertical, 135 falling. Lengths and widths of clusters and lines are in
wafer diameters, radii and widths of rings in wafer radii.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Dies = NDArray[np.intp]
Zone = Literal["center", "middle", "edge"]
Frame = Literal["image", "tool"]
Pattern = Literal[
    "none", "scatter", "full", "ring", "annulus", "arc", "line", "curved line", "cluster", "clusters"
]

ZONES: tuple[Zone, ...] = ("center", "middle", "edge")
# Radii between the zones, the rim's being 1. Of the wafer's area the zones have 12, 40 and 48 percent, which
# is why their shares are told as contrasts; zones of equal areas would meet at 0.577 and 0.816.
ZONE_RADII = (0.35, 0.72)
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
PATTERNS: tuple[Pattern, ...] = (
    *("none", "scatter", "full", "ring", "annulus", "arc", "line", "curved line", "cluster", "clusters"),
)
HOURS = 12
GRID = 5
RINGS = 6
RIM_RADIUS = 0.85


@dataclass(frozen=True, slots=True, eq=False)
class Cluster:
    """Failing dies that stand closer together than the background explains; four at least.

    ``dies`` (N, 2) are rows and columns in the given grid; ``size`` is N and ``share`` N over all failing
    dies. ``radius``, ``angle``, ``hour`` and ``zone`` are those of the centroid. ``first_hour`` and
    ``last_hour`` are the ends of the clock sectors that it covers, clockwise from the first to the last
    (equal: one sector; last one before first: all round); a sector with less than a twentieth of its dies
    does not count. ``length`` and ``width`` are four standard deviations along the principal axes, and
    ``direction`` is that of the longer one. ``density`` is the share of failing dies within the outline: all
    dies on the wafer in the closing of the cluster by 3x3 dies. ``rim`` says that it reaches a radius of 0.9.
    ``arc`` says that it follows the rim: an eighth of the turn or more, and several times longer along the
    rim than across.
    """

    dies: Dies
    size: int
    share: float
    radius: float
    angle: float
    hour: int
    zone: Zone
    first_hour: int
    last_hour: int
    length: float
    width: float
    direction: float
    density: float
    rim: bool
    arc: bool


@dataclass(frozen=True, slots=True, eq=False)
class Ring:
    """Failing dies that go round the wafer's centre, or round a hollow a little off it, two thirds of the
    turn at least and with one gap of 40 degrees or more at most.

    ``radius`` is that of the middle of the band, ``width`` its full width, both in wafer radii. ``coverage``
    is the share of the 36 sectors of 10 degrees that it occupies. It is ``closed`` where no gap is as wide as
    40 degrees; ``gap_hour`` is the clock position of the middle of the widest gap, None where it is closed.
    ``zone`` is that of the radius. ``dies`` (N, 2) are rows and columns in the given grid.
    """

    dies: Dies
    radius: float
    width: float
    coverage: float
    closed: bool
    gap_hour: int | None
    zone: Zone


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A cluster that is long and thin, straight or bent.

    ``cluster`` is its index in ``Geometry.clusters``, with the same ``dies`` (N, 2). ``length`` is from end
    to end along the curve, ``width`` across it, both in wafer diameters. ``direction`` is that of the chord,
    ``curvature`` that of the fitted parabola's vertex in 1 / wafer diameter, 0 where it is straight.
    ``radius``, ``hour`` and ``zone`` are those of the middle of the curve.
    """

    dies: Dies
    cluster: int
    length: float
    width: float
    direction: float
    curvature: float
    radius: float
    hour: int
    zone: Zone


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """Failing dies that recur at the same place of every reticle.

    ``rows`` and ``columns`` are the period in dies down and across, 0 where there is none along that axis.
    ``strength`` is the failing share at the places that recur less that at all others, 0 to 1. ``dies``
    (N, 2) are the failing dies at these places.
    """

    rows: int
    columns: int
    strength: float
    dies: Dies


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """Shares of failing dies by part of the wafer; every share is failing dies over dies of the part, 0 to 1,
    and 0 for a part without dies.

    ``shape`` is (H, W) of the given grid, ``dies`` and ``failing`` are counts. ``zones`` (3,) as ZONES;
    ``hours`` (12,), all beyond the center zone, ``rim_hours`` (12,), radius 0.85 and more, and
    ``middle_hours`` (12,), the middle zone, by clock sector, 12 o'clock first; ``grid`` (5, 5) row-major;
    ``rings`` (6,) of equal width from the centre; ``quadrants`` (4,) as QUADRANTS. ``lonely`` is the share of
    failing dies with at most one failing neighbour among eight.
    """

    shape: tuple[int, int]
    dies: int
    failing: int
    share: float
    zones: Floats
    hours: Floats
    rim_hours: Floats
    middle_hours: Floats
    grid: Floats
    rings: Floats
    quadrants: Floats
    lonely: float


@dataclass(frozen=True, slots=True, eq=False)
class Geometry(Shares):
    """Everything that is measured on one die grid.

    ``frame`` is "image" (12 o'clock is the top of the image) or "tool" (the orientation mark lies at 6
    o'clock). ``background`` is the failing share among the dies in no structure. ``contrast`` (3,) is the
    share of each zone over the overall share (0 where nothing fails): zones differ in area, shares do not
    tell that. ``main_zone`` is the zone of the highest contrast where it stands out, as
    ``zone_stands_out`` says; else that of the dominating structure, None without one and where that is
    longer than 0.8 of the diameter (arcs are not asked). ``rotational`` and ``mirror`` are the symmetries
    about the centre and about the best axis through it, 0 to 1: the share of the failing dies that need not
    move to another of 36 cells (zone by hour).

    ``clusters`` are sorted by size, the largest first, eight at most; the dies of rings are in none, those of
    lines are in both. Where a quarter of the other dies or more fail, only clusters that are nearly solid
    count. ``ring_list`` and ``lines`` are sorted by the number of dies. ``main`` is the
    dominating structure, the one with most failing dies. ``pattern`` is its word: "none" where there is no
    structure and fewer than a quarter of the dies fail, "scatter" where there is none and more do, "full"
    where 70 percent fail or more (no structure is looked for then),
    "ring" and "annulus" (a ring away from the rim, a fifth of the radius wide or more), "arc", "line",
    "curved line", "cluster", "clusters" where others are about as large. ``main_hour`` is its clock position:
    None for none, scatter, full, ring and annulus, and for whatever lies in the center zone.
    """

    frame: Frame
    background: float
    contrast: Floats
    main_zone: Zone | None
    zone_stands_out: bool
    rotational: float
    mirror: float
    clusters: tuple[Cluster, ...]
    ring_list: tuple[Ring, ...]
    lines: tuple[Line, ...]
    repeat: Repeat | None
    pattern: Pattern
    main: Cluster | Ring | Line | None
    main_hour: int | None
