"""Text folded for matching: words without case, hyphens, plurals, apostrophes, and where clauses end."""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

# How strongly two neighbouring words are parted.
COMMA, CLAUSE, SENTENCE = 1, 2, 3

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ′´`＇", "'"))
_HYPHENS = str.maketrans(dict.fromkeys("‐‑‒−", "-"))
_NAMES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {name: str(number) for number, name in enumerate(_NAMES, start=1)}
_TOKEN = re.compile(
    r"(?P<word>(?<![\w)])-?\d{1,3}(?:,\d{3})+(?!\d)|(?<![\w)])-?\d+(?:\.\d+)?|\d+(?:\.\d+)?|[^\W\d_]+)"
    r"|(?P<sentence>[.!?;](?=\s|$|[\"')\]])|\n)"
    r"|(?P<clause>[:()\[\]]|\s[-–—]+\s|—)"
    r"|(?P<comma>,)"
)
_STRENGTHS = {"sentence": SENTENCE, "clause": CLAUSE, "comma": COMMA}


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """``words`` of a text, and for each the strength of the break before it (0, COMMA, CLAUSE or SENTENCE).

    ``line`` is the words with one space around each, so that a phrase's line is found in it at word
    boundaries only.
    """

    words: tuple[str, ...]
    breaks: tuple[int, ...]
    line: str


@functools.lru_cache(maxsize=16384)
def fold(text: str) -> Folded:
    """Fold ``text``: case, hyphens, plurals, whitespace and Unicode's apostrophes no longer tell words apart,
    "o'clock" is one word, "isn't" is "is not", "%" is "percent", and the numbers one to twelve are digits."""
    plain = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).translate(_HYPHENS).casefold()
    plain = re.sub(r"\bo\s?'?[ -]?clock\b", "oclock", plain)
    plain = re.sub(r"%|\bper ?cent\b", " percent ", plain)
    plain = re.sub(r"\bcan(?:'t|not)\b", "can not", plain)
    plain = re.sub(r"n't\b", " not", plain)
    plain = re.sub(r"'s\b|'(?=\s|$)|(?<=\w)'(?=\w)", "", plain)
    words: list[str] = []
    breaks: list[int] = []
    strength = 0
    for found in _TOKEN.finditer(plain):
        kind = found.lastgroup or ""
        if kind != "word":
            strength = max(strength, _STRENGTHS[kind])
            continue
        words.append(_word(found.group()))
        breaks.append(strength)
        strength = 0
    return Folded(tuple(words), tuple(breaks), f" {' '.join(words)} ")


def _word(word: str) -> str:
    word = word.replace(",", "")
    return _NUMBERS.get(word) or singular(word)


def singular(word: str) -> str:
    """``word`` without the ending of a plural; what only looks like one ("gas", "annulus") stays.

    A rule, not a dictionary: both sides of a comparison go through it, so a clumsy stem does no harm.
    """
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word[:-1]
