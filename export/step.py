"""The step graph: tokens in after those already read, logits of the last of them out.

One graph reads the prompt and writes the answer: T and P are dynamic, so the prompt is a step of many
tokens with nothing before it, and each word after it a step of one. It keeps nothing: the keys and values
of the P tokens before come in, those of the T new ones go out, and whoever runs it puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from export.builder import OPSET, Builder, narrowest
from export.decoder import Decoder
from export.decomposed import angles
from export.external import WeightFile
from export.families import graph_family
from export.layer import TextLayer, read_layer
from export.operators import turn
from export.weights import Array, Weights, side_by_side

EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
TOKENS, POSITIONS, IMAGE_ROWS, FEATURES, MASK = "tokens", "positions", "image_rows", "features", "mask"
LOGITS = "logits"
_END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers read: the new tokens' ``cos`` and ``sin`` for ``turn``, tokens being axis 1, and the
    ``mask`` for attention, whose last row is that of the last token."""

    cos: ir.Value
    sin: ir.Value
    mask: ir.Value


def step_graph(
    weights: Weights,
    image_tokens: int,
    features: int,
    context: int,
    file: WeightFile | None = None,
    opset: int = OPSET,
) -> ir.Model:
    """The ONNX model of one step, in standard operators of ``opset``, nothing dependent on data.

    Inputs: ``tokens`` (1, T) int64; ``positions`` (1, T, 3) int64, temporal, height and width; ``image_rows``
    (T,) int64, the row of ``features`` that stands in a token's place, or its last one, of zeros, for text;
    ``features`` (F, n + 1, width) float32 of the n ``image_tokens``, the embeddings first and then what
    DeepStack adds after each of the first layers; ``mask`` (T, P + T) float32, 0 where a token sees
    another, else -1e4; and for each layer i ``past_key.i`` and ``past_value.i`` (1, P, kv_heads * head_dim)
    float32. Outputs: ``logits`` (1, V) of the last token, and ``key.i`` and ``value.i`` (1, T, kv_heads *
    head_dim) of the T tokens. Positions are below ``context``. Weights go to ``file`` where it is given.
    """
    return _StepWriter(Builder(file, opset), weights, image_tokens, features).build(context)


class _StepWriter(Decoder):
    """Writes one step graph. Scopes and names are those of the classify graph, which shares its weights."""

    def __init__(self, builder: Builder, weights: Weights, image_tokens: int, features: int) -> None:
        super().__init__(builder, weights)
        self._image_tokens, self._features = image_tokens, features
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []

    def build(self, context: int) -> ir.Model:
        tokens = self._input(TOKENS, ir.DataType.INT64, 1, "T")
        positions = self._input(POSITIONS, ir.DataType.INT64, 1, "T", 3)
        rows = self._input(IMAGE_ROWS, ir.DataType.INT64, "T")
        width = self._config.hidden_size
        features = self._input(FEATURES, ir.DataType.FLOAT, self._features, self._image_tokens + 1, width)
        mask = self._input(MASK, ir.DataType.FLOAT, "T", "P_T")
        last = self._config.num_hidden_layers - 1
        with self._b.scope("text"):
            step = _Step(*self._rotary(positions, context), self._for_heads(mask))
            hidden, added = self._embed(tokens, rows, features)
            for index in range(last + 1):
                with self._b.scope(f"layer.{index}"):
                    hidden = self._layer(index, hidden, step, last=index == last)
                    # After the last layer only a token of text is left, to which nothing is added.
                    if index < min(len(added), last):
                        hidden = self._b.op("Add", hidden, added[index])
        self._outputs.insert(0, self._logits(hidden))
        return self._b.model(self._inputs, self._outputs, "step")

    def _input(self, name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
        value = ir.val(name, dtype, list(shape))
        self._inputs.append(value)
        return value

    def _output(self, value: ir.Value, name: str, *shape: int | str) -> ir.Value:
        value.name, value.shape, value.dtype = name, ir.Shape(list(shape)), ir.DataType.FLOAT
        return value

    def _rotary(self, positions: ir.Value, context: int) -> tuple[ir.Value, ir.Value]:
        """Each pair of dimensions follows the position on one axis: its table is read at that one."""
        b = self._b
        cos, sin, axes = rotary_tables(self._weights, context)
        places = b.op("Gather", positions, b.constant("rotary_axes", axes), axis=2)  # (1, T, head_dim / 2)
        tables = (b.constant("rotary_cos", cos[None]), b.constant("rotary_sin", sin[None]))
        cosines, sines = (b.op("GatherElements", table, places, axis=1) for table in tables)
        return (cosines, sines) if b.has_attention else angles(b, cosines, sines)

    def _embed(self, tokens: ir.Value, rows: ir.Value, features: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
        """Hidden states (1, T, width), and what DeepStack adds to them after the first layers."""
        b = self._b
        text = b.op("Gather", self._table(EMBEDDINGS), tokens, axis=0)
        text = text if self._whole(EMBEDDINGS) else b.op("Cast", text, to=ir.DataType.FLOAT)
        picked = b.op("Gather", features, rows, axis=1)  # (F, T, width)
        image, *added = (
            b.ops("Split", self._features, picked, axis=0, num_outputs=self._features)
            if self._features > 1
            else (picked,)
        )
        is_image = b.op("Less", rows, b.constant("image_tokens", np.array(self._image_tokens)))
        is_image = b.op("Unsqueeze", is_image, b.constant("last_axis", [-1]))
        return b.op("Where", is_image, image, text), added

    def _layer(self, index: int, hidden: ir.Value, step: _Step, *, last: bool) -> ir.Value:
        """Of the last layer only the last token is computed beyond keys and values."""
        b, layer = self._b, read_layer(self._weights, index)
        width, kv_width = self._heads * self._head_dim, self._kv_heads * self._head_dim
        x = self._norm(hidden, "input_norm", layer.input_norm)
        if last:
            k, v = b.split(b.linear(x, "kv", side_by_side([layer.k, layer.v])), kv_width, kv_width)
            q = b.linear(self._last(x, 1), "q", layer.q)
            asking = _Step(self._last(step.cos, 1), self._last(step.sin, 1), self._last(step.mask, 0))
            hidden = self._last(hidden, 1)
        else:
            qkv = b.linear(x, "qkv", side_by_side([layer.q, layer.k, layer.v]))
            q, k, v = b.split(qkv, width, kv_width, kv_width)
            asking = step
        q = self._turn(self._head_norm(q, "q_norm", layer.q_norm, self._heads), self._heads, asking)
        k = self._turn(self._head_norm(k, "k_norm", layer.k_norm, self._kv_heads), self._kv_heads, step)
        hidden = b.op("Add", hidden, self._attend(index, layer, q, k, v, asking.mask))
        return b.op("Add", hidden, self._mlp(hidden, layer))

    def _attend(
        self, index: int, layer: TextLayer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value
    ) -> ir.Value:
        b, kv_width = self._b, self._kv_heads * self._head_dim
        pasts = [
            self._input(f"past_{name}.{index}", ir.DataType.FLOAT, 1, "P", kv_width)
            for name in ("key", "value")
        ]
        keys, values = (b.op("Concat", past, new, axis=1) for past, new in zip(pasts, (k, v), strict=True))
        self._outputs.append(self._output(k, f"key.{index}", 1, "T", kv_width))
        self._outputs.append(self._output(v, f"value.{index}", 1, "T", kv_width))
        return self._attention(layer, q, keys, values, mask)

    def _logits(self, hidden: ir.Value) -> ir.Value:
        """(1, V): the whole output head, which is the table of embeddings where the two are tied."""
        b, name = self._b, HEAD if self._weights.has(HEAD) else EMBEDDINGS
        with b.scope("head"):
            norm = self._weights.array("model.language_model.norm.weight")
            x = b.reshape(self._norm(hidden, "norm", norm), -1, self._config.hidden_size)
        with b.scope("text"):
            table = self._table(name)
            table = table if self._whole(name) else b.op("Cast", table, to=ir.DataType.FLOAT)
        with b.scope("head"):
            logits = b.op("Gemm", x, table, transB=1)
        return self._output(logits, LOGITS, 1, int(self._weights.tensor(name).shape[0]))

    def _table(self, name: str) -> ir.Value:
        return self._b.constant(name, as_stored(self._weights.tensor(name)))

    def _whole(self, name: str) -> bool:
        return bool(self._table(name).dtype == ir.DataType.FLOAT)

    def _last(self, x: ir.Value, axis: int) -> ir.Value:
        b = self._b
        ends = (b.constant("minus_one", [-1]), b.constant("end", [_END]), b.constant(f"axis_{axis}", [axis]))
        return b.op("Slice", x, *ends)

    def _turn(self, x: ir.Value, heads: int, step: _Step) -> ir.Value:
        return turn(self._b, x, step.cos, step.sin, heads=heads, head_dim=self._head_dim)


def rotary_tables(weights: Weights, context: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """``cos`` and ``sin`` (context, head_dim / 2) for equal positions on all axes, and for each of the
    head_dim / 2 which of the three axes it follows, as transformers' own rotary module has it."""
    cos, sin = _rotary(weights, np.tile(np.arange(context), (3, 1)))
    _, apart = _rotary(weights, np.array([[1], [2], [3]]))
    axes = np.abs(sin[1:4] - apart).argmin(axis=0)
    return cos, sin, axes.astype(np.int64)


def _rotary(weights: Weights, positions: NDArray[np.int64]) -> tuple[Array, Array]:
    module = graph_family(weights.config).text_rotary(weights.config.text_config)
    cos, sin = module(torch.zeros(1), torch.from_numpy(positions)[:, None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half].numpy(), sin[0, :, :half].numpy()


def as_stored(tensor: torch.Tensor) -> NDArray[Any]:
    """``tensor`` as numpy in the two bytes a value that it is stored in; float32 is cut where it loses
    nothing. A table of 150,000 tokens should not be doubled to be looked at."""
    if tensor.dtype == torch.bfloat16:
        narrow: NDArray[Any] = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return narrow
    return tensor.numpy() if tensor.dtype == torch.float16 else narrowest(tensor.float().numpy())
