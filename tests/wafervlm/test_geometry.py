"""Geometry on wafers whose shapes are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from wafervlm.geometry import measure
from wafervlm.wafermap import DieGrid, WaferMap, transform


def wafer(side: int = 41) -> tuple[DieGrid, np.ndarray, np.ndarray]:
    y, x = np.meshgrid(*(np.linspace(-1, 1, side),) * 2, indexing="ij")
    return np.where(np.hypot(x, y) <= 1.01, 1, 0).astype(np.uint8), y, x


def test_ring_at_the_rim() -> None:
    dies, y, x = wafer()
    dies[(np.hypot(x, y) > 0.9) & (dies > 0)] = 2
    found = measure(dies)
    assert found.has_ring
    assert found.ring_hours == 12
    assert found.zones[0] == 0
    assert found.rings[-1] > 0.4


@pytest.mark.parametrize(("hour", "y0", "x0"), [(12, -0.5, 0), (3, 0, 0.5), (6, 0.5, 0), (9, 0, -0.5)])
def test_cluster_at_a_clock_position(hour: int, y0: float, x0: float) -> None:
    dies, y, x = wafer()
    dies[np.hypot(x - x0, y - y0) < 0.2] = 2
    found = measure(dies)
    assert len(found.clusters) == 1
    assert found.clusters[0].hour == hour
    assert found.clusters[0].radius == pytest.approx(0.5, abs=0.03)
    assert found.clusters[0].zone == "middle"
    assert not found.clusters[0].is_line
    assert not found.has_ring
    assert int(found.middle_hours.argmax()) == hour % 12


def test_line_is_long_and_thin() -> None:
    dies, y, x = wafer()
    dies[(np.abs(y - x) < 0.03) & (np.abs(x) < 0.4)] = 2
    found = measure(dies)
    assert found.clusters[0].is_line
    # A uniform line of length L has a standard deviation of L / sqrt(12); four of them over the diameter.
    assert found.clusters[0].length == pytest.approx(2 * 0.8 * np.sqrt(2) / np.sqrt(12), rel=0.05)


def test_lonely_dies_are_no_cluster() -> None:
    dies, _, _ = wafer()
    dies[10:30:4, 10:30:4] = 2
    found = measure(dies)
    assert found.clusters == ()
    assert found.lonely == 1.0
    assert found.share == pytest.approx(25 / np.count_nonzero(dies))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 7), st.integers(0, 2**32 - 1))
def test_shares_follow_rotations(symmetry: int, seed: int) -> None:
    from train.synthetic import scene

    dies = scene(np.random.default_rng(seed))
    before, after = measure(dies), measure(transform(dies, symmetry))
    assert after.share == before.share
    assert after.zones == pytest.approx(before.zones)
    assert after.lonely == before.lonely
    assert [c.size for c in after.clusters] == [c.size for c in before.clusters]


def test_real_rings_are_seen(real_wafers: list[tuple[WaferMap, str]]) -> None:
    rings = [measure(w.dies).has_ring for w, label in real_wafers if label == "Edge-Ring"]
    others = [measure(w.dies).has_ring for w, label in real_wafers if label in ("Center", "Loc", "none")]
    assert np.mean(rings) >= 0.5
    assert np.mean(others) <= 0.1
