"""The text core as a static graph: image tokens, the text after them and the label tree in one pass."""

from __future__ import annotations

import onnx_ir as ir
import torch

from export.builder import Builder
from export.decoder import Decoder
from export.families import graph_family
from export.layer import TextLayer, read_layer
from export.prefix import FixedText
from export.rotary import Rotary
from export.sequence import Sequence
from export.weights import Array, Weights, side_by_side


class TextCore(Decoder):
    """Writes the decoder layers of a checkpoint for one ``sequence``.

    Hidden states are (B, T, width). Keys and values of the text before the image are constants. Of the
    last layer only the rows at which labels branch are computed beyond keys and values.
    """

    def __init__(self, builder: Builder, weights: Weights, sequence: Sequence) -> None:
        super().__init__(builder, weights)
        self._sequence = sequence

    def build(self, image: ir.Value, deepstack: list[ir.Value], batch: ir.Value) -> ir.Value:
        """From image embeddings (B, n, width) and the DeepStack features: the hidden states (B, R, width)
        of the R rows of the sequence. ``batch`` is the graph's (B, 1) shape."""
        with self._b.scope("text"):
            self._batch_3d = self._b.op("Concat", batch, self._b.constant("one", [1]), axis=0)
            cos, sin = self._tables()
            before = len(self._sequence.before)
            self._rotary = Rotary(self._b, cos[before:], sin[before:], batch)
            self._fixed = FixedText(
                self._weights.config, self._embeddings(self._sequence.before), cos[:before], sin[:before]
            )
            self._mask = self._for_heads(self._b.constant("mask", self._sequence.mask))
            hidden = self._embed(image)
            for index in range(self._config.num_hidden_layers - 1):
                with self._b.scope(f"layer.{index}"):
                    hidden = self._layer(index, hidden)
                    if index < len(deepstack):
                        hidden = self._add_to_image(hidden, deepstack[index])
            with self._b.scope(f"layer.{self._config.num_hidden_layers - 1}"):
                return self._last_layer(self._config.num_hidden_layers - 1, hidden)

    def _tables(self) -> tuple[Array, Array]:
        positions = torch.from_numpy(self._sequence.positions)[:, None]
        rotary = graph_family(self._weights.config).text_rotary(self._config)
        cos, sin = rotary(torch.zeros(1), positions)
        return cos[0].numpy(), sin[0].numpy()

    def _embeddings(self, ids: tuple[int, ...]) -> Array:
        return self._weights.rows("model.language_model.embed_tokens.weight", ids)

    def _embed(self, image: ir.Value) -> ir.Value:
        text = self._b.weight("embeddings", self._embeddings(self._sequence.after)[None])
        return self._b.op("Concat", image, self._per_image(text), axis=1)

    def _per_image(self, constant: ir.Value) -> ir.Value:
        return self._b.op("Expand", constant, self._batch_3d)

    def _add_to_image(self, hidden: ir.Value, features: ir.Value) -> ir.Value:
        """DeepStack: ``features`` (B, n, width) are added to the image tokens, which come first."""
        pads = self._b.constant("pads", [0, 0, 0, 0, len(self._sequence.after), 0])
        return self._b.op("Add", hidden, self._b.op("Pad", features, pads))

    def _layer(self, index: int, hidden: ir.Value) -> ir.Value:
        b, layer = self._b, read_layer(self._weights, index)
        width, kv_width = self._heads * self._head_dim, self._kv_heads * self._head_dim
        x = self._norm(hidden, "input_norm", layer.input_norm)
        q, k, v = b.split(
            b.linear(x, "qkv", side_by_side([layer.q, layer.k, layer.v])), width, kv_width, kv_width
        )
        q = self._rotary.turn(self._head_norm(q, "q_norm", layer.q_norm, self._heads), self._heads)
        hidden = b.op("Add", hidden, self._attend(index, layer, q, k, v, self._mask))
        return b.op("Add", hidden, self._mlp(hidden, layer))

    def _last_layer(self, index: int, hidden: ir.Value) -> ir.Value:
        b, layer, rows = self._b, read_layer(self._weights, index), list(self._sequence.rows)
        kv_width = self._kv_heads * self._head_dim
        x = self._norm(hidden, "input_norm", layer.input_norm)
        k, v = b.split(b.linear(x, "kv", side_by_side([layer.k, layer.v])), kv_width, kv_width)
        picked = b.constant("rows", rows)
        q = b.linear(b.op("Gather", x, picked, axis=1), "q", layer.q)
        q = self._head_norm(q, "q_norm", layer.q_norm, self._heads)
        q = self._rotary.turn(q, self._heads, self._rotary.at(rows))
        mask = self._for_heads(b.constant("mask", self._sequence.mask[rows]))
        hidden = b.op("Gather", hidden, picked, axis=1)
        hidden = b.op("Add", hidden, self._attend(index, layer, q, k, v, mask))
        return b.op("Add", hidden, self._mlp(hidden, layer))

    def _attend(
        self, index: int, layer: TextLayer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value
    ) -> ir.Value:
        b = self._b
        k = self._rotary.turn(self._head_norm(k, "k_norm", layer.k_norm, self._kv_heads), self._kv_heads)
        if self._sequence.before:
            keys, values = self._fixed.advance(index, layer)
            k = b.op("Concat", self._per_image(b.constant("fixed_keys", keys)), k, axis=1)
            v = b.op("Concat", self._per_image(b.constant("fixed_values", values)), v, axis=1)
        return self._attention(layer, q, k, v, mask)
