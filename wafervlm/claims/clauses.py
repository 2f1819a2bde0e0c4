"""Sentences and clauses of a text: how far a negation reaches, what a phrase is about, what is left out."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cached_property
from itertools import pairwise

from wafervlm.claims.vocabulary import (
    ABOUT,
    ADJECTIVES,
    ARC,
    BOTTOM,
    CENTER,
    CLUSTER,
    CLUSTERS,
    DIES,
    EDGE,
    FAILURES,
    HOUR,
    LINE,
    MIDDLE,
    NUMBER,
    OCLOCK,
    RING,
    TOP,
    normalized,
)

BLANK = "\x00"

SENTENCE_END = re.compile(r"[.!?](?=[\s\"')\]]|$)(?<!ca\.)(?<!approx\.)(?<!\b\d\.)|\n")
_CLAUSE_END = re.compile(
    r"[.!?](?=[\s\"')\]]|$)|[;:\n(),]"
    r"|\b(?:but|however|although|though|while|whereas|except|yet)\b"
    r"|\band (?=(?:a|an|the|it|they|there|is|are|has|have|lies?|failing|few|some|many|most|no|not|neither"
    r"|about|"
    r"one|two|three|\d+)\b)"
)
_NEGATOR = re.compile(
    r"\b(?:(?:no|not)(?! (?:only|just|merely|more|fewer|less)\b)|never|without|neither|nor|none|nothing"
    r"|cannot|"
    r"lack(?:s|ing)?|free (?:of|from)|absence of|rather than|instead of|hardly any)\b|n't\b"
)
_DENIED_LATER = re.compile(
    r"[^.,;:\n\x00]{0,25}?\b(?:(?:is|are|was|were|can|could|does|do)(?: ?not|n't)(?: be)?(?: \w+)? "
    r"(?:present|visible|seen|found|observed|there|detected|evident|exist|recogni[sz]able|form)|"
    r"(?:is|are) (?:absent|missing))\b"
)
_PLACE_AFTER = re.compile(
    rf"[^.,;:\n]{{0,30}}?\b(?:in|at|on|near|along|around|within|toward) (?:about |the |its |very |outer )*"
    rf"(?:{EDGE}|{CENTER}|{MIDDLE}|{TOP}|{BOTTOM}|left|right|{HOUR}{OCLOCK})\b"
)
_STRUCTURE = rf"(?:{CLUSTERS}|{CLUSTER}|{LINE}|{RING}|{ARC})"
_STRUCTURES = re.compile(rf"\b(?:{_STRUCTURE}|{FAILURES}|repeat|pattern|structure|symmetry)\b")
_LIST_GOES_ON = re.compile(
    rf"\s*(?:or\b|nor\b|(?:any |an? )?{ADJECTIVES}*{_STRUCTURE}\b[^.;:]*\b(?:or|nor)\b)"
)

# "a cluster of 40 failing dies at ..." is about the cluster.
_ITS_DIES = rf"(?: (?:of|with|has|holds|containing) {ABOUT}(?:{NUMBER} )?(?:failing |failed |bad )?{DIES}\b)?"
# "the pattern lies at the edge" is about the structure; that it is dense there, about the failing dies.
_LIES = (
    r"(?:lies|sits|is|does not lie|does not sit|is not)(?: located| situated| found)? "
    r"(?:in|at|near|on|within)\b"
)
_SUBJECT = re.compile(
    rf"\b(?:(?P<third>third {ADJECTIVES}*(?:largest )?{ADJECTIVES}*{CLUSTER}\b){_ITS_DIES}"
    rf"|(?P<second>(?:second|next)[ -](?:largest )?{ADJECTIVES}*{CLUSTER}\b){_ITS_DIES}"
    rf"|(?P<largest>(?:largest|biggest|main|dominant|dominating|primary|first"
    rf"|the) {ADJECTIVES}*{CLUSTER}\b){_ITS_DIES}"
    rf"|(?P<cluster>(?:{CLUSTERS}|{CLUSTER})\b){_ITS_DIES}"
    rf"|(?P<gap>(?:gap|opening|break|open at|opens|interrupted|broken at)\b)"
    rf"|(?P<line>{LINE}\b)|(?P<ring>{RING}\b)"
    rf"|(?P<pattern>pattern (?={_LIES}))"
    rf"|(?P<other>(?<!of )(?<!of the )\b{FAILURES}|\bpattern\b|\b{ARC}\b|\bmost (?:of|dies)|\b(?:it|they)\b))"
)
_NAMES = {
    "third": "third cluster",
    "second": "second cluster",
    "largest": "largest cluster",
    "pattern": None,
    "other": None,
}

_CAUSES = re.compile(
    r"\b(?:root[ -]causes?|candidates?|caus(?:e|es|ed|ing)|due to|owing to|attribut\w+|results? (?:of|from)|"
    r"resulting from|stem(?:s|ming)? from|originat\w+|consistent with|typical (?:of|for)|points? to|"
    r"(?:suggest|indicat|impl)\w*(?=[^.\n]*\b(?:issues?|problems?|process|tools?|equipment|handling"
    r"|chamber|etch\w*|"
    r"deposition|cmp|polish\w*|robot|spin|clean\w*|contact|temperature|particles?|clamp\w*|contaminat\w+)\b)"
    r"|clock position (?:cannot|can not))\b[^\n]*?(?=[.!?](?:\s|$)|\n|$)"
)
_CAUSE_PART = re.compile(r"(?:^|\n|(?<=[.;] ))[\s#>-]*(?:\d\s*[.):]\s*)?"
    r"(?:possible |likely |candidate |potential )*"
                         r"(?:root[ -]?causes?|causes?)\b[^\n.]{0,40}?(?:[:\n]|$)")  # fmt: skip
_NEXT_PART = re.compile(r"\n[\s#>-]*(?:\d\s*[.):]\s*)?(?:spatial|morpholog\w+|distribution)\b")
_CAUSE_SIGNS = (
    *(
        "caus",
        "candidate",
        "due to",
        "owing",
        "attribut",
        "result",
        "stem",
        "originat",
        "consistent",
        "typical",
    ),
    *("point", "suggest", "indicat", "impl", "clock position"),
)
# Phrases with the words of places and structures that are about neither.
_ASIDE = re.compile(
    r"\b(?:edge[ -](?:exclusion|bead)\w*|edges? of (?:the|a|this) (?:cluster|ring|line|die|arc|scratch)s?|"
    r"cent(?:er|re) of (?:the|a|this) (?:cluster|ring|line|arc)|off[ -]cent(?:er|re)|"
    r"(?:from|away from) the cent(?:er|re)(?: of the wafer)?(?: (?:out )?(?:to|toward"
    r"|towards) the (?:edge|rim))?|"
    r"(?:around|about|round|surround\w*) the (?:wafer )?(?:cent(?:er|re)"
    r"|middle)(?: of the wafer)?(?! (?:zone|region))|"
    r"from the (?:edge|rim)(?: (?:in)?(?:to|toward|towards) the cent(?:er|re))?|"
    r"(?:toward|towards) the (?:wafer )?cent(?:er|re)|"
    r"(?:low|lower|reduced|less)[ -](?:density|failures?|dense) (?:in|at|toward|towards|near) the [a-z]+|"
    r"(?:high|higher|highest|increased)[ -]density(?= (?:in|at|toward|towards|near) the)|"
    r"in line with|as a whole|edge-loc|near-full|(?:inner|outer) (?:radius|diameter))\b"
)

_ASIDE_SIGNS = (
    "edge",
    "densi",
    "cent",
    "round",
    "about the",
    "rim",
    "line with",
    "whole",
    "near-full",
    "inner",
    "outer",
)


class Text:
    """One sentence made ready: ``low`` is it in lower case, what is no claim about dies blanked out;
    characters stand where they stood. The rest is found when it is first asked for."""

    def __init__(self, low: str) -> None:
        self.low = self._whole = _without_asides(low)

    @cached_property
    def _ends(self) -> list[int]:
        return [0, *(m.end() for m in _CLAUSE_END.finditer(self._whole)), len(self._whole)]

    @cached_property
    def _negators(self) -> list[int]:
        return [m.start() for m in _NEGATOR.finditer(self._whole)]

    @cached_property
    def _subjects(self) -> list[tuple[int, int, str | None]]:
        return [(m.start(), m.end(), m.lastgroup) for m in _SUBJECT.finditer(self._whole)]

    def blank(self, start: int, end: int) -> None:
        """Leave out what was read, so that no other rule reads it again."""
        self.low = self.low[:start] + BLANK * (end - start) + self.low[end:]

    def clause(self, at: int) -> tuple[int, int]:
        """Start and end of the clause in which the character ``at`` lies."""
        return _around(self._ends, at)

    def negator(self, at: int) -> int | None:
        """Where the negation stands that reaches the character ``at``, None where none does."""
        if not self._negators:
            return None
        start, _ = self.clause(at)
        found = bisect_right(self._negators, at) - 1
        if found >= 0 and self._negators[found] >= start:
            return self._negators[found]
        if not start or not _LIST_GOES_ON.match(self._whole, start):
            return None
        return self.negator(start - 1)

    def denies(self, start: int, end: int) -> bool:
        """Whether the phrase is negated, before it or by a verb after it."""
        return self.negator(start) is not None or _DENIED_LATER.match(self._whole, end) is not None

    def denies_another(self, start: int) -> bool:
        """Whether the negation before ``start`` is of a structure in between: "no ring at the edge"."""
        negator = self.negator(start)
        return negator is not None and _STRUCTURES.search(self._whole, negator, start) is not None

    def is_placed(self, end: int) -> bool:
        """Whether a place follows in the clause: "no ring at the edge" does not say that there is none."""
        return _PLACE_AFTER.match(self._whole, end) is not None

    def subject(self, start: int) -> str | None:
        """The structure that a phrase at ``start`` is about: the last one named before it in its sentence,
        else the first that its clause goes on to name; None for the dominating one."""
        group = self._subject(start)
        return _NAMES.get(group, group) if group else None

    def of_pattern(self, start: int) -> bool:
        """Whether that is the dominating structure by its name, "the pattern"."""
        return self._subject(start) == "pattern"

    def _subject(self, start: int) -> str | None:
        if not self._subjects:
            return None
        found = bisect_right(self._subjects, (start, len(self.low) + 1, "")) - 1
        if found >= 0:
            return self._subjects[found][2]
        _, end = self.clause(start)
        after = found + 1
        if after < len(self._subjects) and self._subjects[after][0] < end:
            return self._subjects[after][2]
        return None


def _around(ends: list[int], at: int) -> tuple[int, int]:
    found = min(bisect_right(ends, at), len(ends) - 1)
    return ends[found - 1], ends[found]


def sentences(text: str) -> list[tuple[int, str]]:
    """Where each sentence of ``text`` starts, and the sentence in lower case; questions and the part that
    names candidates of causes are left out."""
    low = normalized(text)
    part = _CAUSE_PART.search(low) if "cause" in low else None
    if part:
        following = _NEXT_PART.search(low, part.end())
        end = following.start() if following else len(low)
        low = low[: part.start()] + BLANK * (end - part.start()) + low[end:]
    ends = [0, *(m.end() for m in SENTENCE_END.finditer(low)), len(low)]
    found = [(start, low[start:end]) for start, end in pairwise(ends)]
    return [(start, words) for start, words in found if words and not words.endswith("?")]


def _without_asides(low: str) -> str:
    """``low`` without candidates of causes and without phrases of no place."""
    if any(sign in low for sign in _CAUSE_SIGNS):
        low = _CAUSES.sub(lambda m: BLANK * len(m.group()), low)
    if any(sign in low for sign in _ASIDE_SIGNS):
        low = _ASIDE.sub(lambda m: BLANK * len(m.group()), low)
    return low
