"""What the vision tower is taught: against the geometry, numpy and the patches that it is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.augment import strongly
from train.nano.config import NANO, TINY, Shape
from train.nano.raw_clusters import sight
from train.nano.sight import targets
from train.nano.targets import PATCH_VALUES, _axes, patch_targets, wafer_targets
from train.patches import patchify
from train.synthetic import scene
from wafervlm.render import RenderSpec, render
from wafervlm.wafermap import FAIL, PASS

VALUE = {name: i for i, name in enumerate(PATCH_VALUES)}


@pytest.mark.parametrize("shape", [NANO, TINY])
def test_targets_lie_in_the_order_of_the_patches(shape: Shape) -> None:
    rng = np.random.default_rng(0)
    grids = [scene(rng) for _ in range(4)]
    images = np.stack([render(grid, RenderSpec(shape.image, shape.image)) for grid in grids])
    red = patchify(images, shape.patch, 2).view(4, -1, 3, 2, shape.patch, shape.patch)[:, :, 0, 0]
    failing = (red > 0.9).float().mean(dim=(-1, -2))
    local, _ = targets(grids, shape)
    found = local.view(4, -1, len(PATCH_VALUES))[..., VALUE["failing"]]
    torch.testing.assert_close(found, failing, rtol=0, atol=1e-6)


def test_axes_are_those_of_the_covariance() -> None:
    rng = np.random.default_rng(1)
    dies = np.ones((30, 40), dtype=np.uint8)
    marked = np.zeros((30, 40), dtype=np.int32)
    marked[rng.integers(5, 20, 30), rng.integers(3, 36, 30)] = 1
    length, width, angle = _axes(marked, np.bincount(marked.ravel()), dies)
    rows, columns = np.nonzero(marked)
    spread = np.cov(np.stack([2 * rows / 30, 2 * columns / 40]), bias=True)
    spread += np.diag([(2 / 30) ** 2 / 12, (2 / 40) ** 2 / 12])
    values, vectors = np.linalg.eigh(spread)
    assert (length[1], width[1]) == pytest.approx((2 * np.sqrt(values[1]), 2 * np.sqrt(values[0])))
    down, right = vectors[:, 1]
    assert np.cos(2 * angle[1]) == pytest.approx(right**2 - down**2)
    assert np.sin(2 * angle[1]) == pytest.approx(2 * right * down)


def test_a_line_is_told_from_a_blob_and_from_noise() -> None:
    line, blob, noise = (np.ones((28, 28), dtype=np.uint8) for _ in range(3))
    line[np.arange(5, 23), np.arange(5, 23)] = FAIL
    blob[8:14, 8:14] = FAIL
    noise[::4, ::4] = FAIL
    share = {
        name: patch_targets(dies, 112, 8).mean(axis=(0, 1))
        for name, dies in (("line", line), ("blob", blob), ("noise", noise))
    }
    assert share["line"][VALUE["in a line"]] == share["line"][VALUE["failing"]] > 0
    assert share["line"][VALUE["along the diagonals"]] > 0.8 * share["line"][VALUE["failing"]]
    assert share["blob"][VALUE["in a line"]] == 0 < share["blob"][VALUE["clustered"]]
    assert share["noise"][VALUE["alone"]] == share["noise"][VALUE["failing"]] > 0
    assert share["noise"][VALUE["clustered"]] == 0


def test_the_whole_is_what_the_geometry_measures() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        dies = strongly(scene(rng), rng)
        found, values = sight(dies), wafer_targets(dies)
        assert values[0] == pytest.approx(found.shares.share)
        assert values[7:10] == pytest.approx(found.shares.zones)
        assert values[40:65] == pytest.approx(found.shares.grid.ravel())
        # Neighbour counts and cluster sizes are shares of the failing dies.
        assert values[65:74].sum() == pytest.approx(1.0) and values[74:82].sum() == pytest.approx(1.0)
        if found.clusters:
            assert values[83] == pytest.approx(found.clusters[0].share)


def test_a_wafer_without_failing_dies_has_targets() -> None:
    dies = np.full((20, 20), PASS, dtype=np.uint8)
    assert np.isfinite(wafer_targets(dies)).all() and not patch_targets(dies, 64, 8).any()
