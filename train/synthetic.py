"""Synthetic wafer maps: shapes drawn on round wafers with background noise.

``scene`` draws any mixture of shapes, without a class; ``wafers`` draws one map per class name, for
demonstrations where no real maps are at hand and for the golden maps of a shipped bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from wafervlm.errors import UsageError
from wafervlm.wafermap import FAIL, PASS, DieGrid, WaferMap

Rng = np.random.Generator
Probability = NDArray[np.float64]
Shape = Callable[["Rng", "Disc"], Probability]


class Disc:
    """Polar coordinates of every die of an (H, W) grid: ``radius`` 1 at the rim, ``angle`` in radians."""

    def __init__(self, height: int, width: int) -> None:
        y, x = np.meshgrid(_centres(height), _centres(width), indexing="ij")
        self.y, self.x = y, x
        self.radius, self.angle = np.hypot(x, y), np.arctan2(y, x)
        self.step = 2.0 / min(height, width)
        self.on_wafer = self.radius <= 1.0


def scene(rng: Rng) -> DieGrid:
    """A wafer with none to three shapes of any kind, without a class."""
    disc = _disc(rng)
    shapes = rng.choice(len(_SHAPES), size=rng.choice([0, 1, 2, 3], p=[0.15, 0.5, 0.25, 0.1]))
    return _draw(rng, disc, [_SHAPES[i] for i in shapes], _noise(rng, 0.2))


def wafers(labels: Sequence[str], seed: int) -> list[WaferMap]:
    """One synthetic wafer map for each of ``labels`` (WM-811K's nine class names), reproducible by ``seed``.

    Raises UsageError for a label that has no generator.
    """
    unknown = sorted(set(labels) - set(_CLASSES))
    if unknown:
        raise UsageError(f"no synthetic wafer for {unknown[0]!r}; known are {', '.join(_CLASSES)}")
    rng = np.random.default_rng(seed)
    return [
        WaferMap(_of_class(rng, label), id=f"synthetic-{seed}-{i}", lot=f"synthetic-{seed}-{i // 25}")
        for i, label in enumerate(labels)
    ]


def _of_class(rng: Rng, label: str) -> DieGrid:
    shapes, noise = _CLASSES[label]
    level = rng.uniform(*noise) if noise else _noise(rng, 0.08)
    return _draw(rng, _disc(rng), shapes, level)


def _draw(rng: Rng, disc: Disc, shapes: Sequence[Shape], noise: float) -> DieGrid:
    probability = np.full(disc.radius.shape, noise)
    for shape in shapes:
        probability = np.maximum(probability, shape(rng, disc))
    fails = rng.random(disc.radius.shape) < probability
    return np.where(disc.on_wafer, np.where(fails, FAIL, PASS), 0).astype(np.uint8)


def _disc(rng: Rng) -> Disc:
    side = int(rng.choice([22, 25, 26, 27, 30, 33, 39, 45, 53, 64]))
    return Disc(side, max(18, int(side * rng.uniform(0.75, 1.35))))


def _noise(rng: Rng, most: float) -> float:
    return float(min(np.exp(rng.normal(np.log(0.03), 0.8)), most))


def _centres(count: int) -> NDArray[np.float64]:
    return 2 * (np.arange(count) + 0.5) / count - 1


def _blob(rng: Rng, disc: Disc, distance: tuple[float, float], size: tuple[float, float]) -> Probability:
    away, where, turn = rng.uniform(*distance), rng.uniform(-np.pi, np.pi), rng.uniform(0, np.pi)
    dx, dy = disc.x - away * np.cos(where), disc.y - away * np.sin(where)
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    length = rng.uniform(*size)
    distance_squared = (along / length) ** 2 + (across / (length * rng.uniform(0.5, 1.0))) ** 2
    return np.asarray(rng.uniform(0.6, 1.0) * np.exp(-(distance_squared**2)))


def _band(
    rng: Rng, disc: Disc, inside: tuple[float, float], outside: float | None, turn: float
) -> Probability:
    start = rng.uniform(*inside)
    end = outside if outside is not None else start + rng.uniform(0.15, 0.35)
    ahead = np.abs((disc.angle - rng.uniform(-np.pi, np.pi) + np.pi) % (2 * np.pi) - np.pi)
    inside_band = (disc.radius >= start) & (disc.radius <= end) & (ahead <= turn / 2)
    return np.asarray(rng.uniform(0.6, 1.0) * inside_band, dtype=np.float64)


def _line(rng: Rng, disc: Disc) -> Probability:
    heading, bend = rng.uniform(-np.pi, np.pi), rng.normal(0, 0.8)
    steps = np.linspace(0, rng.uniform(0.4, 1.4), 80)
    headings = heading + bend * steps
    x = rng.uniform(-0.6, 0.6) + np.cumsum(np.cos(headings)) * (steps[1] - steps[0])
    y = rng.uniform(-0.6, 0.6) + np.cumsum(np.sin(headings)) * (steps[1] - steps[0])
    nearest = np.hypot(disc.x[..., None] - x, disc.y[..., None] - y).min(axis=-1)
    drawn = nearest <= disc.step * rng.uniform(0.4, 0.8)
    return np.asarray(rng.uniform(0.75, 1.0) * drawn, dtype=np.float64)


def _centre_blob(rng: Rng, disc: Disc) -> Probability:
    return _blob(rng, disc, (0.0, 0.12), (0.25, 0.5))


def _off_blob(rng: Rng, disc: Disc) -> Probability:
    return _blob(rng, disc, (0.3, 0.65), (0.12, 0.3))


def _annulus(rng: Rng, disc: Disc) -> Probability:
    return _band(rng, disc, (0.25, 0.5), None, rng.uniform(1.4, 2.0) * np.pi)


def _rim(rng: Rng, disc: Disc) -> Probability:
    return _band(rng, disc, (0.82, 0.93), 1.0, rng.uniform(1.7, 2.0) * np.pi)


def _rim_part(rng: Rng, disc: Disc) -> Probability:
    return _band(rng, disc, (0.7, 0.9), 1.0, rng.uniform(0.15, 0.7) * np.pi)


def _flood(rng: Rng, disc: Disc) -> Probability:
    return np.full(disc.radius.shape, rng.uniform(0.15, 0.95))


_SHAPES: tuple[Shape, ...] = (_centre_blob, _off_blob, _annulus, _rim, _rim_part, _line, _line, _flood)
_CLASSES: dict[str, tuple[tuple[Shape, ...], tuple[float, float] | None]] = {
    "Center": ((_centre_blob,), None),
    "Donut": ((_annulus,), None),
    "Edge-Loc": ((_rim_part,), None),
    "Edge-Ring": ((_rim,), None),
    "Loc": ((_off_blob,), None),
    "Near-full": ((), (0.8, 0.98)),
    "Random": ((), (0.2, 0.5)),
    "Scratch": ((_line,), None),
    "none": ((), None),
}
