"""Wafer maps made from wafer maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from train.augment import FALSE_FAILS, FALSE_PASSES, flipped, relaid, strongly
from train.synthetic import scene, wafers
from wafervlm.geometry import measure_shares
from wafervlm.wafermap import FAIL, NO_DIE, PASS, DieGrid, transform


def full(side: int, seed: int = 0) -> DieGrid:
    return np.random.default_rng(seed).choice([PASS, FAIL], (side, side)).astype(np.uint8)


@pytest.mark.parametrize("quarter", range(4))
def test_quarter_turns_are_those_of_the_symmetries(quarter: int) -> None:
    dies = full(17)
    np.testing.assert_array_equal(
        relaid(dies, dies.shape, quarter * np.pi / 2), transform(dies, quarter), strict=True
    )


def test_outline_and_holes_stay_where_the_product_has_them() -> None:
    (wafer,) = wafers(["Loc"], seed=3)
    dies = wafer.dies.copy()
    centre = dies.shape[0] // 2, dies.shape[1] // 2
    dies[centre] = NO_DIE
    turned = relaid(dies, dies.shape, 0.7)
    np.testing.assert_array_equal(turned == NO_DIE, dies == NO_DIE)


@pytest.mark.parametrize("angle", [0.3, 1.1, 2.5])
def test_a_cluster_goes_round_with_the_angle(angle: float) -> None:
    y, x = np.meshgrid(*(np.linspace(-1, 1, 61),) * 2, indexing="ij")
    dies = np.where(np.hypot(y, x) <= 1, PASS, NO_DIE).astype(np.uint8)
    dies[np.hypot(y, x - 0.6) < 0.15] = FAIL
    rows, columns = np.nonzero(relaid(dies, (49, 71), angle) == FAIL)
    where = np.arctan2(-(2 * (rows.mean() + 0.5) / 49 - 1), 2 * (columns.mean() + 0.5) / 71 - 1)
    away = np.hypot(2 * (rows.mean() + 0.5) / 49 - 1, 2 * (columns.mean() + 0.5) / 71 - 1)
    assert where == pytest.approx(angle, abs=0.05)
    assert away == pytest.approx(0.6, abs=0.03)


def test_radius_draws_the_pattern_out() -> None:
    y, x = np.meshgrid(*(np.linspace(-1, 1, 81),) * 2, indexing="ij")
    dies = np.where(np.hypot(y, x) < 0.5, FAIL, PASS).astype(np.uint8)
    ratio = (relaid(dies, (81, 81), 0, 1.2) == FAIL).sum() / (dies == FAIL).sum()
    assert ratio == pytest.approx(1.2**2, rel=0.03)


def test_flips_stay_within_their_shares() -> None:
    rng = np.random.default_rng(5)
    dies = full(60)
    for _ in range(20):
        found = flipped(dies, rng)
        assert (found[dies == PASS] == FAIL).mean() < FALSE_FAILS + 0.02
        assert (found[dies == FAIL] == PASS).mean() < FALSE_PASSES + 0.02
    assert (found != dies).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_a_pattern_keeps_its_measure(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dies = scene(rng)
    made = strongly(dies, np.random.default_rng(seed))
    np.testing.assert_array_equal(made, strongly(dies, np.random.default_rng(seed)))
    assert made.dtype == np.uint8 and made.any() and made.max() <= FAIL
    before, after = measure_shares(dies), measure_shares(made)
    # Flips change a share by 0.08 at most; few dies lie in the inner zone of a small grid.
    assert after.share == pytest.approx(before.share, abs=0.15)
    assert after.zones == pytest.approx(before.zones, abs=0.35)


def test_the_smallest_map_survives() -> None:
    dies = np.zeros((3, 3), dtype=np.uint8)
    dies[2, 0] = FAIL
    rng = np.random.default_rng(0)
    assert all(strongly(dies, rng).any() for _ in range(200))
