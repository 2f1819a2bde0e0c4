"""The arithmetic of a training's memory against what the real modules and autograd hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.memory import OVERHEAD, Size, activations, empty_model, parameters, size_of, training_memory
from tests.train.test_sft import settings_for
from train.assembly import assemble
from train.config import LoraSettings, Settings
from train.dataset import dataset_task
from train.loading import checkpoint_family, load_checkpoint
from train.sft import decided


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, synthetic_dataset: Path
) -> Settings:
    out = tmp_path_factory.mktemp("memory") / "adapter"
    lora = {"rank": 4, "vision": True, "tokens": True}
    return decided(settings_for(out, tiny_checkpoint, synthetic_dataset, lora, max_steps=1, batch=9))


@pytest.fixture(scope="module")
def size(settings: Settings, tiny_checkpoint: Path, synthetic_dataset: Path) -> Size:
    return size_of(tiny_checkpoint, dataset_task(synthetic_dataset), settings.lora)


@pytest.fixture(scope="module")
def trainer(settings: Settings) -> Any:
    return assemble(settings, Path(settings.output + ".partial"), None)[0]


def test_parameters_are_those_of_the_loaded_model(size: Size, tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint).model
    assert size.parameters == parameters(model) == sum(p.numel() for p in model.parameters())
    empty = empty_model(tiny_checkpoint, checkpoint_family(tiny_checkpoint))
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert 0 < size.largest < size.parameters - size.rest


def test_the_adapter_is_counted_as_peft_makes_it(size: Size, trainer: Any) -> None:
    made = {n: p.numel() for n, p in trainer.model.named_parameters() if p.requires_grad}
    tokens = sum(count for name, count in made.items() if "trainable_tokens" in name)
    lora = sum(count for name, count in made.items() if "lora_" in name)
    assert lora + tokens == sum(made.values())
    # The tokens of the longest answer stand for those of all answers, of which there may be a few more.
    assert lora <= size.trained <= lora + tokens
    assert tokens < 0.2 * lora


@pytest.mark.parametrize("vision", [True, False])
def test_activations_are_near_what_autograd_keeps(
    settings: Settings, size: Size, trainer: Any, vision: bool
) -> None:
    """float32, nothing recomputed; with the vision tower frozen nothing of it is kept."""
    for name, parameter in trainer.model.named_parameters():
        if "visual" in name and "lora_" in name:
            parameter.requires_grad_(vision)
    batch = trainer.data_collator([{"position": k} for k in range(9)])
    kept: dict[int, int] = {}
    owned = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trainer.compute_loss(trainer.model, batch)
    assert loss.requires_grad
    wanted = activations(size, replace(settings, lora=replace(settings.lora, vision=vision)))
    assert sum(kept.values()) / 1.5 < wanted < 1.5 * sum(kept.values())


def test_fsdp_divides_what_it_spreads(settings: Settings, size: Size) -> None:
    whole, quarter = (training_memory(size, settings, sharded=n) for n in (1, 4))
    for name in ("weights", "adapter", "gradients", "optimizer"):
        assert quarter[name] == whole[name] // 4
    assert quarter["gathered"] >= 4 * size.largest and "gathered" not in whole
    assert whole["overhead"] == OVERHEAD // 3
    recomputed = replace(settings, train=replace(settings.train, gradient_checkpointing="on"))
    assert activations(size, recomputed) < activations(size, settings)


def test_a_larger_rank_trains_more(tiny_checkpoint: Path, synthetic_dataset: Path) -> None:
    task = dataset_task(synthetic_dataset)
    four, eight = (size_of(tiny_checkpoint, task, LoraSettings(rank=rank)).trained for rank in (4, 8))
    assert eight == 2 * four
