"""The rules by which phrases are read as claims: rings, lines, clusters, and how failing dies are spread."""

from __future__ import annotations

import re
from collections.abc import Iterator

from wafervlm.claims.claim import CLUSTERS as NAMED, Value
from wafervlm.claims.clauses import Text
from wafervlm.claims.rules import Found, Match, Rule, about, found
from wafervlm.claims.vocabulary import (
    ABOUT,
    ADJECTIVES,
    ARC,
    CLUSTER,
    CLUSTERS,
    DIES,
    EDGE,
    FAILURES,
    LINE,
    NUMBER,
    PART,
    PERCENT,
    RING,
    number,
)

_CLOSED = r"(?:closed|complete|full|continuous|unbroken|entire|whole|uninterrupted)"
_OPEN = r"(?:open|partial|incomplete|broken|interrupted|discontinuous)"
_RING_FORM = re.compile(rf"(?P<closed>\b{_CLOSED}\b)|(?P<open>\b{_OPEN}\b)")
_RADIUS = (
    rf"(?:(?:of|at|with|has|and|lies|stands|sits|a|an|is|its|the|mean|average|whose) )*?"
    rf"(?:{ABOUT}(?P<radius>{NUMBER}){PERCENT} of the (?:wafer'?s? )?radius"
    rf"|radius (?:of |is |about )*{ABOUT}(?P<radius2>{NUMBER}{PERCENT}"
    rf"|[01](?:\.\d+)?(?![\d%]))(?: of the (?:wafer'?s? )?radius)?)"
)
_RING = re.compile(
    rf"(?P<det>\b(?:no|any|an?|the|one|single|its|this)\b )?(?P<adj>{ADJECTIVES}*)\b(?P<noun>{RING})\b"
    rf"(?P<after>[^.,;:\n\x00]{{0,40}}?\b(?:is|are|remains|stays|appears) (?P<not>not )?(?:nearly "
    rf"|almost |fully |a )*"
    rf"(?P<form>{_CLOSED}|{_OPEN})\b)?"
    rf"(?:,? ?(?:[a-z]+ ){{0,6}}?(?=(?:of |at "
    rf"|with )?{ABOUT}(?:{NUMBER}{PERCENT} of the (?:wafer'?s? )?radius|a? ?radius)){_RADIUS})?"
)


def _percent_of_radius(m: Match) -> int | None:
    words = m["radius"] or m["radius2"]
    if not words:
        return None
    value = number(re.sub(PERCENT + "$", "", words))
    return round(100 * value) if value <= 1.2 else round(value)


def _ring(m: Match, text: Text) -> Iterator[Found]:
    adjective = _RING_FORM.search(m["adj"])
    form: str = m["form"] or (adjective.group() if adjective else "")
    value: str = "any" if not form else "closed" if re.fullmatch(_CLOSED, form) else "open"
    if not form and m["det"] and m["det"].startswith(("the", "its", "this")) and not _percent_of_radius(m):
        return
    radius = _percent_of_radius(m)
    start = m.start() + len(m["det"] or "") if (m["det"] or "").startswith(("no", "any")) else m.start()
    negated = True if m["not"] or (m["det"] or "").startswith("no ") else None
    yield Found("ring", (value, radius) if radius else value, start, _end(m), negated)
    ends_at = m.start("noun") if not m["after"] else m.end()
    text.blank(ends_at, m.end())


_AROUND = re.compile(
    rf"\b(?:(?:all|all the way|completely|fully|entirely) (?:around|round) the (?:wafer(?:'s)? )?{EDGE}\b|"
    rf"(?:around|round|along) the (?:entire|whole|full"
    rf"|complete) (?:wafer(?:'s)? )?{EDGE}\b)(?: of the wafer)?"
)


def _around(m: Match, text: Text) -> Iterator[Found]:
    yield found(m, "ring", "closed")
    yield found(m, "zone", "edge")


_ARC = re.compile(rf"\b(?:an? |the )?{ADJECTIVES}*\b{ARC}\b")


def _arc(m: Match, text: Text) -> Iterator[Found]:
    if not m.group().startswith("the "):
        yield found(m, "ring", "arc")


_SLANTS = {
    "rising": r"from (?:the )?(?:lower|bottom)[ -]left to (?:the )?(?:upper|top)[ -]right"
    r"|from (?:the )?(?:upper|top)[ -]right to (?:the )?(?:lower|bottom)[ -]left"
    r"|rises\b|rising\b",
    "falling": r"from (?:the )?(?:upper|top)[ -]left to (?:the )?(?:lower|bottom)[ -]right"
    r"|from (?:the )?(?:lower|bottom)[ -]right to (?:the )?(?:upper|top)[ -]left"
    r"|falls\b|falling\b",
    "horizontal": r"horizontal(?:ly)?\b|from left to right|from right to left",
    "vertical": r"vertical(?:ly)?\b|from top to bottom|from bottom to top",
    "diagonal": r"diagonal(?:ly)?\b|oblique(?:ly)?\b",
    "straight": r"straight\b",
    "curved": r"curved\b|curves\b|bent\b|bends\b",
}
_TRAIT = "|".join(f"(?P<{name}>{words})" for name, words in _SLANTS.items())
_TRAITS = re.compile(rf"\b(?P<not>not )?(?:{_TRAIT})")
_LINE = re.compile(
    rf"(?P<det>\b(?:no|any|an?|the|one|two|this|single|its) )?(?P<adj>{ADJECTIVES}*)\b(?P<noun>{LINE})\b"
    rf"(?P<after>(?: that| which)?(?: (?:is|are|runs|run|running|goes|going|extends|extending|stretches"
    rf"|stretching|crosses|"
    rf"crossing|looks|appears|rises|rising|falls|falling|curves|bends|horizontally|vertically|diagonally"
    rf"|oriented|not|slightly|"
    rf"roughly|nearly|almost|the|wafer|across|and|straight|curved|bent|horizontal|vertical|diagonal|"
    rf"{'|'.join(_SLANTS[name].replace('?P', '') for name in ('rising', 'falling'))}|from left to right"
    rf"|from right to left|"
    rf"from top to bottom|from bottom to top|to the right|to the left)\b)*)"
)


def _line(m: Match, text: Text) -> Iterator[Found]:
    det = m["det"] or ""
    start = m.start() + len(det) if det.startswith(("no ", "any ")) else m.start()
    traits: list[tuple[str, bool | None]] = []
    for part in ("adj", "after"):
        slanted = False
        for t in _TRAITS.finditer(m[part] or ""):
            name = t.lastgroup or ""
            if slanted and name == "horizontal" and "from" in t.group():
                continue  # "rises from left to right"
            slanted = slanted or name in ("rising", "falling")
            traits.append((name, True if t["not"] else None))
    if len(traits) > 1:
        kept = {name for name, _ in traits}
        traits = [t for t in traits if t[0] != "diagonal" or not kept & {"rising", "falling"}]
    if not traits and det not in ("the ", "this ", "its "):
        traits = [("any", None)]
    ends_at = m.end() if m["after"] and traits else m.end("noun")
    for name, negated in traits:
        yield Found("line", name, start, ends_at, True if det == "no " else negated)
    text.blank(m.start("after"), m.end("after"))


_COUNTED = re.compile(
    rf"\b(?P<det>(?P<no>(?:no|zero)(?: {FAILURES})?)|(?P<more>(?:at least |more than "
    rf"|over )?(?P<n>{NUMBER})(?P<plus> or more)?|"
    rf"a single|single|an?|another|several|multiple|many|a few|various|some|numerous|a pair of|a number of))"
    rf",? (?P<adj>(?:(?:second|other|further|additional|distinct|third) )?{ADJECTIVES}*)(?:{CLUSTERS}"
    rf"|(?P<one>{CLUSTER}))\b"
    rf"|(?P<bare>(?<![a-z] )\b{CLUSTERS})\b|\b(?P<verb>clustered)\b|\b(?:cluster (?P<verb2>together)"
    rf"|(?<=not )(?P<verb3>cluster))\b(?! at)"
    rf"|\b(?P<without>(?:without|nor|or|neither)(?: an?| any)?) (?P<adj2>{ADJECTIVES}*)(?:{CLUSTERS}"
    rf"|{CLUSTER})\b"
)
_DENSITY_WORD = re.compile(r"\b(?:dense|densely|sparse|loose|compact|tight)\b")
_ANOTHER = re.compile(r"\b(?:second|other|further|additional)\b")


def _counted(m: Match, text: Text) -> Iterator[Found]:
    adjectives = m["adj"] or m["adj2"] or ""
    if m["no"] or m["without"]:
        if m["without"] in ("or", "or a", "or any") and text.negator(m.start()) is None:
            yield found(m, "clusters", "any")
        elif not _DENSITY_WORD.search(adjectives):
            yield found(m, "clusters", 1 if _ANOTHER.search(adjectives) else 0, False)
        return
    if m["bare"] or m["det"] in (
        "several",
        "multiple",
        "a few",
        "various",
        "some",
        "many",
        "numerous",
        "a number of",
    ):
        value: Value = "several"
    elif m["verb"] or m["verb2"] or m["verb3"] or m["det"] in ("a", "an", "another"):
        if m["det"] in ("a", "an") and re.match(r"(?:second|third|other|further)\b", adjectives):
            return
        value = "any"
    elif m["det"] == "a pair of":
        value = 2
    else:
        value = _count(m)
    if value in ("any", "several") and text.denies(m.start(), m.end()):
        if not _DENSITY_WORD.search(adjectives):
            yield found(m, "clusters", 0, False)
        return
    yield found(m, "clusters", value)


def _count(m: Match) -> Value:
    if m["det"] in ("a single", "single"):
        return 1
    n = int(number(m["n"])) + ("more than" in m["det"] or m["det"].startswith("over"))
    open_end = m["plus"] or m["det"].startswith(("at least", "more than", "over"))
    if open_end and n <= 2:
        return "any" if n == 1 else "several"
    return min(n, 3)


_SIZE = re.compile(
    rf"\b(?P<noun>{CLUSTERS}|{CLUSTER}) (?:(?:itself|there|here|in it) )?(?:\()?(?:of|has|with|holds"
    rf"|contains|containing|counts|covers|covering|comprises|comprising|"
    rf"consists of|consisting of|includes|is|made of|made up of|:"
    rf"|measures)? ?(?:a size of )?{ABOUT}(?P<n>{NUMBER})"
    rf" (?:connected |adjacent |touching )?(?:(?:failing|failed|bad|defective) )?{DIES}"
    rf"|\b{ABOUT}(?P<n2>{NUMBER})[ -](?:(?:failing|failed|bad|defective) )?{DIES} (?:(?:lie|are|stand"
    rf"|fail|belong|make up|form) )?(?:in|to )?"
    rf"(?: ?the (?:largest|main|biggest|dominant) {CLUSTER})"
)


def _size(m: Match, text: Text) -> Iterator[Found]:
    subject = text.subject(m.end() if not m["n"] else m.start("n"))
    value: Value = int(number(m["n"] or m["n2"]))
    start = m.start() if m["n2"] else m.end("noun") + 1
    yield Found("size", (subject, value) if subject in (*NAMED[1:], "cluster") else value, start, _end(m))
    text.blank(m.start("n2") if m["n2"] else start, m.end("n2") if m["n2"] else m.end())


_EXTENT = re.compile(
    rf"\b(?:(?:over|across|for|with|along|of|is|has) )?(?:a length of )?{ABOUT}(?P<n>{NUMBER}{PERCENT}"
    rf"|{PART}) of the "
    rf"(?:wafer'?s? )?diameter(?P<wide> (?:wide|in width|thick|across))?(?: (?:long|in length))?"
)
_WIDTH = re.compile(r"\b(?:wide|width|thick|thickness) (?:of |is |about )*$")


def _extent(m: Match, text: Text) -> Iterator[Found]:
    if m["wide"] or _WIDTH.search(text.low, max(0, m.start() - 20), m.start()):
        return
    n = number(re.sub(PERCENT + "$", "", m["n"]))
    yield found(m, "extent", about(text, m.start(), round(n), ("ring", "gap")))


_DENSITY = re.compile(
    r"\b(?:(?P<dense>dense(?:ly)?|tightly packed|compact|closely packed|tight|high[- ]density|concentrated)"
    r"|(?P<sparse>sparse(?:ly)?|loose(?:ly)?|low[- ]density|diffuse|thinly))\b(?: packed| filled)?"
    r"(?! (?:background|noise|scatter|failures elsewhere|in the rest))"
)


def _density(m: Match, text: Text) -> Iterator[Found]:
    word = "dense" if m["dense"] else "sparse"
    if m.group() == "sparsely" and re.match(
        r" (?:scattered|distributed|spread)", text.low[m.end() : m.end() + 13]
    ):
        return
    subject = text.subject(m.start())
    if m.group() == "concentrated" and subject is None:
        return  # "concentrated at the edge" speaks of the place
    yield found(m, "density", (subject, word) if subject in NAMED[1:] else word)


def _end(m: Match) -> int:
    return m.end() - (len(m.group()) - len(m.group().rstrip(" ,")))


STRUCTURES = (
    Rule(("diameter",), _EXTENT, _extent),
    Rule(("die", "dice", "chips", "devices"), _SIZE, _size, False),
    Rule(
        ("dens", "spars", "pack", "compact", "loose", "tight", "concentrated", "diffuse", "thinly"),
        _DENSITY,
        _density,
        False,
    ),
    Rule(("line", "scratch", "streak", "stripe"), _LINE, _line, False),
    Rule(("around", "round", "along"), _AROUND, _around),
    Rule(("arc", "cresc", "half", "semi"), _ARC, _arc, False),
    Rule(("ring", "annul", "donut", "doughnut", "halo"), _RING, _ring, False),
    Rule(
        ("cluster", "blob", "clump", "patch", "island", "spot", "concentration", "grouping"),
        _COUNTED,
        _counted,
        False,
    ),
)
