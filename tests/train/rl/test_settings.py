from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.rl.toy import brief
from train.config import LoraSettings, ModelSettings
from train.rl.settings import (
    GspoSettings,
    RewardSettings,
    RlSettings,
    RlTrainSettings,
    RowSettings,
    flat_settings,
    read_rl_settings,
)
from train.settings_file import leaves
from wafervlm.errors import ConfigError


def test_the_defaults_hold_and_every_setting_has_a_help() -> None:
    settings = RlSettings()
    assert settings.answers == 64 and settings.round_steps == 4
    assert all(text for _, _, text in leaves(RlSettings))


def test_a_file_is_read_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "rl.toml"
    file.write_text("[rl]\ncompletions = 16\n[train]\nbatch = 4\n")
    settings = read_rl_settings(file, ["rl.beta=0.1", "rl.prompts=2"], {"output": "x"})
    assert (settings.rl.completions, settings.rl.beta, settings.output) == (16, 0.1, "x")
    assert settings.answers == 32
    file.write_text("[rl]\ncompletion = 16\n")
    with pytest.raises(ConfigError, match=r"unknown key 'rl\.completion'.*did you mean 'rl\.completions'"):
        read_rl_settings(file)


@pytest.mark.parametrize(
    ("cls", "values", "says"),
    [
        (GspoSettings, {"completions": 1}, "rl.completions is 1; it must be 2 or more"),
        (GspoSettings, {"epsilon": 1.5}, "rl.epsilon is 1.5; it must be below 1"),
        (GspoSettings, {"beta": -0.1}, "rl.beta is -0.1"),
        (RewardSettings, {"rubric": 0.0, "claims": 0.0}, "above 0 together"),
        (RewardSettings, {"format": -1.0}, "reward.format is -1.0"),
        (RowSettings, {"tune_rows": -1}, "data.tune_rows is -1"),
        (RlTrainSettings, {"warmup": 1.0}, "train.warmup is 1.0"),
        (RlTrainSettings, {"learning_rate": 0.0}, "train.learning_rate is 0.0"),
    ],
)
def test_values_out_of_range_are_refused(cls: type, values: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cls(**values)


def test_a_round_must_split_into_its_parts() -> None:
    with pytest.raises(ConfigError, match=r"a multiple of train\.batch \* rl\.updates, 24"):
        RlSettings(rl=GspoSettings(updates=3))


def test_an_adapter_keeps_its_own_shape(tmp_path: Path) -> None:
    settings = brief(tmp_path / "o", tmp_path, tmp_path)
    assert "lora.rank" in flat_settings(settings)
    with pytest.raises(ConfigError, match="keeps its rank"):
        replace(settings, model=replace(settings.model, adapter="a"))
    going_on = RlSettings(model=ModelSettings(adapter="a"), lora=LoraSettings())
    assert not any(key.startswith("lora") for key in flat_settings(going_on))
