"""The schedule by steps and by the clock."""

from __future__ import annotations

import itertools
import time

import pytest

from train.schedule import Schedule


def test_rate_rises_and_falls_along_a_cosine() -> None:
    schedule = Schedule(steps=100, warmup=0.1, evaluations=4)
    rates = [schedule.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:11] == pytest.approx([1.0, 1.0])
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(("steps", "evaluations"), [(100, 10), (7, 3), (3, 10), (1, 1), (997, 13)])
def test_evaluations_are_spread_and_the_last_is_at_the_end(steps: int, evaluations: int) -> None:
    schedule = Schedule(steps, 0.0, evaluations)
    due = [schedule.evaluations_due(step) for step in range(steps + 1)]
    wanted = min(evaluations, steps)
    assert due[0] == 0 and due[-1] == wanted and due[-2] == wanted - 1
    assert {b - a for a, b in itertools.pairwise(due)} <= {0, 1}


def test_the_clock_ends_what_steps_do_not() -> None:
    schedule = Schedule(steps=10**9, warmup=0.0, evaluations=2, limit_seconds=0.2, elapsed=0.1)
    time.sleep(0.11)
    assert schedule.progress(1) == pytest.approx(0.5)
    schedule.start()
    assert 0.5 <= schedule.progress(1) < 1
    time.sleep(0.11)
    assert schedule.progress(1) == 1.0 and schedule.rate(1) == pytest.approx(0.0)


def test_time_for_the_last_evaluation_is_kept() -> None:
    schedule = Schedule(steps=10**9, warmup=0.0, evaluations=2, limit_seconds=100.0, elapsed=80.0)
    assert schedule.progress(1) < 0.9
    schedule.reserve = 20.0
    assert schedule.progress(1) == 1.0
