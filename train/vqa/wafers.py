"""All rows of one wafer: its descriptions, its rubric, eight to ten questions, and prompts for RL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from train.vqa.causes import Causes
from train.vqa.descriptions import QUESTIONS
from train.vqa.facts import Facts, facts
from train.vqa.phrases import Rng
from train.vqa.questions import BANK
from train.vqa.rows import RlRow, Rubric, VqaRow
from train.vqa.rubrics import rl_rows, rubric
from train.vqa.write import answer
from wafervlm.wafermap import DieGrid

# Questions of each group that every wafer gets, and how many wafers get one more; 8 to 10 in all.
LEAST = {"defect type": 1, "spatial": 2, "morphological": 2, "root_cause": 1, "consistency": 1}
FEWEST, MOST = 8, 10


@dataclass(frozen=True, slots=True)
class Wafer:
    """One wafer of a dataset: its place ``number`` there, ``image`` relative to the folder, part, label and
    ``dies`` (H, W) uint8."""

    number: int
    image: str
    part: str
    label: str
    dies: DieGrid

    @property
    def name(self) -> str:
        """The image's path without its suffix: what the ids of the rows begin with."""
        return str(PurePosixPath(self.image).with_suffix(""))


@dataclass(frozen=True, slots=True)
class WaferRows:
    """The rows of one wafer; ``descriptions`` by kind of description."""

    wafer: Wafer
    descriptions: Mapping[str, str]
    rubric: Rubric
    questions: tuple[VqaRow, ...]
    prompts: tuple[RlRow, ...]

    def heading(self) -> dict[str, Any]:
        """What a row of descriptions.json and rubrics.json begins with."""
        wafer = self.wafer
        return {"id": wafer.name, "image": wafer.image, "part": wafer.part, "wafer_label": [wafer.label]}

    def reworded(self, texts: Mapping[str, str]) -> WaferRows:
        """These rows with the answers of ``texts``, by the row's id, in place of their own."""
        if not texts.keys() & {self.description_id("full"), *(row.id for row in self.questions)}:
            return self
        full = texts.get(self.description_id("full"), self.descriptions["full"])
        rows = tuple(replace(row, answer=texts.get(row.id, row.answer)) for row in self.questions)
        return replace(self, descriptions={**self.descriptions, "full": full}, questions=rows)

    def description_id(self, kind: str) -> str:
        """The id of the description of ``kind``."""
        return f"{self.wafer.name}-{_slug(kind)}"


def write_wafer(wafer: Wafer, causes: Causes, seed: int, *, image_first: bool) -> WaferRows:
    """Write all rows of ``wafer``; they depend on it, ``causes`` and ``seed`` alone. Raises ConfigError for a
    label that the table lacks."""
    rng = np.random.default_rng([seed, 4, wafer.number])
    found = facts(wafer.dies, wafer.label, causes)
    told = {kind: answer(found, rng, kind) for kind in QUESTIONS}
    judged = rubric(found, rng)
    prompts = rl_rows(
        found,
        judged,
        rng,
        name=wafer.name,
        image=wafer.image,
        part=wafer.part,
        image_first=image_first,
    )
    return WaferRows(
        wafer=wafer,
        descriptions={kind: said.text for kind, said in told.items() if said is not None},
        rubric=judged,
        questions=tuple(_questions(wafer, found, rng)),
        prompts=tuple(prompts),
    )


def _questions(wafer: Wafer, found: Facts, rng: Rng) -> list[VqaRow]:
    rows = []
    for group, count in _counts(rng).items():
        kinds = [kind for kind, question in BANK.items() if question.group == group]
        taken = 0
        for place in rng.permutation(len(kinds)):
            if taken == count:
                break
            kind = kinds[place]
            said = answer(found, rng, kind)
            if said is not None:
                rows.append(_row(wafer, kind, said.question, said.text))
                taken += 1
    return rows


def _counts(rng: Rng) -> dict[str, int]:
    counts = dict(LEAST)
    most = int(rng.integers(FEWEST, MOST + 1))
    groups = list(counts)
    for place in rng.permutation(len(groups))[: most - sum(counts.values())]:
        counts[groups[place]] += 1
    return counts


def _row(wafer: Wafer, kind: str, query: str, text: str) -> VqaRow:
    question = BANK[kind]
    return VqaRow(
        id=f"{wafer.name}-{_slug(kind)}",
        image=wafer.image,
        query=query,
        answer=text,
        wafer_label=(wafer.label,),
        question_type=question.type,
        difficulty=question.difficulty,
        part=wafer.part,
        kind=kind,
    )


def _slug(kind: str) -> str:
    return kind.replace(" ", "-")
