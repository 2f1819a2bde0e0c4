"""What is stated of a wafer is true of it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.wafervlm.claims.drawing import MEASURED
from wafervlm.claims import Claim, check, extract, state, tell
from wafervlm.geometry import Geometry, measure
from wafervlm.wafermap import WaferMap


def assert_true(geometry: Geometry) -> None:
    said = state(geometry)
    text = tell(said, np.random.default_rng(0))
    assert tuple(extract(text)) == said
    assert all(item.supported for item in check(extract(text), geometry)), text


@pytest.mark.parametrize("name", MEASURED)
def test_drawn_wafers(name: str) -> None:
    assert_true(MEASURED[name])
    assert 3 <= len(state(MEASURED[name])) <= 8


def test_real_and_synthetic_wafers(
    real_wafers: list[tuple[WaferMap, str]], synthetic_wafers: list[tuple[WaferMap, str]]
) -> None:
    for wafer, _ in (*real_wafers, *synthetic_wafers):
        assert_true(measure(wafer.dies))


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("none", Claim("pattern", "any", negated=True)),
        ("scatter", Claim("scatter", "spread")),
        ("ring", Claim("zone", "edge")),
        ("ring", Claim("ring", ("closed", 95))),
        ("gap", Claim("clock", ("gap", 3))),
        ("annulus", Claim("ring", ("closed", 50))),
        ("arc", Claim("span", (4, 6))),
        ("center", Claim("zone", "center")),
        ("spot", Claim("clock", 5)),
        ("spots", Claim("clock", ("second cluster", 9))),
        ("line", Claim("line", "rising")),
    ],
)
def test_what_matters_is_stated(name: str, claim: Claim) -> None:
    assert claim in state(MEASURED[name])


@pytest.mark.parametrize("name", ["empty", "none", "scatter", "full", "ring", "annulus", "center"])
def test_no_clock_position_for_what_has_none(name: str) -> None:
    assert not [c for c in state(MEASURED[name]) if c.kind in ("clock", "span")]
