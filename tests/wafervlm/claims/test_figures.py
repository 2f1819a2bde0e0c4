"""Precision, contradictions and recall, counted by hand."""

from __future__ import annotations

import math

import pytest

from tests.wafervlm.claims.drawing import MEASURED
from wafervlm.claims import (
    Claim,
    by_dimension,
    by_kind,
    check,
    extract,
    measure_claims,
    measure_recall,
    state,
    tell,
)

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


def test_parts() -> None:
    assert by_kind(ANSWERS)["ring"].precision == 0.5
    assert by_kind(ANSWERS)["clock"].answers == 1
    assert by_dimension(ANSWERS)["spatial"].claims == 1
    assert by_dimension(ANSWERS)["morphology"].contradicted == 1


def test_nothing_has_no_ratio() -> None:
    assert math.isnan(measure_claims([]).precision)
    assert measure_claims([[]]).claims_per_answer == 0


def test_recall_of_all_of_half_and_of_nothing() -> None:
    said = state(SPOT)
    answers = [check(extract(tell(part)), SPOT) for part in (said, said[: len(said) // 2], ())]
    assert measure_recall(answers[:1], [SPOT]) == 1
    assert measure_recall(answers[1:2], [SPOT]) == (len(said) // 2) / len(said)
    assert measure_recall(answers[2:], [SPOT]) == 0
    assert measure_recall(answers, [SPOT] * 3) == pytest.approx((1 + len(said) // 2 / len(said)) / 3)


def test_what_is_wrong_recalls_nothing() -> None:
    wrong = check(extract("The pattern lies at 11 o'clock."), SPOT)
    assert measure_recall([wrong], [SPOT]) == 0
