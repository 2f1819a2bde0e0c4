"""Rows to be linted, read leniently: what is wrong with a row is a finding, not the end.

Reads a folder that ``wafervlm data vqa`` wrote, or a JSON list or JSON lines of RL rows, in our schema or in
the published one (WaferSAGE: prompt, rubric, dimension, must_hit, must_avoid, reference_answer).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.rubrics.findings import Finding
from train.rubrics.reward import solution
from train.vqa.rows import DIMENSION_OF, DIMENSIONS
from wafervlm.errors import DatasetError

_WRAPPERS = ("rows", "data", "train")
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


@dataclass(frozen=True, slots=True)
class RowSet:
    """The RL rows of a set, how many VQA rows stood beside them, and what was wrong in reading."""

    rows: tuple[LintRow, ...]
    vqa_rows: int
    findings: tuple[Finding, ...]


def read_set(path: Path) -> RowSet:
    """Read every row below ``path`` (a folder, .json or .jsonl). Raises DatasetError where there are none."""
    path = Path(path)
    if not path.exists():
        raise DatasetError(
            f"{path} does not exist; name a folder that `wafervlm data vqa` wrote or a JSON file"
        )
    files = sorted([*path.rglob("*.json"), *path.rglob("*.jsonl")]) if path.is_dir() else [path]
    rows: list[LintRow] = []
    findings: list[Finding] = []
    vqa = 0
    for file in files:
        seen: set[str] = set()
        for n, values in _entries(file, strict=not path.is_dir()):
            is_rl = "must_hit" in values
            if not is_rl and not ("query" in values and "answer" in values):
                continue
            name = str(values.get("id") or f"{file.name}:{n}")
            if name in seen:
                findings.append(Finding("duplicate-id", name, "", f"another row of {file.name} has this id"))
            seen.add(name)
            findings += _image_finding(values, name)
            vqa += not is_rl
            if is_rl:
                rows.append(_rl_row(values, name, findings))
            else:
                findings += _vqa_findings(values, name)
    if not rows:
        raise DatasetError(
            f"{path} holds no RL rows, which have the columns must_hit, must_avoid, dimension and "
            "reference_answer; write them with `wafervlm data vqa`"
        )
    return RowSet(tuple(rows), vqa, tuple(findings))


def json_entries(path: Path) -> list[Any]:
    """The list that a .json or .jsonl file holds, maybe under "rows", "data" or "train", or DatasetError."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read the rows in {path}: {error}") from None
    if isinstance(found, dict):
        found = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), list)), found)
    if not isinstance(found, list):
        raise DatasetError(f"{path} must hold a list of rows")
    return found


def _entries(path: Path, *, strict: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file; in a folder, files that hold no list are passed over unless they are no JSON."""
    if (
        not strict
        and path.suffix == ".json"
        and not path.read_text(encoding="utf-8").lstrip().startswith("[")
    ):
        return
    for n, entry in enumerate(json_entries(path)):
        if isinstance(entry, dict):
            yield n, entry
        elif strict:
            raise DatasetError(f"row {n} of {path} must be an object, not {type(entry).__name__}")


def _rl_row(values: Mapping[str, Any], name: str, findings: list[Finding]) -> LintRow:
    rubric = _rubric(values.get("rubric"), name, findings)
    before = len(findings)
    dimension = _dimension(values.get("dimension"), name, findings)
    must_hit = _phrases(values, "must_hit", name, findings)
    must_avoid = _phrases(values, "must_avoid", name, findings)
    sound = len(findings) == before
    reference = values.get("reference_answer")
    text = reference if isinstance(reference, str) else ""
    if not text.strip():
        findings.append(Finding("no-reference", name, "", "there is no reference_answer to score"))
    labels = values.get("wafer_label") or rubric.get("defect_types") or []
    return LintRow(
        id=name,
        dimension=dimension,
        must_hit=must_hit,
        must_avoid=must_avoid,
        reference=solution(text) or text,
        labels=frozenset(map(str, labels if isinstance(labels, list | tuple) else [labels])),
        question=_question(values),
        kind=str(values.get("kind") or ""),
        rubric=rubric,
        sound=sound,
    )


def _rubric(value: Any, name: str, findings: list[Finding]) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            findings.append(Finding("malformed", name, value[:_SHOWN], "the rubric is not JSON"))
    return value if isinstance(value, dict) else {}


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
    found = values.get(key, [])
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            found = None
    if isinstance(found, list) and all(isinstance(phrase, str) for phrase in found):
        return tuple(found)
    why = f"{key} must be a list of phrases, not {str(values.get(key))[:_SHOWN]!r}"
    findings.append(Finding("malformed", name, "", why))
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


def _image_finding(values: Mapping[str, Any], name: str) -> list[Finding]:
    images = values.get("image") or values.get("images") or _prompt_image(values.get("prompt"))
    named = images if isinstance(images, list) else [images]
    if any(isinstance(image, dict) or str(image or "").strip() for image in named):
        return []
    return [Finding("no-image", name, "", "there is no image that the answer could be about")]


def _prompt_image(prompt: Any) -> Any:
    """The image that a chat names itself; a bare ``{"type": "image"}`` names none."""
    turns = prompt if isinstance(prompt, list) else []
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    keys = ("image", "image_url", "url", "path")
    return next((part[k] for part in parts if isinstance(part, dict) for k in keys if part.get(k)), None)


def _vqa_findings(values: Mapping[str, Any], name: str) -> list[Finding]:
    empty = [key for key in ("query", "answer") if not str(values[key] or "").strip()]
    found = [Finding("malformed", name, "", f"{key} is empty") for key in empty]
    kind = values.get("question_type")
    if kind not in (*DIMENSION_OF, "consistency"):
        known = ", ".join((*DIMENSION_OF, "consistency"))
        found.append(
            Finding("unknown-dimension", name, "", f"the question type is {kind!r}; known are {known}")
        )
    return found
