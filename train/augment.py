"""Wafer maps made from wafer maps: turned by any angle, laid on a slightly other die grid, with other noise.

A wafer is round and its product's die size is arbitrary, so a pattern keeps its class whichever way it is
turned and on whichever grid it lies. Symmetries of the square alone leave a model free to learn the grids
and the single dies of rare classes by heart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from wafervlm.wafermap import FAIL, MAX_SIDE, MIN_SIDE, NO_DIE, PASS, DieGrid, transform

SYMMETRIES = 8
# What a strong augmentation may do, at most: grid sides and radius by a factor, shares of dies that flip.
GRID_CHANGE, RADIUS_CHANGE = 0.15, 0.04
FALSE_FAILS, FALSE_PASSES = 0.03, 0.08


def strongly(dies: DieGrid, rng: np.random.Generator) -> DieGrid:
    """One of the eight symmetries of ``dies`` (H, W); for half of all draws turned by any angle on a grid of
    other sides, and for half with some dies flipped. At least one die stays."""
    turned = transform(dies, int(rng.integers(SYMMETRIES)))
    if rng.random() < 0.5:
        height, width = (_other_side(side, rng) for side in turned.shape)
        radius = rng.uniform(1 - RADIUS_CHANGE, 1 + RADIUS_CHANGE)
        turned = relaid(turned, (height, width), rng.uniform(0, 2 * np.pi), radius)
    return flipped(turned, rng) if rng.random() < 0.5 else turned


def relaid(dies: DieGrid, shape: tuple[int, int], angle: float, radius: float = 1.0) -> DieGrid:
    """``dies`` turned by ``angle`` (radians, counter-clockwise) about the centre, drawn out by ``radius`` and
    laid on a grid of ``shape``.

    Where dies are is not turned, only resized: the wafer's outline and its holes belong to the product. Each
    die takes the state of the die that lay under its centre, or of the nearest one where none did.
    """
    outline = _resized(dies, shape)
    if not outline.any():
        return dies
    rows, columns = _sources(shape, dies.shape, angle, radius)
    nearest = distance_transform_edt(dies == NO_DIE, return_distances=False, return_indices=True)
    laid = dies[tuple(nearest[:, rows, columns])]
    return np.where(outline != NO_DIE, laid, NO_DIE).astype(np.uint8)


def flipped(dies: DieGrid, rng: np.random.Generator) -> DieGrid:
    """``dies`` with a share, drawn anew, of passing dies failing and of failing ones passing."""
    chance = rng.random(dies.shape)
    fails = (dies == PASS) & (chance < rng.uniform(0, FALSE_FAILS))
    passes = (dies == FAIL) & (chance < rng.uniform(0, FALSE_PASSES))
    return np.where(fails, FAIL, np.where(passes, PASS, dies)).astype(np.uint8)


def _other_side(side: int, rng: np.random.Generator) -> int:
    return int(np.clip(round(side * rng.uniform(1 - GRID_CHANGE, 1 + GRID_CHANGE)), MIN_SIDE, MAX_SIDE))


def _resized(dies: DieGrid, shape: tuple[int, int]) -> DieGrid:
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(shape, dies.shape, strict=True)
    )
    return np.ascontiguousarray(dies[np.ix_(rows, columns)])


def _sources(
    shape: tuple[int, int], source: tuple[int, int], angle: float, radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column in a grid of ``source`` that lie under each die of one of ``shape``, clipped."""
    down, right = np.meshgrid(*(2 * (np.arange(n) + 0.5) / n - 1 for n in shape), indexing="ij")
    cosine, sine = np.cos(angle) / radius, np.sin(angle) / radius
    y, x = cosine * down + sine * right, cosine * right - sine * down
    rows, columns = (
        np.clip(np.floor((v + 1) / 2 * n).astype(np.int64), 0, n - 1)
        for v, n in zip((y, x), source, strict=True)
    )
    return rows, columns
