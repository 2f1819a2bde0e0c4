"""What a description says unasked."""

from __future__ import annotations

import pytest

from tests.wafervlm.claims.drawing import DRAWN
from train.vqa.descriptions import shape_claims
from train.vqa.facts import facts
from train.vqa.phrases import hits
from wafervlm.claims import Claim, say


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
