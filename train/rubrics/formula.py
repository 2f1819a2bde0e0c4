"""The rule score of an answer: phrases it had to say, phrases it had to avoid.

Source of the formula: WaferSAGE, arXiv 2604.27629. For one dimension (spatial, morphology, root cause)

    C = share of the must-hit phrases that were said        H = min(1, 1.5 C)
    A = max(0, 1 - 0.25 n), n must-avoid phrases said        D = 0.6 H + 0.4 A

and for the whole answer S = 0.4 D_spatial + 0.35 D_morphology + 0.25 D_root_cause. After it was optimised
against a judge: hits 0.9, avoiding 0.1, similar words from 0.713 on, equal dimensions. Where a dimension has
no must-hit phrase it does not apply: it has no score, and the others' weights are scaled to sum to 1.

Both pay for answers that look at no wafer: one that says nothing earns 0.4 or 0.1, one that says every phrase
there is, 0.6 or 0.9. STRICT, which is ours, takes D = H A with A = max(0, 1 - 0.5 n), under which both earn
nothing; it is what rewards and the linter take unless told otherwise. Figures to compare take PUBLISHED.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from train.rubrics.matching import Match, match
from wafervlm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Formula:
    """The parameters of the rule score; the defaults are the published ones. Raises ConfigError where one is
    not finite or out of range."""

    hit: float = 0.6
    """Weight of the phrases said (H)."""
    avoid: float = 0.4
    """Weight of the phrases avoided (A); ``hit + avoid`` is 1."""
    gain: float = 1.5
    """How much faster H grows than the share of phrases said; at 1.5 two thirds of them are enough."""
    penalty: float = 0.25
    """What A loses by each phrase that had to be avoided."""
    fuzzy: float | None = None
    """Similarity from which on a word stands for another, 0..1; None takes phrases to the letter."""
    product: bool = False
    """Whether D is H A instead of the weighted sum; ``hit`` and ``avoid`` are then not used."""
    spatial: float = 0.4
    morphology: float = 0.35
    root_cause: float = 0.25

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"{field.name} of the rule score is {value}; it must be a number, 0 or more"
                )
        if abs(self.hit + self.avoid - 1) > 1e-6:
            raise ConfigError(f"hit {self.hit} and avoid {self.avoid} of the rule score must sum to 1")
        if self.fuzzy is not None and not 0 < self.fuzzy <= 1:
            raise ConfigError(f"fuzzy of the rule score is {self.fuzzy}; it must be above 0 and at most 1")
        if sum(self.weights.values()) <= 0:
            raise ConfigError("all dimensions of the rule score weigh 0; give at least one a weight")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each dimension in S, as set (not scaled)."""
        return {"spatial": self.spatial, "morphology": self.morphology, "root_cause": self.root_cause}

    def dimension(self, said: int, wanted: int, offences: int) -> float | None:
        """D of ``said`` out of ``wanted`` must-hit phrases and ``offences`` must-avoid phrases said; None
        where nothing is wanted."""
        if wanted == 0:
            return None
        hits = min(1.0, self.gain * said / wanted)
        avoided = max(0.0, 1 - self.penalty * offences)
        return hits * avoided if self.product else self.hit * hits + self.avoid * avoided

    def whole(self, dimensions: Mapping[str, float | None]) -> float | None:
        """S of the scores of the dimensions; those that are None or missing are left out and the weights of
        the rest scaled. None where nothing applies. Raises ConfigError for an unknown dimension."""
        weights = self.weights
        unknown = next((name for name in dimensions if name not in weights), None)
        if unknown is not None:
            raise ConfigError(f"there is no dimension {unknown!r}; known are {', '.join(weights)}")
        scored = {name: score for name, score in dimensions.items() if score is not None}
        total = sum(weights[name] for name in scored)
        if total <= 0:
            return None
        return sum(weights[name] * score for name, score in scored.items()) / total


PUBLISHED = Formula()
OPTIMISED = Formula(hit=0.9, avoid=0.1, fuzzy=0.713, spatial=1 / 3, morphology=1 / 3, root_cause=1 / 3)
STRICT = Formula(product=True, penalty=0.5)
FORMULAS = {"published": PUBLISHED, "optimised": OPTIMISED, "strict": STRICT}


@dataclass(frozen=True, slots=True)
class Score:
    """The rule score of an answer in one dimension, and what it is made of."""

    value: float | None
    """0..1; None where the dimension has no must-hit phrase and so does not apply."""
    match: Match


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over answers, with how many it is of and how many did not apply."""

    value: float | None
    counted: int
    not_applicable: int


def score(
    text: str, must_hit: Sequence[str], must_avoid: Sequence[str], formula: Formula = PUBLISHED
) -> Score:
    """The rule score of answer ``text`` in one dimension. Phrases given twice count once."""
    found = match(text, must_hit, must_avoid, formula.fuzzy)
    wanted = len(found.hits) + len(found.missed)
    return Score(formula.dimension(len(found.hits), wanted, len(found.avoided)), found)


def mean(values: Iterable[float | None]) -> Mean:
    """The mean of the values that are not None."""
    listed = list(values)
    scored = [value for value in listed if value is not None]
    average = math.fsum(scored) / len(scored) if scored else None
    return Mean(average, len(scored), len(listed) - len(scored))
