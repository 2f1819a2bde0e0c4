"""Exact replay of a model's decoder, one layer at a time, with what the vision tower adds on the way.

A model's own forward brings every batch to the entrance of the first decoder layer: there the hidden
states, the attention mask, the rotary tables and the DeepStack additions are caught. From then on one layer
after the other is called on them. Leaving the DeepStack additions out is the mistake that costs other
quantizers most of their benefit, so that ``check_exact`` compares every hidden state with the full
forward's, and refuses to go on where they differ.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wafervlm.errors import SetupError

Inputs = Mapping[str, torch.Tensor]
# Replay runs the same operations on the same shapes: only the last bits may differ.
ROUNDINGS = 8


class Reached(Exception):
    """Ends a forward pass at the point of interest."""


@dataclass(slots=True)
class Batch:
    """A batch at the entrance of a decoder layer: ``hidden`` (B, T, D), what else each layer is called with,
    which tokens are not padding (B, T), and the additions (image tokens, D) after each of the first layers
    at the tokens ``visual`` (B, T)."""

    hidden: torch.Tensor
    arguments: dict[str, Any]
    valid: torch.Tensor
    visual: torch.Tensor | None
    additions: Sequence[torch.Tensor]


def text_core(model: Any) -> Any:
    """The text model, whose ``layers`` are the decoder layers."""
    return model.model.language_model


@torch.no_grad()
def begin(model: Any, inputs: Inputs) -> Batch:
    """Bring ``inputs`` to the entrance of the first decoder layer through the model's own forward."""
    text, caught = text_core(model), {}

    def at_text(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught["text"] = inspect.signature(text.forward).bind(*args, **kwargs).arguments

    def at_layer(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught["layer"] = {
            **kwargs,
            **dict(zip(inspect.signature(layer.forward).parameters, args, strict=False)),
        }
        raise Reached

    hooks = [
        text.register_forward_pre_hook(at_text, with_kwargs=True),
        text.layers[0].register_forward_pre_hook(at_layer, with_kwargs=True),
    ]
    try:
        model.model(**inputs, use_cache=False)
    except Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    arguments = caught["layer"]
    hidden = arguments.pop("hidden_states")
    valid = (
        inputs["attention_mask"].bool()
        if "attention_mask" in inputs
        else torch.ones_like(hidden[..., 0]).bool()
    )
    additions = caught["text"].get("deepstack_visual_embeds")
    return Batch(
        hidden,
        arguments,
        valid,
        caught["text"].get("visual_pos_masks"),
        [] if additions is None else additions,
    )


@torch.no_grad()
def step(model: Any, index: int, batch: Batch) -> torch.Tensor:
    """The hidden states (B, T, D) after decoder layer ``index``, as the next layer gets them."""
    text = text_core(model)
    hidden: torch.Tensor = text.layers[index](batch.hidden, **batch.arguments)
    if index < len(batch.additions):
        hidden = text._deepstack_process(hidden, batch.visual, batch.additions[index])
    return hidden


@torch.no_grad()
def full_forward(model: Any, inputs: Inputs) -> list[torch.Tensor]:
    """Hidden states (B, T, D) at the entrance of every decoder layer and of the final norm, from one pass."""
    text, found = text_core(model), []

    def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    hooks = [
        module.register_forward_pre_hook(catch, with_kwargs=True) for module in (*text.layers, text.norm)
    ]
    try:
        model.model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def check_exact(model: Any, inputs: Inputs) -> float:
    """Replay ``inputs`` through the whole decoder and compare every hidden state with the full forward's.

    Returns the largest difference over the largest hidden value of its layer; raises SetupError where it is
    more than the last bits: then this transformers release does something between its decoder layers that
    the replay does not know.
    """
    expected = full_forward(model, inputs)
    batch, worst = begin(model, inputs), 0.0
    for index, wanted in enumerate(expected):
        difference = float((batch.hidden - wanted)[batch.valid].abs().max() / wanted[batch.valid].abs().max())
        worst = max(worst, difference)
        if not difference <= ROUNDINGS * torch.finfo(wanted.dtype).eps:
            raise SetupError(
                f"layer by layer, the hidden states before decoder layer {index} are {difference:.1e} off "
                "those of the full forward; this transformers release is not supported, take the one in "
                "constraints.txt"
            )
        if index < len(expected) - 1:
            batch.hidden = step(model, index, batch)
    return worst
