"""Descriptions of a wafer: in three parts as the published model card asks, each part alone, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from train.vqa.facts import Facts
from train.vqa.phrases import Rng, phrase, sentences
from wafervlm.claims import Claim
from wafervlm.words.question import DESCRIBE_QUESTION

SPATIAL, MORPHOLOGY, ROOT_CAUSE = "Spatial distribution", "Morphology", "Root-cause candidates"
NONE, NO_PATTERN = "none", "no pattern stands out"
# More would make the answer long, and what weighs little is seldom right.
MOST_SPATIAL, MOST_SHAPE, MOST_CAUSES = 4, 3, 2
# Told when asked, not unasked: a number of dies or a length is claimed to a fifth, and in a picture in which
# a die is a few pixels they are seen to a half; nor is it plain which cluster is the second.
ASKED_FOR, LESSER = frozenset({"size", "extent"}), "second cluster"

QUESTIONS = {
    "full": DESCRIBE_QUESTION,
    "spatial only": "Describe only the spatial distribution of the failing dies on this wafer.",
    "root cause only": "Name only the root-cause candidates for this wafer.",
    "structured": "Describe this wafer map as JSON with spatial, morphology and root_cause_candidates.",
}


def describe(facts: Facts, rng: Rng, kind: str) -> str:
    """The description of ``kind``, one of QUESTIONS."""
    return _WRITERS[kind](facts, rng)


def spatial_claims(facts: Facts) -> Sequence[Claim]:
    """What a description says of where failing dies lie."""
    return [claim for claim in facts.spatial if claim.subject != LESSER][:MOST_SPATIAL]


def shape_claims(facts: Facts) -> Sequence[Claim]:
    """What a description says of the shape of the pattern, figures left out."""
    told = (_plainly(claim) for claim in facts.morphology if claim.kind not in ASKED_FOR)
    return list(dict.fromkeys(claim for claim in told if claim is not None))[:MOST_SHAPE]


def _plainly(claim: Claim) -> Claim | None:
    """``claim`` without what a picture does not tell: how many clusters there are, or that there is none, a
    ring's radius to a twentieth, that a line does not bend."""
    if claim.kind == "ring" and isinstance(claim.value, tuple):
        return replace(claim, value=claim.value[0])
    if claim.kind == "line" and claim.value == "straight":
        return replace(claim, value="any")
    if claim.kind == "clusters":
        return replace(claim, value="any") if claim.value else None
    return claim


def spatial_text(facts: Facts, rng: Rng) -> str:
    """Where failing dies lie."""
    return sentences(phrase(claim, rng) for claim in spatial_claims(facts))


def shape_text(facts: Facts, rng: Rng) -> str:
    """What shape they make."""
    return sentences(phrase(claim, rng) for claim in shape_claims(facts))


def causes_text(facts: Facts, most: int | None = None) -> str:
    """The candidate causes in the table's order, at most ``most``."""
    candidates = facts.pattern.candidates[:most]
    named = "; ".join(f"candidate: {candidate.phrase}" for candidate in candidates)
    return f"{named}." if named else because(facts, NONE)


def because(facts: Facts, text: str) -> str:
    """``text`` as a sentence, with the reason that no pattern stands out where the dies bear that out."""
    told = facts.geometry.pattern in ("none", "scatter")
    return f"{text}, {NO_PATTERN}." if told else f"{text}."


def _full(facts: Facts, rng: Rng) -> str:
    parts = {
        SPATIAL: spatial_text(facts, rng),
        MORPHOLOGY: shape_text(facts, rng),
        ROOT_CAUSE: causes_text(facts, MOST_CAUSES),
    }
    return "\n".join(f"{n}. {title}: {text}" for n, (title, text) in enumerate(parts.items(), start=1))


def _structured(facts: Facts, _: Rng) -> str:
    values = {
        "spatial": _values(spatial_claims(facts)),
        "morphology": _values(shape_claims(facts)),
        "root_cause_candidates": [candidate.phrase for candidate in facts.pattern.candidates[:MOST_CAUSES]],
    }
    return json.dumps(values)


def _values(claims: Sequence[Claim]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for claim in claims:
        name = f"{claim.subject} {claim.kind}" if claim.subject else claim.kind
        value = list(claim.plain) if isinstance(claim.plain, tuple) else claim.plain
        named[name] = (
            False if claim.negated and value == "any" else f"not {value}" if claim.negated else value
        )
    return named


_WRITERS: dict[str, Callable[[Facts, Rng], str]] = {
    "full": _full,
    "spatial only": lambda facts, rng: f"{SPATIAL}: {spatial_text(facts, rng)}",
    "root cause only": lambda facts, rng: f"{ROOT_CAUSE}: {causes_text(facts)}",
    "structured": _structured,
}
