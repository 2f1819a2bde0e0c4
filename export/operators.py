"""Small pieces of graph that several parts write.

Attention, rotary position embedding and RMS norm are one operator each where the opset has them, and else
what ``export.decomposed`` writes.
"""

from __future__ import annotations

import onnx_ir as ir

from export import decomposed
from export.builder import Builder
from export.weights import Array
from wafervlm.errors import CheckpointError

# exp(-1e4) is 0 in every float format, and -1e4 is a finite value in each of them.
HIDDEN = -1e4


def rms_norm(builder: Builder, x: ir.Value, name: str, scale: Array, epsilon: float) -> ir.Value:
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over the last axis."""
    with builder.scope(name):
        weight = builder.weight("weight", scale)
        if not builder.has_attention:
            return decomposed.rms_norm(builder, x, weight, epsilon)
        return builder.op("RMSNormalization", x, weight, axis=-1, epsilon=epsilon)


def turn(
    builder: Builder,
    x: ir.Value,
    cos: ir.Value,
    sin: ir.Value,
    positions: ir.Value | None = None,
    *,
    heads: int,
    head_dim: int,
) -> ir.Value:
    """Rotary position embedding of ``x`` (B, T, heads * head_dim). ``cos`` and ``sin`` are (B, T, head_dim /
    2), or with ``positions`` (B, T) tables of which these are the rows; without Attention they are
    ``decomposed.angles``, and there are no positions."""
    if not builder.has_attention:
        return decomposed.turn(builder, x, cos, sin, heads=heads, head_dim=head_dim)
    # An input that is left out in name only, TensorRT refuses.
    inputs = (x, cos, sin) if positions is None else (x, cos, sin, positions)
    return builder.op("RotaryEmbedding", *inputs, num_heads=heads)


def attention_mask(builder: Builder, mask: ir.Value, heads: int, kv_heads: int) -> ir.Value:
    """``mask`` (T, S) as ``attention`` adds it; made once, since it serves every layer."""
    return mask if builder.has_attention else decomposed.grouped_mask(builder, mask, heads // kv_heads)


def attention(
    builder: Builder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    mask: ir.Value | None,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
) -> ir.Value:
    """What the T tokens of ``q`` (B, T, heads * head_dim) take from the S of ``k`` and ``v`` (B, S, kv_heads
    * head_dim): softmax(q k' / sqrt(head_dim) + mask) v, (B, T, heads * head_dim)."""
    if not builder.has_attention:
        return decomposed.attention(builder, q, k, v, mask, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    masked = (q, k, v) if mask is None else (q, k, v, mask)
    return builder.op("Attention", *masked, q_num_heads=heads, kv_num_heads=kv_heads, scale=head_dim**-0.5)


def gated(builder: Builder, gate: ir.Value, up: ir.Value) -> ir.Value:
    """``silu(gate) * up``, where ``silu(x) = x * sigmoid(x)``."""
    silu = builder.op("Mul", gate, builder.op("Sigmoid", gate))
    return builder.op("Mul", silu, up)


def gelu(builder: Builder, x: ir.Value, activation: str) -> ir.Value:
    """The activation that the configuration names. Raises CheckpointError for one that is not a GELU."""
    approximations = {"gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu": "none"}
    if activation not in approximations:
        raise CheckpointError(
            f"the vision tower's activation {activation!r} is not one of {', '.join(approximations)}"
        )
    return builder.op("Gelu", x, approximate=approximations[activation])


def check_silu(activation: str, where: str) -> None:
    """Raise CheckpointError where the gated layers of ``where`` have another activation than SiLU."""
    if activation != "silu":
        raise CheckpointError(
            f"the activation of {where}, {activation!r}, is not silu; there is no graph for it"
        )
