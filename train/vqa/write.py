"""One question with its answer about the dies of a wafer, for every kind of row.

A function of the dies alone, the label and a random generator: a training that turns a wafer or lays it on
another grid asks for the answer anew, and the dataset's rows are made with the same function.
"""

from __future__ import annotations

import numpy as np

from train.vqa.answers import Answer
from train.vqa.causes import Causes
from train.vqa.descriptions import NOTHING, QUESTIONS, Unsaid, describe
from train.vqa.facts import Facts, facts
from train.vqa.questions import BANK
from wafervlm.errors import UsageError
from wafervlm.wafermap import DieGrid

DESCRIPTIONS = tuple(QUESTIONS)
KINDS = (*DESCRIPTIONS, *BANK)


def write(
    dies: DieGrid, label: str, rng: np.random.Generator, kind: str, causes: Causes | None = None
) -> tuple[str, str]:
    """A question of ``kind``, one of KINDS, and its answer, about ``dies`` (H, W) uint8 of a wafer said to
    show ``label``. A kind that these dies give no answer to is replaced by the full description.

    What is said of the dies is measured on them; candidate causes come from ``causes``, the workshop's own
    table when None. Raises UsageError for an unknown kind, ConfigError for a label that the table lacks.
    """
    return put(facts(dies, label, causes), rng, kind)


def put(found: Facts, rng: np.random.Generator, kind: str, unsaid: Unsaid = NOTHING) -> tuple[str, str]:
    """As ``write``, of a wafer measured before; descriptions are without what is ``unsaid``."""
    said = answer(found, rng, kind, unsaid)
    if said is None:
        return QUESTIONS["full"], describe(found, rng, "full", unsaid)
    return said.question, said.text


def answer(found: Facts, rng: np.random.Generator, kind: str, unsaid: Unsaid = NOTHING) -> Answer | None:
    """As ``write``, of a wafer measured before, with the phrases for a rubric; None where the dies give no
    answer to this kind of question. Descriptions are without what is ``unsaid``."""
    if kind in QUESTIONS:
        return Answer(QUESTIONS[kind], describe(found, rng, kind, unsaid))
    if kind not in BANK:
        raise UsageError(f"kind {kind!r} of question is not known; known are {', '.join(KINDS)}")
    question = BANK[kind]
    # The first wording most often, for the same reason as the first wording of a claim.
    place = 0 if rng.random() < 0.5 else int(rng.integers(len(question.wordings)))
    return question.answer(found, rng, question.wordings[place])
