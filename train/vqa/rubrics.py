"""The rubric of a wafer, and the prompts of the reinforcement learning that it judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from train.vqa.answers import CLOCKS, Answer, contradicted, foreign_candidates
from train.vqa.descriptions import describe, shape_claims, spatial_claims
from train.vqa.facts import Facts
from train.vqa.phrases import Rng, apart, hits
from train.vqa.prompts import SYSTEM_PROMPT
from train.vqa.questions import BANK
from train.vqa.rows import (
    DIMENSION_OF,
    Message,
    MorphologyRubric,
    RlRow,
    RootCauseRubric,
    Rubric,
    SpatialRubric,
)
from train.vqa.write import answer
from wafervlm.claims import Claim, say


def rubric(facts: Facts, rng: Rng) -> Rubric:
    """What a right answer about this wafer holds; texts are in the canonical wording."""
    return Rubric(
        defect_types=(facts.pattern.label,),
        spatial_rubric=_spatial(facts),
        morphology_rubric=_morphology(facts),
        root_cause_rubric=_root_cause(facts),
        summary=describe(facts, rng, "full"),
    )


def rl_rows(
    facts: Facts, judged: Rubric, rng: Rng, *, name: str, image: str, part: str, image_first: bool
) -> list[RlRow]:
    """One prompt for each dimension, of any difficulty, among the questions with phrases to hit."""
    rows = []
    for question_type, dimension in DIMENSION_OF.items():
        kinds = [kind for kind, question in BANK.items() if question.type == question_type]
        found = _rewarded(facts, rng, kinds)
        if found is None:
            continue
        kind, said = found
        rows.append(
            RlRow(
                id=f"{name}-rl-{dimension}",
                image=image,
                prompt=chat(said.question, image_first=image_first),
                rubric=judged,
                dimension=dimension,
                must_hit=said.must_hit,
                must_avoid=said.must_avoid,
                reference_answer=said.text,
                wafer_label=(facts.pattern.label,),
                difficulty=BANK[kind].difficulty,
                part=part,
                kind=kind,
            )
        )
    return rows


def chat(question: str, *, image_first: bool) -> tuple[Message, ...]:
    """The system's turn and the user's with ``question`` and one image."""
    content: list[dict[str, str]] = [{"type": "text", "text": question}, {"type": "image"}]
    turn = {"role": "user", "content": content[::-1] if image_first else content}
    return {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]}, turn


def _rewarded(facts: Facts, rng: Rng, kinds: Sequence[str]) -> tuple[str, Answer] | None:
    for place in rng.permutation(len(kinds)):
        found = answer(facts, rng, kinds[place])
        if found is not None and found.must_hit and found.must_avoid:
            return kinds[place], found
    return None


def _spatial(facts: Facts) -> SpatialRubric:
    claims = spatial_claims(facts)
    clock = _key(claims, "clock")
    wrong = contradicted(facts, claims)
    told = " ".join(say(claim, 0) for claim in claims)
    right = [key for claim in claims for key in hits(claim, say(claim, 0))]
    return SpatialRubric(
        zone=_key(claims, "zone"),
        distribution="; ".join(say(claim, 0) for claim in claims),
        clock_position=clock,
        coordinates_hint=_key(facts.statements, "quadrant") or _key(facts.statements, "side"),
        spatial_avoid=apart(right, [*wrong, *(CLOCKS if facts.placeless else [])], told),
    )


def _morphology(facts: Facts) -> MorphologyRubric:
    claims = shape_claims(facts)
    said = [say(claim, 0) for claim in claims]
    right = [key for claim, words in zip(claims, said, strict=True) for key in hits(claim, words)]
    wrong = contradicted(facts, claims)
    texture = [c for c in claims if c.kind in ("background", "scatter", "repeat", "symmetry")]
    return MorphologyRubric(
        pattern_type=facts.geometry.pattern,
        density=_value(facts.statements, "density"),
        geometric_structure=next((say(c, 0) for c in claims if c not in texture), ""),
        texture_description="; ".join(say(claim, 0) for claim in texture),
        morphology_avoid=apart(right, wrong, " ".join(said)),
    )


def _root_cause(facts: Facts) -> RootCauseRubric:
    candidates = facts.pattern.candidates
    phrases = tuple(candidate.phrase for candidate in candidates)
    return RootCauseRubric(
        equipment_category=_most(candidate.category for candidate in candidates),
        process_step=_most(candidate.step for candidate in candidates),
        potential_causes=phrases,
        root_cause_avoid=apart(phrases, foreign_candidates(facts), " ".join(phrases)),
    )


def _most(values: Iterable[str]) -> str:
    counted = Counter(values)
    return counted.most_common(1)[0][0] if counted else ""


def _key(claims: Sequence[Claim], kind: str) -> str:
    for claim in claims:
        if claim.kind == kind and not claim.negated:
            return next(iter(hits(claim, say(claim, 0))), "")
    return ""


def _value(claims: Sequence[Claim], kind: str) -> str:
    return next((str(c.plain) for c in claims if c.kind == kind and not c.negated), "")
