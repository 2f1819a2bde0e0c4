"""GPTQ of one decoder layer after the other, each on what the layers before it, already quantized, give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibrate.gptq import Hessian, QuantizedWeight, Scheme, check_group, gptq, layer_error, round_to_nearest
from calibrate.influence import Influence, token_weights
from calibrate.inputs import Inputs
from calibrate.partial import Partial
from calibrate.replay import Batch, Reached, begin, check_exact, step, text_core
from train.progress import Progress
from train.streamed import bring_in

Row = dict[str, Any]
PREFIX = "model.language_model.layers"


@dataclass(frozen=True)
class QuantizedLayer:
    """The ``weights`` of one decoder layer by full name, and a row of figures for each of them."""

    weights: dict[str, QuantizedWeight]
    rows: list[Row]


@torch.no_grad()
def quantize_model(
    model: Any,
    inputs: Sequence[Inputs],
    scheme: Scheme,
    partial: Partial | None = None,
    influence: Sequence[Influence] | None = None,
) -> QuantizedLayer:
    """Quantize all decoder layers of ``model`` in place on ``inputs``; beside the model this takes one
    layer's Hessian and the hidden states of ``inputs``. With their ``influence`` tokens count by what they
    bear on the answers, else all alike.

    With ``partial`` each finished layer is kept there, and those found there are taken as they are. Raises
    SetupError where the replay is not the model's forward, ConfigError where groups do not divide a layer.
    """
    check_sizes(model, scheme)
    for index in {0, len(inputs) - 1}:
        check_exact(model, inputs[index])
    batches = [begin(model, part) for part in inputs]
    whole = QuantizedLayer({}, [])
    layers = len(text_core(model).layers)
    with Progress("calibrate layers", layers) as progress:
        for index in range(layers):
            weights, rows = (partial.load(index) if partial else None) or (None, None)
            if weights is None or rows is None:
                done = quantize_layer(model, index, batches, scheme, influence)
                weights, rows = done.weights, done.rows
                if partial:
                    partial.keep(index, weights, rows)
            else:
                bring_in(model, f"{PREFIX}.{index}")
                for name, weight in weights.items():
                    put(model.get_submodule(name), weight)
                advance(model, index, batches)
            whole.weights.update(weights)
            whole.rows.extend(rows)
            progress.advance(note=f"error {np.mean([row['error'] for row in rows]):.5f}")
    check_exact(model, inputs[0])
    return whole


@torch.no_grad()
def quantize_layer(
    model: Any,
    index: int,
    batches: Sequence[Batch],
    scheme: Scheme,
    influence: Sequence[Influence] | None = None,
) -> QuantizedLayer:
    """Quantize decoder layer ``index`` in place, and take ``batches`` from its entrance through it.

    Linear layers that read one input (queries, keys and values; gate and up) share a Hessian and are
    quantized together; each such set sees the sets before it quantized.
    """
    bring_in(model, f"{PREFIX}.{index}")
    modules = linears(model, index)
    weights: dict[str, QuantizedWeight] = {}
    rows: list[Row] = []
    for names in shared_inputs(model, index, batches[0]):
        counts = token_weights(influence, names, [batch.valid for batch in batches]) if influence else None
        hessian = _hessian(model, index, batches, modules[names[0]], scheme, counts)
        stacked = gptq(torch.cat([modules[name].weight for name in names]), hessian.matrix, scheme)
        first = 0
        for name in names:
            weight = modules[name].weight
            weights[name] = stacked.rows(first, first + len(weight))
            first += len(weight)
            errors = {
                "error": layer_error(weight, weights[name].dense(), hessian.matrix),
                "error_nearest": layer_error(
                    weight, round_to_nearest(weight, scheme).dense(), hessian.matrix
                ),
            }
            rows.append({"layer": name, "tokens": hessian.tokens, **errors})
            put(modules[name], weights[name])
    largest = advance(model, index, batches)
    return QuantizedLayer(weights, [{**row, **largest[row["layer"]]} for row in rows])


@torch.no_grad()
def round_model(model: Any, scheme: Scheme) -> None:
    """Round every linear layer of the decoder to nearest, in place."""
    check_sizes(model, scheme)
    for index in range(len(text_core(model).layers)):
        bring_in(model, f"{PREFIX}.{index}")
        for module in linears(model, index).values():
            put(module, round_to_nearest(module.weight, scheme))


@torch.no_grad()
def put(module: torch.nn.Linear, weight: QuantizedWeight) -> None:
    """Give ``module`` the values of ``weight``."""
    module.weight.copy_(weight.dense())


def linears(model: Any, index: int) -> dict[str, torch.nn.Linear]:
    """The linear layers of decoder layer ``index`` by full name."""
    found = text_core(model).layers[index].named_modules()
    return {
        f"{PREFIX}.{index}.{name}": module for name, module in found if isinstance(module, torch.nn.Linear)
    }


def check_sizes(model: Any, scheme: Scheme) -> None:
    """Raise ConfigError where the groups of ``scheme`` do not divide a layer."""
    for index in range(len(text_core(model).layers)):
        for name, module in linears(model, index).items():
            check_group(module.in_features, scheme, name)


@torch.no_grad()
def advance(model: Any, index: int, batches: Sequence[Batch]) -> dict[str, dict[str, float]]:
    """Take ``batches`` through decoder layer ``index``; return, for each of its linear layers, the largest
    absolute values met: of its inputs, of its outputs, and of the hidden states after the layer. Padding does
    not count."""
    largest: dict[str, dict[str, float]] = {name: {} for name in linears(model, index)}
    for batch in batches:
        with _watched(linears(model, index), batch, largest):
            batch.hidden = step(model, index, batch)
        for values in largest.values():
            _raise_to(values, "hidden_absolute_maximum", batch.hidden[batch.valid])
    return largest


def shared_inputs(model: Any, index: int, batch: Batch) -> list[list[str]]:
    """Names of the linear layers of decoder layer ``index``, together where they read the same tensor, in the
    order in which they are called."""
    calls: list[tuple[torch.Tensor, list[str]]] = []

    def catch(name: str, inputs: torch.Tensor) -> None:
        # Found by identity; keeping the tensors prevents that one takes over another's address.
        for seen, names in calls:
            if seen is inputs:
                names.append(name)
                return
        calls.append((inputs, [name]))

    modules = linears(model, index).items()
    hooks = [
        m.register_forward_pre_hook(lambda _, args, name=name: catch(name, args[0])) for name, m in modules
    ]
    with _hooked(hooks):
        step(model, index, batch)
    return [names for _, names in calls]


def _hessian(
    model: Any,
    index: int,
    batches: Sequence[Batch],
    module: torch.nn.Linear,
    scheme: Scheme,
    counts: Sequence[torch.Tensor] | None = None,
) -> Hessian:
    """Of the inputs of ``module``, tokens counting as ``counts`` (B, T) of each batch say; decoder layer
    ``index`` is run only as far as it."""
    hessian = Hessian(module.in_features, dtype=getattr(torch, scheme.precision), device=module.weight.device)
    for number, batch in enumerate(batches):
        _add_until(model, index, batch, module, hessian, counts[number] if counts else None)
    return hessian


def _add_until(
    model: Any,
    index: int,
    batch: Batch,
    module: torch.nn.Linear,
    hessian: Hessian,
    counts: torch.Tensor | None,
) -> None:
    def catch(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        hessian.add(args[0][batch.valid], None if counts is None else counts.to(args[0].device)[batch.valid])
        raise Reached

    with _hooked([module.register_forward_pre_hook(catch)]):
        try:
            step(model, index, batch)
        except Reached:
            return


@contextmanager
def _watched(
    modules: dict[str, torch.nn.Linear], batch: Batch, largest: dict[str, dict[str, float]]
) -> Iterator[None]:
    def catch(name: str, inputs: torch.Tensor, output: torch.Tensor) -> None:
        _raise_to(largest[name], "absolute_maximum", inputs[batch.valid])
        _raise_to(largest[name], "output_absolute_maximum", output[batch.valid])

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


def _raise_to(values: dict[str, float], name: str, tensor: torch.Tensor) -> None:
    values[name] = max(values.get(name, 0.0), float(tensor.abs().max()))
