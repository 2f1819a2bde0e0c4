"""Rotary position embedding from constant tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from export.builder import Builder
from export.weights import Array


class Rotary:
    """Turns queries and keys of a fixed sequence of N tokens.

    ``cos`` and ``sin`` are (N, head_dim) as transformers computes them: two equal halves, of which the
    operator wants one. ``batch`` is the graph's (B, 1) shape, since the operator wants positions per image.
    """

    def __init__(self, builder: Builder, cos: Array, sin: Array, batch: ir.Value) -> None:
        self._b, self._batch = builder, batch
        half = cos.shape[-1] // 2
        self._cos = builder.constant("cos", np.ascontiguousarray(cos[:, :half], dtype=np.float32))
        self._sin = builder.constant("sin", np.ascontiguousarray(sin[:, :half], dtype=np.float32))
        self._all = self._positions("places", range(len(cos)))

    def at(self, rows: Sequence[int]) -> ir.Value:
        """Positions for ``turn`` of only these of the N tokens."""
        return self._positions("places_of_rows", rows)

    def turn(self, x: ir.Value, heads: int, positions: ir.Value | None = None) -> ir.Value:
        """``x`` (B, N, heads * head_dim) turned to the tokens' positions."""
        places = self._all if positions is None else positions
        return self._b.op("RotaryEmbedding", x, self._cos, self._sin, places, num_heads=heads)

    def _positions(self, name: str, rows: Sequence[int]) -> ir.Value:
        table = self._b.constant(name, np.array([list(rows)], dtype=np.int64))
        return self._b.op("Expand", table, self._batch)
