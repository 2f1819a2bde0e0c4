"""Builder: the one class through which the graph is written, node by node, in standard ONNX operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.external import WeightFile
from export.weights import Integer, Linear, Quantized

# From opset 23 on RMSNormalization, RotaryEmbedding and Attention are standard operators. Weights of 4 bits
# in blocks are from 21 on, so nothing older can be written.
OPSET = 23
IR_VERSIONS = {21: 10, OPSET: 11}


class Builder:
    """Collects the nodes and constants of one graph.

    Names follow the scopes that are open: ``with builder.scope("text.0")``. Weights whose values are
    exact in bfloat16 or float16 are stored so, with a Cast to float32 that runtimes fold when loading. With
    ``weights`` they go to that file at once, and only what is small stays in memory. ``opset`` is one of
    IR_VERSIONS; what it lacks, ``export.operators`` writes in its parts.
    """

    def __init__(self, weights: WeightFile | None = None, opset: int = OPSET) -> None:
        self._weights, self._opset = weights, opset
        self._nodes: list[ir.Node] = []
        self._constants: dict[str, ir.Value] = {}
        self._scopes: list[str] = []
        self._counts: dict[str, int] = {}

    @property
    def has_attention(self) -> bool:
        """Whether the opset has Attention, RotaryEmbedding and RMSNormalization."""
        return self._opset >= OPSET

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of what is added inside the block with ``name``."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node of operator ``kind`` with one output and return that output."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(
        self, kind: str, outputs: int, *inputs: ir.Value | None, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Add a node with several outputs and return them."""
        name = self._name(kind)
        values = [ir.Value(name=name if outputs == 1 else f"{name}.{i}") for i in range(outputs)]
        self._nodes.append(ir.node(kind, inputs, attributes, outputs=values, name=name))
        return tuple(values)

    def constant(self, name: str, array: NDArray[Any] | Sequence[int]) -> ir.Value:
        """A constant of the graph; lists of integers become int64. The same name is the same constant."""
        full = "/".join([*self._scopes, name])
        if full not in self._constants:
            values = np.asarray(array) if isinstance(array, np.ndarray) else np.asarray(array, dtype=np.int64)
            self._constants[full] = self._initialiser(
                full, ir.Tensor(np.ascontiguousarray(values), name=full)
            )
        return self._constants[full]

    def weight(self, name: str, array: NDArray[np.float32]) -> ir.Value:
        """A float32 weight, stored in two bytes a value where that loses nothing."""
        narrow = narrowest(array)
        stored = self.constant(name, narrow)
        return stored if narrow.dtype == np.float32 else self.op("Cast", stored, to=ir.DataType.FLOAT)

    def linear(self, x: ir.Value, name: str, layer: Linear | Integer, *, flat: bool = False) -> ir.Value:
        """``x`` (..., K) times the (K, N) weight of ``layer``, plus its bias where it has one.

        A quantized weight is DequantizeLinear(axis=0) on (K, N) int4 and MatMul: the form that ONNX
        Runtime turns into its 4-bit kernel. For a 2-D ``x`` say ``flat``: weight and bias become one Gemm.
        An Integer layer is DynamicQuantizeLinear and MatMulInteger, scaled back.
        """
        with self.scope(name):
            if isinstance(layer, Integer):
                return self._integer(x, layer)
            if isinstance(layer, Quantized):
                product = self.op("MatMul", x, self._dequantized(layer))
                if layer.bias is None:
                    return product
                return self.op("Add", product, self.weight("bias", layer.bias))
            weight = self.weight("weight", layer.weight)
            if layer.bias is None:
                return self.op("MatMul", x, weight)
            bias = self.weight("bias", layer.bias)
            return (
                self.op("Gemm", x, weight, bias)
                if flat
                else self.op("Add", self.op("MatMul", x, weight), bias)
            )

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        """``x`` in ``shape``; one entry may be -1, and one of 0 stays as it is in ``x``."""
        name = "shape_" + "_".join("n" if n < 0 else str(n) for n in shape)
        return self.op("Reshape", x, self._shared(name, shape))

    def split(self, x: ir.Value, *sizes: int) -> tuple[ir.Value, ...]:
        """``x`` cut along its last axis into pieces of ``sizes``."""
        name = "sizes_" + "_".join(str(n) for n in sizes)
        return self.ops("Split", len(sizes), x, self._shared(name, sizes), axis=-1)

    def model(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], name: str) -> ir.Model:
        """The finished model, without constants that nothing reads."""
        read = {value for node in self._nodes for value in node.inputs}
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self._nodes,
            initializers=[value for value in self._constants.values() if value in read],
            opset_imports={"": self._opset},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSIONS[self._opset], producer_name="wafervlm")

    def _integer(self, x: ir.Value, layer: Integer) -> ir.Value:
        """The nodes that ONNX Runtime turns into one product of bytes, in the order that it knows."""
        levels, scale, zero = self.ops("DynamicQuantizeLinear", 3, x)
        product = self.op("MatMulInteger", levels, self.constant("levels", layer.levels), zero)
        scales = self.op("Mul", scale, self.constant("scales", layer.scales))
        out = self.op("Mul", self.op("Cast", product, to=ir.DataType.FLOAT), scales)
        return out if layer.bias is None else self.op("Add", out, self.weight("bias", layer.bias))

    def _dequantized(self, layer: Quantized) -> ir.Value:
        levels = self.constant("levels", layer.levels.astype(ml_dtypes.int4))
        scales = self.constant("scales", layer.scales)
        return self.op("DequantizeLinear", levels, scales, axis=0, block_size=layer.group_size)

    def _shared(self, name: str, values: Sequence[int]) -> ir.Value:
        scopes, self._scopes = self._scopes, []
        try:
            return self.constant(name, list(values))
        finally:
            self._scopes = scopes

    def _initialiser(self, name: str, tensor: ir.Tensor) -> ir.Value:
        stored = tensor if self._weights is None else self._weights.store(tensor, name)
        return ir.Value(
            name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=stored
        )

    def _name(self, kind: str) -> str:
        base = "/".join([*self._scopes, kind])
        self._counts[base] = self._counts.get(base, -1) + 1
        return f"{base}.{self._counts[base]}" if self._counts[base] else base


def narrowest(array: NDArray[np.float32]) -> NDArray[Any]:
    """``array`` as bfloat16 or float16 where every value survives, else as it is."""
    for dtype in (ml_dtypes.bfloat16, np.float16):
        with np.errstate(over="ignore"):
            narrow = array.astype(dtype)
        if np.array_equal(narrow.astype(np.float32), array):
            return narrow
    return array
