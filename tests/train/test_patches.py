"""Patches and fast vision against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from train.families import QWEN3_VL
from train.patches import patchify
from train.speed import fast_vision, fold_lora


def images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("patch", "height", "width"), [(8, 64, 64), (12, 120, 120), (16, 64, 96)])
def test_equal_to_the_image_processor(patch: int, height: int, width: int) -> None:
    pictures = images(3, height, width)
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 16 * 16, "longest_edge": 4096 * 4096},
    )
    reference = processor([Image.fromarray(p) for p in pictures], return_tensors="pt")
    torch.testing.assert_close(patchify(pictures, patch, 2), reference["pixel_values"], rtol=0, atol=1e-6)


def test_fast_vision_gives_the_same_features_and_gradients(tiny_checkpoint: Path) -> None:
    pixels = patchify(images(3, 64, 64), 8, 2)
    grid = torch.tensor([[1, 8, 8]] * 3)
    results = []
    for change in (lambda model: model, fast_vision):
        model = Qwen3VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
        visual = change(model).model.visual
        features = visual(pixels, grid_thw=grid).pooler_output
        features.square().sum().backward()
        results.append(
            (features.detach(), visual.patch_embed.proj.weight.grad, visual.blocks[0].attn.qkv.weight.grad)
        )
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_fast_vision_takes_images_of_different_sizes(tiny_checkpoint: Path) -> None:
    pixels = torch.cat([patchify(images(1, 64, 64), 8, 2), patchify(images(1, 32, 64), 8, 2)])
    grid = torch.tensor([[1, 8, 8], [1, 4, 8]])
    model = Qwen3VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    with torch.no_grad():
        plain = model.model.visual(pixels, grid_thw=grid).pooler_output
        fast = fast_vision(model).model.visual(pixels, grid_thw=grid).pooler_output
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_folded_adapter_gives_the_same_output_and_gradients(tiny_checkpoint: Path, dropout: float) -> None:
    ids = torch.arange(24).view(2, 12)
    results = []
    for change in (lambda model: model, fold_lora):
        torch.manual_seed(0)
        base = Qwen3VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
        config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=QWEN3_VL.text_modules)
        model = change(get_peft_model(base, config))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
        torch.manual_seed(1)
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        with model.disable_adapter():
            results.append([logits.detach(), model(input_ids=ids).logits.detach(), *gradients])
    assert (results[0][0] - results[0][1]).abs().max() > 1e-3
    for plain, folded in zip(*results, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-6)
