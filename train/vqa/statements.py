"""Statements to confirm or correct: true claims about the dies, and false ones made by changing a true one.

None names a class or a word that would give one away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from train.vqa.facts import Facts
from train.vqa.phrases import Rng
from wafervlm.claims import Claim, Verdict, say

# Wordings that are tried for one without a telling word.
WORDINGS = 4


def true_statement(facts: Facts, rng: Rng, kinds: frozenset[str]) -> tuple[Claim, str] | None:
    """A claim of one of ``kinds`` that the dies bear out, in words that tell no class; None without one."""
    claims = [claim for claim in facts.statements if claim.kind in kinds]
    return next((found for claim in _shuffled(claims, rng) if (found := _told(facts, claim))), None)


def false_statement(facts: Facts, rng: Rng, kinds: frozenset[str]) -> tuple[Claim, str, Claim | None] | None:
    """A claim that the dies contradict, in words that tell no class, and the true claim it was made from,
    None for a clock position of a pattern that has none; None without one."""
    sources: list[Claim | None] = [claim for claim in facts.statements if claim.kind in kinds]
    if "clock" in kinds and facts.placeless:
        sources.append(None)
    for source in _shuffled(sources, rng):
        claims = [Claim("clock", int(rng.integers(1, 13)))] if source is None else altered(source)
        for claim in _shuffled(claims, rng):
            if facts.verdict(claim) is Verdict.CONTRADICTED and (found := _told(facts, claim)):
                return (*found, source)
    return None


def altered(claim: Claim) -> list[Claim]:
    """Other claims of the same kind, each some way off ``claim``; which are false the dies must say."""
    if claim.negated:
        return [replace(claim, negated=False, text="")]
    values = _OTHERS[claim.kind](claim.plain) if claim.kind in _OTHERS else []
    if claim.subject is None:
        return [Claim(claim.kind, value) for value in values]
    return [Claim(claim.kind, (claim.subject, value)) for value in values]


def _told(facts: Facts, claim: Claim) -> tuple[Claim, str] | None:
    wordings = (say(claim, index) for index in range(WORDINGS))
    text = next((text for text in wordings if not facts.causes.telling.search(text)), None)
    return None if text is None else (claim, text)


def _shuffled(items: list[Any], rng: Rng) -> list[Any]:
    return [items[index] for index in rng.permutation(len(items))]


def _turned(hour: int) -> list[int]:
    return [(hour + turn - 1) % 12 + 1 for turn in (3, 4, 5, 6, 7, 8, 9)]


def _scaled(least: int, most: int) -> Callable[[Any], list[Any]]:
    """Values clearly under and over a figure."""

    def values(value: Any) -> list[Any]:
        if not isinstance(value, int | float):
            return []
        made = {round(value * factor) for factor in (0.3, 0.5, 2, 3)} | {round(value + 15)}
        return [other for other in sorted(made) if least <= other <= most and other != value]

    return values


def _among(*values: Any) -> Callable[[Any], list[Any]]:
    return lambda value: [other for other in values if other != value]


_OTHERS: dict[str, Callable[[Any], list[Any]]] = {
    "share": _scaled(1, 99),
    "clock": _turned,
    "quadrant": _among("upper left", "upper right", "lower left", "lower right"),
    "side": _among("top", "right", "bottom", "left"),
    "clusters": lambda value: [0] if value == "any" else _among(0, 1, 2, 3)(value),
    "size": _scaled(2, 5000),
    "extent": _scaled(3, 120),
    "density": _among("dense", "sparse"),
    "background": _among("few", "some", "many"),
    "line": _among("horizontal", "vertical", "rising", "falling"),
}
