"""The reward, as TRL calls it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from train.rubrics.formula import OPTIMISED, STRICT, Formula
from train.rubrics.reward import RubricReward, format_reward, format_score, solution
from wafervlm.errors import ConfigError, DatasetError

GOOD = "<REASONING>dies along the rim</REASONING>\n<SOLUTION>A closed ring.</SOLUTION>"


@pytest.mark.parametrize(
    "text, right, held",
    [
        (GOOD, 1.0, "A closed ring."),
        (GOOD.lower(), 1.0, "a closed ring."),
        ("<SOLUTION>A ring.</SOLUTION>", 0.5, "A ring."),
        ("Well: " + GOOD, 0.5, "A closed ring."),
        ("<REASONING> </REASONING><SOLUTION>ring</SOLUTION>", 0.5, "ring"),
        ("<SOLUTION>one</SOLUTION><SOLUTION>two</SOLUTION>", 0.0, "two"),
        ("<SOLUTION>one<SOLUTION>two</SOLUTION>", 0.0, "two"),
        ("<REASONING>x</REASONING><SOLUTION>cut off he", 0.0, None),
        ("A closed ring.", 0.0, None),
        ("", 0.0, None),
    ],
)
def test_tags(text: str, right: float, held: str | None) -> None:
    assert format_score(text) == right
    assert solution(text) == held


def test_rewards_of_the_table_in_the_docstring() -> None:
    reward = RubricReward(format_weight=0.2)
    texts = [GOOD, "<SOLUTION>A closed ring.</SOLUTION>", "A closed ring.", "<SOLUTION></SOLUTION>"]
    given = reward(texts, must_hit=[["closed ring"]] * 4, must_avoid=[["line"]] * 4)
    assert given == pytest.approx([1.0, 0.9, 0.0, 0.1])


def test_reasoning_is_not_scored() -> None:
    text = "<REASONING>closed ring</REASONING><SOLUTION>A line.</SOLUTION>"
    assert RubricReward(STRICT, 0.0)([text], must_hit=[["closed ring"]], must_avoid=[[]]) == [0.0]


def test_chats_and_parts_of_chats() -> None:
    chats: list[Any] = [
        [{"role": "assistant", "content": GOOD}],
        [{"role": "assistant", "content": [{"type": "text", "text": GOOD}]}],
    ]
    given = RubricReward(OPTIMISED)(chats, must_hit=[["closed ring"]] * 2, must_avoid=[[]] * 2)
    assert given == pytest.approx([1.0, 1.0]) and format_reward(chats) == [1.0, 1.0]


def test_what_does_not_apply_is_none_and_counted() -> None:
    reward = RubricReward()
    given = reward([GOOD, GOOD], must_hit=[[], ["ring"]], must_avoid=[["x"], []], id=["a", "b"])
    assert given[0] is None and given[1] == pytest.approx(1.0)
    assert reward.not_applicable == 1


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            {"must_hit": [float("nan")], "must_avoid": [[]], "id": ["w7-rl"]},
            "must_hit of row w7-rl must be a list",
        ),
        ({"must_hit": [["a"]], "must_avoid": ["a, b"], "id": ["w7"]}, "must_avoid of row w7 .*not 'a, b'"),
        ({"must_hit": [["a"]], "must_avoid": [None]}, "must_avoid of completion 0 of the batch"),
        ({"must_hit": [["a"]]}, "needs a column must_avoid .* given are must_hit"),
        ({"must_hit": [["a"], ["b"]], "must_avoid": [[], []]}, "needs a column must_hit"),
    ],
)
def test_bad_columns_name_the_row(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        RubricReward()([GOOD], **columns)


def test_a_reward_that_is_no_number_names_the_row() -> None:
    class Broken(Formula):
        def dimension(self, said: int, wanted: int, offences: int) -> float | None:
            return float("nan")

    with pytest.raises(DatasetError, match="the reward of row w7 is nan"):
        RubricReward(Broken())([GOOD], must_hit=[["ring"]], must_avoid=[[]], id=["w7"])


def test_bad_settings_and_completions() -> None:
    with pytest.raises(ConfigError, match="must be 0 to 1"):
        RubricReward(format_weight=1.5)
    with pytest.raises(DatasetError, match="neither text nor a chat"):
        RubricReward()([7], must_hit=[["a"]], must_avoid=[[]])


def test_trl_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """GRPOTrainer's own code computes the rewards of a batch with it."""
    torch = pytest.importorskip("torch")
    grpo = pytest.importorskip("trl.trainer.grpo_trainer")
    from trl.trainer.utils import get_callable_name

    reward = RubricReward()
    assert get_callable_name(reward) == "rubric_reward"
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=False),
        args=SimpleNamespace(report_to=[]),
        state=SimpleNamespace(global_step=0),
        environments=None,
        reward_funcs=[reward, format_reward],
        reward_processing_classes=[None, None],
        reward_func_names=["rubric_reward", "format_reward"],
        _log_completion_extra=None,
        _log_metric=None,
    )
    monkeypatch.setattr(grpo, "gather", lambda tensor: tensor)
    rows = [{"prompt": "?", "id": "a", "must_hit": ["ring"], "must_avoid": []}] * 2
    rows += [{"prompt": "?", "id": "b", "must_hit": [], "must_avoid": []}]
    completions = [GOOD, "no tags", GOOD]
    found = grpo.GRPOTrainer._calculate_rewards(trainer, rows, ["?"] * 3, completions, [[1]] * 3)
    expected = torch.tensor([[1.0, 1.0], [0.0, 0.0], [float("nan"), 1.0]])
    torch.testing.assert_close(found, expected, equal_nan=True)
