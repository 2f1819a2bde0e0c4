"""Faster, equal forms of three operations for training small models on a CPU, where all images have one size.

transformers embeds patches with a Conv3d, and without flash attention attends image by image, or window by
window, in a loop. For patches that do not overlap the convolution is a matrix product; for images and
windows of equal size the loop is one batched attention, one for each size where there are several. A LoRA
layer of peft makes three products with the activations; where the model is small it is cheaper to add the
adapter to the weight first and make one. All give the same numbers and gradients (tested to 1e-5).
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from train.families import FAMILIES

_PATCH_EMBEDDINGS = {family.patch_embedding for family in FAMILIES.values()}
_ATTENTIONS = {family.vision_attention for family in FAMILIES.values()}


def fast_vision(model: nn.Module) -> nn.Module:
    """Replace the forward of every vision patch embedding and attention in ``model``, which is returned.

    Parameters, names and adapters stay.
    """
    for module in model.modules():
        if type(module) in _PATCH_EMBEDDINGS:
            setattr(module, "forward", types.MethodType(_embed, module))  # noqa: B010
        elif type(module) in _ATTENTIONS:
            setattr(module, "forward", types.MethodType(_attend, module))  # noqa: B010
    return model


def _embed(module: Any, patches: torch.Tensor) -> torch.Tensor:
    projection = module.proj
    return F.linear(patches.to(projection.weight.dtype), projection.weight.flatten(1), projection.bias)


def _attend(
    module: Any,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **kwargs: Any,
) -> torch.Tensor:
    tokens = hidden_states.shape[0]
    query, key, value = module.qkv(hidden_states).reshape(tokens, 3, module.num_heads, -1).unbind(1)
    # Both families turn by the same formula.
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    mixed = _mix_in_groups(query, key, value, cu_seqlens, module.scaling)
    output: torch.Tensor = module.proj(mixed.reshape(tokens, -1))
    return output


def _mix_in_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attention over (N, heads, head_dim), each token seeing those between the same two ``bounds``."""
    lengths = bounds.diff()
    if (lengths == lengths[0]).all():
        batched = [x.view(len(lengths), -1, *x.shape[1:]).transpose(1, 2) for x in (query, key, value)]
        return _mix(batched[0], batched[1], batched[2], scaling).transpose(1, 2)
    mixed = torch.empty_like(query)
    for length in lengths.unique():
        rows = bounds[:-1][lengths == length, None] + torch.arange(int(length), device=bounds.device)
        batched = [x[rows].transpose(1, 2) for x in (query, key, value)]
        mixed = mixed.index_put((rows,), _mix(batched[0], batched[1], batched[2], scaling).transpose(1, 2))
    return mixed


def _mix(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention over (B, heads, N, head_dim). In bf16 on a CPU plain matrix products are two to five times
    faster, forward and backward, than the fused kernel; in fp32 the fused kernel wins."""
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        return torch.matmul((torch.matmul(query, key.transpose(2, 3)) * scaling).softmax(-1), value)
    return F.scaled_dot_product_attention(query, key, value, scale=scaling)


def fold_lora(model: nn.Module) -> nn.Module:
    """Let every LoRA layer in ``model`` compute ``x (W + s B A)`` in one product; ``model`` is returned.

    Layers with dropout, or with other than one active adapter, keep peft's own form, as do merged ones.
    """
    for module in model.modules():
        if hasattr(module, "lora_A") and isinstance(getattr(module, "base_layer", None), nn.Linear):
            setattr(module, "_peft_forward", module.forward)  # noqa: B010
            setattr(module, "forward", types.MethodType(_folded, module))  # noqa: B010
    return model


def _folded(module: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    active = module.active_adapters
    simple = len(active) == 1 and not module.merged and not module.disable_adapters
    if not simple or not isinstance(module.lora_dropout[active[0]], nn.Identity):
        plain: torch.Tensor = module._peft_forward(x, *args, **kwargs)
        return plain
    down, up = module.lora_A[active[0]].weight, module.lora_B[active[0]].weight
    base = module.base_layer
    return F.linear(x, base.weight + module.scaling[active[0]] * (up @ down), base.bias)
