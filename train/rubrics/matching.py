"""Which phrases an answer says: whole phrases at word boundaries, not negated; similar words second.

The ways in which matching by substring goes wrong on the public data are what this avoids: a must-avoid word
inside a must-hit phrase that was said is no offence, "no ring" does not say "ring", "spring" is not "ring".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz import fuzz

from train.rubrics.folding import COMMA, Folded, fold
from train.rubrics.negation import crosses_sentence, is_negated

Span = tuple[int, int]

_FILLERS = frozenset({"a", "an", "the", "this", "that", "it", "is", "are", "and"})
_FILLERS |= {"of", "in", "at", "on", "to", "for", "with", "along", "by", "near"}
_OPPOSING = ("non", "dis", "un", "in", "im", "ir", "de", "a")
_SHORT = 4
_GAP = 1


@dataclass(frozen=True, slots=True)
class Match:
    """What of a rubric's phrases an answer says."""

    hits: tuple[str, ...]
    """The must-hit phrases that were said."""
    missed: tuple[str, ...]
    """The must-hit phrases that were not."""
    avoided: tuple[str, ...]
    """The must-avoid phrases that were said all the same."""


def match(
    text: str, must_hit: Sequence[str], must_avoid: Sequence[str] = (), fuzzy: float | None = None
) -> Match:
    """Look for the phrases of a rubric in ``text``.

    A phrase counts once however often it is given or said; one that folds to nothing is never found. Spans
    of must-hit phrases that were said are masked before must-avoid phrases are looked for. ``fuzzy``: words
    of a must-hit phrase that is not there to the letter may differ up to this similarity, 0..1; must-avoid
    phrases are always taken to the letter, since a near miss is no offence.
    """
    answer = fold(text)
    masked: list[Span] = []
    hits: dict[str, str] = {}
    missed: dict[str, str] = {}
    for phrase in must_hit:
        folded = fold(phrase)
        if folded.line in hits or folded.line in missed:
            continue
        spans = exact_spans(answer, folded)
        if not spans and fuzzy is not None:
            spans = similar_spans(answer, folded, fuzzy)
        masked += spans
        (hits if spans else missed)[folded.line] = phrase
    avoided: dict[str, str] = {}
    for phrase in must_avoid:
        folded = fold(phrase)
        # Public rows have a thousand of these, hardly any of which is said.
        if folded.line not in answer.line:
            continue
        if folded.line not in avoided and _outside(exact_spans(answer, folded), masked):
            avoided[folded.line] = phrase
    return Match(tuple(hits.values()), tuple(missed.values()), tuple(avoided.values()))


def exact_spans(text: Folded, phrase: Folded) -> list[Span]:
    """Where ``text`` says ``phrase``, as words first to last (exclusive); negated ones are left out."""
    spans: list[Span] = []
    at = text.line.find(phrase.line) if phrase.words else -1
    if at < 0:
        return spans
    own_break = crosses_sentence(phrase, 0, len(phrase.words))
    while at >= 0:
        start = text.line.count(" ", 0, at)
        end = start + len(phrase.words)
        if (own_break or not crosses_sentence(text, start, end)) and not is_negated(text, start, end):
            spans.append((start, end))
        at = text.line.find(phrase.line, at + 1)
    return spans


def similar_spans(text: Folded, phrase: Folded, threshold: float) -> list[Span]:
    """The first place where ``text`` says words similar to those of ``phrase``, in order, between commas.

    Each word must be similar by itself, not the phrase as a whole: of the letters of "lower right" and "upper
    right" 73 % agree, which passes the published threshold of 0.713. Articles and prepositions do not count;
    one other word may stand between. Numbers and words of up to four letters must be equal, and a word is not
    similar to its opposite ("even", "uneven").
    """
    wanted = [word for word in phrase.words if word not in _FILLERS]
    if not wanted:
        return []
    kept = _content(text)
    for k, i in enumerate(kept):
        if similar(wanted[0], text.words[i], threshold):
            end = _follow(text, kept, k, wanted, threshold)
            if end is not None and not is_negated(text, i, end):
                return [(i, end)]
    return []


def _follow(text: Folded, kept: Sequence[int], k: int, wanted: list[str], threshold: float) -> int | None:
    """One past the last word where ``wanted`` is said from content word ``k`` on, None where it is not."""
    for word in wanted[1:]:
        nearby = range(k + 1, min(k + 2 + _GAP, len(kept)))
        found = next((j for j in nearby if similar(word, text.words[kept[j]], threshold)), None)
        if found is None or any(strength >= COMMA for strength in text.breaks[kept[k] + 1 : kept[found] + 1]):
            return None
        k = found
    return kept[k] + 1


@functools.lru_cache(maxsize=16384)
def _content(text: Folded) -> tuple[int, ...]:
    return tuple(i for i, word in enumerate(text.words) if word not in _FILLERS)


@functools.lru_cache(maxsize=1 << 18)
def similar(one: str, other: str, threshold: float) -> bool:
    """Whether two folded words may stand for each other: rapidfuzz's normalised indel similarity."""
    if one == other:
        return True
    if min(len(one), len(other)) <= _SHORT or not (one.isalpha() and other.isalpha()):
        return False
    ratio = fuzz.ratio(one, other)
    return ratio >= 100 * threshold and not _opposite(one, other, ratio)


def _opposite(one: str, other: str, ratio: float) -> bool:
    """Whether one is the other with a prefix that turns its meaning around."""
    return any(
        longer.startswith(prefix) and fuzz.ratio(longer.removeprefix(prefix), shorter) > ratio
        for longer, shorter in ((one, other), (other, one))
        for prefix in _OPPOSING
    )


def _outside(spans: Sequence[Span], masked: Sequence[Span]) -> bool:
    """Whether any of ``spans`` lies not wholly within a masked one."""
    return any(not any(m[0] <= s[0] and s[1] <= m[1] for m in masked) for s in spans)
