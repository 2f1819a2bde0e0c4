"""What a description says unasked."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.wafervlm.claims.drawing import DRAWN
from train.vqa.descriptions import Unsaid, describe, shape_claims, spatial_claims
from train.vqa.facts import facts
from train.vqa.phrases import hits
from wafervlm.claims import Claim, extract, say


@pytest.mark.parametrize(
    ("name", "label", "said", "left_out"),
    [
        ("ring", "Edge-Ring", Claim("ring", "closed"), "radius"),
        ("spots", "Loc", Claim("clusters", "any"), "two"),
        ("line", "Scratch", Claim("line", "any"), "straight"),
    ],
)
def test_what_a_picture_does_not_tell_is_left_out(name: str, label: str, said: Claim, left_out: str) -> None:
    found = facts(DRAWN[name], label)
    claims = shape_claims(found)
    assert said in claims and all(found.holds(claim) for claim in claims)
    assert any(left_out in say(claim, 0) for claim in found.morphology)
    assert not any(left_out in say(claim, 0) for claim in claims)


def test_the_key_of_a_cluster_is_not_hit_by_another_statement() -> None:
    claim = Claim("clusters", "any")
    assert hits(claim, say(claim, 0)) == ("a cluster",)
    assert "a cluster" not in say(Claim("density", "dense"), 0)


def test_statements_are_left_out_by_chance_but_not_share_and_main_place() -> None:
    found, rng, times = facts(DRAWN["spot"], "Loc"), np.random.default_rng(0), 400
    whole = [*spatial_claims(found), *shape_claims(found)]
    said = [extract(describe(found, rng, "full", Unsaid(0.3))) for _ in range(times)]
    kept = {claim: sum(claim in one for one in said) / times for claim in whole}
    main = {claim for claim in whole if claim.kind in ("share", "zone", "clock")}
    assert {claim.kind for claim in main} == {"share", "zone", "clock"} and len(whole) > len(main) + 2
    assert all(kept[claim] == 1 for claim in main)
    assert all(0.63 < kept[claim] < 0.8 for claim in whole if claim not in main)
    # The part on the shape is never empty, nor is that of a JSON answer.
    assert all(any(claim.dimension == "morphology" for claim in one) for one in said)
    told = [json.loads(describe(found, rng, "structured", Unsaid(0.45)))["morphology"] for _ in range(times)]
    assert all(told) and min(map(len, told)) == 1


def test_nothing_is_left_out_otherwise() -> None:
    found = facts(DRAWN["spot"], "Loc")
    texts = [describe(found, np.random.default_rng(0), "full", *given) for given in ((), (Unsaid(),))]
    assert texts[0] == texts[1]
    whole = [*spatial_claims(found), *shape_claims(found)]
    assert extract(texts[0]) == whole
