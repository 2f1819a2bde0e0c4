from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from train.rl.curriculum import Curriculum
from wafervlm.errors import DatasetError

LEVELS = {"easy": 0, "medium": 1, "hard": 2}
rows = st.lists(
    st.tuples(st.sampled_from(list(LEVELS)), st.sampled_from(["Loc", "Donut", "none"])),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, 90), st.integers(0, 5), st.booleans())
def test_no_easier_prompt_follows_a_harder_one(
    found: list[tuple[str, str]], positions: int, seed: int, balance: bool
) -> None:
    names, labels = zip(*found, strict=True)
    curriculum = Curriculum(names, labels, positions, seed, balance)
    order = [curriculum[k] for k in range(positions)]
    levels = [LEVELS[names[i]] for i in order]
    assert levels == sorted(levels) == [curriculum.level(k) for k in range(positions)]
    for name, level in LEVELS.items():
        assert abs(levels.count(level) - positions * names.count(name) / len(names)) <= 1
    # A function of seed and position alone: asked in any order, by another object, it is the same.
    again = Curriculum(names, labels, positions, seed, balance)
    assert [again[k] for k in reversed(range(positions))] == order[::-1]


def test_one_epoch_asks_every_row_once() -> None:
    names = ["hard"] * 5 + ["easy"] * 7 + ["medium"] * 4
    curriculum = Curriculum(names, ["a"] * 16, 16, seed=3, balance=True)
    order = [curriculum[k] for k in range(16)]
    assert sorted(order) == list(range(16)) and order != sorted(range(16), key=lambda i: LEVELS[names[i]])
    other = Curriculum(names, ["a"] * 16, 16, seed=4, balance=True)
    assert [other[k] for k in range(16)] != order


def test_classes_come_equally_often_within_a_difficulty() -> None:
    labels = ["a"] * 18 + ["b"] * 2
    curriculum = Curriculum(["easy"] * 20, labels, 20, seed=0, balance=True)
    assert Counter(labels[curriculum[k]] for k in range(20)) == {"a": 10, "b": 10}


def test_what_is_no_curriculum_is_refused() -> None:
    with pytest.raises(DatasetError, match="no prompt to learn from"):
        Curriculum([], [], 4, 0, True)
    with pytest.raises(DatasetError, match="'simple'; known are easy, medium, hard"):
        Curriculum(["easy", "simple"], ["a", "b"], 4, 0, True)
    with pytest.raises(IndexError):
        Curriculum(["easy"], ["a"], 4, 0, True)[4]
