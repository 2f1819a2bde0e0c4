"""How true and how telling answers are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wafervlm.claims.claim import Checked, Claim, Verdict
from wafervlm.claims.state import state

if TYPE_CHECKING:
    from wafervlm.geometry.types import Geometry

Answer = Sequence[Checked]


@dataclass(frozen=True, slots=True)
class ClaimFigures:
    """Counts of claims by verdict over a number of answers. A ratio of nothing is NaN."""

    answers: int
    supported: int
    contradicted: int
    untold: int

    @property
    def claims(self) -> int:
        """All claims."""
        return self.supported + self.contradicted + self.untold

    @property
    def precision(self) -> float:
        """Supported over supported and contradicted."""
        return _ratio(self.supported, self.supported + self.contradicted)

    @property
    def contradiction_rate(self) -> float:
        """Contradicted over all."""
        return _ratio(self.contradicted, self.claims)

    @property
    def claims_per_answer(self) -> float:
        """Claims over answers, those without a claim counted."""
        return _ratio(self.claims, self.answers)


def measure_claims(answers: Iterable[Answer]) -> ClaimFigures:
    """The figures of ``answers``, each the checked claims of one of them."""
    counts, number = dict.fromkeys(Verdict, 0), 0
    for answer in answers:
        number += 1
        for item in answer:
            counts[item.verdict] += 1
    return ClaimFigures(
        number, counts[Verdict.SUPPORTED], counts[Verdict.CONTRADICTED], counts[Verdict.UNTOLD]
    )


def by_kind(answers: Sequence[Answer]) -> dict[str, ClaimFigures]:
    """The figures of each kind of claim that occurs, over the answers that make one of the kind."""
    kinds = sorted({item.claim.kind for answer in answers for item in answer})
    return {kind: _part(answers, kind, lambda claim: claim.kind) for kind in kinds}


def by_dimension(answers: Sequence[Answer]) -> dict[str, ClaimFigures]:
    """The figures of the spatial part and of morphology, over the answers that make such claims."""
    names = ("spatial", "morphology")
    return {name: _part(answers, name, lambda claim: claim.dimension) for name in names}


def measure_recall(answers: Sequence[Answer], geometries: Sequence[Geometry]) -> float:
    """How much of what ``state`` says of each geometry its answer says too, on average over geometries.

    A statement is said where the answer makes a supported claim of its kind about the same structure, the
    main one however it is named, both negated or neither. Answers and geometries are paired; a geometry about
    which nothing is to be said is left out. Raises ValueError where their numbers differ.
    """
    shares = []
    for answer, geometry in zip(answers, geometries, strict=True):
        told = {item.claim.topic for item in answer if item.supported}
        worth = [claim.topic for claim in state(geometry)]
        if worth:
            shares.append(sum(topic in told for topic in worth) / len(worth))
    return _ratio(sum(shares), len(shares))


def _part(answers: Sequence[Answer], name: str, of: Callable[[Claim], str]) -> ClaimFigures:
    parts = ([item for item in answer if of(item.claim) == name] for answer in answers)
    return measure_claims(part for part in parts if part)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
