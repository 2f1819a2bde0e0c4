"""The commands benchmark and run, on a line that stands complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.conftest import Ran, stamps
from wafervlm.cli import main


def test_run_ends_with_the_report_and_the_next_command(
    ran: Ran, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe_file)]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out.splitlines()[-1])
    assert found["accuracy"] == ran.outcome.report["accuracy"]
    assert Path(found["report"]).is_file()
    assert set(found["latency_ms"]["bundle"]) == {"p50", "p90", "p99"}
    assert "static_full_precision" in printed.out
    report, following = printed.err.splitlines()[-2:]
    assert report == f"report: {ran.outcome.page}"
    command = following.removeprefix("next: wafervlm ").split()
    assert main([*command[:-1], str(ran.folder.parent / "answer.png")]) == 0
    assert (ran.folder.parent / "answer.png").is_file()


def test_run_as_json_is_one_line(ran: Ran, recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe_file), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["line"] == "tiny"


def test_a_dry_run_changes_nothing(ran: Ran, recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stamps(ran.folder)
    assert main(["run", str(recipe_file), "--dry-run", "--redo", "data", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["state"] for stage in found["stages"]] == ["to do"] * 8
    assert stamps(ran.folder) == before


def test_benchmark_takes_up_what_is_complete(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ran.folder
    command = ["benchmark", "--bundle", folder / "export", "--reference", folder / "merge", "--base"]
    command += [folder / "zero-shot", "--maps", folder / "data", "-o", folder / "benchmark", "--threads", 1]
    command += ["--latency-maps", 10, "--generate-maps", 2, "--no-footprint", "--device", "cpu"]
    assert main([str(part) for part in command]) == 0
    printed = capsys.readouterr()
    assert "complete and of these inputs already" in printed.err
    assert f"next: open {folder / 'benchmark' / 'report.html'}" in printed.err
    assert json.loads(printed.out.splitlines()[-1])["agreement"] == ran.outcome.report["agreement"]


def test_what_is_not_there_is_said_in_a_sentence(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps, bundle = str(ran.folder / "data"), str(ran.folder / "export")
    command = ["benchmark", "--bundle", bundle, "--maps", maps, "-o", str(tmp_path / "out"), "--reference"]
    assert main([*command, str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("nowhere does not exist; check the path")
    assert main(["run", str(tmp_path / "none.toml")]) == 2
