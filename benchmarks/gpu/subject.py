"""Subject: the model that is measured, with its task and wafer maps, all on the device."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.gpu.device import Device
from benchmarks.gpu.settings import NANO, SHAPES, Settings
from train.encoding import encode
from train.families import family_of
from train.loading import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    Checkpoint,
    load_checkpoint,
    load_processor,
    read_config,
)
from train.synthetic import wafers
from wafervlm.errors import UsageError
from wafervlm.render import RenderSpec, RgbImage, render
from wafervlm.task import WAFER_DEFECTS, Task

_LORA, _TOKENS = ".lora_", ".token_adapter.trainable_tokens_delta"
NANO_WEIGHTS = Path(__file__).resolve().parents[2] / "train" / "nano" / "weights"


@dataclass(frozen=True, eq=False)
class Subject:
    """``checkpoint`` on the device and the ``images`` (H, W, 3) uint8 of its ``task``; ``trained`` says
    whether its answers mean something."""

    checkpoint: Checkpoint
    task: Task
    images: list[RgbImage]
    trained: bool

    @property
    def dtype(self) -> torch.dtype:
        """What full precision is."""
        dtype: torch.dtype = self.checkpoint.network.dtype
        return dtype

    def batch(self, size: int) -> list[RgbImage]:
        """The images of the first batch."""
        return [self.images[i] for i in self._places(size)[0]]

    def _places(self, size: int) -> list[list[int]]:
        """As many batches as there are images: each begins one image after the one before, so that no call
        sees what the call before it saw."""
        count = len(self.images)
        return [[(first + i) % count for i in range(size)] for first in range(count)]

    def pixels(self, size: int) -> list[torch.Tensor]:
        """The batches as (B, H, W, 3) uint8 on the device."""
        whole = torch.from_numpy(np.stack(self.images)).to(self.checkpoint.device)
        return [whole[places] for places in self._places(size)]

    def patches(self, size: int) -> list[torch.Tensor]:
        """The batches as transformers' image processor gives them, (B * N, C) on the device."""
        whole = encode(self.checkpoint, self.task, self.images)["pixel_values"].to(self.dtype)
        each = whole.chunk(len(self.images))
        return [torch.cat([each[i] for i in places]) for places in self._places(size)]

    def describe(self) -> dict[str, Any]:
        """Plain values for a result."""
        network = self.checkpoint.network
        text, vision = network.config.text_config, network.config.vision_config
        return {
            "family": self.checkpoint.family.name,
            "parameters": sum(p.numel() for p in network.parameters()),
            "text_layers": text.num_hidden_layers,
            "text_width": text.hidden_size,
            "vision_layers": vision.depth,
            "image": [self.task.render.height, self.task.render.width],
            "weights": "trained" if self.trained else "random",
            "task_digest": self.task.digest,
        }


def make_subject(name: str, settings: Settings, device: Device) -> Subject:
    """The subject of a shape: random weights of the real configuration, or nano with its trained ones.

    Raises CheckpointError, and UsageError for a folder that is not there.
    """
    if name == NANO:
        checkpoint, size = _nano(settings, device)
    else:
        folder = _folder(settings, SHAPES[name].folder)
        checkpoint = random_checkpoint(
            folder,
            device,
            getattr(torch, settings.dtype),
            text_layers=settings.text_layers,
            vision_layers=settings.vision_layers,
            seed=settings.seed,
        )
        size = SHAPES[name].pixels
    return subject_of(checkpoint, size, settings.maps, trained=name == NANO, seed=settings.seed)


def subject_of(checkpoint: Checkpoint, size: int, maps: int, *, trained: bool, seed: int) -> Subject:
    """``checkpoint`` with the wafer task on images of ``size`` pixels and ``maps`` synthetic wafers."""
    task = replace(WAFER_DEFECTS, render=RenderSpec(size, size))
    labels = [task.labels[i % len(task.labels)] for i in range(maps)]
    images = [render(wafer, task.render) for wafer in wafers(labels, seed=seed + 5)]
    return Subject(checkpoint, task, images, trained)


def random_checkpoint(
    folder: Path,
    device: Device,
    dtype: torch.dtype,
    *,
    text_layers: int = 0,
    vision_layers: int = 0,
    seed: int = 0,
) -> Checkpoint:
    """A model of the configuration in ``folder`` with random weights, made on the device itself, as
    transformers initialises it. Fewer layers than the configuration has can be asked for."""
    values = read_config(folder)
    family = family_of(list(values.get("architectures") or []), str(folder))
    config = family.model.config_class.from_dict(_cut(values, text_layers, vision_layers))
    torch.manual_seed(seed)
    with torch.device(device.torch), torch.no_grad():
        model = family.model._from_config(config, dtype=dtype, attn_implementation="sdpa")
    processor = load_processor(folder)
    return Checkpoint(model.eval().requires_grad_(False), processor, processor.tokenizer, family, folder)


def _cut(values: dict[str, Any], text_layers: int, vision_layers: int) -> dict[str, Any]:
    values = json.loads(json.dumps(values))
    if text_layers:
        text = values.get("text_config", values)
        text["num_hidden_layers"] = text_layers
        text["max_window_layers"] = min(text.get("max_window_layers", text_layers), text_layers)
        text.pop("layer_types", None)
    if vision_layers:
        vision = values["vision_config"]
        vision["depth"] = vision_layers
        for key in ("deepstack_visual_indexes", "fullatt_block_indexes"):
            if key in vision:
                vision[key] = [index for index in vision[key] if index < vision_layers]
    return values


def _folder(settings: Settings, name: str) -> Path:
    folder = Path(settings.config_folder or ".") / name
    if not (folder / CONFIG).is_file():
        raise UsageError(
            f"there is no {CONFIG} in {folder}; give --config-folder the folder that holds {name}"
        )
    return folder


def _nano(settings: Settings, device: Device) -> tuple[Checkpoint, int]:
    """The given checkpoint, or the base with its adapter folded in; and the size of its images."""
    if settings.checkpoint is not None:
        checkpoint = load_checkpoint(settings.checkpoint, dtype=settings.dtype, device=str(device.torch))
    else:
        base, adapter = NANO_WEIGHTS / "base", NANO_WEIGHTS / "adapter"
        checkpoint = load_checkpoint(base, dtype="float32")
        fold_adapter(checkpoint.model, adapter)
        checkpoint.model.to(device=device.torch, dtype=getattr(torch, settings.dtype))
    checkpoint.model.requires_grad_(False)
    pixels = checkpoint.processor.image_processor.size["longest_edge"]
    return checkpoint, int(pixels**0.5)


@torch.no_grad()
def fold_adapter(model: Any, adapter: Path) -> None:
    """Put the LoRA adapter of a folder into the weights of ``model``: W + alpha / r * B A, and the rows of
    tokens that it trained in place of the model's. Needs no peft.

    Raises UsageError for an adapter of another kind.
    """
    settings = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    special = ("rank_pattern", "alpha_pattern", "use_dora", "modules_to_save", "fan_in_fan_out")
    known = all(_LORA in name or name.endswith(_TOKENS) for name in tensors)
    if any(settings.get(key) for key in special) or not known:
        raise UsageError(f"{adapter} is no plain LoRA adapter; merge it and give --checkpoint")
    rank = settings["r"] ** 0.5 if settings.get("use_rslora") else settings["r"]
    for name, tensor in tensors.items():
        module = model.get_submodule(
            name.removeprefix("base_model.model.").split(_LORA)[0].removesuffix(_TOKENS)
        )
        if name.endswith(_TOKENS):
            rows = settings["trainable_token_indices"][name.removesuffix(_TOKENS).rsplit(".", 1)[-1]]
            module.weight[rows] = tensor.to(module.weight)
        elif f"{_LORA}A." in name:
            up = tensors[name.replace(f"{_LORA}A.", f"{_LORA}B.")]
            module.weight += (settings["lora_alpha"] / rank * (up @ tensor)).to(module.weight)
