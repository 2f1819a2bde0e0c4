from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.train.rl.toy import BRIEF
from train.commands import train
from train.rl.assembly import read_course
from train.rl.gspo import settled
from train.rl.plan import plan
from train.rl.settings import RlSettings, read_rl_settings
from train.settings_file import leaves
from wafervlm.errors import ConfigError, UsageError

ROOT = Path(__file__).resolve().parents[3]
RECIPES = [ROOT / "train/nano/rl.toml", *sorted((ROOT / "train/recipes/rl").glob("*.toml"))]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tables: dict[str, list[str]] = {}
    for key, value in {**BRIEF, "train.max_steps": 2}.items():
        table, name = key.split(".")
        tables.setdefault(table, []).append(f"{name} = {json.dumps(value)}")
    file = tmp_path / "rl.toml"
    file.write_text("".join(f"[{table}]\n" + "\n".join(lines) + "\n" for table, lines in tables.items()))
    return file


def test_a_table_rl_trains_by_reward(
    tmp_path: Path, tiny_checkpoint: Path, words: Path, config: Path
) -> None:
    given = ["-b", str(tiny_checkpoint), "-d", str(words), "-o", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(train, ["--config", str(config), *given], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["steps"] == 2 and found["best_step"] == 0 and found["zero_variance"] is not None
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "no step was better on held-out prompts" in result.stderr
    assert "wafervlm merge" in result.stderr
    again = CliRunner().invoke(train, [str(config), *given], catch_exceptions=False)
    assert json.loads(again.stdout)["trained_now"] is False


def test_a_dry_run_counts_and_writes_nothing(
    tmp_path: Path, tiny_checkpoint: Path, words: Path, config: Path
) -> None:
    given = ["-b", str(tiny_checkpoint), "-d", str(words), "-o", str(tmp_path / "out"), "--json", "--dry-run"]
    result = CliRunner().invoke(train, ["--config", str(config), *given], catch_exceptions=False)
    found = json.loads(result.stdout)
    values = {"model.base": str(tiny_checkpoint), "data.dataset": str(words), "output": "x"}
    settings = settled(read_rl_settings(config, (), values))
    assert found == json.loads(json.dumps(plan(settings)))
    assert sum(found["prompts"].values()) == len(read_course(settings).train)
    assert (found["rounds"], found["steps"], found["answers"]) == (1, 2, 16)
    assert not list(tmp_path.glob("out*"))


def test_the_file_is_named_once(config: Path, tmp_path: Path) -> None:
    for arguments in ([], ["--config", str(config), str(config)]):
        with pytest.raises(UsageError, match="name the settings file once"):
            CliRunner().invoke(train, arguments, catch_exceptions=False)
    plain = tmp_path / "sft.toml"
    plain.write_text("[train]\nbatch = 4\n")
    with pytest.raises(UsageError, match=r"table \[rl\]"):
        CliRunner().invoke(train, [str(plain), "--dry-run"], catch_exceptions=False)
    # Without the table it is a fine-tuning, by either spelling.
    with pytest.raises(ConfigError, match="output is not set"):
        CliRunner().invoke(train, ["--config", str(plain)], catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"did you mean 'rl\.beta'"):
        CliRunner().invoke(train, [str(config), "--set", "rl.betta=1"], catch_exceptions=False)


def test_explain_lists_these_settings_too() -> None:
    result = CliRunner().invoke(train, ["--explain"], catch_exceptions=False)
    for key, _, text in leaves(RlSettings):
        assert f"{key} = " in result.stdout and text in result.stdout


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_read_and_name_their_command(path: Path) -> None:
    settings = read_rl_settings(path, (), {"model.adapter": "a"})
    assert settings.round_steps > 1, "clipping would never act"
    assert f"wafervlm train --config {path.relative_to(ROOT).as_posix()}" in path.read_text()
