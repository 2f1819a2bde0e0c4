"""Patches and fast vision against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from train.patches import patchify
from train.speed import fast_vision


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
