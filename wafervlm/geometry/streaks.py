"""Failing dies in a row, in more of them than the background explains: what a scratch leaves."""

from __future__ import annotations

from functools import lru_cache
from math import comb, log10

import numpy as np
from numpy.typing import NDArray

from wafervlm.geometry.places import Mask

WINDOWS = (6, 10)
LEAST = 4
# A wafer without any line shows one by chance in no more of the cases.
CHANCE = 0.02
SHARES = 200
# The two steps (down, right) that a row takes in turn: along the axes, the diagonals, and between them.
_STEPS = (
    *(((0, 1), (0, 1)), ((1, 1), (1, 1)), ((1, 0), (1, 0)), ((1, -1), (1, -1))),
    *(((0, 1), (1, 1)), ((1, 1), (0, 1)), ((1, 1), (1, 0)), ((1, 0), (1, 1))),
    *(((1, 0), (1, -1)), ((1, -1), (1, 0)), ((1, -1), (0, -1)), ((0, -1), (1, -1))),
)
_MARGIN = WINDOWS[-1] - 1


def streaks(failing: Mask, background: float, dies: int) -> Mask:
    """(H, W): the ``failing`` dies in a window of 6 or 10 dies along one of eight directions, of which more
    fail than a ``background`` explains anywhere on a wafer of ``dies`` dies."""
    needed = _needed(round(background * SHARES), int(log10(dies) * 4))
    if all(least > window for window, least in zip(WINDOWS, needed, strict=True)):
        return np.zeros_like(failing)
    rows, columns = failing.shape
    padded = np.zeros((rows + 2 * _MARGIN, columns + 2 * _MARGIN), dtype=np.uint8)
    inside = (slice(_MARGIN, _MARGIN + rows), slice(_MARGIN, _MARGIN + columns))
    padded[inside] = failing
    flat = padded.ravel()
    # A window may as well begin at its first failing die: (failing dies, directions, dies of the window).
    cells = np.flatnonzero(flat)[:, None, None] + _offsets(padded.shape[1])
    fails = flat[cells]
    found = np.zeros(flat.shape, dtype=bool)
    for window, least in zip(WINDOWS, needed, strict=True):
        if least <= window:
            full = fails[:, :, :window].sum(axis=2, dtype=np.uint8) >= least
            found[cells[:, :, :window][full]] = True
    return np.asarray(found.reshape(padded.shape)[inside] & failing)


@lru_cache(maxsize=512)
def _offsets(columns: int) -> NDArray[np.intp]:
    """(directions, dies of the longest window): flat offsets in a grid of ``columns``."""
    steps = np.array(_STEPS)
    taken = steps[:, np.arange(WINDOWS[-1] - 1) % 2]
    places = np.concatenate([np.zeros((len(steps), 1, 2), dtype=int), taken.cumsum(axis=1)], axis=1)
    return np.asarray(places[..., 0] * columns + places[..., 1], dtype=np.intp)


@lru_cache(maxsize=4096)
def _needed(step: int, dies_step: int) -> tuple[int, ...]:
    """For each window how many of its dies must fail; more than it has where none would do."""
    share = max(step, 1) / SHARES
    least = CHANCE / (len(_STEPS) * len(WINDOWS) * 10 ** ((dies_step + 1) / 4))
    needed = []
    for window in WINDOWS:
        tail, count = 0.0, window + 1
        for k in range(window, 0, -1):
            tail += comb(window, k) * share**k * (1 - share) ** (window - k)
            if tail > least:
                break
            count = k
        needed.append(max(count, LEAST))
    return tuple(needed)
