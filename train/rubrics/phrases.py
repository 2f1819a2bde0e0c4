"""Defects of a rubric's phrases, and of the reference answer beside them, found row by row."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from train.rubrics.findings import Finding
from train.rubrics.folding import fold
from train.rubrics.formula import Formula, score
from train.rubrics.matching import exact_spans
from train.rubrics.questions import class_findings
from train.rubrics.rows import LintRow, of_training
from train.vqa.rows import RlRow

MOST_PHRASES = 50
MOST_WORDS = 12
_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"), ("“", "”"))
_LOOSE_START = re.compile(r"^\s*(?:[)\]},;:.%/]|(?:and|or|but|of|than)\b)", re.IGNORECASE)
_LOOSE_END = re.compile(
    r"(?:[(\[{,;:/]|\b(?:and|or|of|the|a|an|with|at|in|to|from|by|for|than))\s*$", re.IGNORECASE
)


def row_findings(row: LintRow, formula: Formula, lowest_reference: float) -> Iterator[Finding]:
    """Everything that is wrong with the phrases of ``row`` and with what its reference says of them."""
    for name, phrases in (("must_hit", row.must_hit), ("must_avoid", row.must_avoid)):
        yield from list_findings(row.id, name, phrases, row.rubric)
    if row.sound and not row.must_hit:
        why = "must_hit is empty, so the rule score does not apply; the row is left out"
        yield Finding("not-applicable", row.id, "", why)
    yield from conflicts(row)
    yield from reference_findings(row, formula, lowest_reference)
    yield from class_findings(row.id, row.question, row.labels)


def first_error(row: RlRow, formula: Formula) -> Finding | None:
    """The first defect that makes a row unfit to be rewarded by ``formula``; None where it has none."""
    findings = row_findings(of_training(row), formula, lowest_reference=0.0)
    return next((finding for finding in findings if finding.is_error), None)


def list_findings(
    row: str, name: str, phrases: Sequence[str], rubric: Mapping[str, Any]
) -> Iterator[Finding]:
    """Broken, empty, repeated, over-long: what is wrong within one list of phrases."""
    if len(phrases) > MOST_PHRASES:
        why = f"{name} has {len(phrases):,} phrases; more than {MOST_PHRASES} are not a rubric"
        yield Finding("long-list", row, phrases[0], why)
    pieces = comma_pieces(phrases)
    seen: set[str] = set()
    for i, phrase in enumerate(phrases):
        folded = fold(phrase)
        if not folded.words:
            yield Finding("empty-phrase", row, phrase, f"number {i} of {name} has no word")
            continue
        if folded.line in seen:
            yield Finding("duplicate", row, phrase, f"{name} has it more than once")
        seen.add(folded.line)
        if i in pieces:
            yield Finding("comma-piece", row, phrase, f"{name} was cut at a comma: {pieces[i]!r}")
        elif defect := broken(phrase):
            yield Finding("broken-phrase", row, phrase, f"{name}: {defect}")
        elif len(folded.words) > MOST_WORDS:
            yield Finding("long-phrase", row, phrase, f"{name}: a phrase of {len(folded.words)} words")
    whole = " | ".join(_texts(rubric))
    for first, second in itertools.pairwise(phrases):
        joined = f"{first.strip()}, {second.strip()}"
        if joined in whole and not broken(first) and not broken(second):
            yield Finding("comma-list", row, joined, f"{name} cut this text of the rubric at its comma")


def broken(phrase: str) -> str:
    """What is broken about a phrase; "" where nothing is."""
    for opening, closing in _BRACKETS:
        if phrase.count(opening) != phrase.count(closing) or _closes_first(phrase, opening, closing):
            return f"{opening} and {closing} are not balanced"
    if phrase.count('"') % 2:
        return "a quotation mark stands alone"
    if _LOOSE_START.match(phrase):
        return "it starts in the middle of a text"
    if _LOOSE_END.search(phrase):
        return "it ends in the middle of a text"
    if not re.search(r"[^\W\d_]|%", phrase):
        return "it has no letter, and a bare number is found in any answer"
    return ""


def _closes_first(phrase: str, opening: str, closing: str) -> bool:
    at = phrase.find(closing)
    return at >= 0 and at < phrase.find(opening)


def comma_pieces(phrases: Sequence[str]) -> dict[int, str]:
    """Phrases that are broken each but sound when joined with commas again ("center (0", "0) clear"): their
    index and the text that they were."""
    found: dict[int, str] = {}
    for first in range(len(phrases)):
        if first in found or not broken(phrases[first]):
            continue
        for last in range(first + 1, min(first + 5, len(phrases))):
            joined = ", ".join(phrase.strip() for phrase in phrases[first : last + 1])
            if broken(phrases[last]) and not broken(joined):
                found |= dict.fromkeys(range(first, last + 1), joined)
                break
    return found


def conflicts(row: LintRow) -> Iterator[Finding]:
    """Must-avoid phrases that a right answer cannot help but say."""
    hits = {folded.line: (phrase, folded) for phrase in row.must_hit if (folded := fold(phrase)).words}
    for phrase in dict.fromkeys(row.must_avoid):
        avoid = fold(phrase)
        if not avoid.words:
            continue
        if avoid.line in hits:
            yield Finding("contradiction", row.id, phrase, "it is both in must_hit and in must_avoid")
            continue
        # "ring" within "no ring" is denied there, and so no conflict.
        inside = next((hit for hit, folded in hits.values() if exact_spans(folded, avoid)), None)
        if inside is not None:
            yield Finding("avoid-inside-hit", row.id, phrase, f"it stands inside the must-hit {inside!r}")


def reference_findings(row: LintRow, formula: Formula, lowest: float) -> Iterator[Finding]:
    """Where the reference answer does not earn what it should."""
    if not row.applies or not row.reference.strip():
        return
    scored = score(row.reference, row.must_hit, row.must_avoid, formula)
    for phrase in scored.match.avoided:
        yield Finding("reference-offends", row.id, phrase, "the reference answer says this must-avoid phrase")
    if not scored.match.hits:
        missed = ", ".join(map(repr, scored.match.missed[:3]))
        yield Finding(
            "reference-misses", row.id, scored.match.missed[0], f"the reference says none of {missed}"
        )
    elif scored.value is not None and scored.value < lowest and scored.match.missed:
        why = f"the reference scores {scored.value:.2f}, since it does not say this"
        yield Finding("low-reference", row.id, scored.match.missed[0], why)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in _texts(inner)]
    return []
