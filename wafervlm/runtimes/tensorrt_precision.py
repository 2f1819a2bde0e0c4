"""Which precision each layer of a parsed network computes in.

A bundle's graph is float32 throughout, with weights stored narrower, and a strongly typed network computes
in the types it is given; so the types are changed in the network, after parsing, and the bundle stays as it
is. Products of matrices and attention compute in BF16 or FP16, and what only moves data follows what it
moves. All else stays in float32: norms, softmax, rotary tables, activations, the residual stream (whose
rounding would add up over the layers), and the product that gives the labels' logits (in BF16 neighbouring
values at 16 lie 0.125 apart). TensorRT fuses these casts into the kernels on either side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

from wafervlm.runtimes.tensorrt_api import (
    DataType,
    IDequantizeLayer,
    ILayer,
    INetworkDefinition,
    ITensor,
    Package,
)

PRODUCTS = ("MATRIX_MULTIPLY", "ATTENTION_INPUT")
MOVES = ("SHUFFLE", "SLICE", "UNSQUEEZE", "SQUEEZE", "IDENTITY")
FOLLOWERS = (*MOVES, "CONCATENATION", "GATHER", "ATTENTION_OUTPUT")
SOURCES = ("CONSTANT", "DEQUANTIZE", "CAST", "SHAPE")
"""Layers that keep the types they have: what reads them says what it wants."""

Types = Callable[[ILayer], DataType]
Kind = TypeVar("Kind", bound=ILayer)


def set_precision(trt: Package, network: INetworkDefinition, precision: str) -> None:
    """Have ``network`` compute in ``precision``: bf16, fp16 or fp32; its output stays float32.

    FP16 is for the text alone: calibration records how large its values grow. The vision tower, which in
    these families is known to outgrow FP16, computes in BF16 then.
    """
    graph = _Graph(trt, network)
    graph.allow_decomposition()
    if precision == "fp32":
        return
    text = trt.DataType.HALF if precision == "fp16" else trt.DataType.BF16
    _Cast(graph, lambda layer: text if layer.name.startswith("text/") else trt.DataType.BF16).apply()


def product_types(network: INetworkDefinition) -> dict[str, tuple[str, ...]]:
    """Per product of matrices and attention, by name: the types of its inputs, as in ("BF16", "BF16")."""
    found = {}
    for layer in _layers(network):
        if layer.type.name in PRODUCTS:
            found[layer.name] = tuple(tensor.dtype.name for _, tensor in _inputs(layer))
    return found


class _Graph:
    """A parsed network with what its layers read, and from whom."""

    def __init__(self, trt: Package, network: INetworkDefinition) -> None:
        self.trt, self.network = trt, network
        self.layers = list(_layers(network))
        self.float32 = trt.DataType.FLOAT
        self._floats = (trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.BF16)
        self._maker = {
            layer.get_output(i).name: layer for layer in self.layers for i in range(layer.num_outputs)
        }
        self._uses = Counter(tensor.name for layer in self.layers for _, tensor in _inputs(layer))

    def maker(self, tensor: ITensor) -> ILayer | None:
        """The layer that ``tensor`` comes from, None for the network's input and for casts added since."""
        return self._maker.get(tensor.name)

    def float_inputs(self, layer: ILayer) -> list[tuple[int, ITensor]]:
        return [(i, tensor) for i, tensor in _inputs(layer) if tensor.dtype in self._floats]

    def is_constant(self, tensor: ITensor) -> bool:
        """Whether ``tensor`` is a weight: no image has a part in its values."""
        layer = self.maker(tensor)
        if layer is None:
            return False
        if layer.type.name in ("CONSTANT", "DEQUANTIZE"):
            return True
        first = layer.get_input(0) if layer.type.name in (*MOVES, "CAST") else None
        return first is not None and self.is_constant(first)

    def is_read_once(self, tensor: ITensor) -> bool:
        return self._uses[tensor.name] == 1

    def in_order(self) -> Iterator[ILayer]:
        """The layers, each after those that it reads."""
        done: set[str] = set()
        for layer in self.layers:
            waiting = [layer]
            while waiting:
                makers = (self.maker(tensor) for _, tensor in _inputs(waiting[-1]))
                missing = next((m for m in makers if m is not None and m.name not in done), None)
                if missing is not None:
                    waiting.append(missing)
                    continue
                ready = waiting.pop()
                if ready.name not in done:
                    done.add(ready.name)
                    yield ready

    def last_products(self) -> set[str]:
        """Names of the products after which no other comes."""
        found, seen = set(), set()
        waiting = [self.network.get_output(i) for i in range(self.network.num_outputs)]
        while waiting:
            layer = self.maker(waiting.pop())
            if layer is None or layer.name in seen:
                continue
            seen.add(layer.name)
            if layer.type.name in PRODUCTS:
                found.add(layer.name)
            else:
                waiting += [tensor for _, tensor in _inputs(layer)]
        return found

    def allow_decomposition(self) -> None:
        """Let attention be built from its parts where no kernel does it whole: in float32 none does."""
        for layer in self.layers:
            if layer.type.name == "ATTENTION_INPUT":
                _as(layer, self.trt.IAttentionInputLayer).attention.decomposable = True


class _Cast:
    """Puts the casts in. Types of outputs follow from those of inputs, so only inputs are set."""

    def __init__(self, graph: _Graph, low: Types) -> None:
        self._g, self._low = graph, low
        self._casts: dict[tuple[str, str], ITensor] = {}

    def apply(self) -> None:
        last = self._g.last_products()
        for layer in self._g.in_order():
            if layer.type.name in SOURCES:
                continue
            low = layer.type.name in PRODUCTS and layer.name not in last
            wanted = self._low(layer) if low else self._other(layer)
            for index, tensor in self._g.float_inputs(layer):
                if wanted is not None and tensor.dtype != wanted:
                    layer.set_input(index, self._in(tensor, wanted))

    def _other(self, layer: ILayer) -> DataType | None:
        """What a layer that is no product computes in; None: as it is."""
        read = [tensor for _, tensor in self._g.float_inputs(layer) if not self._g.is_constant(tensor)]
        if layer.type.name in FOLLOWERS or self._is_bias(layer, read):
            types = [tensor.dtype for tensor in read]
            same = types and all(dtype == types[0] for dtype in types)
            return (types[0] if same else self._g.float32) if types else None
        return self._g.float32

    def _is_bias(self, layer: ILayer, read: list[ITensor]) -> bool:
        """Whether it adds a weight to a product: one kernel, in float32 inside, does both."""
        if layer.type.name != "ELEMENTWISE" or len(read) != 1:
            return False
        maker = self._g.maker(read[0])
        trt = self._g.trt
        sums = _as(layer, trt.IElementWiseLayer).op == trt.ElementWiseOperation.SUM
        return sums and maker is not None and maker.type.name == "MATRIX_MULTIPLY"

    def _in(self, tensor: ITensor, wanted: DataType) -> ITensor:
        """``tensor`` as ``wanted``: a weight at its source, so that nothing stands between a 4-bit weight
        and the product that reads it; anything else by a cast, of which there is one for all readers."""
        if tensor.dtype == wanted:
            return tensor
        layer = self._g.maker(tensor)
        if layer is not None and self._g.is_read_once(tensor) and self._g.is_constant(tensor):
            if layer.type.name in MOVES:
                first = layer.get_input(0)
                if first is not None:
                    layer.set_input(0, self._in(first, wanted))
                    return layer.get_output(0)
            if layer.type.name == "CAST":
                _as(layer, self._g.trt.ICastLayer).to_type = wanted
                return layer.get_output(0)
            if layer.type.name == "DEQUANTIZE":
                return self._dequantized(_as(layer, self._g.trt.IDequantizeLayer), wanted)
        key = (tensor.name, wanted.name)
        if key not in self._casts:
            self._casts[key] = self._g.network.add_cast(tensor, wanted).get_output(0)
        return self._casts[key]

    def _dequantized(self, layer: IDequantizeLayer, wanted: DataType) -> ITensor:
        # TensorRT wants scales in the type of the result.
        scales = layer.get_input(1)
        if scales is not None:
            layer.set_input(1, self._in(scales, wanted))
        layer.to_type = wanted
        return layer.get_output(0)


def _layers(network: INetworkDefinition) -> Iterator[ILayer]:
    return (network.get_layer(i) for i in range(network.num_layers))


def _inputs(layer: ILayer) -> Iterator[tuple[int, ITensor]]:
    for index in range(layer.num_inputs):
        tensor = layer.get_input(index)
        if tensor is not None:
            yield index, tensor


def _as(layer: ILayer, kind: type[Kind]) -> Kind:
    """``layer`` as what it is: a network hands out its layers as plain ILayer."""
    layer.__class__ = kind
    return cast(Kind, layer)
