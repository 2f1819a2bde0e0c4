"""Merging: equal before casting, tied after, complete for other tools."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    Qwen2VLImageProcessorPil,
)

from train.artefact import Provenance, read_provenance, write_provenance
from train.dataset import dataset_task, read_split
from train.loading import Checkpoint, load_checkpoint
from train.merge import MergeSettings, merge
from train.nano.config import TINY, model_config
from train.scorer import Scores, label_log_probs, tree_log_probs
from wafervlm.errors import CheckpointError, ConfigError, GateError, TaskError, UsageError
from wafervlm.render import RgbImage, render
from wafervlm.task import Task

SETTINGS = MergeSettings(maps=6)
# What transformers and vLLM look for in a checkpoint folder of this family.
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
}


def save_adapter(base: Path, out: Path, *, targets: str | list[str] = "", vision: bool = False) -> Path:
    loaded = load_checkpoint(base)
    modules = targets or loaded.family.lora_targets(vision=vision)
    model = get_peft_model(loaded.model, LoraConfig(r=4, lora_alpha=8, target_modules=modules))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if (
            "lora_B" in name or "lora_embedding_B" in name
        ):  # begins at zero: give the adapter something to say
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(out, save_embedding_layers=False)
    return out


@pytest.fixture(scope="module", params=["text", "text and vision"])
def adapter(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    return save_adapter(tiny_checkpoint, folder, vision=request.param != "text")


@pytest.fixture(scope="module")
def text_adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_checkpoint, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def task(synthetic_dataset: Path) -> Task:
    return dataset_task(synthetic_dataset)


@pytest.fixture(scope="module")
def pictures(synthetic_dataset: Path, task: Task) -> list[RgbImage]:
    return [render(sample.wafer, task.render) for sample in read_split(synthetic_dataset, "test")[:6]]


def test_merged_equals_base_and_adapter(
    tiny_checkpoint: Path,
    adapter: Path,
    synthetic_dataset: Path,
    task: Task,
    pictures: list[RgbImage],
    tmp_path: Path,
) -> None:
    out = tmp_path / "merged"
    figures = merge(tiny_checkpoint, adapter, synthetic_dataset, out, replace(SETTINGS, dtype="float32"))
    plain = label_log_probs(load_checkpoint(tiny_checkpoint), task, pictures)
    together = label_log_probs(load_checkpoint(tiny_checkpoint, adapter=adapter), task, pictures)
    found = label_log_probs(load_checkpoint(out), task, pictures)
    assert np.abs(together - plain).max() > 1e-2
    np.testing.assert_allclose(found, together, atol=2e-5)
    assert figures["merge_distance"] < 1e-4
    assert figures["cast_distance"] < 1e-4
    assert figures["cast_agreement"] == 1.0
    assert figures["maps"] == 6


def test_folder_is_complete_and_embeddings_stay_tied(
    tiny_checkpoint: Path,
    adapter: Path,
    synthetic_dataset: Path,
    task: Task,
    pictures: list[RgbImage],
    tmp_path: Path,
) -> None:
    out = tmp_path / "merged"
    merge(tiny_checkpoint, adapter, synthetic_dataset, out, SETTINGS)
    assert {path.name for path in out.iterdir()} == FILES | {"task.json", "provenance.json"}
    for name in FILES - {"config.json", "model.safetensors", "generation_config.json"}:
        assert (out / name).read_bytes() == (tiny_checkpoint / name).read_bytes()
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (out, tiny_checkpoint))
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == before["architectures"]
    with safe_open(out / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert names == set(load_file(tiny_checkpoint / "model.safetensors"))
    assert not any("lm_head" in name for name in names)
    again = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    assert again.lm_head.weight.data_ptr() == again.model.language_model.embed_tokens.weight.data_ptr()
    for part in (AutoTokenizer, Qwen2VLImageProcessorPil, GenerationConfig):
        assert part.from_pretrained(out)
    together = label_log_probs(load_checkpoint(tiny_checkpoint, adapter=adapter), task, pictures)
    np.testing.assert_allclose(label_log_probs(load_checkpoint(out), task, pictures), together, atol=0.1)


def test_only_the_targets_of_the_adapter_change(
    tiny_checkpoint: Path, adapter: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    merge(tiny_checkpoint, adapter, synthetic_dataset, tmp_path / "out", replace(SETTINGS, dtype="float32"))
    before, after = (load_file(p / "model.safetensors") for p in (tiny_checkpoint, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    stored = load_file(adapter / "adapter_model.safetensors")
    targets = {name.removeprefix("base_model.model.").split(".lora_")[0] + ".weight" for name in stored}
    assert changed == targets


def test_untied_output_head_is_kept(
    tiny_checkpoint: Path, synthetic_dataset: Path, task: Task, pictures: list[RgbImage], tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    tied = load_checkpoint(tiny_checkpoint)
    config = model_config(TINY, tied.tokenizer)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    untied = tied.family.model(config).eval()
    untied.save_pretrained(base)
    assert "lm_head.weight" in load_file(base / "model.safetensors")
    adapter = save_adapter(base, tmp_path / "adapter", targets=r"lm_head|.*q_proj")
    merge(base, adapter, synthetic_dataset, tmp_path / "out", replace(SETTINGS, dtype="float32"))
    together = label_log_probs(load_checkpoint(base, adapter=adapter), task, pictures)
    found = label_log_probs(load_checkpoint(tmp_path / "out"), task, pictures)
    np.testing.assert_allclose(found, together, atol=2e-5)


def test_an_adapter_on_one_of_two_tied_layers_fails_the_gate(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    """Merged into the output head, it would change the embeddings too."""
    with pytest.warns(UserWarning, match="tie"):
        adapter = save_adapter(tiny_checkpoint, tmp_path / "adapter", targets=["lm_head"])
    with pytest.raises(GateError, match="as one of two tied embeddings"):
        merge(tiny_checkpoint, adapter, synthetic_dataset, tmp_path / "out", SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


Score = Callable[..., Scores]


def disturbed(score: Score, call: int, change: Callable[[Scores], Scores]) -> Score:
    """``score`` with its ``call``-th result changed, as a broken merge or cast would."""
    calls = iter(range(10))

    def scored(checkpoint: Checkpoint, task: Task, images: list[RgbImage], *, progress: str) -> Scores:
        scores = score(checkpoint, task, images, progress=progress)
        return change(scores) if next(calls) == call else scores

    return scored


@pytest.mark.parametrize(
    ("call", "change", "message"),
    [
        (1, lambda scores: scores + 2e-4, "changes label log-probabilities by 2.0e-04, and 1e-04 is allowed"),
        (1, lambda scores: scores * np.nan, "changes label log-probabilities by nan"),
        (2, lambda scores: -scores, "after casting to bfloat16 labels agree on 0.0% of 6 maps"),
    ],
)
def test_a_missed_gate_writes_nothing(
    call: int,
    change: Callable[[Scores], Scores],
    message: str,
    tiny_checkpoint: Path,
    text_adapter: Path,
    synthetic_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("train.merge.tree_log_probs", disturbed(tree_log_probs, call, change))
    with pytest.raises(GateError, match=message):
        merge(tiny_checkpoint, text_adapter, synthetic_dataset, tmp_path / "out", SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_what_is_complete_is_left_and_what_is_not_is_redone(
    tiny_checkpoint: Path, text_adapter: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    first = merge(tiny_checkpoint, text_adapter, synthetic_dataset, out, SETTINGS)
    record, stamp = read_provenance(out), (out / "model.safetensors").stat().st_mtime_ns
    assert record["inputs"].keys() == {"base", "adapter", "dataset"}
    assert record["parity"] == first
    assert merge(tiny_checkpoint, text_adapter, synthetic_dataset, out, SETTINGS) == first
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    merge(tiny_checkpoint, text_adapter, synthetic_dataset, out, replace(SETTINGS, dtype="float32"))
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


def test_a_folder_of_something_else_is_not_overwritten(
    tiny_checkpoint: Path, text_adapter: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    for name in ("plain", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").write_text("kept")
    write_provenance(tmp_path / "adapter", Provenance("train"))
    for name in ("plain", "adapter"):
        with pytest.raises(UsageError, match="exists already"):
            merge(tiny_checkpoint, text_adapter, synthetic_dataset, tmp_path / name, SETTINGS)
        assert (tmp_path / name / "precious.txt").read_text() == "kept"


def test_an_adapter_for_another_task_is_refused(
    tiny_checkpoint: Path, text_adapter: Path, synthetic_dataset: Path, task: Task, tmp_path: Path
) -> None:
    adapter = shutil.copytree(text_adapter, tmp_path / "adapter")
    (adapter / "task.json").write_text(json.dumps(replace(task, prompt="What is this?").to_dict()))
    with pytest.raises(TaskError, match="trained for another task"):
        merge(tiny_checkpoint, adapter, synthetic_dataset, tmp_path / "out", SETTINGS)


def test_an_adapter_of_another_base_is_told_of(
    tiny_checkpoint: Path,
    text_adapter: Path,
    synthetic_dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    adapter = shutil.copytree(text_adapter, tmp_path / "adapter")
    write_provenance(adapter, Provenance("train", {"base": "0" * 64}))
    with caplog.at_level(logging.WARNING, logger="train.merge"):
        merge(tiny_checkpoint, adapter, synthetic_dataset, tmp_path / "out", SETTINGS)
    assert "was trained on another folder" in caplog.text


def test_settings_and_folders_that_cannot_be(
    tiny_checkpoint: Path, text_adapter: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="'int4' is not known"):
        MergeSettings(dtype="int4")
    with pytest.raises(ConfigError, match="at least one map"):
        MergeSettings(maps=0)
    with pytest.raises(CheckpointError, match="not an adapter folder"):
        merge(tiny_checkpoint, tiny_checkpoint, synthetic_dataset, tmp_path / "out", SETTINGS)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        merge(text_adapter, text_adapter, synthetic_dataset, tmp_path / "out", SETTINGS)
