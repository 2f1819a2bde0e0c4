"""Accuracy of label scores on labelled maps, of one model and of two against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import statistics as st
from train.dataset import Sample

NORMAL = "none"


def truth_of(samples: Sequence[Sample], labels: Sequence[str]) -> st.Ints:
    """The index of each sample's label, (N,) int64."""
    place = {label: i for i, label in enumerate(labels)}
    return np.array([place[s.label] for s in samples], dtype=np.int64)


def scored(
    log_probs: st.Floats, samples: Sequence[Sample], labels: Sequence[str], temperature: float = 1.0
) -> dict[str, Any]:
    """All figures of one model: ``log_probs`` (N, L) on ``samples``.

    Where ``none`` is a label, ``screening`` tells defects from none: how many defective wafers are found,
    whatever defect is named, and how many wafers without one are left alone.
    """
    truth, answer, lots = truth_of(samples, labels), log_probs.argmax(axis=1), st.lots_of(samples)
    probabilities = st.calibrated(log_probs, temperature)
    correct = answer == truth
    figures = {
        "accuracy": st.share_by_lot(correct, lots).to_dict(),
        **_class_recall(truth, answer, lots),
        "per_class": st.per_class(truth, answer, labels),
        "confusion": st.confusion(truth, answer, len(labels)),
        "calibration": st.reliability(probabilities.max(axis=1), correct, lots),
    }
    if NORMAL in labels:
        figures["screening"] = _screening(truth, answer, list(labels).index(NORMAL), lots)
    return figures


def compared(
    bundle: st.Floats, reference: st.Floats, samples: Sequence[Sample], labels: Sequence[str]
) -> dict[str, Any]:
    """The bundle against its full-precision parent on the same wafers: ``bundle`` and ``reference`` are
    label log-probabilities (N, L). KL in nats, of the uncalibrated label distributions."""
    truth, lots = truth_of(samples, labels), st.lots_of(samples)
    answers, parents = bundle.argmax(axis=1), reference.argmax(axis=1)
    kl = st.divergence(reference, bundle)
    mean = st.mean_by_lot(kl, lots)
    return {
        "agreement": st.share_by_lot(answers == parents, lots).to_dict(),
        "kl": {
            "mean": mean.value,
            "mean_low": mean.low,
            "mean_high": mean.high,
            "p99": float(np.quantile(kl, 0.99)),
            "max": float(kl.max()),
        },
        "log_prob_distance": float(np.abs(bundle - reference).max()),
        "paired": st.paired(truth, answers, parents, lots),
        "disagreements": [int(i) for i in np.flatnonzero(answers != parents)],
    }


def _class_recall(truth: st.Ints, answer: st.Ints, lots: st.Ints) -> dict[str, float]:
    low, high = st.mean_class_recall_interval(truth, answer, lots)
    return {
        "mean_class_recall": st.mean_class_recall(truth, answer),
        "mean_class_recall_low": low,
        "mean_class_recall_high": high,
    }


def _screening(truth: st.Ints, answer: st.Ints, normal: int, lots: st.Ints) -> dict[str, Any]:
    defective = truth != normal
    found = {}
    for name, among, hit in (
        ("defects_found", defective, answer != normal),
        ("none_left_alone", ~defective, answer == normal),
    ):
        if among.any():
            found[name] = st.share_by_lot(hit[among], lots[among]).to_dict()
    return found
