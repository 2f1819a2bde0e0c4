"""Where the dies of a wafer lie: tables by die, made once for wafers of one outline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from wafervlm.errors import WaferMapError
from wafervlm.geometry.types import GRID, HOURS, RIM_RADIUS, RINGS, ZONE_RADII, ZONES, Floats, Zone
from wafervlm.wafermap import NO_DIE, DieGrid

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

SECTORS = 36
# What lies on the border of two parts may miss it by this: it belongs to the later one.
ROUNDING = 1e-9
# Each part of the wafer that a share is taken of: its name, how many there are.
PARTS = {
    "zones": len(ZONES),
    "hours": HOURS,
    "rim_hours": HOURS,
    "middle_hours": HOURS,
    "grid": GRID * GRID,
    "rings": RINGS,
    "quadrants": 4,
}
# Tables of wafers with more dies than this are made anew for each: many of them would fill the memory.
LARGEST_KEPT = 1 << 14


@dataclass(frozen=True, eq=False)
class Places:
    """Tables of the wafers with one outline: arrays (H * W,), row-major, of every cell of the grid, on the
    wafer or not. ``span`` is the number of dies across the box, down and to the right."""

    shape: tuple[int, int]
    span: tuple[int, int]
    on_wafer: Mask
    x: Floats
    y: Floats
    radius: Floats
    hour: Ints

    @cached_property
    def dies(self) -> int:
        """Dies on the wafer."""
        return int(np.count_nonzero(self.on_wafer))

    @cached_property
    def zone(self) -> Ints:
        """Index into ZONES."""
        return np.searchsorted(ZONE_RADII, self.radius, side="right")

    @cached_property
    def angle(self) -> Floats:
        """Clock angle in degrees, 0 to 360."""
        return clock_angle(self.x, self.y)

    @cached_property
    def clock(self) -> Ints:
        """Clock sector 0 to 11, 0 for 12 o'clock; a die on a border always belongs to the later one, where
        ``hour`` leaves it to rounding."""
        return np.asarray(np.floor(self.angle / 30 + 0.5 + ROUNDING).astype(np.int64) % HOURS)

    @cached_property
    def pitch(self) -> float:
        """Distance between neighbouring dies in wafer radii, the mean of both axes."""
        return 1 / self.span[0] + 1 / self.span[1]

    @cached_property
    def parts(self) -> Ints:
        """(parts, H * W): for each part of PARTS the number of the cell's share among all shares; one more
        than there are where a part does not hold the cell."""
        row, column = (np.clip(((v + 1) / 2 * GRID).astype(np.int64), 0, GRID - 1) for v in (self.y, self.x))
        rim, middle = self.radius >= RIM_RADIUS, self.zone == 1
        ring = np.minimum((self.radius * RINGS).astype(np.int64), RINGS - 1)
        quadrant = 2 * (self.y > 0) + (self.x > 0)
        numbers = [
            (self.zone, None),
            (self.hour, self.zone > 0),
            (self.hour, rim),
            (self.hour, middle),
            (row * GRID + column, None),
            (ring, None),
            (quadrant, (self.x != 0) & (self.y != 0)),
        ]
        starts = np.cumsum([0, *PARTS.values()])
        return np.stack(
            [
                number + start if held is None else np.where(held, number + start, starts[-1])
                for (number, held), start in zip(numbers, starts, strict=False)
            ]
        )

    @cached_property
    def part_dies(self) -> Ints:
        """Dies of each part, in the order of ``parts``; at least 1."""
        counts = np.bincount(self.parts[:, self.on_wafer].ravel(), minlength=sum(PARTS.values()) + 1)
        return np.maximum(counts, 1)

    @cached_property
    def polar_cell(self) -> Ints:
        """Zone by hour, 36 cells."""
        return self.zone * HOURS + self.clock

    @cached_property
    def polar_dies(self) -> Ints:
        """Dies of each of the 36 cells."""
        return np.bincount(self.polar_cell[self.on_wafer], minlength=len(ZONES) * HOURS)

    @cached_property
    def sector(self) -> Ints:
        """Sector of 10 degrees, 0 to 35; the first begins at 12 o'clock."""
        return np.asarray(np.floor(self.angle / (360 / SECTORS) + ROUNDING).astype(np.int64) % SECTORS)

    @cached_property
    def band(self) -> Ints:
        """Number of the radial band, each as wide as a die; what lies beyond radius 1 is in the last."""
        return np.minimum(np.floor(self.radius / self.pitch + ROUNDING).astype(np.int64), self.bands - 1)

    @cached_property
    def bands(self) -> int:
        """Radial bands from the centre to the edge."""
        return int(np.ceil(1 / self.pitch))

    @cached_property
    def band_dies(self) -> Ints:
        """Dies of each radial band."""
        return np.bincount(self.band[self.on_wafer], minlength=self.bands)


def places(dies: DieGrid) -> Places:
    """The tables of the wafer ``dies`` (H, W) uint8; kept for the next wafer of its outline. Raises
    WaferMapError where it has no die."""
    on_wafer = np.ascontiguousarray(dies != NO_DIE)
    if not on_wafer.any():
        raise WaferMapError(f"the die grid of {dies.shape[0]}x{dies.shape[1]} has no die: every value is 0")
    make = _kept if dies.size <= LARGEST_KEPT else _made
    return make((dies.shape[0], dies.shape[1]), on_wafer.tobytes())


def _made(shape: tuple[int, int], outline: bytes) -> Places:
    on_wafer = np.frombuffer(outline, dtype=np.bool_).reshape(shape)
    rows, columns = np.flatnonzero(on_wafer.any(axis=1)), np.flatnonzero(on_wafer.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    span = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    down = 2 * (np.arange(shape[0]) - top + 0.5) / span[0] - 1
    right = 2 * (np.arange(shape[1]) - left + 0.5) / span[1] - 1
    y, x = (v.ravel() for v in np.meshgrid(down, right, indexing="ij"))
    return Places(shape, span, on_wafer.ravel(), x, y, np.hypot(x, y), _sector_of_hour(y, x))


_kept = lru_cache(maxsize=256)(_made)


def _sector_of_hour(down: Floats, right: Floats) -> Ints:
    """Clock sector 0 to 11 of a position, 0 for 12 o'clock."""
    turn = np.arctan2(right, -down) / (2 * np.pi) * HOURS
    return np.floor(turn + 0.5).astype(np.int64) % HOURS


def clock_angle(x: Floats, y: Floats) -> Floats:
    """Clock angle in degrees, 0 up to 360, of a position with x to the right and y down."""
    return np.asarray(np.degrees(np.arctan2(x, -y)) % 360)


def clock_hour(angle: float) -> int:
    """Hour 1 to 12 of a clock angle; a border belongs to the later hour."""
    return int(np.floor(angle / 30 + 0.5 + ROUNDING)) % HOURS or HOURS


def zone_of(radius: float) -> Zone:
    """The zone in which a radius lies."""
    return ZONES[int(np.searchsorted(ZONE_RADII, radius, side="right"))]
