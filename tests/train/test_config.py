"""Settings: what is read, mapped and refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from train.config import (
    LoraSettings,
    Settings,
    TrainSettings,
    flat_dict,
    read_settings,
    settings_from,
    to_dict,
)
from train.settings_file import field_help, leaves
from wafervlm.errors import ConfigError

RECIPE = """
[custom.dataset]
annotation_path = "data/annotations/train.json"
media_path = "data"
system_prompt = ""

[train]
output_dir = "runs/cosmos"
compile = false
train_batch_per_replica = 32

[policy]
model_name_or_path = "nvidia/Cosmos-Reason1-7B"
model_max_length = 4096

[logging]
logger = ["console"]
project_name = "wafer"
experiment_name = "sft"

[train.train_policy]
type = "sft"
mini_batch = 4

[train.ckpt]
enable_checkpoint = true

[policy.parallelism]
tp_size = 1
cp_size = 1
dp_shard_size = 4
pp_size = 1
"""


def read(tmp_path: Path, text: str, **arguments: Any) -> tuple[Settings, list[str]]:
    path = tmp_path / "sft.toml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path, **arguments)


def test_values_reach_their_fields(tmp_path: Path) -> None:
    settings, notes = read(
        tmp_path, 'output = "o"\n[lora]\nrank = 4\nalpha = 8\nvision = true\n[train]\nlearning_rate = 1e-3\n'
    )
    assert settings.output == "o" and notes == []
    assert settings.lora == LoraSettings(rank=4, alpha=8.0, vision=True)
    assert type(settings.lora.alpha) is float
    assert settings.train == TrainSettings(learning_rate=1e-3)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("lora.ranks", "lora.rank"),
        ("train.batch_size", "train.batch"),
        ("lora.lora_rank", "lora.rank"),
        ("rank", "lora.rank"),
        ("policy.model_name", "policy.model_name_or_path"),
        ("train.train_policy.minibatch", "train.train_policy.mini_batch"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'.*did you mean '{near}'"):
        settings_from(nested(key, 1))


def test_unknown_key_without_a_neighbour_lists_all() -> None:
    with pytest.raises(ConfigError, match=r"known are .*lora\.rank"):
        settings_from({"xyzzy": {"qqqqq": 1}})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("lora.rank", 0, "1 or more"),
        ("lora.rank", 4.0, "a whole number"),
        ("lora.rank", True, "a whole number"),
        ("lora.vision", 1, "true or false"),
        ("lora.dropout", 1.0, "below 1"),
        ("train.learning_rate", 0.0, "above 0"),
        ("train.learning_rate", float("nan"), "a finite number"),
        ("train.learning_rate", float("inf"), "a finite number"),
        ("train.learning_rate", "fast", "a number"),
        ("train.seed", -1, "0 or more"),
        ("train.warmup", 1.0, "below 1"),
        ("train", 3, "unknown key 'train'"),
        ("model.device", "gpu", "one of auto, cpu, cuda"),
        ("model.precision", "bfloat", "did you mean 'bfloat16'"),
        ("data.tune_maps", -1, "0 or more"),
        ("data.words", 1.0, "below 1"),
        ("data.unsaid", 0.5, "below 0.5"),
        ("data.unsaid", -0.1, "0 or more"),
        ("data.augment", True, "one of none, symmetries, strong"),
        ("data.augment", "strongly", "did you mean 'strong'"),
        ("model.max_length", 3, "16 or more"),
    ],
)
def test_wrong_value_is_refused(key: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_from(nested(key, value))


def test_rows_of_words_are_taken_whole() -> None:
    for name, value in (("unsaid", 0.3), ("doubts", "runs/bundle")):
        with pytest.raises(ConfigError, match=f"data.{name} is .*{value}.*left out where data.vqa names a"):
            settings_from({"data": {"vqa": "runs/vqa", "words": 0.5, name: value}})
        with pytest.raises(ConfigError, match=rf"data.words is 0.0; .*above 0 where data.{name}"):
            settings_from({"data": {name: value}})
    with pytest.raises(ConfigError, match=r"data.words is 0.0; .*above 0 where data.vqa"):
        settings_from({"data": {"vqa": "runs/vqa"}})


def test_strong_augmentation_is_for_classes_alone() -> None:
    with pytest.raises(ConfigError, match=r"data.augment is 'strong'; .* where data.annotations is true"):
        settings_from({"data": {"augment": "strong", "annotations": True}})


@pytest.mark.parametrize("text", ["rank = ", "[lora", "a = 1\na = 2", "\udcff"])
def test_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        read_settings(path)
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        read_settings(tmp_path / "absent.toml")


def test_overrides_win_and_are_checked(tmp_path: Path) -> None:
    text = "[train]\nbatch = 8\n[lora]\nrank = 2\n"
    settings, _ = read(
        tmp_path, text, overrides=["train.batch=16", "model.device=cpu"], values={"output": 'a"b'}
    )
    assert (settings.train.batch, settings.lora.rank, settings.model.device) == (16, 2, "cpu")
    assert settings.output == 'a"b'
    with pytest.raises(ConfigError, match=r"did you mean 'train\.batch'"):
        read(tmp_path, text, overrides=["train.bach=16"])
    with pytest.raises(ConfigError, match="not key=value"):
        read(tmp_path, text, overrides=["train.batch"])


def test_recipe_is_understood(tmp_path: Path) -> None:
    settings, notes = read(tmp_path, RECIPE)
    assert settings.output == "runs/cosmos"
    assert settings.model.base == "nvidia/Cosmos-Reason1-7B" and settings.model.max_length == 4096
    assert settings.data.dataset == "data" and settings.data.annotations
    assert (settings.train.batch, settings.train.accumulate) == (4, 8)
    assert {note.split(" = ")[0] for note in notes} == set(flat(tomllib.loads(RECIPE)))
    assert any("one device trains here, not 4" in note for note in notes)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"train": {"train_policy": {"type": "grpo"}}}, "train.train_policy.type is 'grpo'.*'sft'"),
        ({"policy": {"parallelism": {"tp_size": 2}}}, "tp_size is 2"),
        ({"train": {"train_batch_per_replica": 10, "train_policy": {"mini_batch": 4}}}, "whole multiple"),
        ({"policy": {"model_name_or_path": "a"}, "model": {"base": "b"}}, "contradict"),
        ({"train": {"optm_lr": -1.0}}, "above 0"),
        ({"custom": {"dataset": {"system_prompt": "Be brief."}}}, "belongs to the dataset's task"),
    ],
)
def test_recipe_that_cannot_be_followed_is_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_from(table)


def test_command_line_wins_over_the_recipe(tmp_path: Path) -> None:
    settings, _ = read(tmp_path, RECIPE, values={"model.base": "runs/base"})
    assert settings.model.base == "runs/base"


def test_annotation_path_alone_names_the_dataset() -> None:
    settings, _ = settings_from({"custom": {"dataset": {"annotation_path": "a/b/annotations/train.json"}}})
    assert settings.data.dataset == "a/b"


def test_every_setting_has_a_help_text() -> None:
    for key, _, text in leaves(Settings):
        assert len(text) > 15 and text.endswith("."), key
    assert field_help(LoraSettings)["rank"] == "Rank of the adapter's matrices."


@given(
    st.builds(LoraSettings, rank=st.integers(1, 512), alpha=st.floats(0.1, 1e3), vision=st.booleans()),
    st.builds(TrainSettings, batch=st.integers(1, 999), seed=st.integers(0, 2**31), clip=st.floats(0.01, 10)),
)
def test_settings_survive_a_round_trip(lora: LoraSettings, train: TrainSettings) -> None:
    settings = Settings(output="x", lora=lora, train=train)
    assert settings_from(to_dict(settings)) == (settings, [])
    assert set(flat_dict(settings)) == {key for key, _, _ in leaves(Settings)}


def nested(key: str, value: object) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[return-value]


def flat(table: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        name
        for key, value in table.items()
        for name in (flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key])
    ]
