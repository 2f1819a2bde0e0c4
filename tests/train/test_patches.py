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
from train.loading import load_checkpoint
from train.patches import patchify
from train.speed import fast_vision, fold_lora


def images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("patch", "height", "width"), [(8, 64, 64), (12, 120, 120), (16, 64, 96)])
@pytest.mark.parametrize(
    ("mean", "std"), [([0.5] * 3, [0.5] * 3), ([0.48145466, 0.4578275, 0.40821073], [0.27, 0.26, 0.28])]
)
def test_equal_to_the_image_processor(
    patch: int, height: int, width: int, mean: list[float], std: list[float]
) -> None:
    pictures = images(3, height, width)
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=mean,
        image_std=std,
        size={"shortest_edge": 16 * 16, "longest_edge": 4096 * 4096},
    )
    reference = processor([Image.fromarray(p) for p in pictures], return_tensors="pt")
    found = patchify(pictures, patch, 2, mean, std)
    torch.testing.assert_close(found, reference["pixel_values"], rtol=0, atol=1e-6)


# Windows are whole in one image of Qwen2.5-VL and cut off in the other.
@pytest.mark.parametrize("patches", [6, 8])
def test_fast_vision_gives_the_same_features_and_gradients(family_checkpoint: Path, patches: int) -> None:
    results, forwards = [], []
    for change in (lambda model: model, fast_vision):
        visual = change(load_checkpoint(family_checkpoint).model).model.visual
        side = visual.config.patch_size * patches
        pixels = patchify(images(3, side, side), visual.config.patch_size, 2)
        grid = torch.tensor([[1, patches, patches]] * 3)
        forwards.append(visual.blocks[0].attn.forward.__func__)
        features = visual(pixels, grid_thw=grid).pooler_output
        features.square().sum().backward()
        results.append(
            (features.detach(), visual.patch_embed.proj.weight.grad, visual.blocks[0].attn.qkv.weight.grad)
        )
    assert forwards[0] is not forwards[1]
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_fast_vision_takes_images_of_different_sizes(family_checkpoint: Path) -> None:
    model = load_checkpoint(family_checkpoint).model
    patch = model.config.vision_config.patch_size
    grid = torch.tensor([[1, 8, 8], [1, 4, 8]])
    pixels = torch.cat([patchify(images(1, int(h) * patch, int(w) * patch), patch, 2) for _, h, w in grid])
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
