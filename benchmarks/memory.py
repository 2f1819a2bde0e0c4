"""What a training takes on each device, in bytes: the arithmetic that ``wafervlm run --dry-run`` states.

Weights, gradients and optimizer state are counted exactly, from the model's own modules built without memory.
Activations follow from what autograd keeps of a decoder layer for each token (counted with
``saved_tensors_hooks``, bfloat16 activations, LoRA on all seven projections): 18 bytes per unit of the hidden
width, 8 of the feed-forward, 10 of the queries, 9 of keys and values, 14 of the adapter's rank; twice that in
float32. Recomputing keeps only a layer's input, and one layer whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.known_models import KNOWN
from train.batches import tokenize_turn
from train.config import LoraSettings, Settings
from train.families import Family
from train.loading import checkpoint_family, load_processor, quiet_transformers
from wafervlm import workshop
from wafervlm.task import Task

GIB = 2**30
# The context of CUDA, the kernels' own memory, and what the allocator holds without using it.
OVERHEAD = 3 * GIB // 2
NANO = workshop.ROOT / "train" / "nano" / "weights" / "base"


@dataclass(frozen=True)
class Size:
    """What of a model its memory follows from. Counts of parameters: all, of ``largest`` (the largest layer
    that FSDP gathers at once), of the ``rest`` outside layers, and those the adapter trains. Widths of the
    text core and the vision tower, and tokens and patches of one map."""

    parameters: int
    trained: int
    largest: int
    rest: int
    layers: int
    hidden: int
    feed_forward: int
    queries: int
    keys_values: int
    vocabulary: int
    vision_layers: int
    vision_hidden: int
    vision_feed_forward: int
    tokens: int
    answer: int
    patches: int


@dataclass(frozen=True)
class Turn:
    """Tokens of the longest conversation on one map: ``text`` without the image, of which the ``answer``
    trains ``different`` ones."""

    text: int
    answer: int
    different: int


def size_of(base: Path, task: Task, lora: LoraSettings) -> Size:
    """Measure the checkpoint folder ``base`` by its configuration, tokenizer and processor; its weights need
    not be there. Raises CheckpointError and TaskError."""
    family = checkpoint_family(base)
    return _size(empty_model(base, family), family, _turn(base, task), task, lora)


def size_of_known(name: str, task: Task, lora: LoraSettings) -> Size | None:
    """What ``size_of`` gives, without a file of the model ``name``; None for one that is not in ``KNOWN``.
    The conversation is counted by nano's tokenizer, within a few tokens of the model's own."""
    known = KNOWN.get(name)
    if known is None:
        return None
    with quiet_transformers(), torch.device("meta"):
        model = known.family.model(known.config)
    return _size(model, known.family, _turn(NANO, task), task, lora)


def _turn(base: Path, task: Task) -> Turn:
    processor = load_processor(base)
    ids, opening = max(
        (
            tokenize_turn(processor, task, task.prompt, task.answer(label), max_length=10**9)
            for label in task.labels
        ),
        key=lambda turn: len(turn[0]),
    )
    image = sum(token == processor.image_token_id for token in ids)
    return Turn(len(ids) - image, len(ids) - opening + 1, len({*ids[opening:]}))


def _size(model: Any, family: Family, turn: Turn, task: Task, lora: LoraSettings) -> Size:
    text, vision = model.config.text_config, model.config.vision_config
    blocks = [*model.model.language_model.layers, *model.model.visual.blocks]
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    unit = vision.patch_size * vision.spatial_merge_size
    image = (task.render.height // unit) * (task.render.width // unit)
    return Size(
        parameters=parameters(model),
        trained=trained(model, family, lora, turn.different),
        largest=max(parameters(block) for block in blocks),
        rest=parameters(model) - sum(parameters(block) for block in blocks),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        feed_forward=text.intermediate_size,
        queries=text.num_attention_heads * head,
        keys_values=text.num_key_value_heads * head,
        vocabulary=text.vocab_size,
        vision_layers=vision.depth,
        vision_hidden=vision.hidden_size,
        vision_feed_forward=vision.intermediate_size,
        tokens=turn.text + image,
        answer=turn.answer,
        patches=image * vision.spatial_merge_size**2,
    )


def empty_model(base: Path, family: Family) -> Any:
    """The model of ``base`` with the shapes of its tensors and without their memory."""
    with quiet_transformers(), torch.device("meta"):
        return family.model(family.model.config_class.from_pretrained(base, local_files_only=True))


def parameters(module: nn.Module) -> int:
    """Numbers in the parameters of ``module``, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def trained(model: Any, family: Family, lora: LoraSettings, answer_tokens: int) -> int:
    """Numbers that an adapter as in ``lora`` trains: rank x (inputs + outputs) of each layer it adapts."""
    wanted = re.compile(family.lora_targets(vision=lora.vision))
    found = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and wanted.fullmatch(name)]
    width: int = model.get_input_embeddings().weight.shape[1]
    return (
        sum(lora.rank * (m.in_features + m.out_features) for m in found) + width * answer_tokens * lora.tokens
    )


def training_memory(size: Size, settings: Settings, *, sharded: int = 1) -> dict[str, int]:
    """Bytes on each device of a training as ``settings``, in which every "auto" is decided, say; ``sharded``
    is the number of devices over which FSDP spreads the weights."""
    on_gpu = settings.model.device == "cuda"
    width = 2 if on_gpu and settings.model.precision == "bfloat16" else 4
    found = {
        "weights": width * size.parameters // sharded,
        "adapter": 4 * size.trained // sharded,
        "gradients": 4 * size.trained // sharded,
        "optimizer": 8 * size.trained // sharded,  # AdamW: two moments in float32
    }
    if sharded > 1:
        # The layer at work, the next one on its way, and embeddings, output head and mergers.
        found["gathered"] = width * (2 * size.largest + size.rest)
    found["activations"] = activations(size, settings)
    found["overhead"] = OVERHEAD if on_gpu else OVERHEAD // 3
    return found


def activations(size: Size, settings: Settings) -> int:
    """Bytes that autograd keeps for one forward pass of ``train.batch`` maps, at the peak."""
    narrow = settings.model.precision == "bfloat16"
    scale, lora, batch = 1 if narrow else 2, settings.lora, settings.train.batch
    token = (
        18 * size.hidden + 8 * size.feed_forward + 10 * size.queries + 9 * size.keys_values + 14 * lora.rank
    )
    patch = 28 * size.vision_hidden + 8 * size.vision_feed_forward + 8 * lora.rank
    if not lora.vision:
        patch = 0  # nothing before the first adapted layer is kept
    recomputed = settings.train.gradient_checkpointing == "on"
    text = _kept(size.layers, token, 2 * size.hidden, recomputed) * size.tokens
    vision = (
        _kept(size.vision_layers, patch, 2 * size.vision_hidden, recomputed) * size.patches if patch else 0
    )
    # Logits of the answer: as computed, in float32, and their gradient in both.
    logits = 12 * size.vocabulary * size.answer
    return batch * (scale * (text + vision) + logits)


def _kept(layers: int, whole: int, entry: int, recomputed: bool) -> int:
    return layers * entry + whole if recomputed else layers * whole


def shown(parts: dict[str, int]) -> str:
    """One line for people, in GiB."""
    told = " + ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items())
    return f"{told} = {sum(parts.values()) / GIB:.1f} GiB"
