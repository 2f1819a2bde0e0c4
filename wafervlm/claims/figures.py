"""How true and how telling answers are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wafervlm.claims.claim import Checked, Verdict

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


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
