"""The temperature and the threshold of a multi-label task: from the log-odds of each class to a probability,
and from the probabilities to the classes that are named.

One temperature divides all log-odds, and one threshold holds for all classes: there are too few maps of each
class and of each set of them to fit more. Both are fitted on maps that nothing was trained on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from export.temperature import BINS, HIGHEST, LOWEST
from wafervlm.answers import EVEN, log_odds

# Farther from even is not believed of a few hundred maps.
THRESHOLDS = np.arange(0.2, 0.8001, 0.01)

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClassFit:
    """``temperature``, ``threshold``, and before and after them on the ``maps`` that they were fitted on: the
    mean negative log-likelihood and the expected calibration error of a class's probability, and the share
    of maps of which just the right classes are named."""

    temperature: float
    threshold: float
    maps: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    exact_before: float
    exact_after: float

    def figures(self) -> dict[str, float]:
        """Plain numbers for a manifest's parity table, but for temperature and threshold themselves."""
        stated = ("temperature", "threshold")
        return {name: float(value) for name, value in asdict(self).items() if name not in stated}


def fit_classes(log_yes: NDArray[np.floating], truth: Bools) -> ClassFit:
    """The temperature that minimises the negative log-likelihood of ``truth`` (N, L) under log P(yes)
    ``log_yes`` (N, L), and the threshold with which most maps are named exactly, of several the nearest to
    one half."""
    odds = log_odds(log_yes)
    found = minimize_scalar(
        lambda log_t: _nll(odds / np.exp(log_t), truth),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    temperature = float(np.exp(found.x))
    before, after = expit(odds), expit(odds / temperature)
    exact = [_exact(after, truth, threshold) for threshold in THRESHOLDS]
    best = THRESHOLDS[np.flatnonzero(np.array(exact) == max(exact))]
    threshold = round(float(best[np.abs(best - EVEN).argmin()]), 2)
    return ClassFit(
        temperature,
        threshold,
        len(truth),
        _nll(odds, truth),
        _nll(odds / temperature, truth),
        _calibration_error(before, truth),
        _calibration_error(after, truth),
        _exact(before, truth, EVEN),
        _exact(after, truth, threshold),
    )


def _nll(odds: Floats, truth: Bools) -> float:
    """Mean over maps and classes, in nats."""
    return float(np.logaddexp(0.0, np.where(truth, -odds, odds)).mean())


def _exact(probabilities: Floats, truth: Bools, threshold: float) -> float:
    return float(((probabilities >= threshold) == truth).all(axis=1).mean())


def _calibration_error(probabilities: Floats, truth: Bools) -> float:
    """Mean over maps and classes of |share shown - mean probability| of their bin, 15 equal bins."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = [abs(float((truth[bins == b] - probabilities[bins == b]).sum())) for b in np.unique(bins)]
    return sum(gaps) / truth.size
