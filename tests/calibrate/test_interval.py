"""95 % intervals over lots, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibrate.interval import lots_of, mean_interval, share_interval
from calibrate.judge import agreement, intervals
from train.dataset import Sample
from wafervlm.wafermap import WaferMap


def sample(lot: str) -> Sample:
    dies = np.ones((6, 6), dtype=np.uint8)
    return Sample(replace(WaferMap(dies), lot=lot), "none")


def test_lots_are_numbered_and_maps_without_one_stand_alone() -> None:
    lots = lots_of([sample("b"), sample(""), sample("a"), sample("b"), sample("")])
    assert lots.tolist() == [0, 1, 2, 0, 3]


def test_of_two_lots_the_mean_is_that_of_one_or_of_both() -> None:
    # A draw of two lots has mean 0 or 1 a quarter of the time each: both lie inside 95 %.
    values, lots = np.array([0.0, 0.0, 1.0]), np.array([0, 0, 1])
    assert mean_interval(values, lots) == (0.0, 1.0)


def test_independent_maps_get_the_interval_of_the_textbook() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    low, high = mean_interval(values, np.arange(400))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert mean_interval(values, np.arange(400)) == (low, high)


def test_maps_that_follow_their_lot_tell_less() -> None:
    values = np.repeat(np.random.default_rng(2).normal(size=20), 20)
    of_maps = np.diff(mean_interval(values, np.arange(400)))
    of_lots = np.diff(mean_interval(values, np.repeat(np.arange(20), 20)))
    assert of_lots > 3 * of_maps


def test_a_share_that_no_map_contradicts_is_not_certain() -> None:
    low, high = share_interval(np.ones(100), np.repeat(np.arange(10), 10))
    assert low == pytest.approx(10 / (10 + 1.959964**2)) and high == 1  # Wilson's, of ten trials
    none_low, none_high = share_interval(np.zeros(100), np.repeat(np.arange(10), 10))
    assert (none_low, none_high) == pytest.approx((0, 1 - low))


def test_the_figures_lie_in_their_intervals() -> None:
    before = np.log([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    after = np.log([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
    figures, ends = agreement(before, after), intervals(before, after, np.arange(4))
    apart = 0.6 * np.log(0.6 / 0.4) + 0.4 * np.log(0.4 / 0.6)
    assert figures == pytest.approx({"label_agreement": 0.75, "kl": apart / 4})
    # One map in four differs: drawn four times, it comes up three times or less in 95 % of draws.
    assert ends == pytest.approx(
        {"label_agreement_low": 0.25, "label_agreement_high": 1.0, "kl_low": 0.0, "kl_high": 0.75 * apart}
    )
