"""Figures of a multi-label task against scikit-learn, and the trees that are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from benchmarks.mixed import coarse, grown
from benchmarks.recipe import read_recipe
from benchmarks.several import compared, judged
from tests.conftest import data_folder
from train.sources import read_source
from wafervlm.answers import strangers, truth_of
from wafervlm.task import Task

ROOT = Path(__file__).resolve().parents[2]
LABELS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.random((300, 4)) < 0.4
    answer = truth ^ (rng.random(truth.shape) < 0.1)
    truth[:, 3], answer[:, 3] = False, False  # a class that nobody shows or names
    return truth, answer


def test_figures_are_scikit_learn_s(answers: tuple[np.ndarray, np.ndarray]) -> None:
    truth, answer = answers
    found = judged(truth, answer, LABELS, np.arange(300))
    for i, label in enumerate(LABELS[:3]):
        of = found["per_class"][label]
        assert of["f1"] == pytest.approx(f1_score(truth[:, i], answer[:, i]))
        assert of["precision"] == pytest.approx(precision_score(truth[:, i], answer[:, i]))
        assert of["recall"] == pytest.approx(recall_score(truth[:, i], answer[:, i]))
        assert of["f1_low"] < of["f1"] < of["f1_high"]
    assert found["per_class"]["d"]["f1"] is None
    assert found["macro_f1"] == pytest.approx(f1_score(truth[:, :3], answer[:, :3], average="macro"))
    exact = (truth == answer).all(axis=1)
    assert found["exact"]["value"] == pytest.approx(exact.mean())
    assert found["exact"]["low"] < exact.mean() < found["exact"]["high"]
    by_count = found["exact_by_count"]
    assert sum(of["value"] * of["wafers"] for of in by_count.values()) == pytest.approx(exact.sum())
    assert found["sets"] == len({tuple(row) for row in truth})


def test_two_models_are_compared_on_the_same_maps(answers: tuple[np.ndarray, np.ndarray]) -> None:
    truth, answer = answers
    found = compared(truth, truth, answer, np.arange(300))
    wrong = int((truth != answer).any(axis=1).sum())
    assert (found["only_first"], found["only_second"]) == (wrong, 0)
    assert found["exact_difference"]["value"] == pytest.approx(wrong / 300)


def test_a_coarse_picture_is_the_failing_share_of_each_cell() -> None:
    dies = np.ones((26, 52), dtype=np.uint8)
    dies[:2, :4] = 2
    dies[24:, 48:] = 0
    found = coarse(dies)
    assert found[0, 0] == 1
    assert found.sum() == 1


def test_trees_learn_the_patterns_of_mixedwm38() -> None:
    source = data_folder() / "mixedwm38" / "train.npz"
    if not source.is_file():
        pytest.skip(f"no MixedWM38 at {source}; set WAFERVLM_DATA to the folder that holds mixedwm38/")
    task = Task.from_file(ROOT / "train" / "nano" / "mixed_task.toml")
    assert read_recipe(ROOT / "train" / "nano" / "mixed.toml").data.task == "train/nano/mixed_task.toml"
    rows = read_source(source)
    assert not strangers(task, rows.labels.tolist())
    hot = np.load(source)["labels8"].astype(bool)
    np.testing.assert_array_equal(truth_of(task, rows.labels.tolist()), hot)
    some = rows.take(np.arange(0, len(rows), 8))
    truth = truth_of(task, some.labels[1::2].tolist())
    found = {
        name: answer
        for name, answer, _ in grown(some.take(slice(0, None, 2)), some.take(slice(1, None, 2)), task, 20)
    }
    assert len(found) == 4
    for answer in found.values():
        assert (answer == truth).mean() > 0.8
