"""Failing dies that recur at the same place of every reticle."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wafervlm.geometry.places import Mask, Places
from wafervlm.geometry.types import Floats, Repeat

SHORTEST, LONGEST = 2, 10
LEAST_PERIODS = 3
LEAST_DIES = 6
STRENGTH = 0.3
DEVIATIONS = 5.0


def find(failing: Mask, where: Places) -> Repeat | None:
    """The period of the ``failing`` dies (H, W), None where they do not recur."""
    if np.count_nonzero(failing) < LEAST_DIES:
        return None
    rows, row_held = _period(failing, where, 1)
    columns, column_held = _period(failing, where, 0)
    if not rows and not columns:
        return None
    on_wafer = where.on_wafer.reshape(where.shape)
    held = row_held[:, None] & column_held[None, :] & on_wafer
    here, there = int(np.count_nonzero(held)), int(np.count_nonzero(on_wafer & ~held))
    hits = failing & held
    count = int(np.count_nonzero(hits))
    strength = count / max(here, 1) - (int(np.count_nonzero(failing)) - count) / max(there, 1)
    if strength < STRENGTH or count < LEAST_DIES:
        return None
    return Repeat(rows, columns, float(strength), np.argwhere(hits))


def _period(failing: Mask, where: Places, axis: int) -> tuple[int, Mask]:
    """Period of the failing share by row (``axis`` 1) or column (0), 0 where there is none, and which rows or
    columns have the phases in which more dies fail."""
    fails = failing.sum(axis=axis)
    everywhere = np.ones(len(fails), dtype=bool)
    starts, phases = _phases(len(fails))
    if not len(starts):
        return 0, everywhere
    dies, dies_in_phase, periods, chance = _dies_by_phase(where, axis)
    share = float(fails.sum() / where.dies)
    in_phase = phases @ fails
    excess = in_phase - share * dies_in_phase
    scores = np.add.reduceat(excess**2 / np.maximum(dies_in_phase * (share * (1 - share)), 1e-9), starts)
    # Chi-square of a period with p phases, in standard deviations over what chance gives.
    deviations = (scores - (periods - 1)) / chance
    best = int(deviations.argmax())
    period = int(periods[best])
    shares = in_phase[starts[best] :][:period] / np.maximum(dies_in_phase[starts[best] :][:period], 1)
    high = shares > (shares.min() + shares.max()) / 2
    if deviations[best] < DEVIATIONS or not _recurs(fails, dies, period, high):
        return 0, everywhere
    return period, high[np.arange(len(fails)) % period]


def _recurs(fails: NDArray[np.int64], dies: NDArray[np.int64], period: int, high: Mask) -> bool:
    """Whether the phases that are high over the whole wafer are so in most of its periods."""
    whole = len(fails) // period * period
    by_period = fails[:whole].reshape(-1, period)
    held = dies[:whole].reshape(-1, period)
    inside = by_period[:, high].sum(axis=1) / np.maximum(held[:, high].sum(axis=1), 1)
    outside = by_period[:, ~high].sum(axis=1) / np.maximum(held[:, ~high].sum(axis=1), 1)
    return bool((inside > 2 * outside).mean() >= 0.75)


@lru_cache(maxsize=512)
def _dies_by_phase(where: Places, axis: int) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64], Floats]:
    """Dies by row or column and by phase, the periods, and the spread of their scores by chance."""
    dies = where.on_wafer.reshape(where.shape).sum(axis=axis)
    starts, phases = _phases(len(dies))
    periods = np.arange(SHORTEST, SHORTEST + len(starts))
    return dies, phases @ dies, periods, np.sqrt(2.0 * (periods - 1))


@lru_cache(maxsize=512)
def _phases(length: int) -> tuple[NDArray[np.int64], Floats]:
    """Where the phases of each period start, and (phases, length) which rows belong to each phase."""
    periods = range(SHORTEST, min(LONGEST, length // LEAST_PERIODS) + 1)
    if not len(periods):
        return np.zeros(0, np.int64), np.zeros((0, length))
    place = np.arange(length)
    table = [place % period == phase for period in periods for phase in range(period)]
    starts = np.cumsum([0, *periods])[:-1]
    return starts, np.array(table, dtype=np.float64)
