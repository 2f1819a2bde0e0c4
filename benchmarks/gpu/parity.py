"""How far the scores of a pass are from those of full precision on the same wafer maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr

Floats = NDArray[np.float64]


def parity(reference: Floats, scores: Floats) -> dict[str, Any]:
    """Of label log-probabilities (N, L): largest and mean absolute difference, mean KL in nats, the share of
    equal labels, and the median lead of the reference's label over its next, beside which a difference is to
    be read. NaN where a score is not finite."""
    difference = np.abs(scores - reference)
    ordered = np.sort(reference, axis=1)
    ours, theirs = (np.exp(log_softmax(values, axis=1)) for values in (scores, reference))
    return {
        "maps": len(reference),
        "max_abs_difference": float(difference.max()),
        "mean_abs_difference": float(difference.mean()),
        "kl": float(rel_entr(theirs, ours).sum(axis=1).mean()),
        "label_agreement": float((scores.argmax(1) == reference.argmax(1)).mean()),
        "median_lead": float(np.median(ordered[:, -1] - ordered[:, -2])),
    }


def agreement(labels: list[int], reference: Floats) -> float:
    """The share of ``labels`` (N,) that the reference ranks first."""
    return float((np.array(labels) == reference.argmax(1)).mean())
