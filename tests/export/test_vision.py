"""The vision tower's graph against transformers' own tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from export.builder import Builder
from export.graph import _batch_shape
from export.processor import normalisation_of
from export.vision import Normalisation, VisionTower, folded_patch_embedding, gelu
from export.weights import Weights
from tests.export.models import random_images, session
from train.loading import load_checkpoint, load_processor
from wafervlm.errors import CheckpointError


def test_embeddings_and_deepstack_features_are_the_towers(checkpoint: Path, tmp_path: Path) -> None:
    images = random_images(3)
    processor = load_processor(checkpoint)
    builder = Builder()
    image = ir.val("image", ir.DataType.UINT8, ["batch", 64, 64, 3])
    tower = VisionTower(builder, Weights(checkpoint), (1, 8, 8))
    embeddings, deepstack = tower.build(image, normalisation_of(processor), _batch_shape(builder, image))
    outputs = [embeddings, *deepstack]
    for number, output in enumerate(outputs):
        output.name, output.dtype = f"out{number}", ir.DataType.FLOAT
    ir.save(builder.model([image], outputs, "vision"), tmp_path / "vision.onnx")
    found = session(tmp_path / "vision.onnx").run(None, {"image": np.stack(images)})
    inputs = processor.image_processor(images, return_tensors="pt")
    with torch.no_grad():
        expected = load_checkpoint(checkpoint).model.model.visual(
            inputs["pixel_values"], grid_thw=inputs["image_grid_thw"], return_dict=True
        )
    assert len(found) == 3
    for mine, theirs in zip(found, [expected.pooler_output, *expected.deepstack_features], strict=True):
        assert mine.shape == (3, 16, 64)
        scale = float(theirs.abs().max())
        np.testing.assert_allclose(mine.reshape(48, 64), theirs.numpy(), atol=2e-6 * scale)


def test_normalisation_is_folded_into_the_patch_embedding() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 3, 2, 4, 4)).astype(np.float32)
    bias = rng.standard_normal(5).astype(np.float32)
    normalisation = Normalisation(1 / 255, (0.1, 0.5, 0.7), (0.2, 0.3, 0.9))
    patch = rng.integers(0, 256, (4, 4, 3))
    layer = folded_patch_embedding(weight, bias, normalisation)
    assert layer.bias is not None
    pixels = (patch / 255 - np.array(normalisation.mean)) / np.array(normalisation.std)
    expected = np.einsum("wctpq,pqc->w", weight.astype(np.float64), pixels) + bias
    np.testing.assert_allclose(patch.reshape(-1) @ layer.weight + layer.bias, expected, rtol=1e-4)


def test_the_processors_switches_are_read(checkpoint: Path) -> None:
    processor = load_processor(checkpoint)
    assert normalisation_of(processor) == Normalisation(1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    processor.image_processor.do_normalize = False
    processor.image_processor.do_rescale = False
    assert normalisation_of(processor) == Normalisation(1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'relu'"):
        gelu(Builder(), ir.val("x", ir.DataType.FLOAT, [1]), "relu")
