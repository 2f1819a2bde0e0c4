"""The verdict against hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import statistics as st
from benchmarks.verdict import judge, maps_needed


def paired(maps: int, lost: int, won: int) -> dict[str, object]:
    truth = np.zeros(maps, dtype=np.int64)
    bundle, reference = truth.copy(), truth.copy()
    bundle[:lost], reference[lost : lost + won] = 1, 1
    return st.paired(truth, bundle, reference, np.arange(maps))


def test_the_numbers_of_the_design() -> None:
    # One point of margin at 2 % discordance needs about 1,240 maps for 80 % power.
    assert maps_needed(0.02, 0.01) == pytest.approx(1237, abs=2)


@pytest.mark.parametrize(
    ("maps", "lost", "won", "answer"),
    [(5000, 10, 10, "not worse"), (1000, 60, 0, "worse"), (200, 2, 2, "undecided"), (20, 0, 0, "undecided")],
)
def test_answers(maps: int, lost: int, won: int, answer: str) -> None:
    found = judge(paired(maps, lost, won), 0.01)
    assert found["answer"] == answer
    assert found["discordant"] == lost + won
    assert found["low"] <= found["difference"] <= found["high"]


def test_no_loss_seen_on_few_maps_is_no_proof() -> None:
    few, many = judge(paired(50, 0, 0), 0.01), judge(paired(2000, 0, 0), 0.01)
    assert few["low"] < -0.05
    assert few["maps_needed"] > 50
    assert many["answer"] == "not worse"
