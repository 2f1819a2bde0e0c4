"""The rules by which phrases are read as claims: places and shares."""

from __future__ import annotations

import re
from collections.abc import Iterator

from wafervlm.claims.claim import Value
from wafervlm.claims.clauses import Text
from wafervlm.claims.rules import Found, Match, Rule, about, found
from wafervlm.claims.vocabulary import (
    ABOUT,
    BOTTOM,
    CENTER,
    DIES,
    EDGE,
    FAIL,
    FAILURES,
    HOUR,
    MIDDLE,
    NEAR,
    NUMBER,
    OCLOCK,
    PART,
    PERCENT,
    PLACE,
    TOP,
    hour,
    number,
    whole,
    zone,
)

_ZONE = rf"(?:{EDGE}|{CENTER}|{MIDDLE})"
_OF_DIES = rf"(?:of )?(?:all )?(?:of )?(?:the |its )?(?:wafer'?s? )?(?:tested )?(?:{DIES}|wafer(?: map)?|map)"
_BOUND = (
    r"(?:(?P<above>(?:not|no) (?:less|fewer|lower) than|(?<!not )(?<!no )(?:more|greater) than|over|above"
    r"|at least|well over|upwards of) |"
    r"(?P<below>(?:not|no) (?:more|greater) than|(?<!not )(?<!no )(?:less|fewer|lower) than|under|below"
    r"|at most|up to) )?"
)
# Of a range the middle is meant.
_PERCENT_OF = (
    rf"{_BOUND}{ABOUT}(?:(?:between |from )?(?P<low>\d+(?:\.\d+)?)(?:{PERCENT})? ?(?:-|to|and) ?)?"
    rf"(?P<n>{NUMBER}{PERCENT}|{PART})"
)
_SHARE = re.compile(
    rf"\b{_PERCENT_OF} {_OF_DIES}(?: (?:in|at|of|on|within) the (?P<zone>{_ZONE})(?: (?:zone|region|area"
    rf"|band))?)?"
    rf"(?: (?:of the wafer|on the wafer|on it|on this wafer|here))*,? (?:(?:is|are|have|has|do|does"
    rf"|will) )?{FAIL}"
    rf"|\b(?P<near>(?:nearly|almost|practically|virtually) (?:all|every)(?: of)?(?: the)?(?: {DIES})|"
    rf"(?:nearly|almost) the (?:whole|entire) wafer) (?:(?:is|are|have|has) )?{FAIL}"
    rf"|\b(?P<all>all|every|each)(?: of)?(?: the)? {DIES} (?:(?:is|are|have|has) )?{FAIL}"
    rf"|\b(?P<most>most|the majority)(?: of)?(?: the)? {DIES} (?:(?:is|are|have|has) )?{FAIL}"
    rf"|\b(?:no|none of the|not a single) {DIES} (?P<none>{FAIL})"
)
_RATE = re.compile(
    rf"\b(?:fail(?:ure|ing|ed|s)?(?: dies?)?[ -](?:rate|share|fraction|percentage|ratio)"
    rf"|defect[ -](?:rate|share)|"
    rf"(?:share|fraction|percentage|proportion) of (?:the )?{FAILURES})"
    rf"(?: (?:is|of|at|was|on|the|wafer|amounts to|comes to|equals|stands))*:? {_PERCENT_OF}"
    rf"|\b{FAILURES} (?:make up|cover|account for|amount to|occupy"
    rf"|take up) {ABOUT}(?P<n2>{NUMBER}{PERCENT}|{PART})"
    rf" (?:of )?(?:the |all )*(?:wafer|{DIES}|map)"
    rf"|\b(?P<yield>yield)(?: (?:is|of|at|was))?:? {ABOUT}(?P<n3>{NUMBER}{PERCENT})"
    rf"|\b{ABOUT}(?P<n4>{NUMBER}{PERCENT}) (?:{FAILURES}\b|{FAIL})(?! (?:in|at|of))"
)


def _percent(words: str) -> int | float:
    return whole(re.sub(PERCENT + "$", "", words))


def _bounded(value: int | float, bounds: Match) -> Value:
    if bounds["below"] and value <= 1:
        return 0
    return ("above", value) if bounds["above"] else ("below", value) if bounds["below"] else value


def _middle(m: Match) -> int | float:
    if not m["low"]:
        return _percent(m["n"])
    middle = (number(m["low"]) + _percent(m["n"])) / 2
    return int(middle) if middle == int(middle) else middle


def _share(m: Match, text: Text) -> Iterator[Found]:
    value: Value
    if m["n"]:
        percent = _middle(m)
        value = (zone(m["zone"]), percent) if m["zone"] else _bounded(percent, m)
    else:
        value = ("above", 75) if m["near"] else 100 if m["all"] else ("above", 50) if m["most"] else 0
    yield found(m, "share", value, False if m["none"] else None)


def _rate(m: Match, text: Text) -> Iterator[Found]:
    if m["yield"]:
        yield found(m, "share", 100 - _percent(m["n3"]))
    elif m["n4"] or m["n2"]:
        yield found(m, "share", _percent(m["n4"] or m["n2"]))
    else:
        yield found(m, "share", _bounded(_middle(m), m))


_PART_OF_FAILING = re.compile(
    rf"\b{ABOUT}(?P<n>{NUMBER}{PERCENT}|{PART}) of (?:all |the |its |these )*{FAILURES}[^.,;\n]*"
)


def _part_of_failing(m: Match, text: Text) -> Iterator[Found]:
    """How the failing dies divide is not measured; half of them or more in a zone is "mostly" there."""
    place = re.search(rf"(?:in|at|on|near|within) the (?P<zone>{_ZONE})\b{PLACE}", m.group())
    if place and _percent(m["n"]) >= 50:
        yield found(m, "zone", zone(place["zone"]))


_COUNT = re.compile(
    rf"\b(?:a total of |in total,? )?{ABOUT}(?P<n>{NUMBER}) (?:{DIES} (?:fail(?:ed)?\b|are failing)|"
    rf"(?:failing|failed|bad|defective) {DIES}(?= (?:in total|on the wafer|on this wafer|overall|are|lie"
    rf"|stand)|[.,;]|$))"
    rf"|\b(?:count of )?{FAILURES}: {ABOUT}(?P<n2>{NUMBER})(?![\d.%]| percent| per cent)"
)


def _count(m: Match, text: Text) -> Iterator[Found]:
    yield found(m, "count", int(number(m["n"] or m["n2"])))


_CLEAR = (
    r"(?:(?:(?:mostly|largely|almost|nearly|completely|entirely|fully|relatively|quite|all) )*"
    r"(?:clear|clean|empty|unaffected|intact|defect-?free|spared)\b(?: of (?:failing dies|failures|defects))?"
    r"|(?:(?:mostly|largely|almost|nearly|completely) )?free (?:of|from) (?:failing dies|failures|defects"
    r"|fails))"
)
_CLEAR_ZONE = re.compile(
    rf"\b(?:the (?:wafer )?(?P<zone>{_ZONE}){PLACE} (?:itself )?(?:is|stays|remains|are|being|appears"
    rf"|looks) (?P<not>not )?{_CLEAR}"
    rf"|(?:clear|clean|empty) (?P<zone2>{CENTER}|{MIDDLE}|{EDGE})\b{PLACE}"
    rf"|(?:hole|void) in the (?P<zone3>{CENTER}|{MIDDLE})\b{PLACE}"
    rf"|(?:no|hardly any|almost no|very few|few) {FAILURES} (?:(?:lie|are|appear|occur|fall|sit"
    rf"|can be seen) )?"
    rf"(?:in|at|on|near|within) the (?P<zone4>{_ZONE})\b{PLACE}"
    rf"|(?:leaving|leaves|with) the (?P<zone5>{_ZONE}){PLACE} {_CLEAR})"
)


def _clear(m: Match, text: Text) -> Iterator[Found]:
    words = next(m[name] for name in ("zone", "zone2", "zone3", "zone4", "zone5") if m[name])
    yield found(m, "clear", zone(words), True if m["not"] else False if m["zone4"] else None)


_SPAN = re.compile(
    rf"\b(?P<back>(?:counter-?clockwise|anti-?clockwise) )?(?P<word>(?:from|between|spanning|covering"
    rf"|spans|covers) )?"
    rf"(?:about |roughly |approximately |the )*(?<![\d.%])(?P<a>\b{HOUR})(?:{OCLOCK})?"
    rf"(?P<to> (?:clockwise )?(?:to|through|until|till|up to|and) (?:about |roughly )?| ?- ?)"
    rf"(?P<b>{HOUR}){OCLOCK}"
)


def _span(m: Match, text: Text) -> Iterator[Found]:
    first, last = hour(m["a"]), hour(m["b"])
    if m["to"].strip() == "and" and (m["word"] or "").strip() != "between":
        for group, value in (("a", first), ("b", last)):
            yield Found("clock", about(text, m.start(), value, ("ring",)), *m.span(group))
        return
    ends = (last, first) if m["back"] else (first, last)
    yield found(m, "span", about(text, m.start(), ends, ("ring", "gap", "line")))


_CLOCK = re.compile(
    rf"\b(?:{NEAR}(?P<hour>{HOUR}){OCLOCK}|(?:{NEAR})clock positions?(?: of| at"
    rf"| is)?:?\s?(?P<hour2>{HOUR})(?! ?-)"
    rf"|{NEAR}(?P<hour3>{HOUR}):00(?: position)?)"
)


def _clock(m: Match, text: Text) -> Iterator[Found]:
    value = hour(m["hour"] or m["hour2"] or m["hour3"])
    yield found(m, "clock", about(text, m.start(), value, ("ring",)))


_QUADRANT = re.compile(
    rf"\b{NEAR}(?:(?P<v>{TOP}|{BOTTOM})[ -]?(?:most )?(?:(?P<h>left|right)(?:-hand)?\b|(?P<c>east"
    rf"|west)\b(?:ern)?)"
    rf"|(?P<h2>left|right)[ -](?P<v2>upper|top|lower|bottom))\b(?:[ -](?:quadrant|part|corner|area|side"
    rf"|region|section))?"
)


def _quadrant(m: Match, text: Text) -> Iterator[Found]:
    down = "lower" if re.fullmatch(BOTTOM, m["v"] or m["v2"]) else "upper"
    across = m["h"] or m["h2"] or ("right" if m["c"] == "east" else "left")
    yield found(m, "quadrant", about(text, m.start(), f"{down} {across}", ("ring", "gap")))


_SIDE = re.compile(
    rf"\b{NEAR}(?:(?P<a>top|bottom|left|right|upper|lower|left-hand|right-hand)(?:most)? "
    r"(?:side|half|part|portion|edge|rim|border|boundary|region|area|periphery)\b|"
    r"(?:(?<=at the )|(?<=near the )|(?<=toward the )|(?<=towards the ))(?P<b>top|bottom)\b|"
    r"(?:(?<=on the )|(?<=to the ))(?P<c>left|right)\b)"
)


def _side(m: Match, text: Text) -> Iterator[Found]:
    words = (m["a"] or m["b"] or m["c"]).replace("-hand", "")
    side = {"upper": "top", "lower": "bottom"}.get(words, words)
    yield found(m, "side", about(text, m.start(), side, ("ring", "gap")))
    if re.search(r"\b(?:edge|rim|border|boundary|periphery)$", m.group()):
        yield found(m, "zone", _in_zone(m, text, "edge"))


_ZONES = re.compile(
    rf"\b{NEAR}(?P<between>(?:halfway |midway )?between (?:the )?cent(?:er|re) and (?:the )?(?:edge|rim)"
    rf"|mid-?radius)"
    rf"|\b{NEAR}(?:wafer'?s? )?(?:outer )?(?P<edge>{EDGE})\b{PLACE}"
    rf"|\b{NEAR}(?:wafer'?s? )?(?P<center>{CENTER})\b(?! ring){PLACE}"
    rf"|\b{NEAR}(?P<middle>{MIDDLE}) (?:zone|region|area|band|part|annulus|section)(?: of the wafer)?"
    r"|\bin the (?P<core>middle)\b(?! (?:zone|region|area|band|part|third))"
)


def _zone(m: Match, text: Text) -> Iterator[Found]:
    where = "center" if m["center"] or m["core"] else "edge" if m["edge"] else "middle"
    yield found(m, "zone", _in_zone(m, text, where))


def _in_zone(m: Match, text: Text, where: str) -> Value:
    value = about(text, m.start(), where, ("gap",))
    return ("pattern", where) if value == where and text.of_pattern(m.start()) else value


SHARES = (
    Rule(("yield", "fail", "defect", "bad "), _RATE, _rate),
    Rule(("fail", "defect", "bad", "fault", "affect"), _SHARE, _share),
    Rule(
        (
            "of failing",
            "of the fail",
            "of all fail",
            "of all the fail",
            "of its fail",
            "of failures",
            "of the def",
            "of def",
            "of the bad",
            "of these",
        ),
        _PART_OF_FAILING,
        _part_of_failing,
    ),
)
COUNT = Rule(("die", "dice", "failures"), _COUNT, _count)
AFTER_STRUCTURES = (
    Rule(
        ("clear", "clean", "empty", "unaff", "intact", "free", "spared", "hole", "void", "few", "no ", "any"),
        _CLEAR_ZONE,
        _clear,
    ),
    Rule(("clock",), _SPAN, _span),
    Rule(("clock", ":00"), _CLOCK, _clock),
    Rule(("left", "right", "east", "west"), _QUADRANT, _quadrant),
    Rule(("top", "bottom", "left", "right", "upper", "lower"), _SIDE, _side),
    Rule(
        (
            "edge",
            "outer",
            "rim",
            "periph",
            "border",
            "circumf",
            "bound",
            "cent",
            "inner",
            "core",
            "mid",
            "interm",
            "halfway",
        ),
        _ZONES,
        _zone,
    ),
)
