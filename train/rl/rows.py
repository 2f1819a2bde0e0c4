"""The prompts of the reinforcement learning with the dies that they are about."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from train.dataset import DIES, Sample, dataset_task, read_split
from train.rl.claims import topics_of
from train.rubrics.findings import ERRORS, Finding
from train.rubrics.formula import STRICT, Formula
from train.rubrics.phrases import first_error
from train.samples import at_most
from train.sources.npz import load_arrays
from train.vqa.build import DESCRIPTIONS, RL
from train.vqa.descriptions import QUESTIONS
from train.vqa.rows import DIFFICULTIES, Message, RlRow, read_list
from train.vqa.rubrics import chat
from wafervlm.claims import Topic
from wafervlm.errors import DatasetError
from wafervlm.geometry import Geometry, measure
from wafervlm.wafermap import WaferMap

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyRow:
    """One prompt: the row, its wafer, and what the dies say of its reference answer."""

    row: RlRow
    wafer: WaferMap

    @property
    def id(self) -> str:
        """The row's name in messages."""
        return self.row.id

    @property
    def label(self) -> str:
        """The class that the wafer is said to show."""
        return self.row.wafer_label[0] if self.row.wafer_label else ""

    @property
    def question(self) -> str:
        """The text of the user's turn, without the image."""
        parts = self.row.prompt[-1]["content"]
        return "".join(str(part["text"]) for part in parts if part.get("type") == "text")

    @cached_property
    def geometry(self) -> Geometry:
        """What is measured on the dies."""
        return measure(self.wafer.dies)

    @cached_property
    def topics(self) -> frozenset[Topic]:
        """What the reference answer claims of the dies, and they bear out."""
        return topics_of(self.row.reference_answer, self.geometry)


@dataclass
class Rows:
    """The ``rows`` of one part that a reward applies to; how many were left out, by reason; and those among
    them that are ``defective``, each with what is wrong."""

    rows: list[PolicyRow] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    defective: list[tuple[PolicyRow, Finding]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Rows by difficulty, in the curriculum's order."""
        found = Counter(row.row.difficulty for row in self.rows)
        return {name: found[name] for name in DIFFICULTIES}

    def drop_defective(self, formula: Formula) -> None:
        """Leave out the rows that the linter would refuse: a model would learn the defect."""
        kept = []
        for row in self.rows:
            finding = first_error(row.row, formula)
            if finding is None:
                kept.append(row)
            else:
                self.defective.append((row, finding))
                self.left_out[ERRORS[finding.kind]] += 1
        self.rows = kept

    def check_not_emptied(self, where: Path) -> None:
        """Raise DatasetError where defects leave no row of a dimension or a difficulty."""
        kept = {name for row in self.rows for name in _groups(row)}
        for row, finding in self.defective:
            lost = next((name for name in _groups(row) if name not in kept), None)
            if lost is not None:
                raise DatasetError(
                    f"defects leave no row of {lost} in {where} to learn from; in row {row.id}, "
                    f"{finding.phrase!r}: {finding.why}; mend what wafervlm data lint lists, or write the "
                    "folder anew with wafervlm data vqa"
                )

    def example(self, reason: str) -> str:
        """The first defective row that was left out for ``reason``, "" where it is no defect."""
        named = (found for _, found in self.defective if ERRORS[found.kind] == reason)
        first = next(named, None)
        return f"; the first is {first.row}, {first.phrase!r}" if first else ""


def read_policy_rows(
    folder: Path,
    dimension: str = "all",
    *,
    claims: bool = True,
    descriptions: bool = False,
    formula: Formula = STRICT,
) -> dict[str, Rows]:
    """The prompts of the folder that ``wafervlm data vqa`` wrote, by part: of ``dimension``, or all; with
    ``descriptions`` one more for each wafer, as hard, that asks for the full description.

    A row without a must-hit phrase and (where ``claims`` count) without a claim to check can earn nothing
    but its format, and one with a defect that the linter refuses is no reward by ``formula``: they are left
    out, counted and named in the log. Raises DatasetError naming the row for one without a difficulty,
    without its image, or that is not what ``train.vqa.rows`` describes.
    """
    path = folder / RL
    if not path.is_file():
        raise DatasetError(f"{folder} has no {RL}; make one with wafervlm data vqa")
    parts: dict[str, Rows] = {}
    wafers: dict[str, Mapping[str, Sample]] = {}
    for n, entry in enumerate(read_list(path)):
        row = _read(entry, f"row {n} of {path}")
        if row.part not in wafers:
            wafers[row.part] = _by_image(folder, row.part)
        sample = wafers[row.part].get(row.image)
        if sample is None:
            raise DatasetError(
                f"row {n} of {path} is about {row.image}, which is not in part {row.part!r} of {folder}"
            )
        _take(parts.setdefault(row.part, Rows()), PolicyRow(row, sample.wafer), dimension, claims)
    if descriptions:
        _add_descriptions(folder, parts)
    for part, found in parts.items():
        found.drop_defective(formula)
        for reason, count in found.left_out.items():
            logger.warning(
                "%d rows of part %s are left out: %s%s", count, part, reason, found.example(reason)
            )
    return parts


def chosen_rows(rows: Sequence[PolicyRow], most: int, seed: int) -> list[PolicyRow]:
    """At most ``most`` of ``rows``, as many of each class; all where it is 0."""
    if most == 0 or len(rows) <= most:
        return list(rows)
    labels = [row.label for row in rows]
    per_class = -(-most // len(set(labels)))
    return [rows[i] for i in at_most(labels, per_class, seed)][:most] if per_class else []


def _groups(row: PolicyRow) -> tuple[str, str]:
    dimension = "full descriptions" if row.row.dimension == "all" else f"dimension {row.row.dimension}"
    return dimension, f"difficulty {row.row.difficulty}"


def _read(entry: Any, where: str) -> RlRow:
    if isinstance(entry, dict) and not entry.get("difficulty"):
        raise DatasetError(
            f"{where} (id {entry.get('id')!r}) has no difficulty; the curriculum goes from "
            f"{' to '.join(DIFFICULTIES)} and needs one of them in every row"
        )
    return RlRow.from_dict(entry, where)


def _take(found: Rows, row: PolicyRow, dimension: str, claims: bool) -> None:
    if dimension not in ("all", row.row.dimension):
        return
    if row.row.must_hit or (claims and row.topics):
        found.rows.append(row)
    else:
        found.left_out["no phrase to hit and no claim to check"] += 1


def _add_descriptions(folder: Path, parts: Mapping[str, Rows]) -> None:
    """A prompt for the full description of each wafer that has another. Its causes are judged by the wafer's
    rubric, and what it says of the dies by the dies."""
    prompt = chat(QUESTIONS["full"], image_first=dataset_task(folder).order == "image-first")
    path = folder / DESCRIPTIONS
    told = _full_descriptions(path)
    for found in parts.values():
        for row in {row.row.image: row for row in found.rows}.values():
            if row.row.image not in told:
                raise DatasetError(
                    f"{path} does not describe {row.row.image}, which row {row.id} is about; write the "
                    "folder anew with wafervlm data vqa"
                )
            asked = _asked_for_all(row.row, prompt, told[row.row.image])
            found.rows.append(PolicyRow(asked, row.wafer))


def _asked_for_all(row: RlRow, prompt: tuple[Message, ...], reference: str) -> RlRow:
    causes = row.rubric.root_cause_rubric
    return replace(
        row,
        id=f"{row.image.rpartition('.')[0]}-rl-full",
        prompt=prompt,
        dimension="all",
        # A description names the first few alone.
        must_hit=tuple(phrase for phrase in causes.potential_causes if phrase in reference),
        must_avoid=causes.root_cause_avoid,
        reference_answer=reference,
        difficulty="hard",
        kind="full",
    )


def _full_descriptions(path: Path) -> dict[str, str]:
    """The full description of each image."""
    told = {}
    for n, entry in enumerate(read_list(path)):
        image = entry.get("image") if isinstance(entry, dict) else None
        kinds = entry.get("descriptions") if isinstance(entry, dict) else None
        full = kinds.get("full") if isinstance(kinds, dict) else None
        if not isinstance(image, str) or not isinstance(full, str):
            raise DatasetError(
                f"entry {n} of {path} must name an image and give its full description as text; write the "
                "folder anew with wafervlm data vqa"
            )
        told[image] = full
    return told


def _by_image(folder: Path, part: str) -> Mapping[str, Sample]:
    arrays = load_arrays(folder / DIES, ("split", "images"))
    names = [str(name) for name in arrays["images"][np.asarray(arrays["split"] == part)]]
    return dict(zip(names, read_split(folder, part), strict=True))
