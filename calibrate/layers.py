"""GPTQ of one decoder layer after the other, each on what the layers before it, already quantized, give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from calibrate.gptq import GptqSettings, Hessian, quantize, relative_error
from calibrate.levels import QuantizedMatrix, Scheme, round_to_nearest
from calibrate.replay import Batch, Reached, decoder, step

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Method:
    """How every linear layer of the decoder is quantized. ``hessian_dtype`` is float32 or float64."""

    scheme: Scheme
    settings: GptqSettings
    hessian_dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """The matrices of one decoder layer by module name within it, and what was measured on the way."""

    matrices: dict[str, QuantizedMatrix]
    report: Report


def linears(layer: Any) -> dict[str, torch.nn.Linear]:
    """The linear layers of a decoder layer by their module name, in the order of the module tree."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}


@torch.no_grad()
def quantize_layer(model: Any, index: int, batches: Sequence[Batch], method: Method) -> QuantizedLayer:
    """Quantize decoder layer ``index`` in place, from the ``batches`` at its entrance.

    The layers that read one input (queries, keys and values; gate and up) share a Hessian and are quantized
    together; each such set sees the sets before it quantized.
    """
    layer = decoder(model).layers[index]
    modules = linears(layer)
    matrices: dict[str, QuantizedMatrix] = {}
    measured: list[Report] = []
    for names in shared_inputs(model, index, batches[0]):
        hessian = _hessian(model, index, batches, modules[names[0]], method)
        weight = torch.cat([modules[name].weight for name in names])
        whole = quantize(weight, hessian.matrix, method.scheme, method.settings)
        first = 0
        for name in names:
            module = modules[name]
            rows = slice(first, first := first + module.out_features)
            matrices[name] = QuantizedMatrix(whole.levels[rows], whole.scales[rows])
            plain = round_to_nearest(module.weight, method.scheme)
            measured.append(
                {
                    "name": name,
                    "error": relative_error(module.weight, matrices[name], hessian.matrix),
                    "round_to_nearest": relative_error(module.weight, plain, hessian.matrix),
                }
            )
            put(module, matrices[name])
    return QuantizedLayer(matrices, {"layer": index, "tokens": hessian.tokens, "linears": measured})


@torch.no_grad()
def put(module: torch.nn.Linear, matrix: QuantizedMatrix) -> None:
    """Give ``module`` the weights of ``matrix``, multiplied out."""
    module.weight.copy_(matrix.to(module.weight.device).dense(module.weight.dtype))


@torch.no_grad()
def round_all(model: Any, scheme: Scheme) -> None:
    """Round every linear layer of the decoder to nearest, in place."""
    for layer in decoder(model).layers:
        for module in linears(layer).values():
            put(module, round_to_nearest(module.weight, scheme))


def advance(model: Any, index: int, batches: Sequence[Batch]) -> Report:
    """Take all ``batches`` through decoder layer ``index``; return the largest absolute values met: what goes
    into and comes out of each linear layer, and the hidden states after the layer. Padding does not count."""
    largest: dict[str, float] = {}
    for batch in batches:
        with _watched(linears(decoder(model).layers[index]), batch, largest):
            batch.hidden = step(model, index, batch)
        _raise_to(largest, "hidden", batch.hidden[batch.valid])
    return largest


def shared_inputs(model: Any, index: int, batch: Batch) -> list[list[str]]:
    """Names of the linear layers of decoder layer ``index``, grouped by the input that they share, in the order
    in which they are called."""
    calls: list[tuple[torch.Tensor, list[str]]] = []

    def catch(name: str, inputs: torch.Tensor) -> None:
        # Identity, not value: the tensors are kept, so that none takes over another's address.
        for seen, names in calls:
            if seen is inputs:
                names.append(name)
                return
        calls.append((inputs, [name]))

    modules = linears(decoder(model).layers[index])
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: catch(name, args[0])) for name, module in modules.items()
    ]
    with _hooked(hooks):
        step(model, index, batch)
    return [names for _, names in calls]


def _hessian(model: Any, index: int, batches: Iterable[Batch], module: torch.nn.Linear, method: Method) -> Hessian:
    dtype = getattr(torch, method.hessian_dtype)
    hessian = Hessian(module.in_features, dtype=dtype, device=module.weight.device)
    for batch in batches:
        _raise_at(model, index, batch, module, hessian)
    return hessian


def _raise_at(model: Any, index: int, batch: Batch, module: torch.nn.Linear, hessian: Hessian) -> None:
    """Run decoder layer ``index`` until ``module`` is called, and take its input in."""

    def catch(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        hessian.add(args[0][batch.valid])
        raise Reached

    with _hooked([module.register_forward_pre_hook(catch)]):
        try:
            step(model, index, batch)
        except Reached:
            return


@contextmanager
def _watched(modules: dict[str, torch.nn.Linear], batch: Batch, largest: dict[str, float]) -> Iterator[None]:
    def catch(name: str, inputs: torch.Tensor, output: torch.Tensor) -> None:
        _raise_to(largest, f"{name}.input", inputs[batch.valid])
        _raise_to(largest, f"{name}.output", output[batch.valid])

    hooks = [
        module.register_forward_hook(lambda _, args, output, name=name: catch(name, args[0], output))
        for name, module in modules.items()
    ]
    with _hooked(hooks):
        yield


@contextmanager
def _hooked(hooks: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _raise_to(largest: dict[str, float], name: str, values: torch.Tensor) -> None:
    largest[name] = max(largest.get(name, 0.0), float(values.abs().max()))
