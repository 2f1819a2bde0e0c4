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
    sums, counts = np.bincount(lots, weights=values), np.bincount(lots).astype(float)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / np.maximum(counts[drawn].sum(axis=1), 1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), len(values), len(sums))


def share_by_lot(hits: NDArray[np.bool_], lots: Ints, seed: int = 0) -> Interval:
    """The share of ``hits`` (N,) with its interval over lots. Resampling cannot see what no wafer shows:
    where all are hits, or none, the interval is Wilson's with as many trials as there are lots."""
    found = mean_by_lot(hits.astype(np.float64), lots, seed)
    if 0 < found.value < 1:
        return found
    low, high = share_interval(round(found.value * found.lots), found.lots)
    return replace(found, low=low, high=1.0) if found.value else replace(found, low=0.0, high=high)


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


def reliability(confidence: Floats, correct: NDArray[np.bool_]) -> dict[str, Any]:
    """Expected calibration error over 15 bins of equal width (Guo et al., 2017), with the bins."""
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
    return {"ece": float(error), "bins": bins}


def calibrated(log_probs: Floats, temperature: float) -> Floats:
    """Label probabilities (N, L): softmax of the log-probabilities over ``temperature``."""
    return np.asarray(np.exp(log_softmax(log_probs / temperature, axis=1)))
