"""Precision and contradictions, counted by hand."""

from __future__ import annotations

import math

import pytest

from tests.wafervlm.claims.drawing import MEASURED
from wafervlm.claims import Claim, check, extract, measure_claims

SPOT, RING = MEASURED["spot"], MEASURED["ring"]
ANSWERS = [
    check(extract("The pattern lies at 5 o'clock. There is a ring. There is one cluster."), SPOT),
    check(extract("The pattern is 50 percent of the diameter long. There is a ring."), RING),
    [],
]


def test_a_topic_is_what_a_claim_is_about_whichever_way_it_is_told() -> None:
    whole, pattern = Claim("zone", "edge"), Claim("zone", ("pattern", "middle"))
    assert whole.topic == pattern.topic == ("zone", None, False)
    assert Claim("clock", ("largest cluster", 3)).topic == ("clock", "largest cluster", False)
    assert Claim("ring", "any", negated=True).topic == ("ring", None, True)


def test_counts() -> None:
    found = measure_claims(ANSWERS)
    assert (found.answers, found.supported, found.contradicted, found.untold) == (3, 3, 1, 1)
    assert found.precision == 0.75
    assert found.contradiction_rate == 0.2
    assert found.claims_per_answer == pytest.approx(5 / 3)


def test_nothing_has_no_ratio() -> None:
    assert math.isnan(measure_claims([]).precision)
    assert measure_claims([[]]).claims_per_answer == 0
