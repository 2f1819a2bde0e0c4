"""Phrases: claims put into words, and the short ones that a right answer holds and a wrong one would.

A rubric's phrases are matched whole, so each is a few words that stand together in the reference answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from wafervlm.claims import Claim, say
from wafervlm.geometry import QUADRANTS, ZONES

Rng = np.random.Generator
# A small model learns one wording well rather than many badly.
CANONICAL = 0.85
AVOIDED = 4
NO_CLOCK = "no clock position"


def phrase(claim: Claim, rng: Rng) -> str:
    """``claim`` in words: most of the time in its first wording."""
    return say(claim, 0) if rng.random() < CANONICAL else say(claim, rng)


def opened(text: str) -> str:
    """``text`` with a capital at its beginning."""
    return f"{text[:1].upper()}{text[1:]}"


def sentence(text: str) -> str:
    """``text`` as a sentence."""
    return f"{opened(text)}."


def sentences(phrases: Iterable[str]) -> str:
    """Each of ``phrases`` as a sentence of its own, so that any can be struck."""
    return " ".join(sentence(text) for text in phrases)


def hits(claim: Claim, said: str) -> tuple[str, ...]:
    """The phrases in ``said``, a wording of ``claim``, that another right answer would hold as well."""
    found = [text for text in _KEYS.get(claim.kind, _no_key)(claim) if _holds(said, text)]
    return tuple(found[:1])


def avoids(claim: Claim) -> list[tuple[str, Claim]]:
    """Phrases that may contradict ``claim``, each with what it claims: the dies say which do."""
    return _WRONG[claim.kind](claim) if claim.kind in _WRONG else []


def apart(right: Sequence[str], wrong: Iterable[str], reference: str) -> tuple[str, ...]:
    """Those of ``wrong``, at most ``AVOIDED``, that neither stand in ``reference`` nor hold a phrase of
    ``right`` or are held by one."""
    kept: list[str] = []
    for text in wrong:
        mixed = any(_holds(text, other) or _holds(other, text) for other in right)
        if not mixed and text not in kept and not _holds(reference, text):
            kept.append(text)
    return tuple(kept[:AVOIDED])


def clock_text(hour: int) -> str:
    """A clock position in words."""
    return f"{hour} o'clock"


def _holds(text: str, part: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text, re.IGNORECASE) is not None


def _no_key(_: Claim) -> list[str]:
    return []


def _number(claim: Claim) -> str:
    return f"{claim.plain:g}" if isinstance(claim.plain, (int, float)) else str(claim.plain)


def _span_ends(claim: Claim) -> list[str]:
    first, last = claim.plain
    return [f"{first} to {last} o'clock", f"{first} o'clock to {last} o'clock", f"{first} and {last} o'clock"]


def _ring(claim: Claim) -> list[str]:
    form = claim.plain[0] if isinstance(claim.plain, tuple) else claim.plain
    if claim.negated:
        return ["no ring", "no closed ring", "no arc"]
    return {
        "closed": ["closed ring", "complete ring", "ring"],
        "open": ["open ring", "partial ring", "ring"],
        "arc": ["arc"],
    }.get(str(form), ["ring"])


def _line(claim: Claim) -> list[str]:
    if claim.negated:
        return ["no line"]
    return ["a line"] if claim.plain == "any" else [f"{claim.plain} line", str(claim.plain), "line"]


def _clusters(claim: Claim) -> list[str]:
    if claim.negated or claim.plain == 0:
        return ["no cluster", "no clusters"]
    if claim.plain == "any":
        return ["a cluster"]
    words = {1: ["one cluster", "single cluster", "one dense cluster", "1 cluster"], 2: ["two clusters"]}
    many = ["three or more clusters", "several clusters", "clusters"]
    return [*words.get(claim.plain, many), "cluster"] if isinstance(claim.plain, int) else [*many, "cluster"]


def _pattern(claim: Claim) -> list[str]:
    return ["no pattern", "no one pattern"] if claim.negated else ["pattern"]


_KEYS: dict[str, Callable[[Claim], list[str]]] = {
    "share": lambda claim: [f"{_number(claim)} percent"],
    "count": lambda claim: [f"{_number(claim)} dies", f"{_number(claim)} failing dies"],
    "zone": lambda claim: [f"{claim.plain} zone"],
    "clear": lambda claim: [f"{claim.plain} zone"],
    "clock": lambda claim: [clock_text(int(claim.plain))],
    "span": _span_ends,
    "quadrant": lambda claim: [str(claim.plain), str(claim.plain).replace(" ", "-")],
    "side": lambda claim: [f"{claim.plain} side", str(claim.plain)],
    "pattern": _pattern,
    "ring": _ring,
    "line": _line,
    "clusters": _clusters,
    "size": lambda claim: [f"{_number(claim)} dies", f"{_number(claim)} failing dies"],
    "density": lambda claim: [str(claim.plain), f"{claim.plain}ly"],
    "scatter": lambda claim: ["stand alone", "alone", "spread", "scattered"],
    "background": lambda claim: [f"{claim.plain} failing dies", f"{claim.plain} dies", str(claim.plain)],
    "symmetry": lambda claim: (
        ["not symmetric", "no symmetry"] if claim.negated else ["symmetric", "symmetry"]
    ),
    "repeat": lambda claim: ["no repeat", "do not repeat"] if claim.negated else ["repeat"],
}


def _claims(kind: str, values: Iterable[Any]) -> list[tuple[str, Claim]]:
    made = [Claim(kind, value) for value in values]
    return [(_KEYS[kind](claim)[0], claim) for claim in made]


_NO_RING = ("no ring", Claim("ring", "any", negated=True))
_NO_LINE = ("no line", Claim("line", "any", negated=True))
_NO_CLUSTER = ("no cluster", Claim("clusters", 0))
_RING = ("closed ring", Claim("ring", "closed"))
_ARC = ("arc", Claim("ring", "arc"))
_LINE = ("line", Claim("line", "any"))
_ONE = ("one cluster", Claim("clusters", 1))
_ALONE = ("stand alone", Claim("scatter", "alone"))
_SPREAD = ("over the whole wafer", Claim("scatter", "spread"))

_WRONG: dict[str, Callable[[Claim], list[tuple[str, Claim]]]] = {
    "zone": lambda _: _claims("zone", ZONES),
    "clock": lambda claim: _claims(
        "clock", [(int(claim.plain) + turn - 1) % 12 + 1 for turn in (6, 3, 9, 4)]
    ),
    "span": lambda claim: _claims("clock", [(int(claim.plain[1]) + turn - 1) % 12 + 1 for turn in (6, 3, 4)]),
    "quadrant": lambda _: _claims("quadrant", QUADRANTS),
    "ring": lambda claim: [_RING, _ARC, _LINE, _ONE] if claim.negated else [_NO_RING, _ONE, _LINE, _ALONE],
    "line": lambda claim: [_LINE, _RING, _ARC] if claim.negated else [_NO_LINE, _RING, _ALONE, _SPREAD],
    "clusters": lambda _: [*_claims("clusters", (0, 1, 2, 3)), _RING, _ALONE],
    "size": lambda _: [_NO_CLUSTER, _RING, _ALONE],
    "extent": lambda _: [_NO_CLUSTER, _RING, _ALONE],
    "density": lambda _: _claims("density", ("dense", "sparse")),
    "scatter": lambda _: [_RING, _ONE, _LINE, _ARC],
    "background": lambda _: _claims("background", ("few", "some", "many")),
    "pattern": lambda _: [_RING, _ONE, _LINE, _ARC],
}
