"""Timing by turns, on contenders whose time is known."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.contenders import BUNDLE, Answer
from benchmarks.latency import Race, race
from wafervlm.errors import UsageError


class Sleeper:
    """Answers after a known time and remembers what it was asked."""

    about = "sleeps"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[Path] = []

    def __call__(self, path: Path) -> Answer:
        self.asked.append(path)
        time.sleep(self.seconds)
        return Answer(path.stem, {"read": 0.0, "render": 0.0, "run": 1e3 * self.seconds})


def paths(count: int) -> list[Path]:
    return [Path(f"{i}.npy") for i in range(count)]


def test_each_is_timed_on_every_map_once_in_order() -> None:
    quick, slow = Sleeper(0.0005), Sleeper(0.003)
    found = race({"quick": quick, "slow": slow}, paths(12), {"quick": 12, "slow": 3})
    assert [answer.label for answer in found.answers["quick"]] == [str(i) for i in range(12)]
    assert [answer.label for answer in found.answers["slow"]] == ["0", "1", "2"]
    # One call in each block is not counted.
    assert len(quick.asked) == 12 + 10
    assert len(slow.asked) == 3 + 3
    assert found.figures("slow")["p50"] >= 3
    assert found.figures("slow")["parts"]["run"] == pytest.approx(3)
    assert found.figures("quick")["calls"] == 12


def test_noise_hits_all_alike() -> None:
    """A machine that slows down on the way slows about as many calls of each."""
    begun = time.perf_counter()

    class Slowed(Sleeper):
        def __call__(self, path: Path) -> Answer:
            late = time.perf_counter() - begun > 0.15
            time.sleep(0.004 if late else 0)
            return super().__call__(path)

    found = race({"one": Slowed(0.001), "two": Slowed(0.001)}, paths(100), {"one": 100, "two": 100})
    slowed = [sum(spent > 4.5 for spent in times) for times in found.milliseconds.values()]
    assert min(slowed) > 10
    assert abs(slowed[0] - slowed[1]) < 30


@pytest.mark.parametrize(("count", "calls"), [(0, 1), (3, 4), (3, 0)])
def test_what_cannot_be_timed(count: int, calls: int) -> None:
    with pytest.raises(UsageError, match="cannot time"):
        race({"one": Sleeper(0)}, paths(count), {"one": calls})


def test_ratios_are_of_medians_and_hold_the_truth() -> None:
    chance = np.random.default_rng(8)
    times = {BUNDLE: 2 + chance.exponential(1, 200), "slow": 20 + chance.exponential(10, 20)}
    answers = {name: [Answer("", {"run": t / 2}) for t in spent] for name, spent in times.items()}
    found = Race({name: spent.tolist() for name, spent in times.items()}, answers)
    slow = found.ratios("slow")
    assert slow["call"] == pytest.approx(np.median(times["slow"]) / np.median(times[BUNDLE]))
    truth = (20 + 10 * np.log(2)) / (2 + np.log(2))
    assert slow["call_low"] < truth < slow["call_high"]
    assert slow["run"] == pytest.approx(slow["call"])
    assert (slow["run_low"], slow["run_high"]) == pytest.approx((slow["call_low"], slow["call_high"]))
    assert set(found.ratios(BUNDLE).values()) == {1.0}


def test_percentiles_are_numpys() -> None:
    times = np.random.default_rng(2).exponential(4, 40).tolist()
    answers = [Answer("", {"read": t / 4, "render": t / 4, "run": t / 2}) for t in times]
    figures = Race({"one": times}, {"one": answers}).figures("one")
    assert figures["p99"] == pytest.approx(np.percentile(times, 99))
    assert figures["parts"]["run"] == pytest.approx(np.median(times) / 2)
