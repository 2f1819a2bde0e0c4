"""The command line of export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from export.commands import export, find_task
from wafervlm.bundle import open_bundle
from wafervlm.errors import UsageError
from wafervlm.task import Task


def test_a_bundle_is_written_and_described(checkpoint: Path, tiny_task: Task, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps(tiny_task.to_dict()))
    arguments = [str(checkpoint), "-o", str(tmp_path / "bundle"), "--task", str(tmp_path / "task.json")]
    done = CliRunner().invoke(export, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert result["digest"] == open_bundle(tmp_path / "bundle").digest
    assert result["parity"]["exact_max_abs_difference"] < 1e-4
    assert result["temperature"] == 1
    assert f"next: wafervlm verify --bundle {tmp_path / 'bundle'}" in done.stderr
    again = CliRunner().invoke(export, arguments, catch_exceptions=False)
    assert "nothing to do" in again.stderr


def test_the_operator_set_is_chosen_and_told(checkpoint: Path, tiny_task: Task, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps(tiny_task.to_dict()))
    given = [str(checkpoint), "-o", str(tmp_path / "bundle"), "--task", str(tmp_path / "task.json")]
    done = CliRunner().invoke(export, [*given, "--opset", "21", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["opset"] == 21
    (entry,) = onnx.load(tmp_path / "bundle" / "model.onnx").opset_import
    assert entry.version == 21
    refused = CliRunner().invoke(export, [*given, "--opset", "20"])
    assert refused.exit_code == 2
    assert "'20' is not one of '21', '23'" in refused.stderr


def test_the_task_must_be_known(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --task"):
        CliRunner().invoke(export, [str(checkpoint), "-o", str(tmp_path / "bundle")], catch_exceptions=False)


def test_the_task_is_looked_for_in_the_checkpoint_and_the_dataset(tiny_task: Task, tmp_path: Path) -> None:
    checkpoint, dataset = tmp_path / "checkpoint", tmp_path / "dataset"
    for folder, name in ((checkpoint, "first"), (dataset, "second")):
        folder.mkdir()
        (folder / "task.json").write_text(json.dumps(replace(tiny_task, name=name).to_dict()))
    assert find_task(None, checkpoint, dataset).name == "first"
    assert find_task(dataset / "task.json", checkpoint).name == "second"
    (checkpoint / "task.json").unlink()
    assert find_task(None, checkpoint, dataset).name == "second"


def test_help_has_an_example() -> None:
    text = CliRunner().invoke(export, ["--help"]).stdout
    assert "Example:" in text
    assert "wafervlm export runs/gptq -d runs/data -o runs/bundle" in text
