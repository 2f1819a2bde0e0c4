"""TextLayer: the tensors of one decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.families import graph_family
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
}
_HEAD_NORMS = {
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


@dataclass(frozen=True, slots=True)
class TextLayer:
    """The linear layers of one decoder layer, the (width,) scales of its norms, and the (head_dim,) scales of
    the norms of each head's queries and keys, None where the family has none."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    input_norm: Array
    post_norm: Array
    q_norm: Array | None
    k_norm: Array | None

    def state(self) -> dict[str, Array]:
        """The layer as transformers names it, in full precision."""
        norms = {name: getattr(self, field) for field, name in {**_NORMS, **_HEAD_NORMS}.items()}
        state = {f"{name}.weight": scale for name, scale in norms.items() if scale is not None}
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
    parts |= dict.fromkeys(_HEAD_NORMS)
    norms = {**_NORMS, **_HEAD_NORMS} if graph_family(weights.config).head_norms else _NORMS
    parts |= {field: weights.array(f"{root}.{name}.weight") for field, name in norms.items()}
    return TextLayer(**parts)


def head_dim(config: Any) -> int:
    """The width of one attention head of a text configuration, which not all families state."""
    stated = getattr(config, "head_dim", None)
    return int(stated or config.hidden_size // config.num_attention_heads)
