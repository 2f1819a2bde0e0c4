"""The families against the real configurations, tokenizers and chat templates, and against transformers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.conftest import SIDES, data_folder
from tests.tiny_models import BUILDERS
from train.batches import Pixels
from train.encoding import prompt_text
from train.families import FAMILIES, Family
from train.loading import load_checkpoint, load_processor, read_config
from train.tree import label_tree
from wafervlm.render import RenderSpec
from wafervlm.task import WAFER_DEFECTS, Order

REAL = {"qwen3_vl": "qwen3-vl-4b", "qwen2_5_vl": "qwen2.5-vl-7b"}
BY_NAME = {family.name: family for family in FAMILIES.values()}


@pytest.fixture(scope="module")
def real(family: str) -> Path:
    """The published configuration and tokenizer of each family, without weights."""
    folder = data_folder().parent / "models" / REAL[family]
    if not folder.is_dir():
        pytest.skip(f"no configuration of the real family at {folder}")
    return folder


@pytest.fixture(scope="module")
def real_processor(real: Path) -> Any:
    return load_processor(real)


@pytest.fixture(scope="module")
def empty_model(real: Path, family: str) -> Any:
    """The real model without memory for its weights."""
    known = BY_NAME[family]
    with torch.device("meta"):
        return known.model(known.model.config_class.from_dict(read_config(real)))


def test_every_family_has_a_tiny_model_and_is_named_by_its_configuration() -> None:
    assert set(SIDES) == set(BUILDERS) == set(REAL) == set(BY_NAME)
    for architecture, family in FAMILIES.items():
        assert family.architecture == architecture == family.model.__name__
        assert family.name == family.model.config_class.model_type


def test_lora_targets_are_all_linear_layers_but_the_output_head(empty_model: Any, family: str) -> None:
    linear = {name for name, part in empty_model.named_modules() if isinstance(part, torch.nn.Linear)}
    linear -= {"lm_head"}
    both, text = (BY_NAME[family].lora_targets(vision=vision) for vision in (True, False))
    assert {name for name, _ in empty_model.named_modules() if re.fullmatch(both, name)} == linear
    assert {n for n in linear if re.fullmatch(text, n)} == {n for n in linear if "language_model" in n}


def test_names_in_either_spelling_are_the_modules(empty_model: Any, family: str) -> None:
    known, names = BY_NAME[family], set(empty_model.state_dict())
    assert {known.module_name(name) for name in names} == names
    if family == "qwen2_5_vl":
        text = {name.replace("model.language_model.", "model.") for name in names}
        older = {name.removeprefix("model.") if ".visual." in name else name for name in text}
        assert {
            "model.layers.0.self_attn.q_proj.bias",
            "visual.merger.ln_q.weight",
            "lm_head.weight",
        } <= older
        assert {known.module_name(name) for name in older} == names


def test_the_tiny_models_files_are_named_as_published(family_checkpoint: Path, family: str) -> None:
    with safe_open(family_checkpoint / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    known: Family = BY_NAME[family]
    model = load_checkpoint(family_checkpoint).model
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert {known.module_name(name) for name in stored} == set(model.state_dict()) - tied
    assert (stored == set(model.state_dict()) - tied) is (family == "qwen3_vl")


@pytest.mark.parametrize("order", ["text-first", "image-first"])
def test_the_published_template_writes_the_prompt_and_the_answer(
    real_processor: Any, family: str, order: Order
) -> None:
    task = replace(WAFER_DEFECTS, order=order)
    text = prompt_text(real_processor, task, "Edge-Loc")
    assert text.startswith(prompt_text(real_processor, task) + task.answer("Edge-Loc"))
    assert text.endswith("<|im_end|>")
    assert text.count("<|vision_start|><|image_pad|><|vision_end|>") == 1
    own = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert text.startswith(own) is (family == "qwen2_5_vl")
    told = prompt_text(real_processor, replace(task, system="Read wafer maps."))
    assert told.startswith("<|im_start|>system\nRead wafer maps.<|im_end|>\n")
    assert "helpful assistant" not in told


def test_labels_are_the_real_tokens(real_processor: Any) -> None:
    # One vocabulary for both families; see the README beside the configurations.
    bare = replace(WAFER_DEFECTS, spellings={}, answer_prefix="", answer_suffix="")
    tree = label_tree(real_processor.tokenizer, bare)
    end = real_processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = dict(zip(tree.labels, tree.sequences, strict=True))
    assert found["Edge-Loc"] == (11656, 8125, 509, end)
    assert found["Edge-Ring"] == (11656, 10911, 287, end)
    assert found["none"] == (6697, end)


def test_images_of_the_nearest_size_are_not_resampled(real_processor: Any, family: str) -> None:
    side, tokens = (252, 81) if family == "qwen2_5_vl" else (256, 64)
    pixels = Pixels(real_processor, RenderSpec(side, side))
    assert pixels.vectorised
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    found = pixels([image])
    text = prompt_text(real_processor, replace(WAFER_DEFECTS, render=RenderSpec(side, side)))
    exact = real_processor(text=[text], images=[image], return_tensors="pt")
    torch.testing.assert_close(found["pixel_values"], exact["pixel_values"], rtol=0, atol=1e-6)
    assert int(found["image_grid_thw"].prod()) // 4 == tokens
    assert int((exact["input_ids"] == real_processor.image_token_id).sum()) == tokens


def test_the_published_files_are_of_the_family(real: Path, family: str) -> None:
    config = json.loads((real / "config.json").read_text())
    assert FAMILIES[config["architectures"][0]] is BY_NAME[family]
