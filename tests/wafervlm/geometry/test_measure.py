"""The geometry against planted structures, under turns and mirrors, and on real wafers."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from benchmarks.planted import KINDS, blank, plant
from benchmarks.planted_geometry import RINGS, WORDS
from wafervlm.errors import WaferMapError
from wafervlm.geometry import Cluster, Geometry, Line, Ring, measure, measure_shares, measure_wafer
from wafervlm.wafermap import FAIL, WaferMap, transform

SHAPES = st.tuples(st.integers(20, 60), st.integers(20, 60))
# Of drawn wafers one in some hundreds is truly doubtful: the same are drawn each time.
QUIET = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.mark.parametrize("kind", [k for k in KINDS if "line" not in k])
def test_the_word_is_that_of_what_was_planted(kind: str) -> None:
    right = 0
    for seed in range(25):
        dies, truth = plant(kind, np.random.default_rng(seed), noise=0.01)
        found = measure(dies)
        if kind in RINGS and 1.5 / min(dies.shape) > 0.06:
            # Three dies or so across the band: its word is a matter of taste.
            right += found.pattern in ("ring", "annulus", "arc", "cluster")
        else:
            right += found.pattern in WORDS[truth.kind]
    assert right >= 23


@QUIET
@given(st.integers(0, 2**32 - 1), SHAPES)
def test_a_cluster_lies_within_a_die_of_where_it_was_planted(seed: int, shape: tuple[int, int]) -> None:
    dies, truth = plant("cluster", np.random.default_rng(seed), shape=shape, noise=0.01)
    cluster = measure(dies).clusters[0]
    turn = math.radians(cluster.angle)
    right, down = cluster.radius * math.sin(turn) - truth.x, -cluster.radius * math.cos(turn) - truth.y
    assert math.hypot(right * shape[1] / 2, down * shape[0] / 2) <= 1.5
    assert {tuple(d) for d in cluster.dies.tolist()} <= {tuple(d) for d in np.argwhere(dies == FAIL).tolist()}


@QUIET
@given(st.sampled_from(RINGS), st.integers(0, 2**32 - 1))
def test_a_ring_has_its_radius_and_no_clock_position(kind: str, seed: int) -> None:
    dies, truth = plant(kind, np.random.default_rng(seed), shape=(40, 40), noise=0.02)
    found = measure(dies)
    assert found.main_hour is None
    assert isinstance(found.main, Ring)
    assert found.main.radius == pytest.approx(truth.radius, abs=0.02)
    assert found.main.width == pytest.approx(truth.width, abs=0.05)
    assert found.main.closed == (kind != "open ring")


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.1, 0.2])
def test_noise_makes_no_structure(noise: float) -> None:
    rng = np.random.default_rng(0)
    found = [measure(plant("none", rng, shape=(33, 33), noise=noise)[0]) for _ in range(100)]
    assert np.mean([bool(f.clusters or f.ring_list or f.lines or f.repeat) for f in found]) <= 0.05
    assert [f.background for f in found] == pytest.approx([f.share for f in found], abs=0.03)


def test_noise_does_not_join_two_clusters() -> None:
    wafer = blank(41, 41)
    rng = np.random.default_rng(1)
    joined = 0
    for _ in range(50):
        dies = wafer.dies.astype(np.uint8)
        dies[wafer.dies & (rng.random(dies.shape) < 0.05)] = FAIL
        for x in (-0.3, 0.3):
            dies[np.hypot(wafer.x - x, wafer.y) < 0.15] = FAIL
        found = measure(dies)
        joined += len(found.clusters) < 2
        assert {found.clusters[0].hour, found.clusters[1].hour} == {3, 9}
    assert joined == 0


def test_length_and_width_are_four_deviations_by_numpy() -> None:
    wafer = blank(50, 50)
    dies = wafer.dies.astype(np.uint8)
    dies[18:24, 8:30] = FAIL
    cluster = measure(dies).clusters[0]
    places = np.stack([wafer.x[dies == FAIL], wafer.y[dies == FAIL]])
    values = np.linalg.eigvalsh(np.cov(places, bias=True) + np.eye(2) * (2 / 50) ** 2 / 12)
    assert (cluster.width, cluster.length) == pytest.approx(tuple(4 * np.sqrt(values) / 2))
    assert cluster.direction == pytest.approx(0, abs=1e-6)
    assert (cluster.size, cluster.share, cluster.density) == (132, 1.0, 1.0)


@pytest.mark.parametrize(("direction", "step"), [(0, (0, 1)), (45, (-1, 1)), (90, (1, 0)), (135, (1, 1))])
def test_a_line_has_its_direction_and_length(direction: int, step: tuple[int, int]) -> None:
    dies = blank(45, 45).dies.astype(np.uint8)
    for i in range(-8, 9):
        dies[22 + i * step[0], 22 + i * step[1]] = FAIL
    found = measure(dies)
    assert found.pattern == "line"
    assert isinstance(found.main, Line)
    assert found.main.direction == pytest.approx(direction, abs=0.5)
    assert found.main.length == pytest.approx(17 * math.hypot(*step) / 45, rel=0.05)
    assert found.main.curvature == 0
    assert found.main_hour is None  # it lies in the center zone


def test_an_arc_covers_its_hours() -> None:
    wafer = blank(45, 45)
    dies = wafer.dies.astype(np.uint8)
    radius, angle = np.hypot(wafer.x, wafer.y), np.degrees(np.arctan2(wafer.x, -wafer.y)) % 360
    dies[wafer.dies & (radius > 0.88) & (angle > 110) & (angle < 190)] = FAIL
    found = measure(dies)
    assert (found.pattern, found.main_hour) == ("arc", 5)
    assert isinstance(found.main, Cluster)
    assert (found.main.first_hour, found.main.last_hour) == (4, 6)
    assert found.main.rim and found.main.zone == "edge" == found.main_zone


def turned(dies: np.ndarray, where: np.ndarray) -> set[tuple[int, int]]:
    """Dies of a grid after one quarter turn clockwise."""
    return {(int(column), dies.shape[0] - 1 - int(row)) for row, column in where}


@QUIET
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), SHAPES)
def test_a_quarter_turn_moves_hours_by_three(kind: str, seed: int, shape: tuple[int, int]) -> None:
    dies, _ = plant(kind, np.random.default_rng(seed), shape=shape)
    before, after = measure(dies), measure(transform(dies, 3))
    assert after.pattern == before.pattern
    assert after.zones == pytest.approx(before.zones, abs=0.02)
    # A die on the border of two rings of few dies may count to either.
    assert after.rings == pytest.approx(before.rings, abs=0.06)
    assert after.quadrants == pytest.approx(before.quadrants[[2, 0, 3, 1]])
    assert after.background == pytest.approx(before.background)
    assert after.main_zone == before.main_zone
    assert (after.main_hour is None) == (before.main_hour is None)
    assert len(after.clusters) == len(before.clusters)
    for old, new in zip(before.clusters, after.clusters, strict=True):
        if [c.size for c in before.clusters].count(old.size) > 1:
            continue  # equal ones come in the order of the rows
        assert turned(dies, old.dies) == {tuple(d) for d in new.dies.tolist()}
        assert new.radius == pytest.approx(old.radius)
        if old.radius > 0.02:
            assert (new.angle - old.angle - 90 + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)
        assert (new.length, new.width) == pytest.approx((old.length, old.width))
        if old.length > 1.02 * old.width:
            assert (new.direction - old.direction - 90 + 90) % 180 - 90 == pytest.approx(0, abs=1e-4)
    for first, second in zip(before.ring_list, after.ring_list, strict=True):
        assert second.radius == pytest.approx(first.radius, abs=0.02)
        assert second.closed == first.closed


@QUIET
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_shares_keep_under_every_symmetry(kind: str, seed: int, symmetry: int) -> None:
    dies, _ = plant(kind, np.random.default_rng(seed))
    before, after = measure(dies), measure(transform(dies, symmetry))
    assert (after.share, after.lonely) == (before.share, before.lonely)
    assert after.zones == pytest.approx(before.zones)
    assert after.main_zone == before.main_zone
    # Dies on the border of two sectors may change sides in a mirror.
    assert after.mirror == pytest.approx(before.mirror, abs=0.25)


@pytest.mark.parametrize("side", ["top", "right", "bottom", "left"])
def test_a_wafer_is_turned_so_that_its_mark_is_at_the_bottom(side: str) -> None:
    wafer = blank(30, 40)
    dies = wafer.dies.astype(np.uint8)
    dies[np.hypot(wafer.x - 0.5, wafer.y) < 0.2] = FAIL
    found = measure_wafer(WaferMap(dies, orientation=side))  # type: ignore[arg-type]
    # Three o'clock in the image; a quarter turn clockwise for a mark on the right, and so on.
    assert found.main_hour == {"bottom": 3, "right": 6, "top": 9, "left": 12}[side]
    assert found.frame == "tool"
    assert found.shape == (30, 40)
    np.testing.assert_array_equal(np.sort(_flat(found.clusters[0].dies)), np.flatnonzero(dies == FAIL))
    assert isinstance(found.main, Cluster) and found.main is found.clusters[0]


def _flat(dies: np.ndarray) -> np.ndarray:
    return dies[:, 0] * 40 + dies[:, 1]


def test_without_a_mark_directions_are_those_of_the_image() -> None:
    dies, _ = plant("arc", np.random.default_rng(4))
    plain, wafer = measure(dies), measure_wafer(WaferMap(dies))
    assert wafer.frame == plain.frame == "image"
    assert wafer.main_hour == plain.main_hour


def test_shares_are_counted_by_hand() -> None:
    dies = blank(20, 20).dies.astype(np.uint8)
    dies[:10] = np.where(dies[:10] > 0, FAIL, 0)
    found = measure(dies)
    assert found.share == 0.5
    np.testing.assert_array_equal(found.quadrants, [1, 1, 0, 0])
    assert found.hours[[0, 6]].tolist() == [1.0, 0.0]
    assert found.contrast == pytest.approx([1, 1, 1])
    assert found.main_zone is None
    assert found.mirror == pytest.approx(1, abs=0.02)
    alone = measure_shares(dies)
    for field in fields(alone):
        np.testing.assert_array_equal(getattr(alone, field.name), getattr(found, field.name))


@pytest.mark.parametrize("value", [1, FAIL])
def test_a_wafer_of_one_kind_of_die_is_none_or_full(value: int) -> None:
    found = measure(blank(25, 25).dies.astype(np.uint8) * np.uint8(value))
    assert found.pattern == ("none" if value == 1 else "full")
    assert found.main is None and found.main_hour is None and found.main_zone is None
    assert np.isfinite(found.contrast).all()


@pytest.mark.parametrize("shape", [(3, 3), (3, 200), (5, 4)])
def test_the_smallest_wafers_are_measured(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        dies = rng.integers(0, 3, shape).astype(np.uint8)
        if dies.any():
            assert isinstance(measure(dies), Geometry)


def test_a_grid_without_dies_is_refused() -> None:
    with pytest.raises(WaferMapError, match="no die"):
        measure(np.zeros((10, 10), np.uint8))


def test_a_missing_scipy_is_named() -> None:
    code = (
        "import sys; sys.modules['scipy'] = None\n"
        "import numpy as np\n"
        "from wafervlm.errors import MissingDependencyError\n"
        "from wafervlm.geometry import measure, measure_shares\n"
        "dies = np.ones((9, 9), np.uint8)\n"
        "assert measure_shares(dies).dies == 81\n"
        "try:\n    measure(dies)\n"
        "except MissingDependencyError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "wafervlm[words]" in done.stdout


def test_real_wafers_are_seen_as_their_labels_say(real_wafers: list[tuple[WaferMap, str]]) -> None:
    found = [(measure(wafer.dies), label) for wafer, label in real_wafers]

    def share(labels: tuple[str, ...], hit: object) -> float:
        return float(np.mean([hit(f) for f, label in found if label in labels]))  # type: ignore[operator]

    assert share(("Edge-Ring",), lambda f: f.pattern == "ring" and f.main_hour is None) >= 0.7
    assert share(("Edge-Loc",), lambda f: f.main_hour is not None) >= 0.8
    assert share(("Center",), lambda f: f.main_hour is None and f.main_zone == "center") >= 0.7
    assert share(("none",), lambda f: f.main is None) >= 0.6
    assert share(("Random",), lambda f: f.main is None) >= 0.8
    assert share(("Near-full",), lambda f: f.pattern == "full") == 1
    assert share(("none", "Center", "Loc"), lambda f: bool(f.ring_list)) <= 0.1


def test_a_structure_lies_in_its_zone_where_no_zone_stands_out() -> None:
    rng = np.random.default_rng(2)
    dies = blank(41, 41).dies.astype(np.uint8)
    on_wafer = dies > 0
    dies[on_wafer & (rng.random(dies.shape) < 0.12)] = FAIL
    dies[30:33, 18:22] = FAIL
    found = measure(dies)
    assert max(found.contrast) < 1.25
    assert found.main is not None and found.main_zone == found.main.zone == "middle"
    assert not found.zone_stands_out
