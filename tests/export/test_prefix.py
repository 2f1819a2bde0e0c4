"""Constant keys and values against the cache of a whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from export.families import graph_family
from export.layer import head_dim, read_layer
from export.prefix import FixedText
from export.weights import Weights
from train.loading import load_checkpoint


def test_keys_and_values_are_those_of_the_whole_models_cache(rough: Path) -> None:
    weights = Weights(rough)
    text = weights.config.text_config
    ids = list(range(20, 31))
    positions = torch.arange(len(ids)).expand(3, 1, -1)
    cos, sin = graph_family(weights.config).text_rotary(text)(torch.zeros(1), positions)
    embeddings = weights.array("model.language_model.embed_tokens.weight")[ids]
    fixed = FixedText(weights.config, embeddings, cos[0].numpy(), sin[0].numpy())
    found = [fixed.advance(i, read_layer(weights, i)) for i in range(text.num_hidden_layers)]
    cache = DynamicCache(config=text)
    with torch.no_grad():
        load_checkpoint(rough).model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    for (keys, values), layer in zip(found, cache.layers, strict=True):
        for mine, theirs in ((keys, layer.keys), (values, layer.values)):
            assert mine.shape == (1, len(ids), text.num_key_value_heads * head_dim(text))
            expected = theirs.transpose(1, 2).flatten(2).numpy()
            np.testing.assert_allclose(mine, expected, atol=1e-5 * np.abs(expected).max())
