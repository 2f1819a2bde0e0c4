"""Synthetic wafers: reproducible, valid, and of the class they are named for."""

from __future__ import annotations

import numpy as np
import pytest

from train.synthetic import scene, wafers
from wafervlm.errors import UsageError
from wafervlm.geometry import measure_shares
from wafervlm.task import WAFER_DEFECTS
from wafervlm.wafermap import check_dies


def test_same_seed_same_maps() -> None:
    labels = list(WAFER_DEFECTS.labels)
    assert [w.digest for w in wafers(labels, 5)] == [w.digest for w in wafers(labels, 5)]
    assert [w.digest for w in wafers(labels, 5)] != [w.digest for w in wafers(labels, 6)]


def test_shapes_are_those_of_the_class() -> None:
    def zones(label: str) -> np.ndarray:
        return np.mean([measure_shares(w.dies).zones for w in wafers([label] * 30, 1)], axis=0)

    centre, ring = zones("Center"), zones("Edge-Ring")
    assert centre[0] > 3 * centre[2]
    assert ring[2] > 3 * ring[0]
    assert np.mean([w.fail_share for w in wafers(["Near-full"] * 20, 1)]) > 0.75
    assert np.mean([w.fail_share for w in wafers(["none"] * 20, 1)]) < 0.08


def test_unknown_class_is_refused() -> None:
    with pytest.raises(UsageError, match="no synthetic wafer for 'Bruise'"):
        wafers(["Bruise"], 0)


def test_scenes_are_die_grids() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        grid = scene(rng)
        assert np.array_equal(check_dies(grid), grid)
