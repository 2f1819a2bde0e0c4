from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from train.rl.claims import claims_score, topics_of
from train.rl.reward import PARTS, Reward, RuleJudge, weighed, zero_variance
from train.rl.rows import PolicyRow, read_policy_rows
from train.rl.settings import RewardSettings
from train.vqa.prompts import tagged
from wafervlm.errors import DatasetError

WEIGHTS = {"rubric": 0.5, "claims": 0.4, "format": 0.1}


@pytest.fixture(scope="module")
def rows(words: Path) -> list[PolicyRow]:
    return read_policy_rows(words)["train"].rows


def mean_reward(rows: list[PolicyRow], answers: list[str], *, tags: bool = False) -> float:
    judge = RuleJudge(RewardSettings(), tags)
    return sum(
        weighed(judge(row, text, True), WEIGHTS) for row, text in zip(rows, answers, strict=True)
    ) / len(rows)


def test_right_answers_earn_all_and_others_next_to_nothing(rows: list[PolicyRow]) -> None:
    right = [row.row.reference_answer for row in rows]
    assert mean_reward(rows, right) > 0.99
    assert mean_reward(rows, [tagged("See the dies.", text) for text in right], tags=True) > 0.99
    # Untagged text holds no solution where tags are asked for.
    assert mean_reward(rows, right, tags=True) == 0
    assert mean_reward(rows, [""] * len(rows)) == 0
    chance = random.Random(0)
    by_dimension: dict[str, list[str]] = {}
    for row in rows:
        by_dimension.setdefault(row.row.dimension, []).append(row.row.reference_answer)
    others = [chance.choice(by_dimension[row.row.dimension]) for row in rows]
    assert mean_reward(rows, others) < 0.4
    assert mean_reward(rows, ["There is no line and no ring."] * len(rows)) < 0.3
    assert mean_reward(rows, [" ".join(sorted(set(right)))] * len(rows)) < 0.4


def test_a_wrong_claim_costs_and_a_true_one_beside_the_question_earns_nothing(rows: list[PolicyRow]) -> None:
    row = next(row for row in rows if row.row.kind == "share")
    right, geometry = row.row.reference_answer, row.geometry
    judge = lambda text: claims_score(text, text, geometry, row.topics, 3)  # noqa: E731
    assert judge(right) == 1.0 and judge(f"{right} {right}") == 1.0
    share = 100 * geometry.share
    wrong = "About 90 percent of the dies fail." if share < 45 else "About 2 percent of the dies fail."
    assert judge(wrong) == 0.0
    assert judge(f"{right} There is a repeat.") == 0.5
    clear = "There is no repeat."
    assert topics_of(clear, geometry) and judge(clear) == 0.0
    # What the reasoning gets wrong costs as well.
    assert claims_score(right, f"There is a repeat. {right}", geometry, row.topics, 3) == 0.5
    assert claims_score(right, right, geometry, frozenset(), 3) == 0.0


def test_more_of_what_was_asked_earns_more(rows: list[PolicyRow]) -> None:
    row = next(row for row in rows if len(row.topics) >= 2)
    sentences = row.row.reference_answer.split(". ")
    first = next(part for part in sentences if len(topics_of(part + ".", row.geometry)) == 1) + "."
    part = claims_score(first, first, row.geometry, row.topics, 9)
    assert part == pytest.approx(1 / len(row.topics))
    assert claims_score(first, first, row.geometry, row.topics, 1) == 1.0


def test_parts_apply_by_the_prompt_alone(rows: list[PolicyRow]) -> None:
    judge = RuleJudge(RewardSettings(), tags=False)
    for row in rows:
        applied = [{name for name, value in judge(row, text, True).items() if value is not None}
                   for text in ("", "There is a ring.", row.row.reference_answer)]  # fmt: skip
        assert applied[0] == applied[1] == applied[2] >= {"format"}
        assert ("claims" in applied[0]) is bool(row.topics)
    without = RuleJudge(RewardSettings(claims=0.0), tags=False)
    assert without(rows[0], "x", True)["claims"] is None


def test_a_cut_answer_loses_its_form(rows: list[PolicyRow]) -> None:
    judge = RuleJudge(RewardSettings(), tags=False)
    assert judge(rows[0], "text", True)["format"] == 1.0 and judge(rows[0], "text", False)["format"] == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number_names_the_row(rows: list[PolicyRow], value: float) -> None:
    def judge(row: PolicyRow, text: str, ended: bool) -> dict[str, float | None]:
        return {"rubric": value if row is rows[1] else 1.0}

    reward = Reward(rows, judge, WEIGHTS, 2, [0])
    assert reward(["a", "b"], [[5, 0], [5]], row=[0, 0]) == [1.0, 1.0]
    with pytest.raises(DatasetError, match=f"reward for rubric of row {rows[1].id} is {value}.*was 'b'"):
        reward(["a", "b"], [[5, 0], [5]], row=[0, 1])


def test_a_row_that_nothing_applies_to_is_named(rows: list[PolicyRow]) -> None:
    reward = Reward(rows, lambda *_: {"rubric": None}, WEIGHTS, 2, [0])
    with pytest.raises(DatasetError, match=f"no part of the reward applies to row {rows[0].id}"):
        reward(["a", "b"], [[1], [1]], row=[0, 0])


def test_groups_whose_rewards_are_alike_are_counted(rows: list[PolicyRow]) -> None:
    assert zero_variance([0.5, 0.5, 0.1, 0.9, 0.3, 0.3 + 1e-9], 2) == pytest.approx(2 / 3)
    logged: dict[str, float] = {}

    def judge(_row: PolicyRow, text: str, ended: bool) -> dict[str, float | None]:
        return {"rubric": float(text), "format": float(ended)}

    reward = Reward(rows, judge, WEIGHTS, 2, [7])
    ids = [[3, 7], [3, 7], [7], [3]]
    found = reward(["1", "0", "1", "1"], ids, row=[0, 0, 1, 1], log_metric=logged.__setitem__)
    assert found == pytest.approx([1.0, 1 / 6, 1.0, 5 / 6], abs=1e-5)
    assert logged == pytest.approx({"rubric": 0.75, "format": 0.75, "zero_variance": 0.0})
    reward(["1", "1", "1", "0"], ids[:2] * 2, row=[0, 0, 1, 1], log_metric=logged.__setitem__)
    assert logged["zero_variance"] == 0.5


@pytest.mark.parametrize("value", [0.7, 1 / 3, 0.999])
def test_the_mean_of_equal_rewards_is_exact(rows: list[PolicyRow], value: float) -> None:
    reward = Reward(rows, lambda *_: {"rubric": value}, WEIGHTS, 8, [7])
    found = torch.tensor(reward(["x"] * 24, [[7]] * 24, row=[0] * 24))
    assert (found == found.mean()).all() and abs(float(found[0]) - value) < 1e-5
    plain = torch.full((24,), value)
    assert value != 0.7 or not (plain == plain.mean()).all()


def test_only_parts_that_apply_are_weighed() -> None:
    assert weighed({"rubric": 1.0, "claims": None, "format": 0.0}, WEIGHTS) == pytest.approx(5 / 6)
    assert set(PARTS) == set(WEIGHTS)
