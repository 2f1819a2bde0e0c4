"""What is said is read again as what was said."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from tests.wafervlm.claims.spoken import VALUES, statements
from wafervlm.claims import KINDS, WORDINGS, Claim, extract, say, tell


@settings(max_examples=400, deadline=None)
@given(statements())
def test_every_wording_is_read_as_the_claim(claim: Claim) -> None:
    wordings = [say(claim, index) for index in range(WORDINGS)]
    assert len(set(wordings)) == WORDINGS or claim.negated
    for words in wordings:
        assert extract(words) == extract(f"1. Spatial: {words}.") == [claim]


def test_every_kind_is_drawn() -> None:
    assert set(VALUES) == set(KINDS)


def test_not_a_cluster_is_no_cluster() -> None:
    assert say(Claim("clusters", "any", negated=True)) == "there is no cluster"


def test_a_generator_draws_the_wording() -> None:
    rng = np.random.default_rng(0)
    assert {say(Claim("clock", 5), rng) for _ in range(50)} == {say(Claim("clock", 5), i) for i in range(3)}


def test_tell_makes_sentences() -> None:
    assert tell([Claim("share", 12), Claim("ring", "any", negated=True)]) == (
        "About 12 percent of the dies fail. There is no ring."
    )
