"""The words that claims are made of, as patterns over lower-case text."""

from __future__ import annotations

import re

UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
PARTS = {
    "half": 50, "one half": 50, "a half": 50, "a third": 33, "one third": 33, "two thirds": 67,
    "a quarter": 25, "one quarter": 25, "three quarters": 75, "a fifth": 20, "one fifth": 20, "a tenth": 10,
}  # fmt: skip
HOUR_WORDS = {word: hour for hour, word in enumerate(UNITS) if 1 <= hour <= 12}
ORDINALS = {"second": 2, "other": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7}

_UNIT = "|".join(sorted(UNITS, key=len, reverse=True))
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|(?<!\d,)\d{1,5}(?:\.\d+)?)"
NUMBER = rf"(?:{_DIGITS}|(?:{'|'.join(TENS)})(?:[ -](?:{_UNIT}))?|(?:one |a )?hundred|(?:{_UNIT}))"
PERCENT = r"\s?-?(?:%|percent\b|per cent\b|pct\b)"
PART = rf"(?:{'|'.join(sorted((p.replace(' ', '[ -]') for p in PARTS), key=len, reverse=True))})"
ABOUT = (
    r"(?:about |around |roughly |approximately |some |nearly |almost |only |just |circa |ca\. |~ ?|exactly )*"
)
HOUR = rf"(?:(?:1[0-2]|0?[1-9])(?![\d%])|(?:{'|'.join(sorted(HOUR_WORDS, key=len, reverse=True))})\b)"
OCLOCK = r"\s?-?o ?'? ?clock\b(?:[ -](?:position|direction|sector)s?\b)?"
NEAR = (
    r"(?:(?:at|in|on|near|along|around|toward|towards|to|by|within|over|close to|next to|into|across)\s+)?"
    r"(?:about |approximately |roughly |around )?(?:the |its |a )?(?:very |extreme |far )*"
)

ADJECTIVES = (
    r"(?:(?:dense|sparse|large|small|tight|compact|loose|elongated|dominant|main|distinct|separate|clear"
    r"|local|"
    r"localized|localised|failing|isolated|big|round|irregular|visible|smaller|larger|single|single|thin"
    r"|thick|"
    r"narrow|wide|broad|long|short|faint|strong|weak|well-defined|pronounced|solid|concentrated|tightly"
    r"|loosely|"
    r"densely|packed|center|centre|central|edge|outer|inner|middle|rim|peripheral|straight|curved|bent"
    r"|horizontal|"
    r"vertical|diagonal|rising|falling|oblique|closed|open|complete|full|partial|incomplete|broken"
    r"|continuous|"
    r"unbroken|nearly|almost|slightly|clearly|concentric|circular|uniform|additional|further|linear|roughly|"
    r"noticeable|obvious|bright|yellow|defect|failure|die|die-level|near-edge|off-center|upper|lower|left"
    r"|right|"
    r"top|bottom|upper-left|upper-right|lower-left|lower-right|significant|prominent|moderately|very|of"
    r"|quite)"
    r"(?:, |[ -]+))"
)
CLUSTER = r"(?:cluster(?:ing)?|blob|clump|patch|island|hot ?spot|concentration|grouping)"
CLUSTERS = r"(?:clusters|blobs|clumps|patches|islands|hot ?spots|concentrations|groupings)"
LINE = (
    r"(?:(?:line(?! with)|scratch|streak|stripe)(?:s|es)?"
    r"|linear (?:feature|pattern|trace|structure|defect)s?)"
)
RING = (
    r"(?:rings?|annulus|annular (?:band|pattern|zone|region)|donuts?|doughnuts?|halo)"
    r"(?:-?(?: ?shaped?|-?like)(?: rings?| bands?)?)?"
)
ARC = r"(?:arcs?|crescents?|half[- ]rings?|semi-?circles?)(?:-?(?: ?shaped?|-?like))?"
DIES = r"(?:dies|dice|die|chips|devices)"
FAILURES = (
    rf"(?:(?:failing|failed|bad|defective|faulty) (?:{DIES})|failures|fails|defects|defect {DIES}"
    r"|failing areas?)"
)
FAIL = r"(?:fail(?:s|ed|ing)?|defective|bad|faulty|affected)\b"

EDGE = r"(?:edges?|outer|outermost|rim|periphery|peripheral|border|perimeter|circumference|boundary)"
CENTER = r"(?:cent(?:er|re)|central|inner|innermost|core|middle(?= (?:of the wafer|of the map)))"
MIDDLE = r"(?:mid(?:dle)?|intermediate|mid-?radius|mid-?zone)"
PLACE = r"(?: (?:zone|region|area|band|part|portion|section|edge|rim|half|third))?(?: of the (?:wafer|map))?"

TOP, BOTTOM = r"(?:upper|top|north)", r"(?:lower|bottom|south)"

_WRAPPED = re.compile(r"\n(?=[a-z(])")
_SAME_LENGTH = {ord(sign): "'" for sign in "’‘ʼ´`′"} | {ord(sign): "-" for sign in "–‑−‐"}
_SAME_LENGTH |= {
    0x2014: ",",
    0xA0: " ",
    0x202F: " ",
    0x2009: " ",
    ord("*"): " ",
    ord("_"): " ",
    ord("\t"): " ",
}


def normalized(text: str) -> str:
    """``text`` in lower case and with plain signs, every character where it was."""
    plain = _WRAPPED.sub(" ", text.translate(_SAME_LENGTH))
    low = plain.lower()
    return low if len(low) == len(text) else "".join(c if len(c.lower()) != 1 else c.lower() for c in plain)


def number(words: str) -> float:
    """The number that ``words`` say, in digits, words or parts of a whole (in percent)."""
    words = words.strip().replace("-", " ").replace(",", "")
    if words in PARTS:
        return PARTS[words]
    if "hundred" in words:
        return 100
    try:
        return float(words)
    except ValueError:
        return float(sum(_word(word) for word in words.split()))


def whole(words: str) -> int | float:
    """``number``, as an int where it is whole."""
    value = number(words)
    return int(value) if value == int(value) else value


def hour(words: str) -> int:
    """The hour, 1 to 12, that digits or a word say."""
    return HOUR_WORDS[words] if words in HOUR_WORDS else int(words)


def zone(words: str) -> str:
    """The zone that a word for one says."""
    if re.search(rf"\b{EDGE}\b", words):
        return "edge"
    return (
        "center" if re.search(r"\bcent|\bcentral|\binner|\bcore|\bof the (?:wafer|map)", words) else "middle"
    )


def _word(word: str) -> int:
    return UNITS.index(word) if word in UNITS else 10 * (TENS.index(word) + 2)
