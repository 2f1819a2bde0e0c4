"""Attention, rotary position embedding and RMS norm in the operators of opset 21.

TensorRT reads Attention from 10.14 on, RotaryEmbedding and RMSNormalization from 10.15 on (onnx-tensorrt's
changelog); JetPack 6 has 10.3, JetPack 7 has 10.13. Of what is written instead, Gelu (opset 20) and 4-bit
weights came with 10.0, bfloat16 with 9.0, LayerNormalization with 8.6, bytes as a network's input with 8.5,
these to be cast at once; the rest is older. 4-bit weights in blocks need opset 21, while the table of 10.0
ends at 20: that the parsers of 10.3 and 10.13 read them in blocks has not been tried.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.builder import Builder


def rms_norm(builder: Builder, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
    """``x / sqrt(mean(x^2) + epsilon) * weight`` over the last axis, in the form that runtimes know."""
    square = builder.op("Pow", x, builder.constant("two", np.array(2, np.float32)))
    mean = builder.op("ReduceMean", square, builder.constant("last_axis", [-1]), keepdims=1)
    shifted = builder.op("Add", mean, builder.constant("epsilon", np.array(epsilon, np.float32)))
    return builder.op("Mul", builder.op("Div", x, builder.op("Sqrt", shifted)), weight)


def angles(builder: Builder, cos: ir.Value, sin: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``cos`` and ``sin`` (..., T, head_dim / 2) as ``turn`` reads them: (..., T, 1, head_dim), the first
    half of the sines negative."""
    heads_axis = builder.constant("heads_axis", [-2])
    both = (
        builder.op("Concat", cos, cos, axis=-1),
        builder.op("Concat", builder.op("Neg", sin), sin, axis=-1),
    )
    wide_cos, wide_sin = (builder.op("Unsqueeze", table, heads_axis) for table in both)
    return wide_cos, wide_sin


def turn(
    builder: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value, *, heads: int, head_dim: int
) -> ir.Value:
    """``x`` (B, T, heads * head_dim) turned by ``angles``: (a, b) to (a cos - b sin, b cos + a sin)."""
    with builder.scope("rotary"):
        by_head = builder.reshape(x, 0, 0, heads, head_dim)
        first, second = builder.split(by_head, head_dim // 2, head_dim // 2)
        swapped = builder.op("Concat", second, first, axis=-1)
        turned = builder.op("Add", builder.op("Mul", by_head, cos), builder.op("Mul", swapped, sin))
        return builder.reshape(turned, 0, 0, heads * head_dim)


def grouped_mask(builder: Builder, mask: ir.Value, group: int) -> ir.Value:
    """``mask`` (T, S) for each of the ``group`` heads that share keys, one below the other."""
    return builder.op("Concat", *[mask] * group, axis=0) if group > 1 else mask


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
    """As ``export.operators.attention``. Heads that share keys stand below one another as rows of one
    product, (B, kv_heads, group * T, head_dim), so that no key is repeated; so does ``mask``."""
    b, group = builder, heads // kv_heads
    with b.scope("attention"):
        scaled = b.op("Mul", q, b.constant("scale", np.array(head_dim**-0.5, np.float32)))
        rows = b.op("Transpose", b.reshape(scaled, 0, 0, kv_heads, group, head_dim), perm=[0, 2, 3, 1, 4])
        rows = b.reshape(rows, 0, kv_heads, -1, head_dim)
        keys = b.op("Transpose", b.reshape(k, 0, 0, kv_heads, head_dim), perm=[0, 2, 3, 1])
        values = b.op("Transpose", b.reshape(v, 0, 0, kv_heads, head_dim), perm=[0, 2, 1, 3])
        scores = b.op("MatMul", rows, keys)
        scores = scores if mask is None else b.op("Add", scores, mask)
        taken = b.op("MatMul", b.op("Softmax", scores, axis=-1), values)
        by_token = b.op("Transpose", b.reshape(taken, 0, kv_heads, group, -1, head_dim), perm=[0, 3, 1, 2, 4])
        return b.reshape(by_token, 0, 0, heads * head_dim)
