"""Decoder: the pieces of a decoder layer that the classify graph and the step graph write alike."""

from __future__ import annotations

import onnx_ir as ir

from export.builder import Builder
from export.layer import TextLayer, head_dim
from export.operators import attention, attention_mask, check_silu, gated, rms_norm
from export.weights import Array, Weights, side_by_side
from wafervlm.errors import CheckpointError


class Decoder:
    """What writes the decoder layers of a checkpoint, over hidden states (B, T, width).

    Raises CheckpointError for layers for which there is no graph.
    """

    def __init__(self, builder: Builder, weights: Weights) -> None:
        self._b, self._weights = builder, weights
        self._config = weights.config.text_config
        self._heads = self._config.num_attention_heads
        self._kv_heads = self._config.num_key_value_heads
        self._head_dim = head_dim(self._config)
        check_silu(self._config.hidden_act, "the text core")
        if set(getattr(self._config, "layer_types", None) or ()) - {"full_attention"}:
            raise CheckpointError(
                f"{weights.path} has decoder layers with sliding attention, for which there is no graph; "
                "take a checkpoint in which every layer sees the whole prompt"
            )

    def _attention(self, layer: TextLayer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
        """What the tokens of ``q`` take from those of ``k`` and ``v`` that ``mask`` lets them see."""
        shape = {"heads": self._heads, "kv_heads": self._kv_heads, "head_dim": self._head_dim}
        return self._b.linear(attention(self._b, q, k, v, mask, **shape), "o", layer.o)

    def _for_heads(self, mask: ir.Value) -> ir.Value:
        """``mask`` (T, S) as attention wants it."""
        return attention_mask(self._b, mask, self._heads, self._kv_heads)

    def _mlp(self, hidden: ir.Value, layer: TextLayer) -> ir.Value:
        b, inner = self._b, self._config.intermediate_size
        x = self._norm(hidden, "post_norm", layer.post_norm)
        gate, up = b.split(b.linear(x, "gate_up", side_by_side([layer.gate, layer.up])), inner, inner)
        return b.linear(gated(b, gate, up), "down", layer.down)

    def _head_norm(self, x: ir.Value, name: str, scale: Array | None, heads: int) -> ir.Value:
        """``x`` normalised head by head, or as it is where the family has no such norm."""
        if scale is None:
            return x
        by_head = self._b.op("Reshape", x, self._b.constant(f"{name}_heads", [0, 0, heads, self._head_dim]))
        normed = self._norm(by_head, name, scale)
        return self._b.op("Reshape", normed, self._b.constant(f"{name}_flat", [0, 0, heads * self._head_dim]))

    def _norm(self, x: ir.Value, name: str, scale: Array) -> ir.Value:
        return rms_norm(self._b, x, name, scale, self._config.rms_norm_eps)
