"""TextLayer: the tensors of one decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.weights import Array, Dense, Linear, Weights

_LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NORMS = {
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


@dataclass(frozen=True, slots=True)
class TextLayer:
    """The linear layers of one decoder layer, and the (width,) or (head_dim,) scales of its norms."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    input_norm: Array
    post_norm: Array
    q_norm: Array
    k_norm: Array

    def state(self) -> dict[str, Array]:
        """The layer as transformers names it, in full precision."""
        state = {f"{name}.weight": getattr(self, field) for field, name in _NORMS.items()}
        for field, name in _LINEARS.items():
            layer: Linear = getattr(self, field)
            dense = layer if isinstance(layer, Dense) else layer.dense()
            state[f"{name}.weight"] = np.ascontiguousarray(dense.weight.T)
            if dense.bias is not None:
                state[f"{name}.bias"] = dense.bias
        return state


def read_layer(weights: Weights, index: int) -> TextLayer:
    """Read decoder layer ``index`` from the files."""
    root = f"model.language_model.layers.{index}"
    parts: dict[str, Any] = {field: weights.linear(f"{root}.{name}") for field, name in _LINEARS.items()}
    parts |= {field: weights.array(f"{root}.{name}.weight") for field, name in _NORMS.items()}
    return TextLayer(**parts)
