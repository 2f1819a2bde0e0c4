"""Small pieces of graph that several parts write."""

from __future__ import annotations

import onnx_ir as ir

from export.builder import Builder
from export.weights import Array
from wafervlm.errors import CheckpointError

# exp(-1e4) is 0 in every float format, and -1e4 is a finite value in each of them.
HIDDEN = -1e4


def rms_norm(builder: Builder, x: ir.Value, name: str, scale: Array, epsilon: float) -> ir.Value:
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over the last axis."""
    with builder.scope(name):
        weight = builder.weight("weight", scale)
        return builder.op("RMSNormalization", x, weight, axis=-1, epsilon=epsilon)


def gated(builder: Builder, gate: ir.Value, up: ir.Value) -> ir.Value:
    """``silu(gate) * up``, where ``silu(x) = x * sigmoid(x)``."""
    silu = builder.op("Mul", gate, builder.op("Sigmoid", gate))
    return builder.op("Mul", silu, up)


def gelu(builder: Builder, x: ir.Value, activation: str) -> ir.Value:
    """The activation that the configuration names. Raises CheckpointError for one that is not a GELU."""
    approximations = {"gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu": "none"}
    if activation not in approximations:
        raise CheckpointError(
            f"the vision tower's activation {activation!r} is not one of {', '.join(approximations)}"
        )
    return builder.op("Gelu", x, approximate=approximations[activation])


def check_silu(activation: str, where: str) -> None:
    """Raise CheckpointError where the gated layers of ``where`` have another activation than SiLU."""
    if activation != "silu":
        raise CheckpointError(
            f"the activation of {where}, {activation!r}, is not silu; there is no graph for it"
        )
