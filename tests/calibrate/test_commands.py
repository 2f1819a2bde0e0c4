"""The command ``wafervlm calibrate``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from calibrate.commands import calibrate
from calibrate.pack import load_quantized
from train.artefact import read_provenance
from train.commands import data, merge, settled_device, train
from train.dataset import read_split
from wafervlm.cli import cli
from wafervlm.errors import ConfigError, DatasetError, ProviderError

ROOT = Path(__file__).resolve().parents[2]


def invoke(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


def following(result: Result) -> click.Context:
    """The command that ``result`` says comes next, parsed by that very command, as the user's shell would
    hand it over: an option that it lacks, or a folder that is not there, raises."""
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("next: "))
    program, name, *arguments = shlex.split(line.removeprefix("next: "))
    command = cli.get_command(click.Context(cli), name)
    assert program == "wafervlm" and command is not None
    return command.make_context(name, arguments)


def test_what_each_stage_says_comes_next_can_be_typed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    folder, runs = tmp_path / "data", tmp_path / "my runs"  # a path that has to be quoted
    adapter, merged = runs / "adapter", runs / "merged"
    sizes = ["-t", 2, "-e", 1, "-s", 64, 64]
    after_build = following(invoke(data, "build", "-d", "synthetic", "-o", folder, *sizes))
    assert after_build.info_name == "train" and after_build.params["dataset"] == str(folder)

    settings = tmp_path / "sft.toml"
    settings.write_text('[model]\ndevice = "cpu"\n[lora]\nrank = 2\n[train]\nmax_steps = 1\nbatch = 4\n')
    after_train = following(invoke(train, settings, "-b", tiny_checkpoint, "-d", folder, "-o", adapter))
    wanted = {"base": tiny_checkpoint, "adapter": adapter, "dataset": folder, "out": merged}
    assert after_train.info_name == "merge" and wanted.items() <= after_train.params.items()

    folders = ["-b", tiny_checkpoint, "-a", adapter, "-d", folder, "-o", merged]
    after_merge = following(invoke(merge, *folders, "--dtype", "float32", "--maps", 4))
    wanted = {"checkpoint": merged, "dataset": folder, "out": runs / "gptq"}
    assert after_merge.info_name == "calibrate" and wanted.items() <= after_merge.params.items()


def test_a_next_command_that_cannot_be_typed_is_noticed(tmp_path: Path) -> None:
    @click.command()
    def wrong() -> None:
        click.echo(f"next: wafervlm export -m {tmp_path} -o bundle", err=True)

    with pytest.raises(click.UsageError, match="-m"):
        following(invoke(wrong))


def test_calibrate_writes_a_checkpoint_and_says_what_came_out(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gptq"
    arguments = [tiny_checkpoint, "-d", synthetic_dataset, "-o", out, "--group", 32, "--maps", 18, "--json"]
    result = invoke(calibrate, *arguments)
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert figures["checkpoint"] == str(out)
    assert figures["kl"] < figures["kl_nearest"]
    assert "scheme.group      32" in result.stderr
    after = following(result)
    wanted = {"checkpoint": out, "tune": synthetic_dataset, "out": tmp_path / "bundle"}
    assert after.info_name == "export" and wanted.items() <= after.params.items()
    assert read_provenance(out)["settings"]["device"] == settled_device("auto")
    assert load_quantized(out).path == out


def test_the_table_can_be_taken_on_the_test_part(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    few = ["--group", 32, "--maps", 9, "--check-maps", 9]
    table = ["--compare", tmp_path / "table", "--compare-on", synthetic_dataset]
    folders = ["-d", synthetic_dataset, "-o", tmp_path / "out"]
    result = invoke(calibrate, tiny_checkpoint, *folders, *few, *table, "--json")
    record = json.loads((tmp_path / "table" / "comparison.json").read_text())
    assert record["part"] == "test" and record["maps"] == len(read_split(synthetic_dataset, "test"))
    assert json.loads(result.stdout)["comparison"] == record["rows"]


def test_settings_that_cannot_be_are_refused(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    arguments = [tiny_checkpoint, "-d", synthetic_dataset, "-o", tmp_path / "out"]
    with pytest.raises(ConfigError, match="bits is 1"):
        invoke(calibrate, *arguments, "--bits", "1")


def test_maps_that_cannot_be_compared_on_are_told_before_calibration(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    arguments = [tiny_checkpoint, "-d", synthetic_dataset, "-o", tmp_path / "out"]
    (tmp_path / "empty").mkdir()
    table = ["--compare", tmp_path / "table", "--compare-on", tmp_path / "empty"]
    with pytest.raises(DatasetError):
        invoke(calibrate, *arguments, "--group", "32", *table)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("sees_one", [True, False])
def test_auto_is_settled_before_it_is_recorded(sees_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: sees_one)
    assert settled_device("auto") == ("cuda" if sees_one else "cpu")
    assert settled_device("cpu") == "cpu" and settled_device("cuda") == "cuda"


def test_a_gpu_that_is_not_there_is_told(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = [tiny_checkpoint, "-d", synthetic_dataset, "-o", tmp_path / "out"]
    with pytest.raises(ProviderError, match="'cuda' was asked for"):
        invoke(calibrate, *arguments, "--group", "32", "--device", "cuda")
    assert not (tmp_path / "out").exists()


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(calibrate, ["--help"])
    assert "wafervlm calibrate runs/merged -d runs/data -o runs/gptq" in result.output
