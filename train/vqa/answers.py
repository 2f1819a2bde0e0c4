"""Answers to the bank's questions, with the phrases that a rubric judges them by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from train.vqa.causes import Candidate
from train.vqa.descriptions import MOST_CAUSES, because, causes_text, shape_claims, spatial_claims
from train.vqa.facts import PLACED, Facts
from train.vqa.phrases import (
    NO_CLOCK,
    Rng,
    apart,
    avoids,
    clock_text,
    hits,
    opened,
    phrase,
    sentence,
    sentences,
)
from train.vqa.statements import false_statement, true_statement
from wafervlm.claims import Claim, Verdict
from wafervlm.geometry import QUADRANTS

NO_CANDIDATE = "No candidate"
# What is wrong wherever there is no clock position.
CLOCKS = [clock_text(hour) for hour in (12, 3, 6, 9)]


@dataclass(frozen=True, slots=True)
class Answer:
    """The ``text`` of an answer to ``question``; phrases that other right answers hold too (``must_hit``)
    and ones that only wrong answers hold (``must_avoid``). Without the first it is no reward."""

    question: str
    text: str
    must_hit: tuple[str, ...] = ()
    must_avoid: tuple[str, ...] = ()


Answerer = Callable[[Facts, Rng, str], Answer | None]
Tried = Callable[[Facts], Sequence[Claim]]


def claims_answer(facts: Facts, question: str, claims: Sequence[Claim], rng: Rng) -> Answer:
    """The answer that makes ``claims``."""
    said = [phrase(claim, rng) for claim in claims]
    text = sentences(said)
    wanted = tuple(
        dict.fromkeys(key for claim, words in zip(claims, said, strict=True) for key in hits(claim, words))
    )
    asked = {claim.dimension for claim in claims}
    # What contradicts the answer comes first, then what contradicts anything else that is true there.
    others = [claim for claim in facts.statements if claim.dimension in asked and claim not in claims]
    wrong = contradicted(facts, (*claims, *others))
    wrong += CLOCKS if "spatial" in asked and facts.placeless else []
    return Answer(question, text, wanted, apart(wanted, wrong, text))


def contradicted(facts: Facts, claims: Iterable[Claim]) -> list[str]:
    """Phrases that stand against ``claims`` and that the dies contradict."""
    span = next((claim.plain for claim in facts.of_kind("span") if claim.subject is None), None)
    return [
        text
        for claim in claims
        for text, wrong in avoids(claim)
        if all(facts.verdict(reading) is Verdict.CONTRADICTED for reading in _readings(wrong))
        and not _covered(wrong, span)
    ]


def _readings(claim: Claim) -> list[Claim]:
    """What the phrase of ``claim`` may say: a zone is one of the failing dies or of the pattern."""
    return [claim, Claim("zone", ("pattern", claim.plain))] if claim.kind == "zone" else [claim]


def first_of(*kinds: str, tried: Tried | None = None, without: str = "") -> Answerer:
    """Answers with the first statement of ``kinds``; without one, with the first of the claims ``tried`` that
    the dies bear out, and else with the sentence ``without``, where there is one."""

    def answer(facts: Facts, rng: Rng, question: str) -> Answer | None:
        claims = [claim for kind in kinds for claim in facts.of_kind(kind) if _asked_for(claim)]
        found = claims[0] if claims else _borne_out(facts, tried)
        if found is not None:
            return claims_answer(facts, question, [found], rng)
        if not without or (NO_CLOCK in without and not facts.placeless):
            return None
        return _without(question, without)

    return answer


def main_zone(facts: Facts) -> list[Claim]:
    """The main zone of the failing dies, where one stands out."""
    zone = facts.geometry.main_zone if facts.geometry.zone_stands_out else None
    return [] if zone is None else [Claim("zone", zone)]


def quadrants(_: Facts) -> list[Claim]:
    """The pattern in each quadrant; a ring may be denser in one as well."""
    return [Claim("quadrant", name) for name in QUADRANTS]


def extents(facts: Facts) -> list[Claim]:
    """The pattern as long as its dominating structure; else that there is no pattern."""
    length = getattr(facts.geometry.main, "length", None)
    claims = [] if length is None else [Claim("extent", max(5, 5 * round(20 * length)))]
    return [*claims, *no_pattern(facts)]


def backgrounds(_: Facts) -> list[Claim]:
    """The amounts that may fail outside of the pattern."""
    return [Claim("background", amount) for amount in ("few", "some", "many")]


def no_pattern(_: Facts) -> list[Claim]:
    """That no pattern stands out, or no cluster."""
    return [Claim("pattern", "any", negated=True), Claim("clusters", 0)]


def no_cluster(_: Facts) -> list[Claim]:
    """That there is no cluster."""
    return [Claim("clusters", 0)]


def absent(kind: str) -> Tried:
    """That there is none of ``kind``."""
    return lambda _: [Claim(kind, "any", negated=True)]


def main_shape(facts: Facts, rng: Rng, question: str) -> Answer | None:
    """What weighs most of the pattern's shape."""
    return claims_answer(facts, question, facts.morphology[:1], rng) if facts.morphology else None


def whole_spatial(facts: Facts, rng: Rng, question: str) -> Answer | None:
    """All that a description says of where dies fail."""
    claims = spatial_claims(facts)
    return claims_answer(facts, question, claims, rng) if claims else None


def whole_shape(facts: Facts, rng: Rng, question: str) -> Answer | None:
    """All that a description says of the pattern's shape."""
    claims = shape_claims(facts)
    return claims_answer(facts, question, claims, rng) if claims else None


def defect_type(facts: Facts, _: Rng, question: str) -> Answer:
    """The label."""
    return _typed(facts, question, "")


def reasoned_type(facts: Facts, rng: Rng, question: str) -> Answer:
    """The label, and what the dies show."""
    return _typed(facts, question, _evidence(facts, rng))


def one_candidate(facts: Facts, rng: Rng, question: str) -> Answer:
    """Any of the candidates: many answers are right, so it is no reward."""
    candidates = facts.pattern.candidates
    if not candidates:
        return Answer(question, because(facts, NO_CANDIDATE))
    chosen = candidates[int(rng.integers(len(candidates)))]
    return Answer(question, sentence(f"candidate: {chosen.phrase}"))


def all_candidates(facts: Facts, _: Rng, question: str) -> Answer:
    """All candidates of the label."""
    return _caused(facts, question, "")


def reasoned_candidates(facts: Facts, rng: Rng, question: str) -> Answer:
    """The candidates, and what the dies show."""
    return _caused(facts, question, _evidence(facts, rng))


def equipment(facts: Facts, _: Rng, question: str) -> Answer:
    """The equipment category of the first candidate."""
    return _first(facts, question, lambda candidate: candidate.category, "Candidate equipment")


def step(facts: Facts, _: Rng, question: str) -> Answer:
    """The process step of the first candidate."""
    return _first(facts, question, lambda candidate: candidate.step, "Candidate step")


def stated(*kinds: str) -> Answerer:
    """Puts a statement of ``kinds`` into the question, half of the time a false one, and judges it."""

    def answer(facts: Facts, rng: Rng, question: str) -> Answer | None:
        found = _statement(facts, rng, frozenset(kinds), false=bool(rng.random() < 0.5))
        return None if found is None else Answer(question.format(sentence(found[0])), found[1])

    return answer


def two_stated(first: Sequence[str], second: Sequence[str]) -> Answerer:
    """Puts two statements into the question: half of the time both true, else one of them false."""

    def answer(facts: Facts, rng: Rng, question: str) -> Answer | None:
        wrong = int(rng.integers(2)) if rng.random() < 0.5 else None
        made = [
            _statement(facts, rng, frozenset(kinds), false=place == wrong)
            for place, kinds in enumerate((first, second))
        ]
        if made[0] is None or made[1] is None:
            return None
        (one, first_said), (two, second_said) = made[0], made[1]
        said = [text for text in (first_said, second_said) if text.startswith("No.")]
        verdict = said[0] if said else f"{first_said} {second_said.removeprefix('Yes. ')}"
        return Answer(question.format(sentences((one, two))), verdict)

    return answer


def _asked_for(claim: Claim) -> bool:
    """Whether a claim is about the wafer as a whole, where it is one of place, and a number where that is
    asked for."""
    counted = claim.kind != "clusters" or claim.value != "any"
    return counted and (claim.subject is None or claim.kind not in (*PLACED, "zone"))


def _covered(claim: Claim, span: tuple[int, int] | None) -> bool:
    """Whether a clock position lies within the span that the pattern covers."""
    if span is None or claim.kind != "clock":
        return False
    return (int(claim.plain) - span[0]) % 12 <= (span[1] - span[0]) % 12


def _borne_out(facts: Facts, tried: Tried | None) -> Claim | None:
    return next((claim for claim in tried(facts) if facts.holds(claim)), None) if tried else None


def _evidence(facts: Facts, rng: Rng) -> str:
    claims = [*spatial_claims(facts)[:2], *shape_claims(facts)[:1]]
    return f" {sentences(phrase(claim, rng) for claim in claims)}" if claims else ""


def _statement(facts: Facts, rng: Rng, kinds: frozenset[str], *, false: bool) -> tuple[str, str] | None:
    """A statement in words, and the answer to it. The other sort where there is none of the one wanted."""
    for wrong in (false, not false):
        if wrong and (made := false_statement(facts, rng, kinds)):
            _, text, source = made
            right = f"There is {NO_CLOCK}." if source is None else sentence(phrase(source, rng))
            return text, f"No. {right}"
        if not wrong and (true := true_statement(facts, rng, kinds)):
            return true[1], f"Yes. {sentence(true[1])}"
    return None


def _without(question: str, text: str) -> Answer:
    if NO_CLOCK not in text:
        return Answer(question, text)
    return Answer(question, text, (NO_CLOCK,), tuple(CLOCKS))


def _typed(facts: Facts, question: str, after: str) -> Answer:
    label = facts.pattern.label
    text = f"{pattern_type(label)}.{after}"
    others = [other for other in facts.causes.patterns if other != label]
    # Named with its field: "center" alone is a zone as well.
    wrong = [pattern_type(other) for other in others]
    wanted = (pattern_type(label),)
    return Answer(question, text, wanted, apart(wanted, wrong, text))


def pattern_type(label: str) -> str:
    """The phrase that names the class of a wafer."""
    return f"Pattern type: {label}"


def _caused(facts: Facts, question: str, after: str) -> Answer:
    candidates = facts.pattern.candidates[:MOST_CAUSES]
    if not candidates:
        text = f"{because(facts, NO_CANDIDATE)}{after}"
        wanted: tuple[str, ...] = (NO_CANDIDATE.lower(),)
    else:
        text = f"{opened(causes_text(facts, MOST_CAUSES))}{after}"
        wanted = tuple(candidate.phrase for candidate in candidates)
    return Answer(question, text, wanted, apart(wanted, foreign_candidates(facts), text))


def foreign_candidates(facts: Facts) -> list[str]:
    """Candidates of other patterns that are none of this one's, one of each pattern."""
    mine = {candidate.phrase for candidate in facts.pattern.candidates}
    others = [pattern.candidates[:1] for pattern in facts.causes.patterns.values()]
    return [first.phrase for found in others for first in found if first.phrase not in mine]


def _first(facts: Facts, question: str, value: Callable[[Candidate], str], title: str) -> Answer:
    candidates = facts.pattern.candidates
    if not candidates:
        return Answer(question, because(facts, NO_CANDIDATE))
    mine = {value(candidate) for candidate in candidates}
    wanted = (value(candidates[0]),)
    others = (c for pattern in facts.causes.patterns.values() for c in pattern.candidates)
    wrong = [value(other) for other in others if value(other) not in mine]
    text = f"{title}: {wanted[0]}."
    return Answer(question, text, wanted, apart(wanted, wrong, text))
