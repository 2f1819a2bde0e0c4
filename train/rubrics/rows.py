"""One row as the linter sees it, read leniently: a column that cannot be used is a finding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from train.rubrics.findings import Finding
from train.rubrics.reward import solution
from train.vqa.rows import DIFFICULTIES, DIMENSION_OF, DIMENSIONS, RlRow

PROMPT, QUESTION = "prompt", "question"
SECTIONS = ("spatial_rubric", "morphology_rubric", "root_cause_rubric")
_ONLY_PROMPTS = frozenset({"dimension", "must_avoid", "reference_answer"})
_ONLY_QUESTIONS = frozenset({"query", "question_type"})
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class LintRow:
    """One RL row as far as it can be read. ``sound`` is False where phrases or dimension cannot be used."""

    id: str
    dimension: str
    must_hit: tuple[str, ...]
    must_avoid: tuple[str, ...]
    reference: str
    labels: frozenset[str]
    question: str
    kind: str
    """Which question of several it is, "" where the row does not say."""
    rubric: Mapping[str, Any]
    sound: bool

    @property
    def applies(self) -> bool:
        """Whether the row can be scored at all."""
        return self.sound and bool(self.must_hit)


def kind_of(entry: Any) -> str:
    """What an entry of a list means to be by its columns: PROMPT (an RL row), QUESTION (a VQA row), or ""."""
    if not isinstance(entry, dict):
        return ""
    columns = entry.keys()
    if "must_hit" in columns:
        return PROMPT
    if {"query", "answer"} <= columns:
        return QUESTION
    # A rubric alone is that of a wafer, as in a file of rubrics.
    if columns & _ONLY_PROMPTS or {"prompt", "rubric"} <= columns:
        return PROMPT
    return QUESTION if columns & _ONLY_QUESTIONS else ""


def read_prompt(values: Mapping[str, Any], name: str, findings: list[Finding]) -> LintRow:
    """The RL row ``name``; what is wrong with its columns is added to ``findings``."""
    rubric = _rubric(values.get("rubric"), name, findings)
    findings += _section_findings(rubric, name)
    if "prompt" in values and not _question(values).strip():
        findings.append(
            Finding("malformed", name, "", "the prompt asks nothing: no turn of the user has a text")
        )
    before = len(findings)
    dimension = _dimension(values.get("dimension"), name, findings)
    must_hit = _phrases(values, "must_hit", name, findings)
    must_avoid = _phrases(values, "must_avoid", name, findings)
    sound = len(findings) == before
    # Published rows have no difficulty.
    findings += difficulty_findings(values, name) if "difficulty" in values else []
    reference = values.get("reference_answer")
    text = reference if isinstance(reference, str) else ""
    if not text.strip():
        findings.append(Finding("no-reference", name, "", "there is no reference_answer to score"))
    return LintRow(
        id=name,
        dimension=dimension,
        must_hit=must_hit,
        must_avoid=must_avoid,
        reference=solution(text) or text,
        labels=labels_of(values.get("wafer_label") or rubric.get("defect_types")),
        question=_question(values),
        kind=str(values.get("kind") or ""),
        rubric=rubric,
        sound=sound,
    )


def of_training(row: RlRow) -> LintRow:
    """``row``, whose columns were checked when it was read. Its phrases are taken as they are: whether they
    were cut out of its rubric's texts is not looked at."""
    return LintRow(
        id=row.id,
        dimension=row.dimension,
        must_hit=row.must_hit,
        must_avoid=row.must_avoid,
        reference=solution(row.reference_answer) or row.reference_answer,
        labels=labels_of(row.wafer_label),
        question=_question({"prompt": list(row.prompt)}),
        kind=row.kind,
        rubric={},
        sound=True,
    )


def labels_of(value: Any) -> frozenset[str]:
    """The classes of a wafer: of a list, or a single one."""
    return frozenset(map(str, value if isinstance(value, list | tuple) else [value] if value else []))


def difficulty_findings(values: Mapping[str, Any], name: str) -> list[Finding]:
    """Whether the curriculum knows the difficulty."""
    found = values.get("difficulty")
    if found in DIFFICULTIES:
        return []
    why = f"the difficulty is {found!r}; known are {', '.join(DIFFICULTIES)}"
    return [Finding("unknown-difficulty", name, "", why)]


def image_findings(values: Mapping[str, Any], name: str) -> list[Finding]:
    """Whether the row names an image in a column or in its chat."""
    images = values.get("image") or values.get("images") or _prompt_image(values.get("prompt"))
    named = images if isinstance(images, list) else [images]
    if any(isinstance(image, dict) or str(image or "").strip() for image in named):
        return []
    return [Finding("no-image", name, "", "there is no image that the answer could be about")]


def _rubric(value: Any, name: str, findings: list[Finding]) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            findings.append(Finding("malformed", name, value[:_SHOWN], "the rubric is not JSON"))
            return {}
    if isinstance(value, dict) and value:
        return value
    said = "missing" if value is None else "empty" if value == {} else f"of type {type(value).__name__}"
    findings.append(Finding("malformed", name, "", f"the rubric is {said}; it must be an object"))
    return {}


def _section_findings(rubric: Mapping[str, Any], name: str) -> list[Finding]:
    """Whether the sections that a rubric has hold something."""
    why = "of the rubric must be an object with something in it"
    given = [section for section in SECTIONS if section in rubric]
    empty = [section for section in given if not (isinstance(rubric[section], dict) and rubric[section])]
    return [Finding("malformed", name, "", f"{section} {why}") for section in empty]


def _dimension(value: Any, name: str, findings: list[Finding]) -> str:
    plain = str(value or "").strip().casefold().replace(" ", "_").replace("-", "_")
    plain = DIMENSION_OF.get(plain, plain)
    if plain not in DIMENSIONS:
        known = ", ".join(DIMENSIONS)
        findings.append(
            Finding("unknown-dimension", name, "", f"the dimension is {value!r}; known are {known}")
        )
    return plain


def _phrases(values: Mapping[str, Any], key: str, name: str, findings: list[Finding]) -> tuple[str, ...]:
    found = values.get(key)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            found = None
    if isinstance(found, list) and all(isinstance(phrase, str) for phrase in found):
        return tuple(found)
    given = f"not {str(values[key])[:_SHOWN]!r}" if key in values else "and is missing"
    findings.append(Finding("malformed", name, "", f"{key} must be a list of phrases, {given}"))
    return ()


def _question(values: Mapping[str, Any]) -> str:
    """The text of the user's turn: a chat's, or ``query``."""
    turns = values.get("prompt")
    if isinstance(turns, str):
        return turns
    if not isinstance(turns, list):
        return str(values.get("query", ""))
    parts = [
        turn.get("content", "") for turn in turns if isinstance(turn, dict) and turn.get("role") == "user"
    ]
    texts = [part if isinstance(part, str) else _content_text(part) for part in parts]
    return "\n".join(texts)


def _content_text(content: Any) -> str:
    parts = content if isinstance(content, list) else []
    return " ".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def _prompt_image(prompt: Any) -> Any:
    """The image that a chat names itself; a bare ``{"type": "image"}`` names none."""
    turns = prompt if isinstance(prompt, list) else []
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    keys = ("image", "image_url", "url", "path")
    return next((part[k] for part in parts if isinstance(part, dict) for k in keys if part.get(k)), None)
