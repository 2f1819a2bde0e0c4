"""The temperature that turns label scores into probabilities, and how well they then hold.

One number divides the label log-probabilities. It is fitted on maps that nothing was trained on, so that of
the answers given with confidence c a share c is right (C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On
Calibration of Modern Neural Networks", ICML 2017). It never changes which label is first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# Wider is not believed: a few maps, all answered right, would ask for a temperature of 0.
LOWEST, HIGHEST = 0.2, 10.0
BINS = 15

Scores = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Fit:
    """``temperature``, and before and after it: the mean negative log-likelihood and the expected calibration
    error on the ``maps`` it was fitted on."""

    temperature: float
    maps: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float

    @property
    def at_bound(self) -> bool:
        """Whether the best temperature lies at an end of what is searched, or beyond it."""
        return not LOWEST * 1.01 < self.temperature < HIGHEST / 1.01

    def figures(self) -> dict[str, float]:
        """Plain numbers for a manifest's parity table, but for the temperature itself."""
        return {name: float(value) for name, value in asdict(self).items() if name != "temperature"}


def fit_temperature(log_probs: Scores, truth: NDArray[np.integer]) -> Fit:
    """Minimise the negative log-likelihood of ``truth`` (N,), label indices, under ``log_probs`` (N, L)."""
    found = minimize_scalar(
        lambda log_t: nll(log_probs, truth, float(np.exp(log_t))),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    temperature = float(np.exp(found.x))
    return Fit(
        temperature,
        len(truth),
        nll(log_probs, truth, 1.0),
        nll(log_probs, truth, temperature),
        expected_calibration_error(log_probs, truth, 1.0),
        expected_calibration_error(log_probs, truth, temperature),
    )


def nll(log_probs: Scores, truth: NDArray[np.integer], temperature: float) -> float:
    """Mean negative log-likelihood in nats."""
    scaled = log_softmax(np.asarray(log_probs, dtype=np.float64) / temperature, axis=1)
    return float(-scaled[np.arange(len(truth)), truth].mean())


def expected_calibration_error(log_probs: Scores, truth: NDArray[np.integer], temperature: float) -> float:
    """Mean over maps of |share right - mean confidence| of their bin, 15 equal bins of the confidence."""
    probabilities = np.exp(log_softmax(np.asarray(log_probs, dtype=np.float64) / temperature, axis=1))
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(float(right[bins == b].sum() - confidence[bins == b].sum())) for b in np.unique(bins)]
    return sum(gaps) / len(truth)
