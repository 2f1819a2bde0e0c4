"""Flipping labels as classes are confused, and the comparison of rankings."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from benchmarks.cleaning import OURS, Trial, confusion_of, contenders, flip, flip_by_map, summary, versus
from wafervlm.errors import MissingDependencyError, UsageError


def test_labels_are_flipped_as_they_are_confused() -> None:
    labels = np.repeat(np.arange(3), 4000)
    confusion = np.array([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75], [0.5, 0.5, 0.0]])
    flipped = flip(labels, 0.1, confusion, seed=1)
    changed = flipped != labels
    assert changed.sum() == 1200
    assert set(flipped[changed & (labels == 0)]) == {1}
    assert (flipped[changed & (labels == 1)] == 2).mean() == pytest.approx(0.75, abs=0.07)
    assert (flip(labels, 0.1, confusion, seed=2) != flipped).any()


def test_doubtful_maps_are_flipped_to_what_they_look_like() -> None:
    labels = np.zeros(1000, dtype=np.int64)
    probabilities = np.tile([0.98, 0.01, 0.01], (1000, 1))
    probabilities[:200] = [0.2, 0.0, 0.8]
    changed = flip_by_map(labels, 0.1, probabilities, seed=0)
    assert (changed != 0).sum() == 100
    assert (changed[:200] == 2).sum() > 75 and not (changed[:200] == 1).any()


def test_confusion_is_of_wrong_answers_alone() -> None:
    probabilities = np.eye(3)[[0, 1, 1, 2, 1, 2]]
    found = confusion_of(probabilities, np.array([0, 0, 0, 0, 1, 2]))
    np.testing.assert_allclose(found[0], [0, 2 / 3, 1 / 3])
    # A class that is never missed is flipped to any other.
    np.testing.assert_allclose(found[1], [0.5, 0, 0.5])


def test_the_best_of_the_other_is_compared_draw_by_draw() -> None:
    found = {OURS: [0.5, 0.7, 0.9], "a": [0.4, 0.6, 0.8], "b": [0.3, 0.9, 0.1]}
    told = versus(found)
    assert told["best_of_cleanlab"] == "a"
    difference = told["ours_minus_best_of_cleanlab"]
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["low"] == pytest.approx(0.1) and difference["high"] == pytest.approx(0.1)
    spread = summary([0.5, 0.7])
    # Student's t of one degree of freedom at 0.975.
    assert spread["high"] - spread["mean"] == pytest.approx(12.7062 * 0.1, rel=1e-3)


def test_a_trial_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="two draws"):
        Trial(seeds=(1,))
    with pytest.raises(UsageError, match="flipped"):
        Trial(flipped=1.0)


@pytest.mark.skipif(importlib.util.find_spec("cleanlab") is not None, reason="cleanlab is installed")
def test_without_cleanlab_it_says_what_to_install() -> None:
    with pytest.raises(MissingDependencyError, match="pip install cleanlab"):
        contenders()


@pytest.mark.skipif(importlib.util.find_spec("cleanlab") is None, reason="needs cleanlab")
def test_scores_of_all_contenders_are_high_for_a_wrong_label() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    probabilities = 0.1 + np.eye(3)[labels] + 0.2 * rng.random((300, 3))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    given = labels.copy()
    given[:6] = (given[:6] + 1) % 3
    for name, score in contenders().items():
        ranked = np.argsort(-score(probabilities, given))
        assert set(ranked[:6].tolist()) == set(range(6)), name
