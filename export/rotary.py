"""Rotary position embedding from constant tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export import operators
from export.builder import Builder
from export.decomposed import angles
from export.weights import Array


@dataclass(frozen=True, slots=True)
class Places:
    """The places of tokens, as the operator reads them: tables, and the ``positions`` (B, T) in these where
    the opset has the operator."""

    cos: ir.Value
    sin: ir.Value
    positions: ir.Value | None = None


class Rotary:
    """Turns queries and keys of a fixed sequence of N tokens.

    ``cos`` and ``sin`` are (N, head_dim) as transformers computes them: two equal halves, of which the
    operator wants one. ``batch`` is the graph's (B, 1) shape, since the operator wants positions per image.
    """

    def __init__(self, builder: Builder, cos: Array, sin: Array, batch: ir.Value) -> None:
        self._b, self._batch, self._head_dim = builder, batch, cos.shape[-1]
        half = self._head_dim // 2
        self._tables = [
            (name, np.ascontiguousarray(table[:, :half], dtype=np.float32))
            for name, table in (("cos", cos), ("sin", sin))
        ]
        if builder.has_attention:
            self._cos, self._sin = (builder.constant(name, table) for name, table in self._tables)
        self._all = self._places("", range(len(cos)))

    def at(self, rows: Sequence[int]) -> Places:
        """The places for ``turn`` of only these of the N tokens."""
        return self._places("_of_rows", rows)

    def turn(self, x: ir.Value, heads: int, places: Places | None = None) -> ir.Value:
        """``x`` (B, N, heads * head_dim) turned to the tokens' positions."""
        at = places or self._all
        shape = {"heads": heads, "head_dim": self._head_dim}
        return operators.turn(self._b, x, at.cos, at.sin, at.positions, **shape)

    def _places(self, suffix: str, rows: Sequence[int]) -> Places:
        b, picked = self._b, list(rows)
        if not b.has_attention:
            cos, sin = (b.constant(name + suffix, table[picked]) for name, table in self._tables)
            return Places(*angles(b, cos, sin))
        table = b.constant(f"places{suffix}", np.array([picked], dtype=np.int64))
        return Places(self._cos, self._sin, b.op("Expand", table, self._batch))
