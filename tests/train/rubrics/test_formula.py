"""The rule score against the formula worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from train.rubrics.formula import OPTIMISED, PUBLISHED, STRICT, Formula, mean, score
from wafervlm.errors import ConfigError

HITS, AVOIDS = ["closed ring", "edge zone", "dense"], ["line", "cluster"]


@pytest.mark.parametrize(
    "text, published, optimised",
    [
        ("A dense closed ring in the edge zone.", 1.0, 1.0),
        ("A closed ring in the edge zone.", 1.0, 1.0),  # two of three, times 1.5
        ("A closed ring.", 0.6 * 0.5 + 0.4, 0.9 * 0.5 + 0.1),
        ("A closed ring and a line.", 0.6 * 0.5 + 0.4 * 0.75, 0.9 * 0.5 + 0.1 * 0.75),
        ("A line and a cluster.", 0.4 * 0.5, 0.1 * 0.5),
        ("", 0.4, 0.1),
    ],
)
def test_published_and_optimised_by_hand(text: str, published: float, optimised: float) -> None:
    assert score(text, HITS, AVOIDS, PUBLISHED).value == pytest.approx(published)
    assert score(text, HITS, AVOIDS, OPTIMISED).value == pytest.approx(optimised)


def test_only_the_optimised_formula_takes_similar_words() -> None:
    assert score("clustering", ["clustered"], [], PUBLISHED).value == pytest.approx(0.4)
    assert score("clustering", ["clustered"], [], OPTIMISED).value == pytest.approx(1)


def test_strict_pays_neither_for_nothing_nor_for_everything() -> None:
    avoids = ["line", "cluster", "scatter", "arc"]
    assert score("", HITS, avoids, STRICT).value == 0
    assert score(". ".join([*HITS, *avoids]), HITS, avoids, STRICT).value == 0
    assert score("dense closed ring", HITS, avoids, STRICT).value == 1
    assert score(". ".join([*HITS, *avoids]), HITS, avoids, PUBLISHED).value == pytest.approx(0.6)


def test_nothing_to_hit_does_not_apply() -> None:
    assert score("anything", [], ["line"]).value is None
    found = mean([1.0, None, 0.5])
    assert found.value == 0.75 and found.counted == 2 and found.not_applicable == 1
    assert mean([None]).value is None and mean([]).not_applicable == 0


def test_the_whole_is_weighted_and_scaled_where_a_dimension_does_not_apply() -> None:
    full = {"spatial": 1.0, "morphology": 0.5, "root_cause": 0.0}
    assert PUBLISHED.whole(full) == pytest.approx(0.4 + 0.35 * 0.5)
    assert OPTIMISED.whole(full) == pytest.approx(0.5)
    assert PUBLISHED.whole({**full, "root_cause": None}) == pytest.approx((0.4 + 0.175) / 0.75)
    assert PUBLISHED.whole({"morphology": 0.5}) == pytest.approx(0.5)
    assert PUBLISHED.whole({"spatial": None}) is None
    with pytest.raises(ConfigError, match="no dimension 'colour'; known are spatial"):
        PUBLISHED.whole({"colour": 1.0})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hit": 0.5}, "must sum to 1"),
        ({"hit": math.nan}, "hit of the rule score is nan"),
        ({"penalty": -1.0}, "penalty of the rule score is -1"),
        ({"fuzzy": 0.0}, "fuzzy of the rule score"),
        ({"spatial": 0.0, "morphology": 0.0, "root_cause": 0.0}, "weigh 0"),
    ],
)
def test_parameters_that_cannot_be_meant(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Formula(**settings)


@given(
    st.integers(0, 30),
    st.integers(1, 30),
    st.integers(0, 2000),
    st.sampled_from([PUBLISHED, OPTIMISED, STRICT]),
)
def test_scores_lie_between_0_and_1_and_grow_with_hits(
    said: int, wanted: int, offences: int, formula: Formula
) -> None:
    said = min(said, wanted)
    value = formula.dimension(said, wanted, offences)
    assert value is not None and 0 <= value <= 1 + 1e-12
    assert value >= (formula.dimension(said, wanted, offences + 1) or 0)
    if said:
        assert value >= (formula.dimension(said - 1, wanted, offences) or 0)
