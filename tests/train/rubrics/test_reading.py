"""What the linter reads: folders and files of rows, and rows that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.rubrics.rows import sound_rows, write
from train.rubrics.lint import lint
from wafervlm.cli import main
from wafervlm.errors import DatasetError

QUESTION: dict[str, Any] = {
    "id": "q",
    "image": "a.png",
    "query": "Where?",
    "answer": "There.",
    "question_type": "spatial",
    "difficulty": "easy",
    "wafer_label": ["Edge-Ring"],
}


def test_what_is_no_row_among_rows_is_found(tmp_path: Path) -> None:
    rows = sound_rows()
    rows[3:3] = [5, None, "a row"]  # type: ignore[list-item]
    write(tmp_path / "rl.json", rows)
    for path in (tmp_path, tmp_path / "rl.json"):
        report = lint(path)
        assert [(f.kind, f.row, f.why) for f in report.findings] == [
            ("malformed", f"rl.json:{n}", f"it must be an object, not {kind}")
            for n, kind in ((3, "int"), (4, "NoneType"), (5, "str"))
        ]
        assert not report.passed and report.scored == 72


def test_a_row_without_must_hit_is_counted(tmp_path: Path) -> None:
    rows = sound_rows()
    del rows[1]["must_hit"]
    write(tmp_path / "rl.json", rows)
    report = lint(tmp_path)
    assert (report.rows, report.scored, report.unusable) == (72, 71, 1)
    assert report.findings[0].why == "must_hit must be a list of phrases, and is missing"


def test_lists_of_other_things_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "rl.json", sound_rows())
    write(tmp_path / "rubrics.json", [{"id": "a", "image": "a.png", "rubric": {"summary": "A ring."}}])
    write(tmp_path / "annotations.json", [{"id": "a", "image": "a.png", "conversations": []}])
    (tmp_path / "labels.json").write_text('["Center", "Donut"]')
    (tmp_path / "split.json").write_text('{"train": [1, 2], "name": "a"}')
    (tmp_path / "settings.json").write_text('{"dimension": "all"}')
    report = lint(tmp_path)
    assert report.passed and not report.findings and report.rows == 72


def test_wrapped_rows_in_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "rl.json").write_text(json.dumps({"rows": sound_rows()}))
    assert lint(tmp_path).scored == 72
    (tmp_path / "more.json").write_text(json.dumps({"rows": [{"id": "a", "must_hit": 3}]}))
    assert not lint(tmp_path).passed


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"query": "Where on this edge ring?"}, "class-named"),
        ({"query": "Which pattern is it?", "wafer_label": "Edge-Ring"}, None),
        ({"query": "Which edge-ring is it?", "wafer_label": "Edge-Ring"}, "class-named"),
        ({"query": "How far from the center?", "wafer_label": ["Center"]}, "class-word"),
        ({"query": "Which class is it, Center?", "wafer_label": ["Center"]}, "class-named"),
        ({"query": "Is there none?", "wafer_label": ["none"]}, None),
        ({"difficulty": "simple"}, "unknown-difficulty"),
        ({"difficulty": None}, "unknown-difficulty"),
        ({"difficulty": ["easy"]}, "unknown-difficulty"),
        ({"answer": " "}, "malformed"),
        ({"question_type": "taste"}, "unknown-dimension"),
    ],
)
def test_questions_are_linted(tmp_path: Path, change: dict[str, Any], kind: str | None) -> None:
    write(tmp_path / "rl.json", sound_rows())
    write(tmp_path / "sft.json", [{**QUESTION, **change}])
    report = lint(tmp_path)
    assert [(f.kind, f.row) for f in report.findings] == ([(kind, "q")] if kind else [])
    assert report.passed == (kind in (None, "class-word")) and report.vqa_rows == 1


@pytest.mark.parametrize("column", ["query", "answer"])
def test_a_question_that_lacks_a_column_is_found(tmp_path: Path, column: str) -> None:
    write(tmp_path / "rl.json", sound_rows())
    write(tmp_path / "sft.json", [{key: value for key, value in QUESTION.items() if key != column}])
    report = lint(tmp_path)
    assert [(f.kind, f.row, f.why) for f in report.findings] == [("malformed", "q", f"{column} is empty")]
    assert report.vqa_rows == 1


def test_a_file_in_another_encoding_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row | {"reference_answer": "caf\xe9"} for row in sound_rows()]
    (tmp_path / "rl.json").write_bytes(json.dumps(rows, ensure_ascii=False).encode("latin-1"))
    for path in (tmp_path, tmp_path / "rl.json"):
        with pytest.raises(
            DatasetError, match=r"cannot read the rows in .*rl\.json: .*; it must be JSON in UTF-8"
        ):
            lint(path)
    assert main(["data", "lint", str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_nested_without_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(DatasetError, match=r"cannot read the rows in .*deep\.json"):
        lint(tmp_path)


def test_a_folder_with_vqa_rows_beside(tmp_path: Path) -> None:
    write(tmp_path / "rl.json", sound_rows())
    bad = [{**QUESTION, "id": "r", "image": None}, {**QUESTION, "id": "s", "question_type": "taste"}]
    write(tmp_path / "sft.json", [QUESTION, *bad])
    (tmp_path / "provenance.json").write_text("{}")
    report = lint(tmp_path)
    assert report.vqa_rows == 3
    assert [(finding.kind, finding.row) for finding in report.findings] == [
        ("no-image", "r"),
        ("unknown-dimension", "s"),
    ]


def test_json_lines_wrapped_lists_and_phrases_as_json_text(tmp_path: Path) -> None:
    rows = [
        row | {"must_hit": json.dumps(row["must_hit"]), "rubric": json.dumps(row["rubric"])}
        for row in sound_rows()
    ]
    lines = tmp_path / "rl.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    wrapped = tmp_path / "wrapped.json"
    wrapped.write_text(json.dumps({"data": rows}))
    for path in (lines, wrapped):
        report = lint(path)
        assert report.passed and report.scored == 72


def test_what_holds_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        lint(tmp_path / "missing")
    with pytest.raises(DatasetError, match="holds no RL rows"):
        lint(tmp_path)
    (tmp_path / "cut.json").write_text('[{"must_hit": ')
    with pytest.raises(DatasetError, match="cannot read the rows in .*cut.json"):
        lint(tmp_path)
    with pytest.raises(DatasetError, match="row 0 of .* must be an object, not int"):
        lint(write(tmp_path / "numbers.json", [1, 2]))  # type: ignore[list-item]
