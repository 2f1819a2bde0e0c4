"""A checkpoint of the real shape with random weights: honest size, memory and time; no answers worth having.

    python -m benchmarks.random_checkpoint MODEL -o OUT

MODEL is a folder with config.json, tokenizer and processor files, and without weights. Tensors are drawn
and written one by one, so that a 7B takes the memory of its largest piece.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from accelerate import init_empty_weights
from scipy.stats import norm
from transformers.core_model_loading import revert_weight_conversion

from calibrate.gptq import Scheme, check_group
from calibrate.pack import QUANTIZE_CONFIG, WORD, quantization_config
from train.artefact import Provenance, write_provenance, writing
from train.families import Family
from train.loading import checkpoint_family, quiet_transformers, read_config
from train.progress import Progress
from train.shards import SHARD_BYTES, ShardWriter, Slot
from wafervlm import console
from wafervlm.errors import UsageError

# A row of outputs then has a standard deviation near 1 at the widths of a 4B, and norms keep it there.
STD = 0.02
# Of a norm's scales and the biases: near what a fresh model has, yet none may be left out unnoticed.
NOISE = 0.02
PIECE = 1 << 24
WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".gguf"}


@dataclass(frozen=True)
class RandomSettings:
    """``group`` inputs share a scale in a 4-bit GPTQ layout; None writes bfloat16. ``layers`` cuts the text
    core and the vision tower to that depth. ``shard_bytes`` is the most that one file holds."""

    group: int | None = None
    layers: int | None = None
    seed: int = 0
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if self.layers is not None and self.layers < 2:
            raise UsageError(f"layers is {self.layers}; a model needs at least 2")


def write_random(model: Path, out: Path, settings: RandomSettings) -> None:
    """Write a random checkpoint of the shape that ``model``'s config.json names to the folder ``out``.

    Raises CheckpointError where ``model`` is not of a known family, ConfigError where groups do not divide
    a layer, UsageError where ``out`` exists.
    """
    family = checkpoint_family(model)
    config = cut(read_config(model), settings.layers)
    slots, packed = plan(family, config, settings.group)
    with writing(out) as folder:
        _copy_rest(model, folder)
        if settings.group is not None:
            quantization = quantization_config(Scheme(group=settings.group))
            config["quantization_config"] = quantization
            (folder / QUANTIZE_CONFIG).write_text(json.dumps(quantization, indent=2) + "\n", encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        every = list(slots.values())
        with (
            ShardWriter(folder, every, settings.shard_bytes) as writer,
            Progress("write random weights, MB", sum(slot.nbytes for slot in every) // 10**6) as progress,
        ):
            for slot in every:
                writer.write(slot.name, drawn(slot, settings, packed=slot.name.rpartition(".")[0] in packed))
                progress.advance(slot.nbytes // 10**6)
        write_provenance(folder, Provenance("random", settings=vars(settings), seed=settings.seed))


def cut(config: Mapping[str, Any], layers: int | None) -> dict[str, Any]:
    """``config`` with at most ``layers`` decoder layers and vision blocks; what refers to depths follows."""
    values: dict[str, Any] = json.loads(json.dumps(config))
    values.pop("quantization_config", None)
    if layers is None:
        return values
    text, vision = values.get("text_config", values), values["vision_config"]
    text["num_hidden_layers"] = min(layers, text["num_hidden_layers"])
    if "max_window_layers" in text:
        text["max_window_layers"] = text["num_hidden_layers"]
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][: text["num_hidden_layers"]]
    before = vision["depth"]
    vision["depth"] = depth = min(layers, before)
    # DeepStack: as many as there were, while they stay apart. Blocks that see the whole image: the share of
    # all that they were, so that windowed ones stay beside them.
    whole = len(vision.get("fullatt_block_indexes", ())) * depth // before
    for key, most in (
        ("deepstack_visual_indexes", text["num_hidden_layers"] - 1),
        ("fullatt_block_indexes", max(1, whole)),
    ):
        if key in vision:
            places = sorted({max(0, (place + 1) * depth // before - 1) for place in vision[key]})
            vision[key] = places[-most:]
    return values


def plan(family: Family, config: Mapping[str, Any], group: int | None) -> tuple[dict[str, Slot], set[str]]:
    """Every tensor of the checkpoint by the name it is stored under, and the layers that are packed."""
    settings = family.model.config_class.from_dict(dict(config))
    with quiet_transformers(), init_empty_weights(include_buffers=False):
        model = family.model._from_config(settings, dtype=torch.bfloat16)
    tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
    state = {name: part for name, part in model.state_dict().items() if name not in tied}
    linears = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".language_model." in name
    }
    # By identity, since the names change on the way to the file.
    inner = {id(part) for name, part in state.items() if name in linears}
    slots: dict[str, Slot] = {}
    packed = set()
    for name, part in revert_weight_conversion(model, state).items():
        if group is not None and id(part) in inner:
            layer = name.removesuffix(".weight")
            packed.add(layer)
            slots |= {slot.name: slot for slot in packed_slots(layer, part.shape[1], part.shape[0], group)}
        else:
            slots[name] = Slot(name, torch.bfloat16, tuple(part.shape))
    return slots, packed


def packed_slots(layer: str, inputs: int, outputs: int, group: int) -> list[Slot]:
    """The four tensors of a packed linear layer. Raises ConfigError where groups do not divide it."""
    check_group(inputs, Scheme(group=group), layer)
    groups = inputs // group
    return [
        Slot(f"{layer}.qweight", torch.int32, (inputs * 4 // WORD, outputs)),
        Slot(f"{layer}.qzeros", torch.int32, (groups, outputs * 4 // WORD)),
        Slot(f"{layer}.scales", torch.float16, (groups, outputs)),
        Slot(f"{layer}.g_idx", torch.int32, (inputs,)),
    ]


def drawn(slot: Slot, settings: RandomSettings, *, packed: bool) -> Iterator[torch.Tensor]:
    """The values of ``slot``, a function of its name and the seed, in pieces of its first dimension."""
    rng = np.random.default_rng([settings.seed, zlib.crc32(slot.name.encode())])
    part = slot.name.rpartition(".")[2]
    if packed:
        yield _packed_part(part, slot, settings.group or 1, rng)
        return
    centre = 1.0 if part == "weight" and len(slot.shape) == 1 else 0.0
    std = STD if len(slot.shape) > 1 else NOISE
    step = max(1, PIECE // math.prod(slot.shape[1:]))
    for start in range(0, slot.shape[0], step):
        shape = (min(step, slot.shape[0] - start), *slot.shape[1:])
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(std) + np.float32(centre)
        yield torch.from_numpy(values).to(slot.dtype)


def _packed_part(part: str, slot: Slot, group: int, rng: np.random.Generator) -> torch.Tensor:
    if part == "qweight":
        pairs = rng.integers(0, 1 << 16, math.prod(slot.shape) * 4, dtype=np.uint16)
        return torch.from_numpy(_OCTETS[pairs].view("<i4").reshape(slot.shape))
    if part == "qzeros":
        return torch.full(slot.shape, 0x77777777, dtype=torch.int32)
    if part == "g_idx":
        return (torch.arange(slot.shape[0]) // group).to(torch.int32)
    spread = rng.uniform(0.8, 1.2, slot.shape) * STD / float(_LEVELS.std())
    return torch.from_numpy(spread).to(slot.dtype)


# Levels of -7 to 7 with the shares of a normal distribution, symmetric: one that is not would add up over a
# row and drown the rest. Each 16 random bits become one octet with two of them.
_LEVELS = np.clip(np.rint(norm.ppf((np.arange(256) + 0.5) / 256) * 2.6), -7, 7)
_CODES = (_LEVELS + 8).astype(np.uint8)
_OCTETS = (_CODES[None, :] | (_CODES[:, None] << 4)).ravel()


def _copy_rest(model: Path, folder: Path) -> None:
    left_out = {"config.json", "provenance.json", QUANTIZE_CONFIG}
    for path in sorted(model.iterdir()):
        is_weights = path.suffix in WEIGHT_FILES or path.name.endswith(".index.json")
        if path.is_file() and not is_weights and path.name not in left_out:
            shutil.copyfile(path, folder / path.name)


@click.command(context_settings=console.HELP)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Checkpoint folder to write."
)
@click.option("--gptq", is_flag=True, help="Text core in 4 bits, AutoGPTQ v1 layout, instead of bfloat16.")
@click.option("--group", default=128, show_default=True, help="Inputs that share a scale, with --gptq.")
@click.option("--layers", type=click.IntRange(min=2), help="Cut text core and vision tower to this depth.")
@click.option("--shard-gb", default=5.0, show_default=True, help="Largest file, in GB.")
@click.option("--seed", default=0, show_default=True)
@console.json_option
def main(
    model: Path,
    out: Path,
    gptq: bool,
    group: int,
    layers: int | None,
    shard_gb: float,
    seed: int,
    as_json: bool,
) -> None:
    """Write a checkpoint of MODEL's shape with random weights, tensor by tensor.

    MODEL is a folder with config.json, tokenizer and processor files; its weights, if there are any, are not
    read. Latency and memory of the result are honest; accuracy there is none.

    \b
    Example:
      python -m benchmarks.random_checkpoint qwen3-vl-4b -o runs/random-4b-gptq --gptq
    """
    settings = RandomSettings(group if gptq else None, layers, seed, round(shard_gb * 1e9))
    console.settings({"model": model, "out": out, **vars(settings)})
    write_random(model, out, settings)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    console.result({"checkpoint": str(out), "bytes": size}, as_json)


if __name__ == "__main__":
    main()
