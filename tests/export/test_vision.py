"""The vision tower's graph against transformers' own tower."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from export.builder import OPSET, Builder
from export.families import graph_family
from export.graph import _batch_shape
from export.operators import gelu
from export.processor import normalisation_of
from export.vision import Normalisation, folded_patch_embedding
from export.vision_qwen2_5 import Qwen2_5Vision
from export.weights import Array, Weights
from tests.export.models import random_images, session
from train.loading import load_checkpoint, load_processor
from wafervlm.errors import CheckpointError
from wafervlm.render import RgbImage


def tower_outputs(
    checkpoint: Path, size: tuple[int, int], images: list[RgbImage], out: Path, opset: int = OPSET
) -> list[Array]:
    """What the tower's graph gives for ``images`` of this size."""
    weights, builder = Weights(checkpoint), Builder(opset=opset)
    patch = weights.config.vision_config.patch_size
    image = ir.val("image", ir.DataType.UINT8, ["batch", *size, 3])
    grid = (1, size[0] // patch, size[1] // patch)
    tower = graph_family(weights.config).vision(builder, weights, grid)
    normalisation = normalisation_of(load_processor(checkpoint))
    embeddings, deepstack = tower.build(image, normalisation, _batch_shape(builder, image))
    outputs = [embeddings, *deepstack]
    for number, output in enumerate(outputs):
        output.name, output.dtype = f"out{number}", ir.DataType.FLOAT
    ir.save(builder.model([image], outputs, "vision"), out / "vision.onnx")
    found: list[Array] = session(out / "vision.onnx").run(None, {"image": np.stack(images)})
    return found


# In patches: of Qwen2.5-VL's windows of 4 x 4 the first is one, the second four whole ones, the others cut.
@pytest.mark.parametrize("patches", [(4, 4), (8, 8), (6, 6), (4, 10)])
def test_embeddings_and_deepstack_features_are_the_towers(
    rough: Path, opset: int, patches: tuple[int, int], tmp_path: Path
) -> None:
    model = load_checkpoint(rough).model.model
    patch, deepstack = model.visual.config.patch_size, 2 if "qwen3" in rough.name else 0
    height, width = (count * patch for count in patches)
    images = list(np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8))
    found = tower_outputs(rough, (height, width), images, tmp_path, opset)
    processor = load_processor(rough).image_processor
    processor.size = {"shortest_edge": 1, "longest_edge": 10**6}
    inputs = processor(images, return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, *patches]] * 3
    with torch.no_grad():
        expected = model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"], return_dict=True)
    features = [expected.pooler_output, *getattr(expected, "deepstack_features", ())]
    assert len(found) == len(features) == 1 + deepstack
    for mine, theirs in zip(found, features, strict=True):
        assert mine.shape == (3, patches[0] * patches[1] // 4, 64)
        scale = float(theirs.abs().max())
        np.testing.assert_allclose(mine.reshape(-1, 64), theirs.numpy(), atol=2e-6 * scale)


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_windows_and_their_order_matter(rough: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(2, 84)
    right = tower_outputs(rough, (84, 84), images, tmp_path)[0]
    everywhere = tower_outputs(widened(rough, tmp_path / "wide"), (84, 84), images, tmp_path)[0]
    assert np.abs(everywhere - right).max() > 1e-3 * np.abs(right).max()
    monkeypatch.setattr(Qwen2_5Vision, "_by_window", lambda self, rows: rows)
    unordered = tower_outputs(rough, (84, 84), images, tmp_path)[0]
    assert np.abs(unordered - right).max() > 1e-3 * np.abs(right).max()


def widened(checkpoint: Path, out: Path) -> Path:
    """A copy whose windows hold the whole image."""
    shutil.copytree(checkpoint, out)
    config = json.loads((out / "config.json").read_text())
    config["vision_config"]["window_size"] = 840
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_an_activation_without_a_graph_is_refused(rough: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(rough, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="activation of the vision tower, 'gelu', is not silu"):
        tower_outputs(copy, (84, 84), random_images(1, 84), tmp_path)


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
