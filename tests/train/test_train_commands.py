"""The commands train and merge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from train.build import BuildConfig, build_dataset
from train.commands import data, merge, settled_device, train
from train.config import Settings, read_settings
from train.settings_file import leaves
from wafervlm.cli import main
from wafervlm.errors import ConfigError, ProviderError
from wafervlm.task import Task

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, tiny_task: Task) -> Path:
    folder = tmp_path_factory.mktemp("data") / "dataset"
    build_dataset(BuildConfig(source=Path("synthetic"), train=2, test=1, tune=1, task=tiny_task), folder)
    return folder


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "sft.toml"
    path.write_text('[model]\ndevice = "cpu"\n[lora]\nrank = 2\n[train]\nmax_steps = 2\nbatch = 4\n')
    return path


def run_train(settings_file: Path, base: Path, dataset: Path, out: Path, *more: str) -> Result:
    arguments = [str(settings_file), "-b", str(base), "-d", str(dataset), "-o", str(out), *more]
    return CliRunner().invoke(train, arguments, catch_exceptions=False)


def test_train_then_merge(tmp_path: Path, tiny_checkpoint: Path, dataset: Path, settings_file: Path) -> None:
    result = run_train(
        settings_file, tiny_checkpoint, dataset, tmp_path / "adapter", "--set", "train.batch=3", "--json"
    )
    summary = json.loads(result.stdout)
    assert summary["steps"] == 2 and summary["samples"] == 6 and summary["trained_now"]
    assert 0 <= summary["tune_accuracy"] <= 1 and summary["minutes"] >= 0
    assert (
        "train.batch" in result.stderr and "model.precision" in result.stderr and "float32" in result.stderr
    )
    assert "train: 2/2" in result.stderr and "next: wafervlm merge" in result.stderr

    again = run_train(
        settings_file, tiny_checkpoint, dataset, tmp_path / "adapter", "--set", "train.batch=3", "--json"
    )
    assert "is complete" in again.stderr and not json.loads(again.stdout)["trained_now"]

    folders = ["-b", tiny_checkpoint, "-a", tmp_path / "adapter", "-d", dataset, "-o", tmp_path / "merged"]
    arguments = [*map(str, folders), "--dtype", "float32", "--json"]
    merged = CliRunner().invoke(merge, arguments, catch_exceptions=False)
    assert json.loads(merged.stdout)["merge_distance"] < 1e-4
    shown = dict(line.split(maxsplit=1) for line in merged.stderr.splitlines() if line.startswith("  "))
    assert shown["device"] == settled_device("auto")
    assert (tmp_path / "merged" / "config.json").is_file()


def test_merge_on_a_gpu_that_is_not_there_is_told(
    tmp_path: Path, tiny_checkpoint: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    # The adapter is never opened: where to compute is looked at first.
    folders = ["-b", tiny_checkpoint, "-a", tiny_checkpoint, "-d", dataset, "-o", tmp_path / "merged"]
    with pytest.raises(ProviderError, match="'cuda' was asked for"):
        CliRunner().invoke(merge, [*map(str, folders), "--device", "cuda"], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_the_recipes_file_is_reported(tmp_path: Path, tiny_checkpoint: Path, dataset: Path) -> None:
    path = tmp_path / "recipe.toml"
    lines = [
        "[train]",
        f'output_dir = "{tmp_path / "out"}"',
        "compile = false",
        "max_steps = 1",
        "train_batch_per_replica = 4",
        "[train.train_policy]",
        'type = "sft"',
        "mini_batch = 2",
        "[policy]",
        f'model_name_or_path = "{tiny_checkpoint}"',
        "[custom.dataset]",
        f'media_path = "{dataset}"',
    ]
    path.write_text("\n".join(lines))
    result = CliRunner().invoke(train, [str(path)], catch_exceptions=False)
    assert "from the recipe: train.train_batch_per_replica = 4: taken as train.batch = 2" in result.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_setting_that_is_not_known_is_usage(
    settings_file: Path,
    tiny_checkpoint: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConfigError):
        run_train(settings_file, tiny_checkpoint, dataset, tmp_path / "a", "--set", "lora.rnk=3")
    assert main(["train", str(settings_file), "--set", "lora.rnk=3"]) == 2
    assert "did you mean 'lora.rank'" in capsys.readouterr().err


def test_explain_lists_every_setting() -> None:
    result = CliRunner().invoke(train, ["--explain"], catch_exceptions=False)
    for key, _, text in leaves(Settings):
        assert f"{key} = " in result.stdout and text in result.stdout


@pytest.mark.parametrize("command", [train, merge, data])
def test_help_has_an_example(command: object) -> None:
    result = CliRunner().invoke(command, ["--help"])  # type: ignore[arg-type]
    assert result.exit_code == 0
    if command is not data:
        assert "Example:" in result.stdout


def test_the_example_settings_are_valid() -> None:
    settings, notes = read_settings(ROOT / "train" / "sft.toml")
    assert settings.lora.vision and notes == []


def test_the_commands_are_listed_without_torch() -> None:
    code = (
        "import sys; import train.commands; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
