"""Descriptions of a wafer: in three parts as the published model card asks, each part alone, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from train.vqa.facts import Facts
from train.vqa.phrases import Rng, phrase, sentences
from train.vqa.steady import asked_first, plainly
from wafervlm.claims import Claim, Topic
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


@dataclass(frozen=True, slots=True)
class Unsaid:
    """What descriptions leave out, so that a model trained on them says what it is sure of.

    Each statement but share, main zone and main clock position is left out with ``chance``, 0 to below 0.5:
    greedily, the model then says what it holds to be right with more than 0.5 / (1 - chance). Statements on
    topics that ``doubted`` gives are left out always, but for the first of a part where nothing else is left.
    """

    chance: float = 0.0
    doubted: Callable[[], frozenset[Topic]] = frozenset


NOTHING = Unsaid()


def describe(facts: Facts, rng: Rng, kind: str, unsaid: Unsaid = NOTHING) -> str:
    """The description of ``kind``, one of QUESTIONS, without what is ``unsaid``; a part that would be left
    without a statement keeps its first."""
    return _WRITERS[kind](facts, _Teller(rng, unsaid))


@dataclass(frozen=True, slots=True)
class _Teller:
    """Puts claims into words, without what is ``unsaid``."""

    rng: Rng
    unsaid: Unsaid

    def __call__(self, claims: Sequence[Claim]) -> str:
        return sentences(phrase(claim, self.rng) for claim in self.chosen(claims))

    def chosen(self, claims: Sequence[Claim]) -> Sequence[Claim]:
        """Those that are said: at least one."""
        doubted = self.unsaid.doubted()
        known = [claim for claim in claims if claim.topic not in doubted] or claims[:1]
        if not self.unsaid.chance:
            return known
        drawn = self.rng.random(len(known)) >= self.unsaid.chance
        said = [
            claim
            for claim, told in zip(known, drawn, strict=True)
            if told or claim.kind == "share" or asked_first(claim)
        ]
        return said or known[:1]


def spatial_claims(facts: Facts) -> Sequence[Claim]:
    """What a description says of where failing dies lie."""
    return [claim for claim in facts.spatial if claim.subject != LESSER][:MOST_SPATIAL]


def shape_claims(facts: Facts) -> Sequence[Claim]:
    """What a description says of the shape of the pattern, figures left out."""
    told = (plainly(claim) for claim in facts.morphology if claim.kind not in ASKED_FOR)
    return list(dict.fromkeys(claim for claim in told if claim is not None))[:MOST_SHAPE]


def causes_text(facts: Facts, most: int | None = None) -> str:
    """The candidate causes in the table's order, at most ``most``."""
    candidates = facts.pattern.candidates[:most]
    named = "; ".join(f"candidate: {candidate.phrase}" for candidate in candidates)
    return f"{named}." if named else because(facts, NONE)


def because(facts: Facts, text: str) -> str:
    """``text`` as a sentence, with the reason that no pattern stands out where the dies bear that out."""
    told = facts.geometry.pattern in ("none", "scatter")
    return f"{text}, {NO_PATTERN}." if told else f"{text}."


def _full(facts: Facts, tell: _Teller) -> str:
    parts = {
        SPATIAL: tell(spatial_claims(facts)),
        MORPHOLOGY: tell(shape_claims(facts)),
        ROOT_CAUSE: causes_text(facts, MOST_CAUSES),
    }
    return "\n".join(f"{n}. {title}: {text}" for n, (title, text) in enumerate(parts.items(), start=1))


def _structured(facts: Facts, tell: _Teller) -> str:
    values = {
        "spatial": _values(tell.chosen(spatial_claims(facts))),
        "morphology": _values(tell.chosen(shape_claims(facts))),
        "root_cause_candidates": [candidate.phrase for candidate in facts.pattern.candidates[:MOST_CAUSES]],
    }
    return json.dumps(values)


def _values(claims: Sequence[Claim]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for claim in claims:
        name = f"{claim.subject} {claim.kind}" if claim.subject else claim.kind
        value = list(claim.plain) if isinstance(claim.plain, tuple) else claim.plain
        named[name] = not claim.negated if value == "any" else f"not {value}" if claim.negated else value
    return named


_WRITERS: dict[str, Callable[[Facts, _Teller], str]] = {
    "full": _full,
    "spatial only": lambda facts, tell: f"{SPATIAL}: {tell(spatial_claims(facts))}",
    "root cause only": lambda facts, _: f"{ROOT_CAUSE}: {causes_text(facts)}",
    "structured": _structured,
}
