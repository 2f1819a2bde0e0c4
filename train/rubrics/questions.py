"""Defects of questions: one that names the class which it is about gives the answer away.

Questions never name the defect (WaferSAGE). Some classes have everyday words as names, which a question about
places or shapes cannot do without; such a word is an error only where the question asks for the type.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from train.rubrics.findings import Finding
from train.rubrics.folding import fold
from train.rubrics.matching import exact_spans
from train.rubrics.rows import difficulty_findings, labels_of
from train.sources.mixedwm38 import JOIN
from train.vqa.rows import TYPES

# Zones and shapes, as the words of the domain have them.
_EVERYDAY = frozenset(
    fold(word).line
    for word in (
        *("center", "middle", "edge", "random", "dense", "sparse", "scatter"),
        *("ring", "annulus", "arc", "cluster", "blob", "line", "curved line"),
    )
)
_PATTERN = r"(?:pattern|defect|failure|anomaly|signature)s?"
_TYPE = r"(?:type|kind|class|category|name|label)"
_ASKS_TYPE = re.compile(
    rf"\b{_TYPE} of (?:\w+ )?{_PATTERN}\b|\b{_PATTERN} {_TYPE}\b|\b(?:which|what) (?:class|{_PATTERN})\b"
    r"|\bclassif",
    re.IGNORECASE,
)


def class_findings(row: str, question: str, labels: Collection[str]) -> Iterator[Finding]:
    """Whether ``question`` gives the class away. "none" is said of anything and is not looked for."""
    asked = fold(question)
    for label in sorted({name for several in labels for name in several.split(JOIN)}):
        folded = fold(label)
        if label.casefold() == "none" or not exact_spans(asked, folded):
            continue
        if folded.line not in _EVERYDAY:
            yield Finding("class-named", row, label, "the question names the class")
        elif _ASKS_TYPE.search(question):
            yield Finding("class-named", row, label, "the question asks for the type and names it")
        else:
            yield Finding("class-word", row, label, "the question says this word, which is the class's name")


def question_findings(values: Mapping[str, Any], name: str) -> Iterator[Finding]:
    """What is wrong with the VQA row ``name``."""
    for key in ("query", "answer"):
        if not str(values.get(key) or "").strip():
            yield Finding("malformed", name, "", f"{key} is empty")
    kind = values.get("question_type")
    if kind not in TYPES:
        why = f"the question type is {kind!r}; known are {', '.join(TYPES)}"
        yield Finding("unknown-dimension", name, "", why)
    yield from difficulty_findings(values, name)
    yield from class_findings(name, str(values.get("query") or ""), labels_of(values.get("wafer_label")))
