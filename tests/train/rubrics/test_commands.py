"""``wafervlm data lint`` as it is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train.rubrics.rows import changed, sound_rows, write
from wafervlm.cli import main


def test_a_sound_set_is_said_to_be_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rl.json", sound_rows())
    assert main(["data", "lint", str(path)]) == 0
    printed = capsys.readouterr()
    assert "72 RL rows, 72 scored" in printed.out and "zero-advantage groups:" in printed.out
    for word in ("reference", "constant", "empty", "wrong class", "stuffed", "morphology"):
        assert word in printed.out
    assert "is a sound reward" in printed.err


def test_a_broken_set_ends_with_5_and_names_row_and_phrase(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = changed(lambda row: row.update(must_avoid=[f"dot {i}" for i in range(60)] + ["ring", "line ("]))
    path = write(tmp_path / "rl.json", rows)
    assert main(["data", "lint", str(path)]) == 5
    printed = capsys.readouterr()
    assert "avoid-inside-hit: row Edge-Ring-0-morphology 'ring': it stands inside" in printed.out
    assert "broken-phrase: row Edge-Ring-0-morphology 'line ('" in printed.out
    assert "must_avoid has 62 phrases" in printed.out
    assert "is not a sound reward: defects found: 3, rows with one: 1" in printed.err


def test_json_is_one_line_with_every_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rl.json", [row | {"image": ""} for row in sound_rows()])
    assert main(["data", "lint", str(path), "--json", "--formula", "strict"]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    report = json.loads(lines[0])
    assert not report["passed"] and report["counts"] == {"no-image": 72} and len(report["findings"]) == 72
    assert report["findings"][0]["severity"] == "error"
    assert report["dimensions"]["spatial"]["reference"] == {"value": 1.0, "counted": 24, "not_applicable": 0}


def test_long_lists_of_findings_are_cut_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rl.json", [row | {"image": ""} for row in sound_rows()])
    main(["data", "lint", str(path)])
    assert "no-image: 67 more; --json lists all" in capsys.readouterr().out


def test_help_has_an_example_and_a_missing_path_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "lint", "--help"]) == 0
    assert "wafervlm data lint runs/vqa" in capsys.readouterr().out
    assert main(["data", "lint", "nowhere"]) == 2
