"""The temperature recovers what was put in, and never changes the order of labels."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import log_loss

from export.temperature import HIGHEST, LOWEST, expected_calibration_error, fit_temperature, nll


def drawn(temperature: float, count: int = 20_000) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores of a model that is right as often as softmax(scores / temperature) says."""
    rng = np.random.default_rng(1)
    scores = log_softmax(rng.normal(0, 3, (count, 4)), axis=1)
    chances = np.exp(log_softmax(scores / temperature, axis=1))
    truth = (chances.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return scores, truth


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_the_temperature_behind_the_answers_is_found(temperature: float) -> None:
    fit = fit_temperature(*drawn(temperature))
    assert fit.temperature == pytest.approx(temperature, rel=0.05)
    assert fit.nll_after <= fit.nll_before
    assert fit.ece_after < 0.02
    assert fit.maps == 20_000
    assert (fit.ece_before > 0.05) == (temperature != 1.0)


def test_a_fit_that_ran_to_its_bound_says_so() -> None:
    scores, truth = drawn(1.0, 200)
    assert not fit_temperature(scores, truth).at_bound
    right = fit_temperature(scores, scores.argmax(axis=1))
    assert right.at_bound and right.temperature == pytest.approx(LOWEST, rel=0.01)
    wrong = fit_temperature(scores, scores.argmin(axis=1))
    assert wrong.at_bound and wrong.temperature == pytest.approx(HIGHEST, rel=0.01)


def test_nll_is_the_usual_log_loss() -> None:
    scores, truth = drawn(1.0, 500)
    assert nll(scores, truth, 1.0) == pytest.approx(
        log_loss(truth, np.exp(scores), labels=range(4)), rel=1e-9
    )


def test_calibration_error_by_hand() -> None:
    # Two answers with confidence .9, one right: off by .4. Two with .6, both right: off by .4.
    scores = np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert expected_calibration_error(scores, np.array([0, 1, 0, 0]), 1.0) == pytest.approx(0.4)


@pytest.mark.parametrize(("right", "bound"), [(True, LOWEST), (False, HIGHEST)])
def test_a_few_maps_do_not_push_the_temperature_to_extremes(right: bool, bound: float) -> None:
    scores = np.log([[0.8, 0.2]] * 5)
    fit = fit_temperature(scores, np.zeros(5, dtype=int) if right else np.ones(5, dtype=int))
    assert fit.temperature == pytest.approx(bound, rel=1e-2)


def test_figures_are_plain_numbers() -> None:
    figures = fit_temperature(*drawn(1.0, 100)).figures()
    assert set(figures) == {"maps", "nll_before", "nll_after", "ece_before", "ece_after"}
    assert all(type(value) is float for value in figures.values())
