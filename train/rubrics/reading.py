"""Rows to be linted, read leniently: what is wrong with a row is a finding, not the end.

Reads a folder that ``wafervlm data vqa`` wrote, or a JSON list or JSON lines of RL rows, in our schema or in
the published one (WaferSAGE: prompt, rubric, dimension, must_hit, must_avoid, reference_answer).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.rubrics.findings import Finding
from train.rubrics.questions import question_findings
from train.rubrics.rows import PROMPT, QUESTION, LintRow, image_findings, kind_of, read_prompt
from wafervlm.errors import DatasetError

_WRAPPERS = ("rows", "data", "train")
_NO_ROW = "it has none of the columns of a prompt (must_hit, ...) or of a question (query, answer)"


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
    if path.is_dir():
        files = sorted([*path.rglob("*.json"), *path.rglob("*.jsonl")])
        found = [_rows_of(file, _list_in(file) or []) for file in files]
    else:
        found = [_rows_of(path, json_entries(path), alone=True)]
    rows = tuple(row for each in found for row in each.rows)
    if not rows:
        raise DatasetError(
            f"{path} holds no RL rows, which have the columns must_hit, must_avoid, dimension and "
            "reference_answer; write them with `wafervlm data vqa`"
        )
    findings = tuple(finding for each in found for finding in each.findings)
    return RowSet(rows, sum(each.vqa_rows for each in found), findings)


def json_entries(path: Path) -> list[Any]:
    """The list that a .json or .jsonl file holds, maybe under "rows", "data" or "train", or DatasetError."""
    found = _list_in(path)
    if found is None:
        raise DatasetError(f"{path} must hold a list of rows")
    return found


def _list_in(path: Path) -> list[Any] | None:
    """As ``json_entries``, but None where the file holds something else than a list."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        found = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"cannot read the rows in {path}: {error}; it must be JSON in UTF-8") from None
    if isinstance(found, dict):
        found = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), list)), None)
    return found if isinstance(found, list) else None


def _rows_of(file: Path, entries: list[Any], *, alone: bool = False) -> RowSet:
    """The rows among ``entries``. Where there are any, everything else is a finding; where there are none,
    the list is of something else, which a file that stands ``alone`` must not be."""
    kinds = [kind_of(entry) for entry in entries]
    if not any(kinds):
        strange = next((n for n, entry in enumerate(entries) if not isinstance(entry, dict)), None)
        if alone and strange is not None:
            kind = type(entries[strange]).__name__
            raise DatasetError(f"row {strange} of {file} must be an object, not {kind}")
        return RowSet((), 0, ())
    names = [_name(entry, f"{file.name}:{n}") for n, entry in enumerate(entries)]
    findings = list(_repeated(names, file))
    rows: list[LintRow] = []
    for name, kind, entry in zip(names, kinds, entries, strict=True):
        if not kind:
            why = _NO_ROW if isinstance(entry, dict) else f"it must be an object, not {type(entry).__name__}"
            findings.append(Finding("malformed", name, "", why))
            continue
        findings += image_findings(entry, name)
        if kind == PROMPT:
            rows.append(read_prompt(entry, name, findings))
        else:
            findings += question_findings(entry, name)
    return RowSet(tuple(rows), kinds.count(QUESTION), tuple(findings))


def _name(entry: Any, otherwise: str) -> str:
    return str((entry.get("id") if isinstance(entry, dict) else None) or otherwise)


def _repeated(names: list[str], file: Path) -> Iterator[Finding]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield Finding("duplicate-id", name, "", f"another row of {file.name} has this id")
        seen.add(name)
