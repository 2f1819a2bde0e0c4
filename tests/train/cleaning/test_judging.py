"""From features to suspects: groups, probabilities, clusters, scores and duplicates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from train.cleaning.clusters import cluster_labels, neighbour_labels, representatives
from train.cleaning.duplicates import conflicts
from train.cleaning.groups import judged_together
from train.cleaning.probabilities import FLOOR, folds_of, out_of_sample
from train.cleaning.suspects import judge
from train.cleaning.suspicion import confusion_rates, suspicion
from train.sources.rows import Rows, rows_of_grids, texts
from wafervlm.errors import DatasetError
from wafervlm.wafermap import DieGrid, transform


def grids(count: int, seed: int = 0) -> list[DieGrid]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 3, size=(6, 7)).astype(np.uint8) for _ in range(count)]


def blobs(per_class: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Geometry, vision, labels and lots of three classes that are well apart in both."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    centres = np.eye(3)[labels]
    geometry = np.hstack([centres, centres]) * 4 + rng.normal(size=(len(labels), 6))
    vision = centres * 4 + rng.normal(size=(len(labels), 3))
    lots = np.tile(np.arange(per_class), 3)
    return geometry, vision, labels.astype(np.int64), lots.astype(np.int64)


def test_rows_of_a_lot_and_copies_of_a_map_are_judged_together() -> None:
    maps = grids(6)
    maps[5] = transform(maps[0], 5)
    rows = rows_of_grids(maps, list("aabbab"), lots=["p", "p", "q", "q", "", "r"], ordered=False)
    groups = judged_together(rows)
    assert groups[0] == groups[1] == groups[5]
    assert groups[2] == groups[3]
    assert len({groups[0], groups[2], groups[4]}) == 3


def test_rows_in_lot_order_are_cut_into_blocks_and_rows_sorted_by_class_are_not() -> None:
    maps = grids(200)
    mixed = rows_of_grids(maps, ["a", "b"] * 100)
    blocks = judged_together(mixed)
    assert 2 < len(np.unique(blocks)) < 40 and (np.diff(blocks) >= 0).all()
    by_class = replace(mixed, labels=texts(["a"] * 100 + ["b"] * 100))
    assert len(np.unique(judged_together(by_class))) == 200


def test_folds_share_no_group() -> None:
    *_, labels, lots = blobs()
    folds = folds_of(labels, lots)
    assert sorted(np.concatenate([judged for _, judged in folds]).tolist()) == list(range(len(labels)))
    assert all(not set(lots[a]) & set(lots[b]) for a, b in folds)
    with pytest.raises(DatasetError, match="one lot"):
        folds_of(labels, np.zeros_like(labels))


def test_one_class_cannot_be_judged() -> None:
    geometry, vision, labels, lots = blobs(10)
    with pytest.raises(DatasetError, match="one label"):
        out_of_sample(geometry, vision, np.zeros_like(labels), lots)


def test_probabilities_are_out_of_sample() -> None:
    geometry, vision, labels, lots = blobs()
    found = out_of_sample(geometry, vision, labels, lots)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert found.min() >= FLOOR / 2
    assert (found.argmax(axis=1) == labels).mean() > 0.95
    # Labels that have nothing to do with the features are not known by heart.
    drawn = np.random.default_rng(1).integers(0, 3, len(labels))
    blind = out_of_sample(geometry, vision, drawn, lots)
    assert np.take_along_axis(blind, drawn[:, None], axis=1).mean() < 0.45


def test_the_score_is_the_formula_of_its_docstring() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 200)
    labels = rng.integers(0, 4, 200)
    score, other = suspicion(probabilities, labels)
    rates = confusion_rates(probabilities, labels)
    for p, y, found, best in zip(probabilities, labels, score, other, strict=True):
        others = [j for j in range(4) if j != y]
        odds = max(np.log(p[j] / p[y]) for j in others)
        odds += 0.3 * np.log(sum(p[j] * rates[j, y] for j in others) / p[y])
        assert found == pytest.approx(1 / (1 + np.exp(-odds)))
        assert best == max(others, key=lambda j: p[j])


def test_near_maps_come_from_every_cluster_and_far_ones_are_the_farthest() -> None:
    rng = np.random.default_rng(0)
    space = np.concatenate([rng.normal(size=(60, 2)) * 0.1, rng.normal(size=(60, 2)) * 0.1 + 5, [[2.5, 9.0]]])
    labels = np.zeros(121, dtype=np.int64)
    found = cluster_labels(space, labels)
    near, far = representatives(found, labels, 4)[0]
    assert far[0] == 120
    assert {int(row) // 60 for row in near} == {0, 1}
    assert found.farness[120] == 1.0 and found.farness.min() == 0.0


def test_neighbours_are_of_other_groups() -> None:
    space = np.arange(40.0)[:, None]
    labels = np.array([0, 1] * 20)
    groups = np.array([0, 1] * 20)
    # Every map of the own class is of the own group here.
    counts = neighbour_labels(space, labels, groups, np.array([10, 11]))
    np.testing.assert_array_equal(counts, [[0, 15], [15, 0]])


def _rows(labels: list[str], lots: list[str]) -> Rows:
    return rows_of_grids(grids(len(labels)), labels, lots=lots, ordered=False)


def test_flipped_labels_come_first_with_the_true_one_suggested() -> None:
    geometry, vision, labels, lots = blobs()
    flipped = [3, 50, 101]
    names = np.array(["Center", "Donut", "Loc"])
    given = labels.copy()
    given[flipped] = (given[flipped] + 1) % 3
    rows = _rows(names[given].tolist(), [f"lot{i}" for i in lots])
    judged = judge(rows, geometry, vision)
    first = judged.suspects[:3]
    assert sorted(s.row for s in first) == flipped
    assert all(s.suggested == names[labels[s.row]] and s.given == names[given[s.row]] for s in first)
    assert all(f"likest maps carry {s.suggested}" in s.reason for s in first)
    assert [s.score for s in judged.suspects] == sorted((s.score for s in judged.suspects), reverse=True)


def test_maps_with_two_labels_are_named_first() -> None:
    geometry, vision, labels, lots = blobs()
    maps = grids(len(labels))
    maps[90], maps[91] = transform(maps[2], 6), maps[2]
    names = np.array(["Center", "Donut", "Loc"])[labels].tolist()
    names[91] = "Center"
    rows = rows_of_grids(maps, names, lots=[f"lot{i}" for i in lots], ordered=False)
    (found,) = conflicts(rows)
    assert found.rows == (2, 90, 91) and found.majority == "Center" and not found.exact
    first = judge(rows, geometry, vision).suspects[0]
    assert (first.row, first.given, first.suggested, first.score) == (90, "Loc", "Center", 1.0)
    assert "turned or mirrored" in first.reason and "as 2" in first.reason


def test_what_the_source_disputes_is_a_suspect_whatever_its_score() -> None:
    geometry, vision, labels, lots = blobs()
    rows = _rows([f"class{i}" for i in labels], [f"lot{i}" for i in lots])
    rows = replace(rows, disputed=np.arange(len(rows)) == 7)
    judged = judge(rows, geometry, vision)
    assert judged.disputed == (7,)
    (found,) = [s for s in judged.suspects if s.row == 7]
    assert found.reason.startswith("its source says")


def test_a_class_of_few_maps_is_not_judged() -> None:
    geometry, vision, labels, lots = blobs()
    names = [f"class{i}" for i in labels]
    names[5] = "Rare"
    judged = judge(_rows(names, [f"lot{i}" for i in lots]), geometry, vision)
    assert judged.rare == ("Rare",)
    assert 5 not in [s.row for s in judged.suspects]
