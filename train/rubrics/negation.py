"""Whether the words of a text are negated within their clause.

"No ring", "without a ring", "not a ring or a line" and "a ring is not visible" do not say that there is a
ring. A negation reaches from its word to the end of its clause; commas end it too, except within a list that
goes on with "or" or "nor".
"""

from __future__ import annotations

import functools
import re

from train.rubrics.folding import CLAUSE, COMMA, SENTENCE, Folded

_NEGATORS = {"no", "not", "never", "without", "none", "neither", "nor", "lack", "lacking", "absence"}
_NEGATORS |= {"hardly", "excluding", "exclude", "unlike", "devoid", "non"}
_PAIRS = {("free", "of"), ("free", "from"), ("instead", "of"), ("rather", "than"), ("other", "than")}
_PAIRS |= {("rule", "out"), ("ruling", "out")}
# After these a negator denies nothing: "not only", "no fewer than", "not without".
_EXEMPT = {"only", "just", "merely", "simply", "doubt", "fewer", "less", "more", "later", "without", "devoid"}
_STOPS = {"but", "however", "although", "though", "while", "whereas", "yet", "except", "because", "since"}
_STOPS |= {"instead", "rather"}
_DETERMINERS = {"a", "an", "the", "some", "many", "few", "several", "it", "there", "this"}
_LIST_WORDS = 4

_SEEN = "present|visible|seen|observed|found|evident|apparent|detected|discernible|there|formed"
_AFTER = re.compile(
    rf"^ (?:\w+ ){{0,2}}?"
    rf"(?:(?:is|are|was|were|be|been|can|could|has|have)(?: be| been)? (?:not|never)(?: be| been)?"
    rf"(?: \w+)? (?:{_SEEN}) "
    r"|(?:doe|do|did) not (?:appear|exist|show|occur|form) "
    r"|(?:is|are|was|were|be) (?:absent|missing|lacking|excluded|ruled out) )"
    r"|^ (?:absent|free) "
)


@functools.lru_cache(maxsize=16384)
def _reached(text: Folded) -> tuple[bool, ...]:
    """For each word whether a negation before it reaches it."""
    reached = [False] * len(text.words)
    for at, word in enumerate(text.words):
        first = _first_reached(text, at, word)
        if first is not None:
            for i in range(first, _end(text, first)):
                reached[i] = True
    return tuple(reached)


def _first_reached(text: Folded, at: int, word: str) -> int | None:
    """The first word that a negation at ``at`` reaches, None where there is no negation."""
    following = text.words[at + 1] if at + 1 < len(text.words) else ""
    if (word, following) in _PAIRS:
        # "not free of" affirms what follows.
        return None if at and text.words[at - 1] == "not" else at + 2
    if word not in _NEGATORS or following in _EXEMPT:
        return None
    if at and text.words[at - 1] == "not" and word in {"without", "lacking", "devoid"}:
        return None
    return at + 2 if (word, following) == ("devoid", "of") else at + 1


def _end(text: Folded, first: int) -> int:
    """One past the last word that a negation reaches whose first reached word is ``first``."""
    if first < len(text.words) and text.breaks[first]:
        return first
    for i in range(first, len(text.words)):
        broken = text.breaks[i]
        if broken >= CLAUSE or (text.words[i] in _STOPS and i > first):
            return i
        if broken == COMMA and not _list_goes_on(text, i):
            return i
        if text.words[i] == "and" and _starts_anew(text, i + 1):
            return i
    return len(text.words)


def _starts_anew(text: Folded, i: int) -> bool:
    """Whether what follows an "and" is a statement of its own, as in "no ring and a cluster"."""
    return i < len(text.words) and (text.words[i] in _DETERMINERS or text.words[i][0].isdigit())


def _list_goes_on(text: Folded, i: int) -> bool:
    """Whether from the comma before word ``i`` on short items follow up to one with "or" or "nor"."""
    item = 0
    for j in range(i, len(text.words)):
        if text.breaks[j] >= CLAUSE:
            return False
        item = 0 if text.breaks[j] == COMMA else item + 1
        if text.words[j] in {"or", "nor"}:
            return True
        if item >= _LIST_WORDS or text.words[j] in _STOPS:
            return False
    return False


def is_negated(text: Folded, start: int, end: int) -> bool:
    """Whether words ``start`` to ``end`` (exclusive) of ``text`` are denied by what stands around them."""
    if start < len(text.words) and _reached(text)[start]:
        return True
    after = []
    for i in range(end, min(end + 8, len(text.words))):
        if text.breaks[i] >= COMMA:
            break
        after.append(text.words[i])
    return bool(_AFTER.match(f" {' '.join(after)} ")) if after else False


def crosses_sentence(text: Folded, start: int, end: int) -> bool:
    """Whether a sentence ends within words ``start`` to ``end`` (exclusive)."""
    return any(strength >= SENTENCE for strength in text.breaks[start + 1 : end])
