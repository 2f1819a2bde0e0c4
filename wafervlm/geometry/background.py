"""What fails everywhere, and which failing dies stand closer together than that explains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb, log10, sqrt

import numpy as np
from numpy.typing import NDArray

from wafervlm.geometry.places import PARTS, Mask, Places
from wafervlm.geometry.shares import box_sums
from wafervlm.geometry.streaks import streaks
from wafervlm.geometry.types import Floats, Shares

# A failing die is dense where so many of its neighbours fail by chance in no more of the cases.
CHANCE = 0.025
STEPS = 200
MOST_SURPRISE = 8.0
# Below this background one dense neighbour is enough to belong to it.
SPARSE = 0.02
AMID = 5
LEAST_DIES = 4
_STARTS = dict(zip(PARTS, np.cumsum([0, *PARTS.values()]).tolist(), strict=False))


@dataclass(frozen=True, slots=True, eq=False)
class Crowd:
    """Failing dies told from the background: ``dense`` (H, W) those with more failing neighbours than it
    explains, those in a row of them, and those that touch two such; ``streak`` (H, W) those in a row.
    ``surprise`` (H, W) is minus the decimal logarithm of the chance of as many neighbours, ``background``
    what was assumed."""

    dense: Mask
    streak: Mask
    surprise: NDArray[np.float32]
    background: float


def assumed_background(found: Shares, where: Places) -> float:
    """Failing share of the wafer without its structures: the overall share where the cells of the 5x5 grid
    differ no more than by chance, else that of the lower half of them; that of the lower half of the six
    rings where it is less than half as much, since every cell of the grid may hold a part of a ring."""
    cells = _background(found.share, found.grid.ravel(), where, "grid")
    rings = _background(found.share, found.rings, where, "rings")
    return rings if rings < cells / 2 else cells


def _background(share: float, shares: Floats, where: Places, part: str) -> float:
    first = _STARTS[part]
    dies = where.part_dies[first : first + len(shares)]
    held = dies >= LEAST_DIES
    dies, shares = dies[held], shares[held]
    spread, degrees = share * (1 - share), len(dies) - 1
    if not spread or degrees < 3:
        return share
    chi2 = float((dies * (shares - share) ** 2).sum() / spread)
    if chi2 < degrees + 3 * sqrt(2 * degrees):
        return share
    lower = np.argsort(shares, kind="stable")[: len(shares) // 2]
    return float((dies * shares)[lower].sum() / dies[lower].sum())


def crowd(failing: Mask, where: Places, background: float) -> Crowd:
    """The dense ones of the ``failing`` dies (H, W)."""
    near, far = _dies_beside(where)
    near_table, far_table = _surprises(round(background * STEPS))
    beside, around = box_sums(failing, 1), box_sums(failing, 2)
    # On a failing die itself the counts hold it too: row n of the tables is for n - 1 neighbours.
    least = 1 if background < SPARSE else 2
    # The wider square alone would draw in what lies beside a cluster with a gap between.
    surprise = np.maximum(near_table[near, beside], far_table[far, around] * (beside > least))
    # Dies amid others are dense without; counted in a row, they would draw in what stands near a cluster.
    streak = streaks(failing & (beside < AMID), background, where.dies)
    core = (failing & (surprise >= -log10(CHANCE))) | streak
    touching = box_sums(core, 1)
    dense = core | (failing & (touching >= least))
    return Crowd(dense, streak, surprise, background)


@lru_cache(maxsize=256)
def _dies_beside(where: Places) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """How many dies lie beside each cell: among its 8 and its 24 neighbours."""
    on_wafer = where.on_wafer.reshape(where.shape)
    return box_sums(on_wafer, 1) - on_wafer, box_sums(on_wafer, 2) - on_wafer


@lru_cache(maxsize=STEPS + 1)
def _surprises(step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Minus the decimal logarithm of P(Binomial(d, share) >= n - 1) at [d, n], for d up to 8 and up to 24,
    with a share of ``step`` / STEPS; 0 where fewer than 2 and 4 neighbours fail."""
    share = min(max(step, 1) / STEPS, 1.0)
    tables = []
    for most, least in ((8, 2), (24, 4)):
        table = np.zeros((most + 1, most + 2), dtype=np.float32)
        for d in range(most + 1):
            for k in range(least, most + 1):
                table[d, k + 1] = min(MOST_SURPRISE, -log10(max(_tail(d, k, share), 1e-99)))
        tables.append(table)
    return tables[0], tables[1]


def _tail(n: int, k: int, share: float) -> float:
    """P(Binomial(n, share) >= k)."""
    return min(1.0, sum(comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(k, n + 1)))
