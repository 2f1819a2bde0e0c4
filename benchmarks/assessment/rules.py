"""The rule score of answers: of descriptions by the wafer's own rubric, and of questions for one dimension
by theirs. Rubrics are written from the dies and the table of causes, or read from a folder of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assessment.cases import Cases
from benchmarks.assessment.claims import Ratio
from train.dataset import DIES, Sample
from train.rubrics.formula import FORMULAS, Formula, score
from train.rubrics.reward import solution
from train.sources.npz import load_arrays
from train.vqa.answers import foreign_candidates
from train.vqa.build import RL
from train.vqa.causes import Causes
from train.vqa.descriptions import MOST_CAUSES, NO_PATTERN, describe, shape_claims, spatial_claims
from train.vqa.facts import Facts, facts
from train.vqa.phrases import apart, hits
from train.vqa.prompts import SYSTEM_PROMPT
from train.vqa.questions import BANK
from train.vqa.rows import DIMENSION_OF, DIMENSIONS, RlRow, read_rows
from train.vqa.rubrics import rubric
from train.vqa.write import answer
from wafervlm.claims import Claim, say
from wafervlm.errors import DatasetError

Rng = np.random.Generator
CONSISTENCY = "consistency"


@dataclass(frozen=True, slots=True)
class Phrases:
    """What an answer has to say, and what it must not."""

    must_hit: tuple[str, ...]
    must_avoid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One question about the wafer at ``place``: in ``dimension``, or of consistency, where the ``reference``
    begins with yes or no."""

    place: int
    dimension: str
    text: str
    phrases: Phrases
    reference: str
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Rubrics:
    """For each wafer the ``descriptions``' phrases by dimension and the ``references`` in words; and the
    ``questions`` about all of them."""

    descriptions: tuple[Mapping[str, Phrases], ...]
    references: tuple[str, ...]
    questions: tuple[Question, ...]


def write_rubrics(cases: Cases, causes: Causes, questions: int, seed: int) -> Rubrics:
    """Rubrics of every wafer, and ``questions`` of each dimension and of consistency where the dies give so
    many. Raises ConfigError for a label that the table lacks."""
    descriptions, references, asked = [], [], []
    for place, case in enumerate(cases.cases):
        rng = np.random.default_rng([seed, 12, place])
        found = facts(case.wafer.dies, case.label, causes)
        descriptions.append(description_phrases(found, rng))
        references.append(describe(found, rng, "full"))
        asked += _questions(place, found, rng, questions)
    return Rubrics(tuple(descriptions), tuple(references), tuple(asked))


def description_phrases(found: Facts, rng: Rng) -> dict[str, Phrases]:
    """What a description in three parts has to hold, by dimension."""
    judged = rubric(found, rng)
    named = tuple(candidate.phrase for candidate in found.pattern.candidates[:MOST_CAUSES])
    causes = named or (NO_PATTERN.partition(", ")[2],)
    foreign = apart(causes, foreign_candidates(found), " ".join(causes))
    return {
        "spatial": Phrases(_keys(spatial_claims(found)), judged.spatial_rubric.spatial_avoid),
        "morphology": Phrases(_keys(shape_claims(found)), judged.morphology_rubric.morphology_avoid),
        "root_cause": Phrases(causes, foreign),
    }


def read_questions(folder: Path, part: str, samples: Sequence[Sample], *, system: bool) -> list[Question]:
    """The RL rows of ``part`` of a folder that ``wafervlm data vqa`` wrote, about those of ``samples`` that
    they ask about; with the system turn where ``system``. Raises DatasetError."""
    arrays = load_arrays(folder / DIES, ("images", "split", "ids"))
    place = {(sample.wafer.id, sample.label): number for number, sample in enumerate(samples)}
    ids = dict(zip(arrays["images"].tolist(), arrays["ids"].tolist(), strict=True))
    rows = [row for row in read_rows(folder / RL, RlRow) if row.part == part]
    found = [
        Question(
            place[key],
            row.dimension,
            _asked(row),
            Phrases(row.must_hit, row.must_avoid),
            row.reference_answer,
            SYSTEM_PROMPT if system else None,
        )
        for row in rows
        if (key := (str(ids.get(row.image, "")), _label(row, folder / RL))) in place
    ]
    if not found:
        raise DatasetError(f"{folder / RL} has no row about the maps of part {part!r} that are judged")
    return found


def score_ratios(texts: Sequence[str], rubrics: Rubrics, formula: Formula) -> dict[str, Ratio]:
    """The rule scores of descriptions: of each dimension, and ``whole``; those that do not apply are left
    out."""
    rows = []
    for text, phrases in zip(texts, rubrics.descriptions, strict=True):
        values = {name: _score(text, phrases[name], formula) for name in DIMENSIONS}
        rows.append({**values, "whole": formula.whole(values)})
    return {name: _ratio([row[name] for row in rows]) for name in (*DIMENSIONS, "whole")}


def description_scores(texts: Sequence[str], rubrics: Rubrics, cases: Cases) -> dict[str, Any]:
    """The rule score of descriptions by formula and dimension, with intervals."""
    return {name: _plain(score_ratios(texts, rubrics, formula), cases) for name, formula in FORMULAS.items()}


def question_scores(texts: Sequence[str], questions: Sequence[Question], cases: Cases) -> dict[str, Any]:
    """The rule score of the answers to questions, by formula and dimension, and the share of consistency
    questions whose yes or no is right, with intervals over the lots of the wafers asked about."""
    said = [solution(text) or text for text in texts]
    lots = cases.lots[[question.place for question in questions]]
    found: dict[str, Any] = {}
    for name, formula in FORMULAS.items():
        scored = {}
        for dimension in DIMENSIONS:
            values = [
                _score(text, question.phrases, formula) if question.dimension == dimension else None
                for text, question in zip(said, questions, strict=True)
            ]
            scored[dimension] = _interval(_ratio(values), lots)
        found[name] = scored
    agreed = [
        None if question.dimension != CONSISTENCY else float(_verdict(text) == _verdict(question.reference))
        for text, question in zip(said, questions, strict=True)
    ]
    return {**found, CONSISTENCY: _interval(_ratio(agreed), lots)}


def _questions(place: int, found: Facts, rng: Rng, count: int) -> list[Question]:
    asked = []
    for kind in (*DIMENSION_OF, CONSISTENCY):
        names = [name for name, question in BANK.items() if question.type == kind]
        taken = 0
        for at in rng.permutation(len(names)):
            said = answer(found, rng, names[at]) if taken < count else None
            if said is None or (kind != CONSISTENCY and not (said.must_hit and said.must_avoid)):
                continue
            if kind == CONSISTENCY and _verdict(said.text) is None:
                continue
            phrases = Phrases(said.must_hit, said.must_avoid)
            dimension = DIMENSION_OF.get(kind, CONSISTENCY)
            asked.append(Question(place, dimension, said.question, phrases, said.text))
            taken += 1
    return asked


def _label(row: RlRow, path: Path) -> str:
    if not row.wafer_label:
        raise DatasetError(f"wafer_label of row {row.id} of {path} is empty; name the class of its wafer")
    return row.wafer_label[0]


def _asked(row: RlRow) -> str:
    content = row.prompt[-1]["content"]
    return " ".join(part["text"] for part in content if part.get("type") == "text")


def _keys(claims: Sequence[Claim]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for claim in claims for key in hits(claim, say(claim, 0))))


def _verdict(text: str) -> str | None:
    first = text.strip().partition(" ")[0].strip(".,:;!").casefold()
    return first if first in ("yes", "no") else None


def _score(text: str, phrases: Phrases, formula: Formula) -> float | None:
    return score(text, phrases.must_hit, phrases.must_avoid, formula).value


def _ratio(values: Sequence[float | None]) -> Ratio:
    return Ratio(
        np.array([value or 0.0 for value in values]), np.array([float(value is not None) for value in values])
    )


def _plain(found: Mapping[str, Ratio], cases: Cases) -> dict[str, Any]:
    return {name: _interval(ratio, cases.lots) for name, ratio in found.items()}


def _interval(ratio: Ratio, lots: Any) -> dict[str, Any] | None:
    found = ratio.interval(lots)
    return None if found is None else found.to_dict()
