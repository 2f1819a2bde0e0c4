from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.vqa.rows import RlRow, VqaRow, read_rows, write_rows
from wafervlm.errors import DatasetError


def first(folder: Path, name: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))[0]
    return row


def written(path: Path, row: object) -> Path:
    path.write_text(json.dumps([row]), encoding="utf-8")
    return path


def test_rows_come_back_as_they_were_written(words_folder: Path, tmp_path: Path) -> None:
    for name, kind in (("sft.json", VqaRow), ("rl.json", RlRow)):
        rows: list[Any] = read_rows(words_folder / name, kind)
        write_rows(rows, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (words_folder / name).read_bytes()
        assert read_rows(tmp_path / name, kind) == rows and rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "row 0 of .* has no image"),
        ({"image": " "}, "has no image"),
        ({"question_type": "colour"}, "question_type of row 0 .* is 'colour'; known are spatial"),
        ({"difficulty": "extreme"}, "difficulty .* known are easy, medium, hard"),
        ({"query": 3}, "query .* must be text"),
        ({"answer": ""}, "answer .* must be text"),
        ({"wafer_label": "Loc"}, "wafer_label .* must be a list of texts"),
    ],
)
def test_a_broken_question_is_named(
    words_folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / "rows.json", {**first(words_folder, "sft.json"), **change})
    with pytest.raises(DatasetError, match=message):
        read_rows(path, VqaRow)


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        for key in keys[:-1]:
            row = row[key]
        del row[keys[-1]]

    return change


def having(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        for key in keys[:-1]:
            row = row[key]
        row[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("image"), "has no image"),
        (having("taste", "dimension"), "dimension of row 0 .* is 'taste'; known are spatial, morphology"),
        (having(["edge zone", " "], "must_hit"), "must_hit .* none of them empty"),
        (having("edge zone", "must_avoid"), "must_avoid .* must be a list of texts"),
        (without("reference_answer"), "reference_answer"),
        (having(None, "rubric"), "rubric of row 0 .* must be an object"),
        (without("rubric", "spatial_rubric", "zone"), "spatial_rubric of the rubric .* has no zone"),
        (having("Cooking", "rubric", "root_cause_rubric", "equipment_category"), "category 'Cooking'"),
        (having([{"role": "assistant"}], "prompt"), "must be a user's turn"),
        (having([{"role": "user", "content": []}], "prompt"), "exactly one image"),
    ],
)
def test_a_broken_prompt_is_named(
    words_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    row = first(words_folder, "rl.json")
    change(row)
    with pytest.raises(DatasetError, match=message):
        read_rows(written(tmp_path / "rows.json", row), RlRow)


@pytest.mark.parametrize(
    ("text", "message"), [("[", "cannot read"), ("{}", "must hold a list"), ("[1]", "object")]
)
def test_a_file_that_is_no_list_of_rows_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_rows(tmp_path / "rows.json", VqaRow)
