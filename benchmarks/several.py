"""Figures of a multi-label task: which maps are named exactly, and F1 of each class, with intervals.

A map is named exactly where just its classes are named, so that every set of classes counts as an answer of
its own. Intervals resample wafers, or their lots where those are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import statistics as st

Bools = NDArray[np.bool_]


def judged(truth: Bools, answer: Bools, labels: Sequence[str], lots: st.Ints) -> dict[str, Any]:
    """All figures of one model: ``answer`` (N, L) against ``truth`` (N, L) on wafers of ``lots`` (N).

    ``exact`` is the share named exactly, ``exact_by_count`` the same of the maps that show so many classes,
    ``macro_f1`` the mean over the classes, ``per_class`` F1 (None where a class is neither shown nor named),
    precision, recall and count. Where no map shows nothing and no count occurs, it is left out.
    """
    exact, counts = (truth == answer).all(axis=1), truth.sum(axis=1)
    per_class = {label: _class(truth[:, i], answer[:, i], lots) for i, label in enumerate(labels)}
    scores = [found["f1"] for found in per_class.values() if found["f1"] is not None]
    return {
        "exact": st.share_by_lot(exact, lots).to_dict(),
        "exact_by_count": {
            int(count): st.share_by_lot(exact[counts == count], _numbered(lots[counts == count])).to_dict()
            for count in np.unique(counts)
        },
        "sets": len(np.unique(truth, axis=0)),
        "macro_f1": float(np.mean(scores)) if scores else None,
        "per_class": per_class,
    }


def compared(truth: Bools, one: Bools, other: Bools, lots: st.Ints) -> dict[str, Any]:
    """``one`` less ``other`` in the share named exactly, with its interval over ``lots``, and how many maps
    only one of them names exactly."""
    right, rival = ((truth == answer).all(axis=1) for answer in (one, other))
    difference = st.mean_by_lot(right.astype(np.float64) - rival.astype(np.float64), lots)
    return {
        "exact_difference": difference.to_dict(),
        "only_first": int((right & ~rival).sum()),
        "only_second": int((rival & ~right).sum()),
    }


def _class(truth: Bools, answer: Bools, lots: st.Ints) -> dict[str, Any]:
    both = (truth & answer).astype(np.float64)
    either = truth.astype(np.float64) + answer
    f1 = st.ratio_by_lot(2 * both, either, lots)
    precision, recall = (st.ratio_by_lot(both, of.astype(np.float64), lots) for of in (answer, truth))
    return {
        "f1": f1.value if f1 else None,
        "f1_low": f1.low if f1 else None,
        "f1_high": f1.high if f1 else None,
        "precision": precision.value if precision else None,
        "recall": recall.value if recall else None,
        "count": int(truth.sum()),
    }


def _numbered(lots: st.Ints) -> st.Ints:
    return np.unique(lots, return_inverse=True)[1].astype(np.int64)
