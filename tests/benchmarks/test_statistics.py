"""Statistics against hand-worked cases and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score

from benchmarks import statistics as st
from benchmarks.accuracy import compared, scored
from train.dataset import Sample
from wafervlm.errors import UsageError
from wafervlm.wafermap import WaferMap

GRID = np.ones((4, 4), dtype=np.uint8)


def sample(i: int, label: str, lot: str = "") -> Sample:
    return Sample(WaferMap(GRID, id=str(i), lot=lot), label)


def test_lots_by_name_else_by_reach_else_alone() -> None:
    samples = [
        sample(3, "a", "L1"),
        sample(900, "a", "L1"),
        sample(26, "a"),
        sample(49, "a"),
        sample(51, "a"),
    ]
    samples += [Sample(WaferMap(GRID, id="x"), "a"), Sample(WaferMap(GRID, id="x"), "a")]
    lots = st.lots_of(samples)
    assert lots[0] == lots[1]
    assert lots[2] == lots[3] != lots[4]
    assert lots[5] != lots[6]


def test_interval_is_wider_when_wafers_of_a_lot_agree() -> None:
    values = np.repeat([0.0, 1.0], 100)
    alone = st.mean_by_lot(values, np.arange(200))
    together = st.mean_by_lot(values, np.arange(200) // 20)
    assert alone.value == together.value == 0.5
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert (together.wafers, together.lots) == (200, 10)
    with pytest.raises(UsageError, match="no labelled map"):
        st.mean_by_lot(np.zeros(0), np.zeros(0, dtype=np.int64))


def test_a_share_of_all_is_not_certain() -> None:
    whole = st.share_by_lot(np.ones(200, dtype=bool), np.arange(200) // 10)
    assert (whole.value, whole.high) == (1.0, 1.0)
    assert whole.low == pytest.approx(st.share_interval(20, 20)[0])
    none = st.share_by_lot(np.zeros(200, dtype=bool), np.arange(200) // 10)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high > 0.1
    some = np.arange(200) % 4 == 0
    assert st.share_by_lot(some, np.arange(200)) == st.mean_by_lot(some.astype(float), np.arange(200))


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        interval = st.mean_by_lot((rng.random(300) < 0.8).astype(float), np.arange(300), seed)
        covered += interval.low <= 0.8 <= interval.high
    assert covered >= 88


def test_per_class_matches_sklearn() -> None:
    rng = np.random.default_rng(1)
    truth, answer = rng.integers(0, 3, 90), rng.integers(0, 3, 90)
    table = st.per_class(truth, answer, ["a", "b", "c"])
    recall = recall_score(truth, answer, average=None)
    assert [row["recall"] for row in table.values()] == pytest.approx(list(recall))
    assert st.mean_class_recall(truth, answer) == pytest.approx(recall.mean())
    assert sum(row["count"] for row in table.values()) == 90
    assert all(row["recall_low"] <= row["recall"] <= row["recall_high"] for row in table.values())


def test_paired_counts_only_the_discordant() -> None:
    truth = np.zeros(100, dtype=np.int64)
    bundle, reference = truth.copy(), truth.copy()
    bundle[:8], reference[:2] = 1, 1
    found = st.paired(truth, bundle, reference, np.arange(100))
    assert (found["only_bundle_right"], found["only_reference_right"]) == (0, 6)
    assert found["difference"]["value"] == pytest.approx(-0.06)
    assert found["mcnemar_p"] == pytest.approx(2 * 0.5**6)


def test_calibration_error_of_a_model_that_is_always_sure() -> None:
    found = st.reliability(np.ones(10), np.array([True] * 7 + [False] * 3))
    assert found["ece"] == pytest.approx(0.3)
    assert found["bins"] == [{"confidence": 1.0, "accuracy": 0.7, "count": 10}]


def test_divergence_of_two_coins() -> None:
    fair, biased = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert st.divergence(fair, biased) == pytest.approx([expected])
    assert st.divergence(fair, fair) == pytest.approx([0.0])


def test_temperature_softens_without_changing_the_answer() -> None:
    log_probs = np.log(np.array([[0.7, 0.2, 0.1]]))
    soft = st.calibrated(log_probs, 2.0)
    assert soft.sum() == pytest.approx(1.0)
    assert soft.argmax() == 0
    assert soft.max() < 0.7


def test_figures_of_a_model_and_of_a_pair() -> None:
    labels = ["Center", "none"]
    samples = [sample(i * 100, labels[i % 2]) for i in range(40)]
    good = np.log(np.array([[0.9, 0.1], [0.2, 0.8]] * 20))
    worse = good.copy()
    worse[0] = np.log([0.4, 0.6])
    figures = scored(worse, samples, labels)
    truth = [i % 2 for i in range(40)]
    assert figures["accuracy"]["value"] == accuracy_score(truth, worse.argmax(axis=1))
    assert figures["confusion"] == [[19, 1], [0, 20]]
    assert figures["screening"]["defects_found"]["value"] == pytest.approx(0.95)
    assert figures["screening"]["none_left_alone"]["value"] == 1.0
    pair = compared(worse, good, samples, labels)
    assert pair["agreement"]["value"] == pytest.approx(39 / 40)
    assert pair["disagreements"] == [0]
    assert pair["kl"]["max"] > 0
