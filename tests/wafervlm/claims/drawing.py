"""Wafers drawn for tests, and what is measured on them."""

from __future__ import annotations

import numpy as np

from wafervlm.geometry import Geometry, measure
from wafervlm.wafermap import DieGrid

Y, X = np.meshgrid(*(np.linspace(-1, 1, 41),) * 2, indexing="ij")
RADIUS, ANGLE = np.hypot(X, Y), np.degrees(np.arctan2(X, -Y)) % 360


def wafer(where: np.ndarray, noise: float = 0.0) -> DieGrid:
    """41x41 dies that fail ``where``, and a share ``noise`` of the others."""
    dies = np.where(RADIUS <= 1.01, 1, 0).astype(np.uint8)
    fails = where | (np.random.default_rng(0).random(dies.shape) < noise)
    dies[fails & (dies > 0)] = 2
    return dies


def spot(hour: float, radius: float = 0.8, size: float = 0.15) -> np.ndarray:
    """A disc at a clock position."""
    turn = np.radians(30 * hour)
    return np.hypot(X - radius * np.sin(turn), Y + radius * np.cos(turn)) < size


DRAWN: dict[str, DieGrid] = {
    "empty": wafer(RADIUS > 9),
    "none": wafer(RADIUS > 9, 0.03),
    "scatter": wafer(RADIUS > 9, 0.4),
    "full": wafer(RADIUS < 9),
    "ring": wafer(RADIUS > 0.88),
    "gap": wafer((RADIUS > 0.88) & ~((ANGLE > 60) & (ANGLE < 120))),
    "annulus": wafer(np.abs(RADIUS - 0.5) < 0.12, 0.01),
    "arc": wafer((RADIUS > 0.85) & (ANGLE > 105) & (ANGLE < 195), 0.01),
    "center": wafer(RADIUS < 0.3, 0.02),
    "spot": wafer(spot(5), 0.01),
    "spots": wafer(spot(5) | spot(9, 0.8, 0.13), 0.01),
    "line": wafer((np.abs(X + Y) < 0.04) & (np.abs(X) < 0.5)),
}
MEASURED: dict[str, Geometry] = {name: measure(dies) for name, dies in DRAWN.items()}
