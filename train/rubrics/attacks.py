"""What answers earn that look at no wafer: a rubric that pays for them teaches a model to give them.

Four of them, scored in each dimension apart, since a model knows from the question which one is asked for:

constant     the one answer that earns most over all rows: of reference answers, and of the most frequent
             must-hit phrases put together
empty        nothing
wrong class  the reference answer of a wafer of another class
stuffed      all must-hit phrases put together: of the set, or of the dimension, whichever earns more
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from train.progress import track
from train.rubrics.folding import fold
from train.rubrics.formula import Formula, Mean, mean, score
from train.rubrics.rows import LintRow
from train.vqa.rows import DIMENSIONS

ATTACKS = ("constant", "empty", "wrong_class", "stuffed")
FEWEST_ROWS = 10
_SAMPLE = 300
_REFERENCES, _FREQUENT = 16, 16
_COUNTS = (1, 2, 3, 5, 8, 13)
_OTHERS = 3


@dataclass(frozen=True, slots=True)
class Earned:
    """Mean rule scores in one dimension; None where it could not be judged. ``reference`` counts all rows,
    the attacks are taken on a sample of at most 300. ``by_question`` is of one constant for each kind of
    question, where rows say of which kind they are: a figure to know, not an attack that refuses a set."""

    rows: int
    reference: Mean
    constant: float | None
    by_question: float | None
    empty: float | None
    wrong_class: float | None
    stuffed: float | None
    best_constant: str
    """The answer that ``constant`` is of."""


def earned(rows: Sequence[LintRow], formula: Formula, seed: int = 0) -> dict[str, Earned]:
    """What references and attacks earn in each dimension that has rows.

    Of fewer than 10 rows, or of a single class, neither a constant nor a wrong class is judged: the one right
    answer is then a constant.
    """
    everything = frequent_phrases(rows)
    groups = {name: [row for row in rows if row.dimension == name and row.sound] for name in DIMENSIONS}
    present = {name: group for name, group in groups.items() if group}
    return {
        name: _earned(group, everything, formula, random.Random(f"{seed} {name}"))
        for name, group in track(present.items(), "answers that look at no wafer", len(present))
    }


def _earned(group: list[LintRow], everything: list[str], formula: Formula, chance: random.Random) -> Earned:
    scored = [row for row in group if row.must_hit]
    answered = [row for row in group if row.reference.strip()]
    sample = chance.sample(scored, _SAMPLE) if len(scored) > _SAMPLE else scored
    constant, best = _constant(sample, formula, chance) if can_be_judged(scored) else (None, "")
    stuffings = ". ".join(everything), ". ".join(frequent_phrases(group))
    return Earned(
        rows=len(group),
        reference=mean(_score(row.reference, row, formula) for row in answered),
        constant=constant,
        by_question=_by_question(scored, formula, chance),
        empty=_average("", sample, formula),
        wrong_class=_wrong_class(sample, scored, formula, chance) if can_be_judged(scored) else None,
        stuffed=_highest([_average(text, sample, formula) for text in stuffings]),
        best_constant=best,
    )


def can_be_judged(rows: Sequence[LintRow]) -> bool:
    """Whether the rows are enough, and of more than one class, to tell an answer from a constant."""
    return len(rows) >= FEWEST_ROWS and len({row.labels for row in rows if row.labels}) > 1


def frequent_phrases(rows: Sequence[LintRow]) -> list[str]:
    """Every must-hit phrase of ``rows`` once, as first written, the most frequent first."""
    spelling: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        for phrase in row.must_hit:
            line = fold(phrase).line
            spelling.setdefault(line, phrase)
            counts[line] += 1
    return [spelling[line] for line, _ in counts.most_common()]


def _constant(sample: Sequence[LintRow], formula: Formula, chance: random.Random) -> tuple[float | None, str]:
    """The highest mean that one answer earns on all of ``sample``, and that answer."""
    references = Counter(row.reference for row in sample if row.reference.strip())
    rare = list(references)
    tried = [text for text, _ in references.most_common(_FREQUENT)]
    tried += chance.sample(rare, min(_REFERENCES, len(rare)))
    phrases = frequent_phrases(sample)
    tried += [". ".join(phrases[:count]) for count in _COUNTS]
    averages = {text: _average(text, sample, formula) for text in dict.fromkeys(tried)}
    best = max(averages, key=lambda text: averages[text] or 0.0)
    return averages[best], best


def _by_question(rows: Sequence[LintRow], formula: Formula, chance: random.Random) -> float | None:
    """The mean over kinds of question, by their rows, of the best constant for each; kinds of fewer than 10
    rows or of one class only are passed over."""
    kinds: dict[str, list[LintRow]] = {}
    for row in rows:
        if row.kind:
            kinds.setdefault(row.kind, []).append(row)
    total, counted = 0.0, 0
    for group in filter(can_be_judged, kinds.values()):
        sample = chance.sample(group, min(_SAMPLE // 4, len(group)))
        total += len(group) * (_constant(sample, formula, chance)[0] or 0.0)
        counted += len(group)
    return total / counted if counted else None


def _wrong_class(
    sample: Sequence[LintRow], pool: Sequence[LintRow], formula: Formula, chance: random.Random
) -> float | None:
    """The mean that references of other classes earn; those of a class in common are passed over."""
    answered = [row for row in pool if row.reference.strip() and row.labels]
    values: list[float | None] = []
    for row in sample:
        others = [other for other in answered if row.labels and not row.labels & other.labels]
        values += [
            _score(o.reference, row, formula) for o in chance.sample(others, min(_OTHERS, len(others)))
        ]
    return mean(values).value


def _average(text: str, rows: Sequence[LintRow], formula: Formula) -> float | None:
    return mean(_score(text, row, formula) for row in rows).value


def _score(text: str, row: LintRow, formula: Formula) -> float | None:
    return score(text, row.must_hit, row.must_avoid, formula).value


def _highest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
