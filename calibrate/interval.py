"""95 % intervals of means over maps.

Wafers of one lot resemble each other, so lots are resampled, not wafers, wherever lots are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from train.dataset import Sample

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DRAWS = 1000


def lots_of(samples: Sequence[Sample]) -> Ints:
    """A number (N,) from 0 for the lot of each of ``samples``; one without a lot is a lot by itself."""
    keys = [("lot", sample.wafer.lot) if sample.wafer.lot else ("map", i) for i, sample in enumerate(samples)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def mean_interval(values: Floats, lots: Ints) -> tuple[float, float]:
    """The percentile interval of the mean of ``values`` (N,) over 1000 draws of ``lots`` (N,), the same draws
    at every call, so that rows of one table are resampled alike."""
    sums, counts = np.bincount(lots, weights=values), np.bincount(lots)
    rng = np.random.default_rng(0)
    draws = (rng.integers(len(sums), size=len(sums)) for _ in range(DRAWS))
    low, high = np.quantile([sums[drawn].sum() / counts[drawn].sum() for drawn in draws], [0.025, 0.975])
    return float(low), float(high)


def share_interval(hits: Floats, lots: Ints) -> tuple[float, float]:
    """The same for a share, ``hits`` (N,) being 0 or 1. Resampling cannot see what no map shows: where all
    are equal the interval is Wilson's, with as many trials as there are lots."""
    if hits.min() < hits.max():
        return mean_interval(hits, lots)
    trials = len(np.unique(lots))
    found = binomtest(int(hits[0]) * trials, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
