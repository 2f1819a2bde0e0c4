"""The fixed text before the image: its keys and values, computed once, layer by layer."""

from __future__ import annotations

import copy

import numpy as np
import torch
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache

from export.families import graph_family
from export.layer import TextLayer
from export.weights import Array


class FixedText:
    """Runs the P tokens before the image through transformers' own decoder layers in float32.

    ``embeddings`` is (P, width), ``cos`` and ``sin`` (P, head_dim). One layer is in memory at a time.
    """

    def __init__(self, config: PretrainedConfig, embeddings: Array, cos: Array, sin: Array) -> None:
        self._layer = graph_family(config).decoder_layer
        self._config = copy.deepcopy(config.text_config)
        self._config._attn_implementation = "eager"
        self._hidden = torch.from_numpy(embeddings)[None]
        self._rotary = torch.from_numpy(cos)[None], torch.from_numpy(sin)[None]
        length = len(embeddings)
        self._mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        self._cache = DynamicCache(config=self._config)

    @torch.no_grad()
    def advance(self, index: int, layer: TextLayer) -> tuple[Array, Array]:
        """Keys (turned) and values of layer ``index``, each (1, P, kv_heads * head_dim)."""
        state = {name: torch.from_numpy(value) for name, value in layer.state().items()}
        with torch.device("meta"):  # fresh weights would be drawn for nothing
            module = self._layer(self._config, index).eval()
        module.load_state_dict(state, assign=True)
        self._hidden = module(
            self._hidden,
            position_embeddings=self._rotary,
            attention_mask=self._mask,
            past_key_values=self._cache,
        )
        stored = self._cache.layers[index]
        return _tokens_first(stored.keys), _tokens_first(stored.values)


def _tokens_first(states: torch.Tensor) -> Array:
    """(1, heads, P, head_dim) as (1, P, heads * head_dim)."""
    flat: Array = states.transpose(1, 2).flatten(2).numpy()
    return np.ascontiguousarray(flat)
