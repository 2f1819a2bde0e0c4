"""Rows of the words' datasets, as their JSON files hold them: VQA rows, RL rows and rubrics.

The schemas are WaferSAGE's (arXiv 2604.27629) with the split part, the kind of question and the class added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from train.vqa.causes import CATEGORIES
from wafervlm.errors import DatasetError

TYPES = ("spatial", "morphological", "root_cause", "consistency")
DIFFICULTIES = ("easy", "medium", "hard")
# What a rubric judges, by the type of question that asks for it.
DIMENSION_OF = {"spatial": "spatial", "morphological": "morphology", "root_cause": "root_cause"}
DIMENSIONS = tuple(DIMENSION_OF.values())

Message = dict[str, Any]
T = TypeVar("T", "VqaRow", "RlRow")


@dataclass(frozen=True, slots=True)
class VqaRow:
    """One question about one image with its answer. ``part`` is the dataset's, ``kind`` names the question
    of ``train.vqa.questions`` or the description that it is."""

    id: str
    image: str
    query: str
    answer: str
    wafer_label: tuple[str, ...]
    question_type: str
    difficulty: str
    part: str
    kind: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "wafer_label": list(self.wafer_label)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the row") -> VqaRow:
        """Read what ``to_dict`` wrote. Raises DatasetError naming ``where``."""
        known = _common(values, where)
        for key in ("query", "answer"):
            known[key] = _text(values, key, where)
        known["question_type"] = _one_of(values, "question_type", TYPES, where)
        known["kind"] = str(values.get("kind", ""))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class SpatialRubric:
    """What a right answer says of where the failing dies lie, and what it must not say."""

    zone: str
    distribution: str
    clock_position: str
    coordinates_hint: str
    spatial_avoid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MorphologyRubric:
    """What a right answer says of the shape of the pattern, and what it must not say."""

    pattern_type: str
    density: str
    geometric_structure: str
    texture_description: str
    morphology_avoid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RootCauseRubric:
    """Candidate causes, the equipment and step that most of them belong to, and what must not be named."""

    equipment_category: str
    process_step: str
    potential_causes: tuple[str, ...]
    root_cause_avoid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rubric:
    """What a right answer about one wafer holds. A text is empty where nothing is to be said."""

    defect_types: tuple[str, ...]
    spatial_rubric: SpatialRubric
    morphology_rubric: MorphologyRubric
    root_cause_rubric: RootCauseRubric
    summary: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Any, where: str = "the rubric") -> Rubric:
        """Read what ``to_dict`` wrote. Raises DatasetError naming ``where``."""
        _object(values, where)
        cause = _section(RootCauseRubric, values, "root_cause_rubric", where)
        if cause.equipment_category not in ("", *CATEGORIES):
            raise DatasetError(
                f"{where} names the equipment category {cause.equipment_category!r}; known are "
                f"{', '.join(CATEGORIES)}"
            )
        return cls(
            defect_types=_texts(values, "defect_types", where),
            spatial_rubric=_section(SpatialRubric, values, "spatial_rubric", where),
            morphology_rubric=_section(MorphologyRubric, values, "morphology_rubric", where),
            root_cause_rubric=cause,
            summary=str(values.get("summary", "")),
        )


@dataclass(frozen=True, slots=True)
class RlRow:
    """One prompt of the reinforcement learning. ``prompt`` is a chat whose user turn holds one
    ``{"type": "image"}``; ``must_hit`` are phrases of a right answer, ``must_avoid`` ones of a wrong answer;
    ``dimension`` says which part of ``rubric`` judges it."""

    id: str
    image: str
    prompt: tuple[Message, ...]
    rubric: Rubric
    dimension: str
    must_hit: tuple[str, ...]
    must_avoid: tuple[str, ...]
    reference_answer: str
    wafer_label: tuple[str, ...]
    difficulty: str
    part: str
    kind: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the row") -> RlRow:
        """Read what ``to_dict`` wrote. Raises DatasetError naming ``where``."""
        known = _common(values, where)
        known["prompt"] = _chat(values, where)
        known["rubric"] = Rubric.from_dict(values.get("rubric"), f"the rubric of {where}")
        known["dimension"] = _one_of(values, "dimension", DIMENSIONS, where)
        known["must_hit"] = _texts(values, "must_hit", where)
        known["must_avoid"] = _texts(values, "must_avoid", where)
        known["reference_answer"] = _text(values, "reference_answer", where)
        known["kind"] = str(values.get("kind", ""))
        return cls(**known)


def read_rows(path: Path, kind: type[T]) -> list[T]:
    """The rows of the JSON list at ``path``. Raises DatasetError, naming the row, for one that has no image,
    lacks a key, or names a type, difficulty or dimension that is not known."""
    return [kind.from_dict(entry, f"row {n} of {path}") for n, entry in enumerate(read_list(path))]


def write_rows(rows: Sequence[VqaRow | RlRow], path: Path) -> None:
    """Write ``rows`` as a JSON list, one row a line."""
    write_list([row.to_dict() for row in rows], path)


def read_list(path: Path) -> list[Any]:
    """The JSON list at ``path``. Raises DatasetError where there is none."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read the rows in {path}: {error}") from None
    if not isinstance(entries, list):
        raise DatasetError(f"{path} must hold a list of rows")
    return entries


def write_list(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write ``entries`` as a JSON list, one entry a line, so that it can be searched and compared."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    path.write_text(f"[\n{lines}\n]\n" if lines else "[]\n", encoding="utf-8")


def _common(values: Any, where: str) -> dict[str, Any]:
    _object(values, where)
    if not isinstance(values.get("image"), str) or not values["image"].strip():
        raise DatasetError(f"{where} has no image; every row needs the path of one")
    known = {key: _text(values, key, where) for key in ("id", "image", "part")}
    return {
        **known,
        "wafer_label": _texts(values, "wafer_label", where),
        "difficulty": _one_of(values, "difficulty", DIFFICULTIES, where),
    }


def _chat(values: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    turns = values.get("prompt")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise DatasetError(f"prompt of {where} must be a chat: a list of turns with role and content")
    roles = [turn.get("role") for turn in turns]
    if roles not in (["user"], ["system", "user"]):
        raise DatasetError(f"prompt of {where} must be a user's turn, with a system's before it at most")
    content = turns[-1].get("content")
    images = [part for part in content if part == {"type": "image"}] if isinstance(content, list) else []
    if len(images) != 1:
        raise DatasetError(f"prompt of {where} must hold exactly one image in the user's turn")
    texts = [part for part in content if part not in images]
    if not all(_is_text(said) for said in (texts, *(turn.get("content") for turn in turns[:-1]))):
        raise DatasetError(
            f"prompt of {where} must hold text beside its one image: plain, or in parts of type text"
        )
    return tuple(turns)


def _is_text(content: Any) -> bool:
    """Whether the content of a turn is text, plain or in parts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return isinstance(parts, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in parts
    )


def _section(kind: type[Any], values: Mapping[str, Any], key: str, where: str) -> Any:
    section: Any = values.get(key)
    inside = f"{key} of {where}"
    _object(section, inside)
    known = {}
    for name, annotation in kind.__annotations__.items():
        if name not in section:
            raise DatasetError(f"{inside} has no {name}")
        known[name] = _texts(section, name, inside) if "tuple" in annotation else _said(section, name, inside)
    return kind(**known)


def _object(values: Any, where: str) -> None:
    if not isinstance(values, dict):
        raise DatasetError(f"{where} must be an object, not {type(values).__name__}")


def _said(values: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(values[key], str):
        raise DatasetError(f"{key} of {where} must be text, empty where nothing is to be said")
    return str(values[key])


def _text(values: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(values.get(key), str) or not values[key].strip():
        raise DatasetError(f"{key} of {where} is {values.get(key)!r}; it must be text")
    return str(values[key])


def _texts(values: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    found = values.get(key)
    if not isinstance(found, list) or not all(isinstance(text, str) and text.strip() for text in found):
        raise DatasetError(f"{key} of {where} must be a list of texts, none of them empty")
    return tuple(found)


def _one_of(values: Mapping[str, Any], key: str, known: Sequence[str], where: str) -> str:
    if values.get(key) not in known:
        raise DatasetError(f"{key} of {where} is {values.get(key)!r}; known are {', '.join(known)}")
    return str(values[key])
