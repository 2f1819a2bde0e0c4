"""A LoRA adapter folder as what it adds to each weight."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from train.families import Family
from train.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from train.shards import Shards
from wafervlm.errors import CheckpointError

_SHELL = "base_model.model."
# What changes more than one weight by one product. "none" and empty values mean that it is not used.
_BEYOND = (
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "alpha_pattern",
    "layer_replication",
    "target_parameters",
    "use_qalora",
    "trainable_token_indices",
)


class Lora:
    """The pairs (A, B) of the adapter in ``path``, by the name of the module that they belong to.

    A weight W (N, K) becomes W + scale B A, with A (r, K) and B (N, r); ``scale`` is alpha / r, or
    alpha / sqrt(r) for a rank-stabilised adapter (E. J. Hu et al., "LoRA", arXiv 2106.09685;
    D. Kalajdzievski, arXiv 2312.03732). Raises CheckpointError for a folder that is no adapter, and for an
    adapter that adds anything else.
    """

    def __init__(self, path: Path, family: Family) -> None:
        self.path = path
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if not (path / name).is_file():
                raise CheckpointError(f"{path} is not an adapter folder: it has no {name}")
        config = _read(path / ADAPTER_CONFIG)
        _check(config, path)
        self._alpha, self._stabilised = float(config["lora_alpha"]), bool(config.get("use_rslora"))
        shards = Shards(path, single=ADAPTER_WEIGHTS)
        self.pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for stored in shards.slots:
            layer, found, part = stored.removeprefix(_SHELL).partition(".lora_")
            if not found or part not in ("A.weight", "B.weight"):
                raise CheckpointError(
                    f"{path} holds {stored}, which cannot be merged weight by weight; merge it whole, with "
                    "--stream never"
                )
            module = family.module_name(f"{layer}.weight").removesuffix(".weight")
            if part == "A.weight":
                other = stored.replace(".lora_A.", ".lora_B.")
                self.pairs[module] = shards.tensor(stored).float(), shards.tensor(other).float()

    def scale(self, module: str) -> float:
        """What the product of ``module``'s pair is multiplied by."""
        rank = len(self.pairs[module][0])
        return self._alpha / (math.sqrt(rank) if self._stabilised else rank)

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The tensor ``name`` of the base, ``weight``, with the adapter's share, in float32."""
        module = name.removesuffix(".weight")
        if module not in self.pairs or module == name:
            return weight.float()
        first, second = self.pairs[module]
        if weight.shape != (len(second), first.shape[1]):
            raise CheckpointError(
                f"the adapter in {self.path} does not fit the model: for {module} it is made for "
                f"{(len(second), first.shape[1])} and the base has {tuple(weight.shape)}; use the base that "
                "it was trained on"
            )
        return weight.float() + (second @ first) * self.scale(module)

    def attach(self, model: Any) -> None:
        """Let ``model`` compute with this adapter beside its weights, as it was trained."""
        for module, (first, second) in self.pairs.items():
            device = model.device
            pair = first.to(device), second.to(device), self.scale(module)
            model.get_submodule(module).register_forward_hook(
                lambda _, args, output, pair=pair: output + args[0] @ pair[0].T @ pair[1].T * pair[2]
            )


def _check(config: dict[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA" or "lora_alpha" not in config:
        raise CheckpointError(f"{path} is not a LoRA adapter but {config.get('peft_type')!r}")
    used = [key for key in _BEYOND if config.get(key)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise CheckpointError(
            f"the adapter in {path} uses {', '.join(used)}, which cannot be merged weight by weight; merge "
            "it whole, with --stream never"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold one JSON object")
    return values
