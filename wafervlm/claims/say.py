"""Claims in words: plain short English with few words, several wordings for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from wafervlm.claims.claim import CLUSTERS, Claim

WORDINGS = 3
_HOLDERS: dict[str | None, str] = {
    **{name: f"the {name}" for name in (*CLUSTERS, "line", "ring", "gap")},
    "cluster": "one of the clusters",
    "pattern": "the pattern",
    None: "the pattern",
}
# Each with the first as the one that is used most.
_PLAIN: dict[str, tuple[str, ...]] = {
    "share": (
        "about {n} percent of the dies fail",
        "{n} percent of the dies fail",
        "failing dies make up {n} percent of the wafer",
    ),
    "share none": (
        "less than 1 percent of the dies fail",
        "fewer than 1 percent of the dies fail",
        "under 1 percent of the dies fail",
    ),
    "share above": (
        "more than {n} percent of the dies fail",
        "over {n} percent of the dies fail",
        "at least {n} percent of the dies fail",
    ),
    "share below": (
        "less than {n} percent of the dies fail",
        "fewer than {n} percent of the dies fail",
        "under {n} percent of the dies fail",
    ),
    "share zone": (
        "about {n} percent of the dies in the {zone} zone fail",
        "{n} percent of the dies in the {zone} zone fail",
        "roughly {n} percent of the dies in the {zone} zone fail",
    ),
    "count": ("{n} dies fail", "about {n} dies fail", "a total of {n} dies fail"),
    "zone main": (
        "the failing dies lie mostly in the {value} zone",
        "most failing dies are in the {value} zone",
        "the failing dies are mainly in the {value} zone",
    ),
    "zone": (
        "{holder} lies in the {value} zone",
        "{holder} is in the {value} zone",
        "{holder} sits in the {value} zone",
    ),
    "clear": (
        "the {value} zone is clear",
        "hardly any failing dies lie in the {value} zone",
        "the {value} zone is almost free of failing dies",
    ),
    "clock": (
        "{holder} lies at {value} o'clock",
        "{holder} is at {value} o'clock",
        "{holder} sits near {value} o'clock",
    ),
    "span": (
        "{holder} reaches from {first} to {last} o'clock",
        "{holder} covers {first} to {last} o'clock",
        "{holder} extends from {first} to {last} o'clock",
    ),
    "quadrant": (
        "{holder} lies in the {value} quadrant",
        "{holder} is in the {value}",
        "{holder} sits in the {value} part",
    ),
    "side": (
        "{holder} lies on the {value} side",
        "{holder} is in the {value} half",
        "{holder} sits on the {value} side",
    ),
    "pattern": ("a pattern stands out", "a clear pattern stands out", "a distinct pattern stands out"),
    "ring": ("the failing dies form {a} {form}ring", "there is {a} {form}ring", "{a} {form}ring is visible"),
    "ring radius": (
        "the failing dies form {a} {form}ring at {radius} percent of the radius",
        "there is {a} {form}ring at {radius} percent of the radius",
        "{a} {form}ring lies at {radius} percent of the radius",
    ),
    "ring arc": ("the failing dies form an arc", "there is an arc", "an arc is visible"),
    "line": ("there is a line", "the failing dies form a line", "a line is visible"),
    "line shape": ("there is a {value} line", "the failing dies form a {value} line", "the line is {value}"),
    "line direction": ("the line is {value}", "there is a {value} line", "a {value} line is visible"),
    "clusters": ("there {are} {count}", "the failing dies form {count}", "{count} {are} visible"),
    "size": ("{holder} has {n} dies", "{holder} covers {n} dies", "{holder} holds about {n} dies"),
    "extent": (
        "{holder} is {n} percent of the diameter long",
        "{holder} extends over {n} percent of the diameter",
        "{holder} has a length of {n} percent of the diameter",
    ),
    "density": ("{holder} is {value}", "{holder} looks {value}", "{holder} is rather {value}"),
    "scatter alone": (
        "the failing dies stand alone",
        "most failing dies stand alone",
        "the failing dies do not touch each other",
    ),
    "scatter spread": (
        "the failing dies are spread over the whole wafer",
        "the failing dies are scattered over the wafer",
        "the failing dies are distributed over the whole wafer",
    ),
    "background": (
        "{value} failing dies lie elsewhere",
        "there are {value} failing dies elsewhere",
        "outside of the pattern there are {value} failing dies",
    ),
    "repeat": ("the pattern repeats", "there is a repeating pattern", "the pattern is periodic"),
    "repeat period": (
        "the pattern repeats every {period}",
        "the failing dies repeat every {period}",
        "the pattern recurs every {period}",
    ),
    "symmetry": (
        "the pattern has {value}symmetry",
        "there is {value}symmetry",
        "the failing dies show {value}symmetry",
    ),
}
_NEGATED: dict[str, tuple[str, ...]] = {
    "zone main": (
        "the failing dies do not lie mostly in the {value} zone",
        "the failing dies are not mainly in the {value} zone",
        "the failing dies do not lie in the {value} zone",
    ),
    "zone": (
        "{holder} does not lie in the {value} zone",
        "{holder} is not in the {value} zone",
        "{holder} does not sit in the {value} zone",
    ),
    "clear": (
        "the {value} zone is not clear",
        "the {value} zone is not empty",
        "the {value} zone is not free of failing dies",
    ),
    "clock": (
        "{holder} does not lie at {value} o'clock",
        "{holder} is not at {value} o'clock",
        "{holder} does not sit near {value} o'clock",
    ),
    "span": (
        "{holder} does not reach from {first} to {last} o'clock",
        "{holder} does not cover {first} to {last} o'clock",
        "{holder} does not extend from {first} to {last} o'clock",
    ),
    "quadrant": (
        "{holder} does not lie in the {value} quadrant",
        "{holder} is not in the {value}",
        "{holder} does not sit in the {value} part",
    ),
    "side": (
        "{holder} does not lie on the {value} side",
        "{holder} is not in the {value} half",
        "{holder} does not sit on the {value} side",
    ),
    "pattern": ("no pattern stands out", "no clear pattern stands out", "there is no clear pattern"),
    "ring": ("there is no {form}ring", "the failing dies form no {form}ring", "no {form}ring is visible"),
    "ring arc": ("there is no arc", "the failing dies form no arc", "no arc is visible"),
    "line": ("there is no line", "the failing dies form no line", "no line is visible"),
    "line shape": ("the line is not {value}", "there is no {value} line", "no {value} line is visible"),
    "line direction": ("the line is not {value}", "there is no {value} line", "no {value} line is visible"),
    "extent": (
        "{holder} is not {n} percent of the diameter long",
        "{holder} does not extend over {n} percent of the diameter",
        "{holder} does not have a length of {n} percent of the diameter",
    ),
    "density": (
        "{holder} is not {value}",
        "{holder} does not look {value}",
        "{holder} is not really {value}",
    ),
    "scatter alone": (
        "the failing dies do not stand alone",
        "most failing dies do not stand alone",
        "the failing dies are not isolated",
    ),
    "scatter spread": (
        "the failing dies are not spread over the whole wafer",
        "the failing dies are not scattered over the wafer",
        "the failing dies are not distributed over the whole wafer",
    ),
    "repeat": (
        "the pattern does not repeat",
        "there is no repeating pattern",
        "the failing dies do not repeat",
    ),
    "repeat period": (
        "the pattern does not repeat every {period}",
        "the failing dies do not repeat every {period}",
        "the pattern does not recur every {period}",
    ),
    "symmetry": (
        "the pattern has no {value}symmetry",
        "there is no {value}symmetry",
        "the failing dies show no {value}symmetry",
    ),
}
_COUNTS = {
    0: "no cluster",
    1: "one cluster",
    2: "two clusters",
    3: "three or more clusters",
    "any": "a cluster",
    "several": "several clusters",
}
_LINE_SHAPES = ("straight", "curved")


def say(claim: Claim, wording: int | np.random.Generator = 0) -> str:
    """``claim`` as a clause, without a capital and without an end: ``extract`` reads the same claim in it
    and no other. ``wording`` is 0 to WORDINGS - 1, the first the plainest, or draws one."""
    if claim.negated and claim.kind == "clusters" and claim.value in ("any", "several"):
        claim = replace(claim, value=0, negated=False)
    index = wording if isinstance(wording, int) else int(wording.integers(WORDINGS))
    form = _form(claim)
    negated = claim.negated and form in _NEGATED
    clause = (_NEGATED if negated else _PLAIN)[form][index % WORDINGS].format(**_words(claim))
    return f"it is not the case that {clause}" if claim.negated and not negated else clause


def tell(claims: Iterable[Claim], wording: int | np.random.Generator = 0) -> str:
    """Each claim as a sentence of its own, so that any can be struck."""
    clauses = (say(claim, wording) for claim in claims)
    return " ".join(f"{clause[0].upper()}{clause[1:]}." for clause in clauses)


def _form(claim: Claim) -> str:
    kind, value = claim.kind, claim.value
    named = isinstance(value, tuple)
    match kind:
        case "share":
            return _share_form(value)
        case "zone":
            return "zone" if named else "zone main"
        case "ring":
            return "ring radius" if named else "ring arc" if value == "arc" else "ring"
        case "line":
            return "line" if value == "any" else "line shape" if value in _LINE_SHAPES else "line direction"
        case "scatter":
            return f"scatter {value}"
        case "repeat":
            return "repeat period" if named else "repeat"
        case _:
            return kind


def _share_form(value: Any) -> str:
    if not isinstance(value, tuple):
        return "share none" if value == 0 else "share"
    return f"share {value[0]}" if value[0] in ("above", "below") else "share zone"


def _words(claim: Claim) -> dict[str, Any]:
    plain, value = claim.plain, claim.value
    main = "largest cluster" if claim.kind in ("size", "density") else None
    words: dict[str, Any] = {"holder": _HOLDERS[claim.subject or main], "value": plain, "n": plain}
    if claim.kind == "span":
        words |= {"first": plain[0], "last": plain[1]}
    elif claim.kind == "share" and isinstance(value, tuple):
        words |= {"zone": value[0], "n": value[1]}
    elif claim.kind == "ring":
        form, radius = value if isinstance(value, tuple) else (value, None)
        words |= {
            "form": "" if form == "any" else f"{form} ",
            "a": "an" if form == "open" else "a",
            "radius": radius,
        }
    elif claim.kind == "clusters":
        words |= {"count": _COUNTS[plain], "are": "is" if plain in (0, 1, "any") else "are"}
    elif claim.kind == "symmetry":
        words["value"] = "" if plain == "any" else f"{plain} "
    elif claim.kind == "repeat" and isinstance(value, tuple):
        words["period"] = " and ".join(
            f"{n} {axis}" for n, axis in zip(value, ("rows", "columns"), strict=True) if n
        )
    return words
