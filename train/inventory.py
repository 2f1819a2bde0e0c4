"""What a checkpoint folder holds, known from its configuration and the headers of its files alone.

Taken before long work: a shard that is missing, a tensor that is missing or misshapen and numbers that are
not supported are told at once, and memory, disk and time can be stated beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.families import Family
from train.loading import check_weights, checkpoint_family, read_config
from train.shards import Shards
from train.streamed import empty_model, units_of
from wafervlm.errors import CheckpointError

LARGE_BYTES = 2_000_000_000
"""A model that takes more than this in float32 is not loaded whole where that can be avoided."""

_WORD = 32


@dataclass(frozen=True, slots=True)
class Inventory:
    """Of the checkpoint folder ``path``: ``stored_bytes`` of its tensors; numbers of parameters: of one
    decoder layer's linear layers (``layer_linear``), of all decoder layers (``text``), of the vision tower
    (``vision``), of which ``vision_blocks`` see every patch, of the ``embeddings`` with the output head, each
    once where they are tied, and of the ``largest`` unit that a streamed model has in memory; ``bits`` of a
    quantized text core, else None."""

    path: Path
    family: Family
    config: Any
    stored_bytes: int
    layers: int
    layer_linear: int
    text: int
    vision: int
    vision_blocks: int
    embeddings: int
    largest: int
    bits: int | None

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.text + self.vision + self.embeddings

    @property
    def float32_bytes(self) -> int:
        """What the model takes when it is loaded whole in float32."""
        return 4 * self.parameters

    @property
    def large(self) -> bool:
        """Whether the model is worked on one layer at a time."""
        return self.float32_bytes > LARGE_BYTES


def take_inventory(path: Path) -> Inventory:
    """Read the headers of the checkpoint ``path`` and compare them with what its configuration asks for.

    Raises CheckpointError where a file or a tensor is missing, misshapen, unknown or in numbers that are
    not supported.
    """
    family = checkpoint_family(path)
    quantization = read_config(path).get("quantization_config")
    bits = _bits(quantization, path)
    shards, model = Shards(path), empty_model(path, family)
    wanted = {name: tuple(part.shape) for name, part in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    _compare(path, family, shards, wanted, bits)
    sizes = {name: math.prod(shape) for name, shape in wanted.items()}
    units = units_of(model)
    within = {unit: sum(p.numel() for p in module.parameters()) for unit, module in units.items()}
    layers = [unit for unit in within if ".language_model." in unit]
    linear = sum(
        size
        for name, size in sizes.items()
        if name.startswith(f"{layers[0]}.") and len(wanted[name]) == 2  # biases and norms left out
    )
    outer = sum(size for name, size in sizes.items() if "embed_tokens" in name or name == "lm_head.weight")
    vision = sum(size for name, size in sizes.items() if ".visual." in name)
    return Inventory(
        path=path,
        family=family,
        config=model.config,
        stored_bytes=shards.nbytes,
        layers=len(layers),
        layer_linear=linear,
        text=sum(sizes.values()) - outer - vision,
        vision=vision,
        vision_blocks=sum(size for unit, size in within.items() if ".visual.blocks." in unit),
        embeddings=outer,
        largest=max(within.values()),
        bits=bits,
    )


def _compare(
    path: Path, family: Family, shards: Shards, wanted: dict[str, tuple[int, ...]], bits: int | None
) -> None:
    found = {family.module_name(name): slot.shape for name, slot in shards.slots.items()}
    for name in [name for name in found if name.endswith(".qweight")]:
        layer = name.removesuffix(".qweight")
        if bits is None:
            raise CheckpointError(f"{path} holds packed weights and its config.json does not say how")
        groups = found.get(f"{layer}.scales", (0,))[0]
        rows, outputs = found.pop(name)
        inputs = rows * _WORD // bits
        # As the packed tensors have it among themselves; where they do not, reading the layer says what.
        for part in ("qzeros", "scales", "g_idx"):
            shape = found.pop(f"{layer}.{part}", None)
            if shape is None:
                raise CheckpointError(f"{layer} lacks the tensor {part}; it is not a whole GPTQ checkpoint")
        if not groups or inputs % groups:
            raise CheckpointError(
                f"the quantized tensors of {layer} do not fit together: {inputs} inputs in {groups} groups"
            )
        found[f"{layer}.weight"] = (outputs, inputs)
    # A tied output head may be stored all the same.
    found = {name: shape for name, shape in found.items() if name != "lm_head.weight" or name in wanted}
    check_weights(
        path,
        {
            "missing_keys": wanted.keys() - found.keys(),
            "mismatched_keys": [n for n in wanted if n in found and wanted[n] != found[n]],
            "unexpected_keys": found.keys() - wanted.keys(),
        },
    )


def _bits(quantization: object, path: Path) -> int | None:
    if quantization is None:
        return None
    values = quantization if isinstance(quantization, dict) else {}
    bits, method = values.get("bits"), values.get("quant_method")
    if method != "gptq" or not isinstance(bits, int) or bits not in range(2, 9):
        raise CheckpointError(
            f"{path} is quantized by {method!r} to {bits!r} bits; known is 'gptq' with 2 to 8 bits, and "
            "full precision in bfloat16, float16 or float32"
        )
    return bits
