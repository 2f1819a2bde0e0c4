"""Mixes of kinds: which questions a training asks, and how often."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from train.vqa.causes import Causes
from train.vqa.descriptions import Unsaid
from train.vqa.doubts import Doubts
from train.vqa.facts import Facts, facts
from train.vqa.questions import BANK
from train.vqa.write import DESCRIPTIONS, KINDS, put
from wafervlm.claims import Topic
from wafervlm.errors import ConfigError
from wafervlm.wafermap import DieGrid

# Half of the time the description a station asks for, so that it is learned best; the rest keeps the model
# listening to what it is asked.
DEFAULT_MIX = {
    "full": 0.5,
    **dict.fromkeys([kind for kind in DESCRIPTIONS if kind != "full"], 0.05),
    **dict.fromkeys(BANK, 0.35 / len(BANK)),
}


@dataclass(frozen=True)
class Mix:
    """Writes a question and its answer of a kind drawn by ``weights`` (kind of train.vqa.write to weight,
    above 0 in all); as ``write`` otherwise. Descriptions leave statements out with the chance ``unsaid``, and
    what ``doubts`` has. Raises ConfigError for a kind that is not known."""

    weights: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    causes: Causes | None = None
    unsaid: float = 0.0
    doubts: Doubts | None = None

    def __post_init__(self) -> None:
        for kind, weight in self.weights.items():
            if kind not in KINDS:
                raise ConfigError(f"kind {kind!r} of question is not known; known are {', '.join(KINDS)}")
            if not weight >= 0:
                raise ConfigError(f"the weight of {kind!r} is {weight!r}; it must be 0 or more")
        if not sum(self.weights.values()) > 0:
            raise ConfigError("all kinds of questions have the weight 0; give one a weight above it")

    def __call__(self, dies: DieGrid, label: str, rng: np.random.Generator) -> tuple[str, str] | None:
        """The question and the answer about ``dies`` (H, W) uint8 of a wafer said to show ``label``. None
        where label and dies disagree whether the pattern has a place: of two wafers that look alike one would
        be given a clock position and one not, and what depends on the label alone cannot be seen."""
        names = list(self.weights)
        shares = np.array([self.weights[name] for name in names], dtype=np.float64)
        kind = names[int(rng.choice(len(names), p=shares / shares.sum()))]
        found = facts(dies, label, self.causes)
        if found.disputed:
            return None
        return put(found, rng, kind, Unsaid(self.unsaid, self._doubted(dies, found)))

    def _doubted(self, dies: DieGrid, found: Facts) -> Callable[[], frozenset[Topic]]:
        """What is doubted, asked for once, and where something may be left out."""
        doubts = self.doubts
        return frozenset if doubts is None else functools.cache(lambda: doubts(dies, found))
