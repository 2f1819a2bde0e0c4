"""Intervals, paired tests and calibration, on label scores.

Wafers of one lot resemble each other, so intervals resample lots, not wafers, wherever lots are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from train.dataset import Sample
from wafervlm.errors import UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 2000
LOT_ROWS = 25
BINS = 15


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval and the number of wafers and lots it was taken on."""

    value: float
    low: float
    high: float
    wafers: int
    lots: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def lots_of(samples: Sequence[Sample]) -> Ints:
    """A number for the lot of each sample: by lot name where known; else, for rows in lot order whose id is
    the row's place, by blocks of 25 rows, which is a lot's reach; else each wafer by itself."""
    keys = [
        s.wafer.lot or (f"rows {int(s.wafer.id) // LOT_ROWS}" if s.wafer.id.isdigit() else f"#{i}")
        for i, s in enumerate(samples)
    ]
    return np.unique(np.array(keys), return_inverse=True)[1].astype(np.int64)


def mean_by_lot(values: Floats, lots: Ints, seed: int = 0) -> Interval:
    """The mean of ``values`` (N,) with the percentile interval over resampled lots."""
    if not len(values):
        raise UsageError("there is no labelled map to take a figure on")
    totals = _resampled(np.column_stack([values, np.ones(len(values))]), lots, seed)
    low, high = _middle(totals[:, 0] / np.maximum(totals[:, 1], 1))
    return Interval(float(values.mean()), low, high, len(values), int(lots.max()) + 1)


def _resampled(table: Floats, lots: Ints, seed: int) -> Floats:
    """Column sums (RESAMPLES, K) of ``table`` (N, K) over all lots, drawn anew with replacement."""
    count = int(lots.max()) + 1
    by_lot = np.zeros((count, table.shape[1]))
    np.add.at(by_lot, lots, table)
    chance = np.random.default_rng(seed)
    # One draw at a time: all at once would be RESAMPLES values for each of some ten thousand lots.
    drawn = (np.bincount(chance.integers(count, size=count), minlength=count) for _ in range(RESAMPLES))
    return np.stack([times @ by_lot for times in drawn])


def _middle(resampled: Floats) -> tuple[float, float]:
    """The 95 % percentile interval of a figure that was taken on each resample."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def share_by_lot(hits: NDArray[np.bool_], lots: Ints, seed: int = 0) -> Interval:
    """The share of ``hits`` (N,) with its interval over lots. Resampling cannot see what no wafer shows:
    where all are hits, or none, the interval is Wilson's with as many trials as there are lots."""
    found = mean_by_lot(hits.astype(np.float64), lots, seed)
    if 0 < found.value < 1:
        return found
    low, high = share_interval(round(found.value * found.lots), found.lots)
    return replace(found, low=low, high=1.0) if found.value else replace(found, low=0.0, high=high)


def ratio_by_lot(above: Floats, below: Floats, lots: Ints, seed: int = 0) -> Interval | None:
    """The sum of ``above`` (N,) over that of ``below`` (N,) with its interval over lots, on the wafers where
    ``below`` is not 0; None where there is none. Of a share that is 0 or 1 the interval is Wilson's, as in
    ``share_by_lot``."""
    kept = below > 0
    if not kept.any():
        return None
    above, below = above[kept], below[kept]
    lots = np.unique(lots[kept], return_inverse=True)[1].astype(np.int64)
    totals = _resampled(np.column_stack([above, below]), lots, seed)
    value, count = float(above.sum() / below.sum()), int(lots.max()) + 1
    low, high = _middle(totals[:, 0] / np.maximum(totals[:, 1], np.finfo(float).tiny))
    if value in (0.0, 1.0) and (above <= below).all():
        edges = share_interval(round(value * count), count)
        low, high = (edges[0], 1.0) if value else (0.0, edges[1])
    return Interval(value, low, high, len(above), count)


def ratio_difference_by_lot(
    first: tuple[Floats, Floats], second: tuple[Floats, Floats], lots: Ints, seed: int = 0
) -> Interval | None:
    """The ratio of ``second`` less that of ``first``, each as in ``ratio_by_lot``, on the same wafers: both
    are taken on the same resampled lots. None where one has no ratio."""
    if not (first[1].sum() > 0 and second[1].sum() > 0):
        return None
    totals = _resampled(np.column_stack([*first, *second]), lots, seed)
    tiny = np.finfo(float).tiny
    before, after = (totals[:, at] / np.maximum(totals[:, at + 1], tiny) for at in (0, 2))
    value = float(second[0].sum() / second[1].sum() - first[0].sum() / first[1].sum())
    return Interval(value, *_middle(after - before), len(lots), int(lots.max()) + 1)


def share_interval(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    low, high = proportion_confint(hits, total, method="wilson")
    return float(low), float(high)


def per_class(truth: Ints, answer: Ints, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall (with Wilson's interval), F1 and count of each class."""
    precision, recall, f1, count = precision_recall_fscore_support(
        truth, answer, labels=list(range(len(labels))), zero_division=0.0
    )
    table = {}
    for i, label in enumerate(labels):
        hits = int(((truth == i) & (answer == i)).sum())
        low, high = share_interval(hits, int(count[i])) if count[i] else (0.0, 1.0)
        table[label] = {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "recall_low": low,
            "recall_high": high,
            "f1": float(f1[i]),
            "count": int(count[i]),
        }
    return table


def confusion(truth: Ints, answer: Ints, classes: int) -> list[list[int]]:
    """Counts, rows the true class, columns the answer."""
    counted: list[list[int]] = confusion_matrix(truth, answer, labels=list(range(classes))).tolist()
    return counted


def mean_class_recall(truth: Ints, answer: Ints) -> float:
    """The mean over the classes present of their recall."""
    return float(np.mean([(answer[truth == c] == c).mean() for c in np.unique(truth)]))


def mean_class_recall_interval(truth: Ints, answer: Ints, lots: Ints, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of ``mean_class_recall`` over resampled lots, each over the classes present in it.

    Where no wafer is missed, Wilson's of as many trials as give one share the variance of the mean of C class
    shares, each of the n lots that show the class: C^2 / sum(1/n), and never more than there are lots.
    """
    member = truth[:, None] == np.unique(truth)
    hits = member & (answer == truth)[:, None]
    totals = _resampled(np.hstack([hits, member]).astype(np.float64), lots, seed)
    found, present = np.hsplit(totals, 2)
    recalls = np.divide(found, present, out=np.zeros_like(found), where=present > 0)
    low, high = _middle(recalls.sum(axis=1) / (present > 0).sum(axis=1))
    if not (answer == truth).all():
        return low, high
    showing = np.array([len(np.unique(lots[of])) for of in member.T])
    trials = min(len(np.unique(lots)), int(len(showing) ** 2 / (1 / showing).sum()))
    return share_interval(trials, trials)[0], 1.0


def paired(truth: Ints, bundle: Ints, reference: Ints, lots: Ints) -> dict[str, Any]:
    """Is the bundle as good as the reference on the same wafers? Accuracy difference (bundle minus reference)
    with its interval over lots, and McNemar's exact test on the wafers that only one of them gets right."""
    right, right_reference = bundle == truth, reference == truth
    only_bundle, only_reference = int((right & ~right_reference).sum()), int((~right & right_reference).sum())
    both = int((right & right_reference).sum())
    table = [[both, only_bundle], [only_reference, len(truth) - both - only_bundle - only_reference]]
    return {
        "difference": mean_by_lot(right.astype(float) - right_reference.astype(float), lots).to_dict(),
        "only_bundle_right": only_bundle,
        "only_reference_right": only_reference,
        "mcnemar_p": float(mcnemar(table, exact=True).pvalue),
    }


def divergence(reference: Floats, other: Floats) -> Floats:
    """Kullback-Leibler divergence in nats, (N,), of label distributions given as log-probabilities (N, L)."""
    p, q = softmax(reference, axis=1), softmax(other, axis=1)
    return np.asarray(rel_entr(p, np.maximum(q, 1e-300)).sum(axis=1))


def reliability(confidence: Floats, correct: NDArray[np.bool_], lots: Ints) -> dict[str, Any]:
    """Expected calibration error over 15 bins of equal width (Guo et al., 2017), with its interval over lots
    and the bins."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        {
            "confidence": float(confidence[at].mean()),
            "accuracy": float(correct[at].mean()),
            "count": int(at.sum()),
        }
        for at in (place == b for b in range(BINS))
        if at.any()
    ]
    error = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / max(len(confidence), 1)
    low, high = _calibration_interval(confidence, correct, lots, place)
    # A resample adds noise to every bin, and noise only adds to this error: all resamples may lie above it.
    return {"ece": float(error), "ece_low": min(low, float(error)), "ece_high": high, "bins": bins}


def _calibration_interval(
    confidence: Floats, correct: NDArray[np.bool_], lots: Ints, place: Ints, seed: int = 0
) -> tuple[float, float]:
    """Of the sum over bins of |sum of confidence - sum of right answers|, over the wafers of the resample."""
    gaps = np.where(place[:, None] == np.arange(BINS), (confidence - correct)[:, None], 0.0)
    totals = _resampled(np.column_stack([gaps, np.ones(len(gaps))]), lots, seed)
    low, high = _middle(np.abs(totals[:, :BINS]).sum(axis=1) / np.maximum(totals[:, BINS], 1))
    if correct.all():
        # Errors that no wafer shows could still be as frequent as Wilson's limit, at any confidence.
        high = max(high, share_interval(0, len(np.unique(lots)))[1])
    return low, high


def ratio_interval(above: Floats, below: Floats, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of median(``above``) / median(``below``): (N,) and (M,) values, such as the times of
    calls, each resampled by itself."""
    chance = np.random.default_rng(seed)
    tops, bottoms = (
        np.median(values[chance.integers(len(values), size=(RESAMPLES, len(values)))], axis=1)
        for values in (np.asarray(above), np.asarray(below))
    )
    return _middle(tops / bottoms)


def calibrated(log_probs: Floats, temperature: float) -> Floats:
    """Label probabilities (N, L): softmax of the log-probabilities over ``temperature``."""
    return np.asarray(np.exp(log_softmax(log_probs / temperature, axis=1)))
