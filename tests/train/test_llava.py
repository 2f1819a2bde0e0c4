from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from train.llava import KINDS, conversations, write_conversations
from wafervlm.errors import TaskError
from wafervlm.task import WAFER_DEFECTS, Task


def turns(entry: dict[str, object]) -> tuple[str, str]:
    human, gpt = entry["conversations"]  # type: ignore[misc]
    assert (human["from"], gpt["from"]) == ("human", "gpt")
    return human["value"], gpt["value"]


@pytest.mark.parametrize("label", WAFER_DEFECTS.labels)
def test_all_four_kinds_are_asked_and_rightly_answered(label: str) -> None:
    name = WAFER_DEFECTS.spelling(label)
    for seed in range(30):
        entries = conversations("test/a.png", label, WAFER_DEFECTS, random.Random(seed))
        assert [entry["id"].rsplit("-", 1)[1] for entry in entries] == list(KINDS)
        golden, yes, no, choice = (turns(entry) for entry in entries)
        assert golden == (
            WAFER_DEFECTS.prompt + "\n<image>",
            f"The wafer map image indicates the presence of {name} defect.",
        )
        assert yes[0].endswith(f"defect type of {name}?\n<image>")
        assert yes[1] == f"Yes, this wafer map image presents the defect type of {name}."
        assert not no[0].endswith(f"defect type of {name}?\n<image>")  # asks a wrong class
        assert no[1] == f"No, this wafer map image presents the defect type of {name}."
        assert choice[1] == f"({WAFER_DEFECTS.labels.index(label) + 1}) {name}."
        assert choice[1] in choice[0]
        assert all(f"{other.lower()}." in choice[0] for other in WAFER_DEFECTS.labels)
        assert {entry["image"] for entry in entries} == {"test/a.png"}


def test_the_wrong_class_is_any_other() -> None:
    asked = {
        turns(conversations("a.png", "Loc", WAFER_DEFECTS, random.Random(seed))[2])[0].split("type of ")[1]
        for seed in range(200)
    }
    assert asked == {
        f"{WAFER_DEFECTS.spelling(label)}?\n<image>" for label in WAFER_DEFECTS.labels if label != "Loc"
    }


def test_a_task_of_ones_own_is_asked_in_its_order_without_the_recipes_words() -> None:
    task = Task(
        labels=("good", "bad"), prompt="Which?", order="image-first", answer_prefix="", answer_suffix=""
    )
    entries = conversations("a.png", "bad", task, random.Random(0))
    assert turns(entries[0]) == ("<image>\nWhich?", "bad")
    assert all(turns(entry)[0].startswith("<image>\n") for entry in entries)
    assert "yellow" not in json.dumps(entries)
    with pytest.raises(TaskError):
        conversations("a.png", "worse", task, random.Random(0))


def test_written_as_one_list(tmp_path: Path) -> None:
    entries = conversations("a.png", "Loc", WAFER_DEFECTS, random.Random(0))
    write_conversations(entries, tmp_path / "annotations" / "train.json")
    assert json.loads((tmp_path / "annotations" / "train.json").read_text()) == entries
