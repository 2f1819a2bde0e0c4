"""Statements that do not hang on a few dies."""

from __future__ import annotations

import numpy as np
import pytest

from tests.wafervlm.claims.drawing import DRAWN, spot, wafer
from train.vqa.answers import CLOCKS
from train.vqa.facts import PLACED, facts
from train.vqa.rubrics import rubric
from train.vqa.steady import FIGURES, plainly, steady
from train.vqa.write import answer
from wafervlm.claims import Claim, check, state
from wafervlm.geometry import measure
from wafervlm.wafermap import FAIL, DieGrid, WaferMap


def two_clusters(second: int, row: int = 18) -> DieGrid:
    """A large cluster at 3 o'clock and one of ``second`` x ``second`` dies about 9 o'clock."""
    dies = wafer(spot(3, 0.6, 0.2))
    dies[row : row + second, 5 : 5 + second] = FAIL
    return dies


def test_what_one_die_decides_is_said_less_often() -> None:
    dense, two = Claim("density", "dense"), Claim("clusters", 2)

    def kept(second: int) -> list[tuple[Claim, ...]]:
        wafers = [two_clusters(second, row) for row in range(12, 26)]
        assert all(check([two], measure(dies))[0].supported for dies in wafers)
        return [steady([dense, two], dies) for dies in wafers]

    # A cluster of four dies is the smallest there is: without one of them it is none.
    assert kept(5) == [(dense, two)] * 14
    assert (dense, Claim("clusters", "any")) in kept(2)


def test_figures_and_one_word_on_the_shape_stay() -> None:
    dies, claims = two_clusters(5), [Claim("share", 50), Claim("line", "curved"), Claim("size", 4)]
    kinds = [claim.kind for claim in steady([*claims, Claim("density", "dense")], dies)]
    assert kinds == ["share", "size", "density"]
    assert [claim.kind for claim in steady(claims, dies)] == ["share", "line", "size"]


def test_a_wafer_without_failing_dies_is_left_as_it_is() -> None:
    dies = DRAWN["empty"]
    claims = state(measure(dies))
    assert claims and steady(claims, dies) == claims


def test_what_is_kept_is_true_in_its_order_and_repeats(real_wafers: list[tuple[WaferMap, str]]) -> None:
    kept = said = 0
    for map_, label in real_wafers[::3]:
        everything, found = state(measure(map_.dies)), facts(map_.dies, label)
        assert found.statements == facts(map_.dies, label).statements
        plain = [plainly(c) for c in everything]
        order = [everything.index(c) if c in everything else plain.index(c) for c in found.statements]
        assert order == sorted(order)
        assert all(found.holds(claim) for claim in found.statements)
        assert {c.kind for c in everything} & FIGURES <= {c.kind for c in found.statements}
        kept, said = kept + len(found.statements), said + len(everything)
    assert 0.6 * said < kept < said


def test_a_place_that_is_not_said_is_not_denied(
    real_wafers: list[tuple[WaferMap, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def placeless(claims: tuple[Claim, ...], _: DieGrid) -> tuple[Claim, ...]:
        return tuple(claim for claim in claims if claim.kind not in PLACED)

    monkeypatch.setattr("train.vqa.facts.steady", placeless)
    placed = disputed = 0
    for map_, label in real_wafers[::3]:
        found = facts(map_.dies, label)
        told = answer(found, np.random.default_rng(0), "clock")
        assert (told is None) == (not found.placeless)
        avoided = rubric(found, np.random.default_rng(0)).spatial_rubric.spatial_avoid
        assert found.placeless or not set(CLOCKS) & set(avoided)
        placed, disputed = placed + (not found.placeless), disputed + found.disputed
    assert placed - disputed > 3 and disputed
