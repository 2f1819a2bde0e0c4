"""Statistics against hand-worked cases and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap
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


def test_interval_of_mean_class_recall_is_scipys_where_wafers_stand_alone() -> None:
    rng = np.random.default_rng(3)
    truth, lots = rng.integers(0, 3, 300), np.arange(300)
    answer = np.where(rng.random(300) < 0.7, truth, rng.integers(0, 3, 300))
    expected = bootstrap(
        (truth, answer),
        st.mean_class_recall,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(4),
    ).confidence_interval
    found = st.mean_class_recall_interval(truth, answer, lots)
    assert found == pytest.approx((expected.low, expected.high), abs=0.01)
    # The same answers in lots of 30 that stand together say less.
    order = np.argsort(answer == truth)
    low, high = st.mean_class_recall_interval(truth[order], answer[order], lots // 30)
    assert high - low > 2 * (found[1] - found[0])


def test_mean_class_recall_of_all_is_as_uncertain_as_the_rarest_class() -> None:
    truth = np.repeat([0, 1], [90, 10])
    low, high = st.mean_class_recall_interval(truth, truth, np.arange(100))
    # The mean of two shares, of 90 and of 10 trials, varies as one share of 4 / (1 / 90 + 1 / 10) = 36 does.
    assert (low, high) == (pytest.approx(st.share_interval(36, 36)[0]), 1.0)


def test_paired_counts_only_the_discordant() -> None:
    truth = np.zeros(100, dtype=np.int64)
    bundle, reference = truth.copy(), truth.copy()
    bundle[:8], reference[:2] = 1, 1
    found = st.paired(truth, bundle, reference, np.arange(100))
    assert (found["only_bundle_right"], found["only_reference_right"]) == (0, 6)
    assert found["difference"]["value"] == pytest.approx(-0.06)
    assert found["mcnemar_p"] == pytest.approx(2 * 0.5**6)


def test_calibration_error_of_a_model_that_is_always_sure() -> None:
    found = st.reliability(np.ones(10), np.array([True] * 7 + [False] * 3), np.arange(10))
    assert found["ece"] == pytest.approx(0.3)
    assert found["bins"] == [{"confidence": 1.0, "accuracy": 0.7, "count": 10}]
    # Of one lot there is nothing to resample but itself.
    one = st.reliability(np.ones(10), np.array([True] * 7 + [False] * 3), np.zeros(10, dtype=np.int64))
    assert (one["ece_low"], one["ece_high"]) == pytest.approx((0.3, 0.3))


def test_calibration_interval_of_one_bin_is_that_of_the_share_wrong() -> None:
    """Always sure, the error is the share of wrong answers, whose interval is known."""
    correct, lots = np.arange(400) % 5 > 0, np.arange(400) // 4
    found = st.reliability(np.ones(400), correct, lots)
    share = st.mean_by_lot((~correct).astype(float), lots)
    assert (found["ece_low"], found["ece_high"]) == pytest.approx((share.low, share.high))
    assert found["ece_low"] < found["ece"] < found["ece_high"]


def test_calibration_interval_holds_its_value_and_what_no_wafer_shows() -> None:
    chance = np.random.default_rng(5)
    confidence = chance.random(300)
    correct = chance.random(300) < confidence
    found = st.reliability(confidence, correct, np.arange(300))
    assert found["ece_low"] <= found["ece"] < found["ece_high"]
    whole = st.reliability(np.full(40, 0.999), np.ones(40, dtype=bool), np.arange(40) // 2)
    assert whole["ece"] == pytest.approx(0.001)
    assert whole["ece_high"] == pytest.approx(st.share_interval(0, 20)[1])


def test_ratio_interval_is_scipys() -> None:
    chance = np.random.default_rng(6)
    above, below = 30 + chance.exponential(4, 61), 5 + chance.exponential(1, 200)
    expected = bootstrap(
        (above, below),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(7),
    ).confidence_interval
    found = st.ratio_interval(above, below)
    assert found == pytest.approx((expected.low, expected.high), rel=0.02)
    assert found[0] < np.median(above) / np.median(below) < found[1]
    assert st.ratio_interval(np.full(5, 6.0), np.full(9, 2.0)) == (3.0, 3.0)


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
    # One wafer of 40 lots differs: a resample holds it not at all, or a few times.
    assert pair["kl"]["mean"] == pytest.approx(pair["kl"]["max"] / 40)
    assert (pair["kl"]["mean_low"], pair["kl"]["mean_high"]) == pytest.approx((0, 3 * pair["kl"]["mean"]))
    low, high = figures["mean_class_recall_low"], figures["mean_class_recall_high"]
    assert low < figures["mean_class_recall"] < high == 1
    assert figures["calibration"]["ece_low"] < figures["calibration"]["ece_high"]
