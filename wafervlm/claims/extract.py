"""What a text claims of the dies of a wafer."""

from __future__ import annotations

from functools import lru_cache

from wafervlm.claims.claim import Claim, Value
from wafervlm.claims.clauses import Text, sentences
from wafervlm.claims.grammar_places import AFTER_STRUCTURES, COUNT, SHARES
from wafervlm.claims.grammar_spread import BACKGROUND, SPREAD
from wafervlm.claims.grammar_structures import STRUCTURES
from wafervlm.claims.rules import Found, Rule

# In this order, since what a rule has read is hidden from those after it.
RULES: tuple[Rule, ...] = (*SHARES, BACKGROUND, *SPREAD, *STRUCTURES, COUNT, *AFTER_STRUCTURES)
_STRUCTURES = ("ring", "line", "clusters")
_PLACES = ("zone", "clock", "span", "quadrant", "side", "density", "extent")

Read = tuple[str, Value, int, int, bool]


def extract(text: str) -> list[Claim]:
    """The claims of ``text`` that dies can decide, in the order in which they stand.

    English as people and models write it: numbers in digits or words, ``5 o'clock`` in its spellings,
    negation within the clause. Hedges do not matter. What is not understood is no claim, and neither are
    root causes, wherever they stand, nor questions. A sentence is read by itself. Spans are those of the text
    as given.
    """
    return [
        Claim(kind, value, text[at + start : at + end], at + start, at + end, negated)
        for at, sentence in sentences(text)
        for kind, value, start, end, negated in _read(sentence)
    ]


def distinct(text: str) -> list[Claim]:
    """As ``extract``, but one that is made twice is there once, where it stands first: an answer that is
    judged gains nothing by saying a true one again."""
    return list(dict.fromkeys(extract(text)))


@lru_cache(maxsize=1 << 15)
def _read(sentence: str) -> tuple[Read, ...]:
    """Kind, value, span and negation of each claim. Models say few different sentences, many times."""
    text, claims = Text(sentence), []
    for rule in RULES:
        if not any(sign in text.low for sign in rule.signs):
            continue
        for m in rule.pattern.finditer(text.low):
            claims += [read for read in (_whole(item, text) for item in rule.read(m, text)) if read]
            if rule.takes:
                text.blank(*m.span())
    return tuple(sorted(claims, key=lambda read: read[2:4]))


def _whole(item: Found, text: Text) -> Read | None:
    negated = item.negated
    if negated is None:
        if item.kind in _PLACES and text.denies_another(item.start):
            return None
        negated = text.denies(item.start, item.end)
    absent = (item.kind in _STRUCTURES and negated) or (item.kind == "clusters" and item.value == 0)
    if absent and text.is_placed(item.end):
        return None
    return item.kind, item.value, item.start, item.end, negated
