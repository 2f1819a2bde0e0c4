"""Batches that ask for words: which they are, and what is asked and answered about the dies as shown.

Whole batches ask for words or for the class, since the one is three times as long as the other; a map of
which nothing is to be said is asked for its class all the same. Which they are, and what is said, is a
function of the seed and of the place in the order alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wafervlm.wafermap import DieGrid

if TYPE_CHECKING:
    from train.batches import Example

# Of dies (H, W), their label and a generator: question and answer, None where there is nothing to ask.
Writer = Callable[[DieGrid, str, np.random.Generator], tuple[str, str] | None]


@dataclass(frozen=True)
class Wording:
    """Of the runs of ``batch`` maps a ``share`` asks for words. ``write`` words them anew for the dies as
    they are shown; where there are ``rows``, they are drawn from these, and their maps stay as they are."""

    share: float
    seed: int
    batch: int
    write: Writer
    rows: Sequence[Example] = ()

    def asks(self, position: int) -> bool:
        """Whether the map at ``position`` of the order is asked about in words."""
        draw = np.random.default_rng([self.seed, 6, position // self.batch]).random()
        return bool(draw < self.share)

    def drawn(self, position: int) -> Example | None:
        """The row for ``position`` where there are rows."""
        if not self.rows:
            return None
        return self.rows[int(np.random.default_rng([self.seed, 7, position]).integers(len(self.rows)))]

    def written(self, position: int, dies: DieGrid, label: str) -> tuple[str, str] | None:
        """Question and answer about ``dies``, None where there is nothing to ask in words."""
        return self.write(dies, label, np.random.default_rng([self.seed, 8, position]))
