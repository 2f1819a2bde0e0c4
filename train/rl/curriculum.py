"""The order of prompts: all easy ones, then the medium ones, then the hard ones.

The k-th prompt of a training is a function of the seed and k alone, so that an interrupted training goes on
with the very prompt it would have answered.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from train.batches import Order
from train.vqa.rows import DIFFICULTIES
from wafervlm.errors import DatasetError


class Curriculum:
    """``positions`` prompts over rows of the ``difficulties`` and classes ``labels``: ``curriculum[k]`` is
    the index of the k-th row, ``level(k)`` its difficulty.

    Each difficulty takes a share of the positions as large as its share of the rows; within one the order is
    that of ``Order``, shuffled, with every class equally often where ``balance``. Raises DatasetError without
    rows, and for a difficulty that is not known.
    """

    def __init__(
        self, difficulties: Sequence[str], labels: Sequence[str], positions: int, seed: int, balance: bool
    ) -> None:
        strange = next((name for name in difficulties if name not in DIFFICULTIES), None)
        if strange is not None:
            raise DatasetError(f"a difficulty is {strange!r}; known are {', '.join(DIFFICULTIES)}")
        if not difficulties:
            raise DatasetError("there is no prompt to learn from")
        self.positions = positions
        self._members = [
            [i for i, found in enumerate(difficulties) if found == name] for name in DIFFICULTIES
        ]
        counts = list(itertools.accumulate(len(members) for members in self._members))
        # Where each difficulty ends.
        self.ends = [round(positions * count / counts[-1]) for count in counts]
        self._orders = [
            Order([labels[i] for i in members], [False] * len(members), _seed(seed, level), balance)
            if members
            else None
            for level, members in enumerate(self._members)
        ]

    def __len__(self) -> int:
        return self.positions

    def level(self, k: int) -> int:
        """0, 1 or 2: the place of the k-th prompt's difficulty in DIFFICULTIES."""
        if not 0 <= k < self.positions:
            raise IndexError(f"position {k} of {self.positions}")
        return bisect.bisect_right(self.ends, k)

    def __getitem__(self, k: int) -> int:
        level = self.level(k)
        order, first = self._orders[level], self.ends[level - 1] if level else 0
        if order is None:
            raise IndexError(f"no row at position {k}")
        return self._members[level][order[k - first][0]]


def _seed(seed: int, level: int) -> int:
    # Apart for each difficulty, or classes of equal size would be shuffled alike in all of them.
    return len(DIFFICULTIES) * seed + level
