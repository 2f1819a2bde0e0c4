"""Where the dies of a planted wafer fail, from its generator's truth alone: nothing here is measured by
``wafervlm.geometry``."""

from __future__ import annotations

import functools
import math

import numpy as np

from benchmarks.planted import Grid, Truth, blank

ZONES = ("center", "middle", "edge")
BORDERS = (0.35, 0.72)
RIM = 0.9
# A wafer's one structure lies somewhere, and so has a clock position outside of the center zone.
PLACED = ("cluster", "arc", "line", "curved line")
LINES = ("line", "curved line")
RINGS = ("closed ring", "open ring", "annulus")
# Failing dies wherever a die is.
EVERYWHERE = ("scatter", "full", "none", "repeat")


class Planted:
    """The dies (H, W) uint8 of a planted wafer with its ``truth``; positions as ``benchmarks.planted``."""

    def __init__(self, dies: Grid, truth: Truth) -> None:
        self.dies, self.truth, self.kind = dies, truth, truth.kind
        wafer = blank(*dies.shape)
        self.on_wafer, self.failing = dies > 0, dies == 2
        self.radii = np.hypot(wafer.x, wafer.y)
        rows, columns = truth.dies[:, 0], truth.dies[:, 1]
        self.x, self.y = wafer.x[rows, columns], wafer.y[rows, columns]

    @functools.cached_property
    def share(self) -> float:
        """Failing dies over dies."""
        return float(self.failing.sum() / self.on_wafer.sum())

    @functools.cached_property
    def background(self) -> float:
        """Failing share of the dies in which nothing is planted."""
        rest = self.on_wafer.copy()
        rest[self.truth.dies[:, 0], self.truth.dies[:, 1]] = False
        return float((self.failing & rest).sum() / max(int(rest.sum()), 1))

    @functools.cached_property
    def zones(self) -> dict[str, float]:
        """Failing share of each zone."""
        place = np.digitize(self.radii, BORDERS)
        shares = {}
        for number, name in enumerate(ZONES):
            dies = self.on_wafer & (place == number)
            shares[name] = float((self.failing & dies).sum() / max(int(dies.sum()), 1))
        return shares

    @property
    def radius(self) -> float:
        """Of the middle of what is planted; of a ring that of its band."""
        truth = self.truth
        return truth.radius if self.kind in RINGS else math.hypot(truth.x, truth.y)

    @property
    def zone(self) -> str:
        """The zone of that radius."""
        return ZONES[int(np.digitize(self.radius, BORDERS))]

    @property
    def hour(self) -> int | None:
        """The clock position of what is planted, None where it has none."""
        if self.kind not in PLACED or self.zone == "center":
            return None
        return hour_of(self.turn)

    @property
    def turn(self) -> float:
        """The clock angle of what is planted in degrees."""
        if self.kind == "arc":
            return self.truth.angle
        return math.degrees(math.atan2(self.truth.x, -self.truth.y))

    @functools.cached_property
    def extent(self) -> float:
        """Length in wafer diameters: of a line as planted, of others four standard deviations along the
        longer axis."""
        if self.kind in LINES:
            return self.truth.length / 2
        spread = np.cov(np.stack([self.x, self.y]), bias=True)
        return float(4 * math.sqrt(float(np.linalg.eigvalsh(spread)[-1])) / 2)

    @property
    def reaches_rim(self) -> bool:
        """Whether a planted die lies as far out as the rim."""
        return bool(len(self.x)) and float(np.hypot(self.x, self.y).max()) >= RIM


def hour_of(turn: float) -> int:
    """The clock position 1 to 12 of an angle in degrees."""
    return math.floor(turn / 30 + 0.5) % 12 or 12


def label_of(dies: Grid, truth: Truth) -> str:
    """The class of WM-811K that what is planted looks like."""
    planted = Planted(dies, truth)
    match truth.kind:
        case "arc":
            return "Edge-Loc"
        case "cluster":
            return {"center": "Center", "middle": "Loc", "edge": "Edge-Loc"}[planted.zone]
        case "closed ring" | "open ring":
            return "Edge-Ring" if planted.zone == "edge" else "Donut"
        case "annulus":
            return "Donut"
        case "line" | "curved line":
            return "Scratch"
        case "scatter":
            return "Random"
        case "full":
            return "Near-full"
        case _:
            return "none"
