"""A streamed model: the scores of the whole one, with one unit in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from train.families import family_of
from train.inventory import take_inventory
from train.loading import checkpoint_family, load_checkpoint
from train.scorer import label_log_probs, tree_log_probs
from train.streamed import Stored, keep_one_layer, load_streamed, residency_of, units_of
from train.synthetic import wafers
from wafervlm.errors import CheckpointError
from wafervlm.render import RgbImage, render
from wafervlm.task import Task


@pytest.fixture(scope="module")
def images(family_task: Task) -> list[RgbImage]:
    return [render(wafer, family_task.render) for wafer in wafers(["Center", "Loc", "none"], seed=4)]


def test_scores_are_those_of_the_whole_model(
    family_checkpoint: Path, family_task: Task, images: list[RgbImage]
) -> None:
    family = checkpoint_family(family_checkpoint)
    streamed = load_streamed(family_checkpoint, family, Stored(family_checkpoint, family))
    found = tree_log_probs(streamed, family_task, images, batch_size=3)
    expected = label_log_probs(load_checkpoint(family_checkpoint), family_task, images)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert residency_of(load_checkpoint(family_checkpoint)) is None


def test_one_unit_is_in_memory_at_a_time(
    family_checkpoint: Path, family_task: Task, images: list[RgbImage]
) -> None:
    family = checkpoint_family(family_checkpoint)
    streamed = load_streamed(family_checkpoint, family, Stored(family_checkpoint, family))
    residency, units = residency_of(streamed), units_of(streamed.model)
    assert residency is not None
    seen: list[str | None] = []

    def look() -> None:
        seen.append(residency.present)
        real = [n for n, unit in units.items() if any(p.device.type != "meta" for p in unit.parameters())]
        assert real == [residency.present]

    residency.watch = look
    tree_log_probs(streamed, family_task, images, batch_size=3)
    assert sorted(map(str, seen)) == sorted(units)
    residency.leave()
    assert residency.present is None
    staying = sum(p.numel() for p in streamed.model.parameters() if p.device.type == "cpu")
    inventory = take_inventory(family_checkpoint)
    leaving = sum(p.numel() for unit in units.values() for p in unit.parameters())
    assert staying == inventory.parameters - leaving - inventory.embeddings


def test_an_offloaded_model_scores_the_same(
    family_checkpoint: Path, family_task: Task, images: list[RgbImage]
) -> None:
    whole = load_checkpoint(family_checkpoint)
    expected = tree_log_probs(whole, family_task, images)
    keep_one_layer(whole, "cpu")
    np.testing.assert_array_equal(tree_log_probs(whole, family_task, images), expected)


def test_an_inventory_counts_what_is_there(family_checkpoint: Path) -> None:
    inventory, model = take_inventory(family_checkpoint), load_checkpoint(family_checkpoint).model
    assert inventory.parameters == sum(p.numel() for p in model.parameters())
    assert inventory.vision == sum(p.numel() for p in model.model.visual.parameters())
    assert inventory.vision_blocks == sum(p.numel() for p in model.model.visual.blocks.parameters())
    assert inventory.layers == len(model.model.language_model.layers) == 2
    linear = [m for m in model.model.language_model.layers[0].modules() if isinstance(m, torch.nn.Linear)]
    assert inventory.layer_linear == sum(m.weight.numel() for m in linear)
    assert inventory.bits is None and not inventory.large
    assert inventory.stored_bytes == 4 * inventory.parameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, name: t.pop(name), "they lack .*input_layernorm"),
        (lambda t, name: t.update({name: t[name][:-1]}), "they misshape .*input_layernorm"),
        (lambda t, name: t.update(another=t[name].clone()), "they add .*another"),
        (lambda t, name: t.update({name: t[name].to(torch.float8_e5m2)}), "in float8 numbers"),
    ],
)
def test_what_does_not_fit_is_told_from_headers(
    family_checkpoint: Path, tmp_path: Path, change: object, message: str
) -> None:
    copy = Path(shutil.copytree(family_checkpoint, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    change(tensors, next(name for name in tensors if name.endswith("layers.0.input_layernorm.weight")))  # type: ignore[operator]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        take_inventory(copy)


def test_a_family_that_is_not_known_is_refused() -> None:
    with pytest.raises(CheckpointError, match="LlamaForCausalLM"):
        family_of(["LlamaForCausalLM"], "here")
