from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from train.dataset import read_split
from train.rl.reward import RuleJudge
from train.rl.rows import chosen_rows, read_policy_rows
from train.rl.settings import RewardSettings
from train.vqa.build import RL
from train.vqa.descriptions import QUESTIONS
from train.vqa.rows import read_list
from wafervlm.errors import DatasetError


@pytest.fixture
def copied(words: Path, tmp_path: Path) -> Path:
    return shutil.copytree(words, tmp_path / "words")


def rewrite(folder: Path, change: Any) -> None:
    entries = read_list(folder / RL)
    change(entries)
    (folder / RL).write_text(json.dumps(entries))


def test_every_row_has_its_own_dies(words: Path) -> None:
    parts = read_policy_rows(words)
    assert set(parts) == {"train", "tune", "test"}
    entries = [entry for entry in read_list(words / RL) if entry["part"] == "train"]
    assert [row.id for row in parts["train"].rows] == [entry["id"] for entry in entries]
    assert sum(parts["train"].counts().values()) == len(entries)
    samples = {sample.wafer.id: sample for sample in read_split(words, "train")}
    for row in parts["train"].rows:
        assert samples[row.wafer.id].label == row.label
        assert f"/{row.label}/" in row.row.image and row.question


def test_one_dimension_can_be_taken(words: Path) -> None:
    whole = Counter(row.row.dimension for row in read_policy_rows(words)["train"].rows)
    for dimension, count in whole.items():
        rows = read_policy_rows(words, dimension)["train"].rows
        assert {row.row.dimension for row in rows} == {dimension} and len(rows) == count


@pytest.mark.parametrize("value", [None, ""])
def test_a_row_without_difficulty_is_refused(copied: Path, value: Any) -> None:
    def change(entries: list[dict[str, Any]]) -> None:
        entries[3]["difficulty"] = value
        if value is None:
            del entries[3]["difficulty"]

    rewrite(copied, change)
    says = r"row 3 of .*rl\.json \(id '.*'\) has no difficulty; .* easy to medium to hard"
    with pytest.raises(DatasetError, match=says):
        read_policy_rows(copied)
    rewrite(copied, lambda entries: entries[3].update(difficulty="simple"))
    with pytest.raises(DatasetError, match="difficulty of row 3 .*'simple'; known are easy, medium, hard"):
        read_policy_rows(copied)


def test_rows_of_no_wafer_and_unknown_dimensions_are_refused(copied: Path) -> None:
    rewrite(copied, lambda entries: entries[0].update(image="train/Loc/nowhere.png"))
    with pytest.raises(DatasetError, match=r"row 0 .* about train/Loc/nowhere\.png, which is not in part"):
        read_policy_rows(copied)
    rewrite(copied, lambda entries: entries[0].update(dimension="colour"))
    with pytest.raises(DatasetError, match="dimension of row 0"):
        read_policy_rows(copied)
    (copied / RL).unlink()
    with pytest.raises(DatasetError, match="wafervlm data vqa"):
        read_policy_rows(copied)


def test_what_can_earn_nothing_is_left_out_and_counted(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            if entry["part"] == "train" and entry["dimension"] == "root_cause":
                entry.update(must_hit=[], reference_answer="Candidate: dust.")

    rewrite(copied, change)
    with caplog.at_level(logging.WARNING):
        found = read_policy_rows(copied)["train"]
    before = Counter(entry["dimension"] for entry in read_list(copied / RL) if entry["part"] == "train")
    assert found.left_out == {"no phrase to hit and no claim to check": before["root_cause"]}
    assert len(found.rows) == before.total() - before["root_cause"]
    assert f"{before['root_cause']} rows of part train are left out" in caplog.text


def test_descriptions_can_be_asked_for_too(words: Path) -> None:
    rows = read_policy_rows(words, descriptions=True)["train"].rows
    asked = [row for row in rows if row.row.kind == "full"]
    assert (
        len(asked)
        == len({row.row.image for row in rows})
        == len(rows) - len(read_policy_rows(words)["train"].rows)
    )
    judge = RuleJudge(RewardSettings(), tags=False)
    for row, other in zip(asked, [*asked[1:], asked[0]], strict=True):
        assert row.question == QUESTIONS["full"] and row.row.difficulty == "hard"
        assert len(row.topics) >= 3 and row.label == row.row.rubric.defect_types[0]
        right, wrong = (judge(row, each.row.reference_answer, True) for each in (row, other))
        assert right["claims"] == 1.0 and right["rubric"] in (None, 1.0)
        if row.label != other.label:
            assert (wrong["claims"] or 0) < 1.0 and wrong["rubric"] in (None, 0.0)


def test_a_choice_holds_every_class(words: Path) -> None:
    rows = read_policy_rows(words)["train"].rows
    chosen = chosen_rows(rows, 18, seed=1)
    assert Counter(row.label for row in chosen) == dict.fromkeys({row.label for row in rows}, 2)
    assert [row.id for row in chosen] == [row.id for row in chosen_rows(rows, 18, seed=1)]
    assert chosen_rows(rows, 0, seed=1) == rows
