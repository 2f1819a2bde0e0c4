from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.train.rl.toy import brief
from train.dataset import dataset_task, read_split
from train.loading import load_processor
from train.rl.assembly import read_course
from train.rl.prompts import Prompts
from train.rl.reward import RuleJudge
from train.rl.rows import chosen_rows, read_policy_rows
from train.rl.settings import RewardSettings
from train.rubrics.findings import ERRORS
from train.vqa.build import DESCRIPTIONS, RL
from train.vqa.descriptions import QUESTIONS
from train.vqa.rows import read_list
from wafervlm.errors import DatasetError


@pytest.fixture
def copied(words: Path, tmp_path: Path) -> Path:
    return shutil.copytree(words, tmp_path / "words")


def rewrite(folder: Path, change: Any, name: str = RL) -> None:
    entries = read_list(folder / name)
    change(entries)
    (folder / name).write_text(json.dumps(entries))


def contradict(entry: dict[str, Any]) -> None:
    entry["must_avoid"] = [*entry["must_avoid"], entry["must_hit"][0]]


def of_train(entries: list[dict[str, Any]], **wanted: str) -> list[dict[str, Any]]:
    wanted["part"] = "train"
    return [entry for entry in entries if all(entry[key] == value for key, value in wanted.items())]


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


DEFECTS = {
    "contradiction": contradict,
    "broken-phrase": lambda entry: entry["must_avoid"].append("center (0"),
    "avoid-inside-hit": lambda entry: entry.update(
        must_hit=["one closed ring"], must_avoid=["ring"], reference_answer="There is one closed ring."
    ),
    "reference-misses": lambda entry: entry.update(must_hit=["a seventh corner"]),
    "class-named": lambda entry: entry.update(
        wafer_label=["Edge-Ring"],
        prompt=[
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why an edge ring?"}]}
        ],
    ),
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defective_row_is_not_learned_from(
    kind: str, copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = brief(tmp_path / "a", tmp_path, copied)
    before = [row.id for row in read_course(settings).train]
    rewrite(copied, lambda entries: DEFECTS[kind](of_train(entries)[4]))
    spoiled = of_train(read_list(copied / RL))[4]["id"]
    with caplog.at_level(logging.WARNING):
        after = [row.id for row in read_course(settings).train]
    assert after == [name for name in before if name != spoiled] and len(after) == len(before) - 1
    assert f"1 rows of part train are left out: {ERRORS[kind]}; the first is {spoiled}" in caplog.text


@pytest.mark.parametrize("group", ["dimension root_cause", "difficulty medium"])
def test_defects_that_leave_nothing_of_a_group_are_refused(copied: Path, tmp_path: Path, group: str) -> None:
    key, _, value = group.partition(" ")
    settings = brief(tmp_path / "a", tmp_path, copied)

    def spoil(entries: list[dict[str, Any]]) -> None:
        for entry in of_train(entries, **{key: value}):
            contradict(entry)

    rewrite(copied, spoil)
    says = f"defects leave no row of {group} in .* to learn from; in row .*: it is both in must_hit and"
    with pytest.raises(DatasetError, match=says):
        read_course(settings)
    # One sound row is enough.
    rewrite(copied, lambda entries: of_train(entries, **{key: value})[0]["must_avoid"].pop())
    assert [getattr(row.row, key) for row in read_course(settings).train].count(value) == 1


def test_a_defective_description_is_not_learned_from(
    copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = brief(tmp_path / "a", tmp_path, copied, data__descriptions=True)
    before = {row.id for row in read_course(settings).train}
    spoiled = of_train(read_list(copied / RL), dimension="root_cause")[0]

    def avoid_the_candidate(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            if entry["image"] == spoiled["image"]:
                causes = entry["rubric"]["root_cause_rubric"]
                causes["root_cause_avoid"] = causes["potential_causes"][:1]

    assert spoiled["rubric"]["root_cause_rubric"]["potential_causes"]
    rewrite(copied, avoid_the_candidate)
    with caplog.at_level(logging.WARNING):
        after = {row.id for row in read_course(settings).train}
    assert before - after == {f"{spoiled['image'].removesuffix('.png')}-rl-full"}
    assert ERRORS["contradiction"] in caplog.text


def test_a_difficulty_that_no_row_has_is_warned_of(
    copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = brief(tmp_path / "a", tmp_path, copied)
    with caplog.at_level(logging.WARNING):
        read_course(settings)
    assert "the curriculum goes without" not in caplog.text

    def ease(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            entry["difficulty"] = "easy"

    rewrite(copied, ease)
    with caplog.at_level(logging.WARNING):
        course = read_course(settings)
    assert "the curriculum goes without medium and hard: part train has no such row" in caplog.text
    assert {course.curriculum.level(k) for k in range(len(course.curriculum))} == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told[2].pop("image"), "entry 2 of .* must name an image and give its full description"),
        (lambda told: told[2].update(image=3), "entry 2 of .* must name an image"),
        (lambda told: told[2]["descriptions"].pop("full"), "entry 2 of .* must name an image"),
        (lambda told: told[2].update(descriptions="A ring."), "entry 2 of .* must name an image"),
        (lambda told: told.insert(2, "A ring."), "entry 2 of .* must name an image"),
        (
            lambda told: told.pop(0),
            r"does not describe .*\.png, which row .* is about; write the folder anew",
        ),
    ],
)
def test_descriptions_that_are_missing_are_named(copied: Path, change: Any, message: str) -> None:
    rewrite(copied, change, DESCRIPTIONS)
    with pytest.raises(DatasetError, match=message):
        read_policy_rows(copied, descriptions=True)
    assert read_policy_rows(copied)["train"].rows


def test_a_system_turn_may_be_plain_text(copied: Path, tiny_checkpoint: Path) -> None:
    task = dataset_task(copied)
    prompts = Prompts(load_processor(tiny_checkpoint), task, tags=True)
    parts = prompts.chat(read_policy_rows(copied)["train"].rows[0])

    def flatten(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            entry["prompt"][0]["content"] = entry["prompt"][0]["content"][0]["text"]

    rewrite(copied, flatten)
    row = read_policy_rows(copied)["train"].rows[0]
    assert isinstance(row.row.prompt[0]["content"], str)
    assert prompts.chat(row)[0] == parts[0]
    assert prompts.length(row) > 10


@pytest.mark.parametrize(
    "content",
    [None, 3, ["look"], [{"type": "image"}], [{"type": "text"}], [{"type": "text", "text": None}]],
)
def test_a_turn_that_is_no_text_is_named(copied: Path, content: Any) -> None:
    rewrite(copied, lambda entries: entries[3]["prompt"][0].update(content=content))
    with pytest.raises(DatasetError, match="prompt of row 3 .* must hold text beside its one image"):
        read_policy_rows(copied)
    user = [{"type": "image"}, *(content if isinstance(content, list) else [content])]
    rewrite(copied, lambda entries: entries[3].update(prompt=[{"role": "user", "content": user}]))
    with pytest.raises(DatasetError, match="prompt of row 3 .*image"):
        read_policy_rows(copied)
