"""How suspicious a label is: the odds of the likeliest other label, weighed by how labels are confused."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# How much the confusion of whole classes counts beside the map's own odds; chosen on flipped labels of
# WM-811K's train rows, other flips than those that benchmarks/cleaning.py reports on.
CONFUSION = 0.3


def suspicion(probabilities: Floats, labels: Ints) -> tuple[Floats, Ints]:
    """The score (N,), 0 to 1, of each given label and the likeliest other label (N,).

    From out-of-sample ``probabilities`` (N, L). With p the probabilities of a map, y its label and T[j, y]
    the share of maps that look like class j and carry y: the log-odds
    max_j log(p_j / p_y) + 0.3 log(sum_j p_j T[j, y] / p_y), j other than y, as a logistic function. Above 0.5
    the map speaks against its label; the score is no probability.
    """
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    others = probabilities.copy()
    np.put_along_axis(others, labels[:, None], 0.0, axis=1)
    swapped = (others * confusion_rates(probabilities, labels)[:, labels].T).sum(axis=1)
    odds = np.log(others.max(axis=1) / own) + CONFUSION * np.log(np.maximum(swapped, 1e-9) / own)
    return 1 / (1 + np.exp(-odds)), others.argmax(axis=1).astype(np.int64)


def confusion_rates(probabilities: Floats, labels: Ints) -> Floats:
    """T (L, L): of the maps whose likeliest class is j the share that carries label y; a class that no map
    looks like has the rates of all maps together."""
    count = probabilities.shape[1]
    table = np.zeros((count, count))
    np.add.at(table, (probabilities.argmax(axis=1), labels), 1.0)
    usual = np.bincount(labels, minlength=count) / len(labels)
    totals = table.sum(axis=1, keepdims=True)
    return np.where(totals > 0, table / np.maximum(totals, 1), usual)
