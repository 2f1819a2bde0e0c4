"""Merging tensor by tensor: what a merge in memory gives, with one layer in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import train.merge
from tests.tiny_models import build_qwen2_5, build_qwen3
from train.build import BuildConfig, build_dataset
from train.dataset import dataset_task, read_split
from train.families import Family
from train.loading import checkpoint_family, load_checkpoint
from train.lora import Lora
from train.merge import MergeSettings, is_streamed, merge
from train.scorer import tree_log_probs
from train.shards import Shards
from wafervlm.errors import CheckpointError, ConfigError, GateError
from wafervlm.render import render

SETTINGS = MergeSettings(dtype="float32", maps=4, stream="always")


@pytest.fixture(scope="module", params=[build_qwen3, build_qwen2_5], ids=["qwen3", "qwen2_5"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    folder.mkdir()
    request.param(folder)
    return folder


def adapt(base: Path, out: Path, **changes: object) -> Path:
    """An adapter with something to say, on text and vision."""
    loaded = load_checkpoint(base)
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": loaded.family.lora_targets(vision=True), **changes}
    model = get_peft_model(loaded.model, LoraConfig(**chosen))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(out, save_embedding_layers=False)
    return out


@pytest.fixture(scope="module")
def dataset(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic maps of the size that the model takes."""
    out = tmp_path_factory.mktemp("data") / "dataset"
    side = 64 if checkpoint_family(base).name == "qwen3_vl" else 56
    build_dataset(BuildConfig(source=Path("synthetic"), train=2, test=2, tune=2, size=(side, side)), out)
    return out


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapt(base, tmp_path_factory.mktemp("adapter"))


def tensors(path: Path, family: Family) -> dict[str, torch.Tensor]:
    shards = Shards(path)
    return {family.module_name(name): shards.tensor(name) for name in shards.slots}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streamed_is_the_merge_in_memory(
    base: Path, adapter: Path, dataset: Path, tmp_path: Path, dtype: str
) -> None:
    settings = replace(SETTINGS, dtype=dtype)
    figures = merge(base, adapter, dataset, tmp_path / "streamed", settings)
    whole = merge(base, adapter, dataset, tmp_path / "whole", replace(settings, stream="never"))
    family = checkpoint_family(base)
    found, expected = (tensors(tmp_path / name, family) for name in ("streamed", "whole"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == getattr(torch, dtype)
        tolerance = 1e-6 if dtype == "float32" else 2**-7  # one step of the last bit, where a tie fell
        torch.testing.assert_close(found[name].float(), tensor.float(), rtol=tolerance, atol=1e-6)
    assert figures["streamed"] is True and "streamed" not in whole
    assert figures["maps"] == 4
    assert figures["merge_distance"] < 1e-4
    np.testing.assert_allclose(figures["cast_distance"], whole["cast_distance"], atol=0.02)


def test_what_is_written_loads_and_scores_as_base_and_adapter(
    base: Path, adapter: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.merge, "SHARD_BYTES", 100_000)
    out = tmp_path / "out"
    merge(base, adapter, dataset, out, SETTINGS)
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 3
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    task = dataset_task(dataset)
    images = [render(sample.wafer, task.render) for sample in read_split(dataset, "test")[:4]]
    together = tree_log_probs(load_checkpoint(base, adapter=adapter), task, images)
    found = load_checkpoint(out)
    np.testing.assert_allclose(tree_log_probs(found, task, images), together, atol=2e-5)
    assert np.abs(tree_log_probs(load_checkpoint(base), task, images) - together).max() > 1e-3
    assert found.model.config.dtype == torch.float32
    again = merge(base, adapter, dataset, out, SETTINGS)
    assert again["maps"] == 4


def test_a_rank_stabilised_adapter_is_scaled_by_the_root(base: Path, tmp_path: Path) -> None:
    adapter = adapt(base, tmp_path / "adapter", use_rslora=True)
    loaded = load_checkpoint(base, adapter=adapter)
    lora = Lora(adapter, loaded.family)
    merged = dict(loaded.model.merge_and_unload().named_parameters())
    plain = dict(load_checkpoint(base).model.named_parameters())
    for module in lora.pairs:
        found = lora.merged(f"{module}.weight", plain[f"{module}.weight"].detach())
        torch.testing.assert_close(found, merged[f"{module}.weight"].detach(), rtol=0, atol=1e-6)


def test_an_adapter_that_is_more_than_products_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = adapt(base, tmp_path / "adapter", use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora, which cannot be merged weight by weight"):
        Lora(adapter, checkpoint_family(base))


def test_an_adapter_of_another_model_is_refused(
    base: Path, adapter: Path, dataset: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in adapter.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(CheckpointError, match="not a LoRA adapter but 'IA3'"):
        merge(base, other, dataset, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_wrong_merge_fails_the_gate(
    base: Path, adapter: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Lora.merged
    monkeypatch.setattr(Lora, "merged", lambda self, name, weight: right(self, name, weight) * 0.99)
    with pytest.raises(GateError, match="changes label log-probabilities by"):
        merge(base, adapter, dataset, tmp_path / "out", SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_small_models_are_merged_in_memory(base: Path) -> None:
    assert not is_streamed(base, MergeSettings())
    assert is_streamed(base, MergeSettings(stream="always"))
    with pytest.raises(ConfigError, match="auto, always, never"):
        MergeSettings(stream="sometimes")  # type: ignore[arg-type]
