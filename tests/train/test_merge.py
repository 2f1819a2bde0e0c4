"""Merging: equal before casting, tied after, complete for other tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from train.artefact import read_provenance
from train.loading import load_checkpoint
from train.merge import merge_checked, write_checkpoint
from train.scorer import label_log_probs
from wafervlm.errors import GateError
from wafervlm.render import RgbImage, render
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap


@pytest.fixture(scope="module")
def pictures(synthetic_wafers: list[tuple[WaferMap, str]], tiny_task: Task) -> list[RgbImage]:
    return [render(wafer, tiny_task.render) for wafer, _ in synthetic_wafers[:6]]


@pytest.fixture(scope="module", params=["text", "text and vision"])
def adapter(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = load_checkpoint(tiny_checkpoint)
    modules = loaded.family.text_modules
    if request.param != "text":
        modules = f"({modules}|{loaded.family.vision_modules})"
    model = get_peft_model(loaded.model, LoraConfig(r=4, lora_alpha=8, target_modules=modules))
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # begins at zero: give the adapter something to say
            parameter.data = torch.randn_like(parameter) * 0.1
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def test_merged_equals_base_and_adapter(
    tiny_checkpoint: Path, adapter: Path, tiny_task: Task, pictures: list[RgbImage]
) -> None:
    merged, parity = merge_checked(tiny_checkpoint, adapter, tiny_task, pictures, "float32")
    plain = label_log_probs(load_checkpoint(tiny_checkpoint), tiny_task, pictures)
    together = label_log_probs(load_checkpoint(tiny_checkpoint, adapter=adapter), tiny_task, pictures)
    found = label_log_probs(merged, tiny_task, pictures)
    assert np.abs(together - plain).max() > 1e-3
    np.testing.assert_allclose(found, together, atol=2e-5)
    assert parity["merge_distance"] < 1e-4
    assert parity["cast_agreement"] == 1.0


def test_folder_loads_elsewhere_and_embeddings_stay_tied(
    tiny_checkpoint: Path, adapter: Path, tiny_task: Task, pictures: list[RgbImage], tmp_path: Path
) -> None:
    merged, _ = merge_checked(tiny_checkpoint, adapter, tiny_task, pictures, "bfloat16")
    write_checkpoint(merged, tmp_path)
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    expected |= {"tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"}
    assert expected <= {p.name for p in tmp_path.iterdir()}
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lm_head" in name or "lora" in name]  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.lm_head.weight.data_ptr() == again.model.language_model.embed_tokens.weight.data_ptr()
    np.testing.assert_allclose(
        label_log_probs(load_checkpoint(tmp_path), tiny_task, pictures),
        label_log_probs(load_checkpoint(tiny_checkpoint, adapter=adapter), tiny_task, pictures),
        atol=0.1,
    )


def test_gate_fails_when_merging_changes_scores(
    tiny_checkpoint: Path, adapter: Path, tiny_task: Task, pictures: list[RgbImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.merge.EXACT", 1e-12)
    with pytest.raises(GateError, match="changes label log-probabilities"):
        merge_checked(tiny_checkpoint, adapter, tiny_task, pictures, "float32")


def test_the_stage_writes_once(
    tiny_checkpoint: Path, adapter: Path, tiny_task: Task, tmp_path: Path, synthetic_dataset: Path
) -> None:
    from train.merge import MergeSettings, merge

    out = tmp_path / "merged"
    first = merge(tiny_checkpoint, adapter, synthetic_dataset, out, MergeSettings(maps=8))
    stamp = read_provenance(out)["created"]
    assert merge(tiny_checkpoint, adapter, synthetic_dataset, out, MergeSettings(maps=8)) == first
    assert read_provenance(out)["created"] == stamp
    assert read_provenance(out)["inputs"].keys() == {"base", "adapter", "dataset"}
