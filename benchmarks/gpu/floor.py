"""The floor: the least time that the matrix products of a pass take on this device, measured on it.

For each product of the pass, at its real sizes, the fastest of the kernels here is taken, and never less than
it takes to read the weights once at the bandwidth of a large copy. The sum over the pass is the floor; one
is for full-precision weights, one for whatever form is fastest. Attention, norms and everything else is left
out, so that a pass cannot reach it.

Weights are read from memory, as in a pass: each call of a series uses another copy, and all copies together
exceed the cache. Activations may come from the cache. Those of FP8 are rounded beforehand, and its faster sum
in fewer bits is tried too, which no pass here takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.gpu.capture import Captured
from benchmarks.gpu.device import Device
from benchmarks.gpu.linear import Dense, Float8, Linear, make_form, missing
from benchmarks.gpu.static import Matrix
from wafervlm.errors import ProviderError

# Bytes per weight, with the scales of a group of 128 in INT4.
BYTES = {"dense": 2.0, "int4": 0.5, "int4-triton": 0.5, "fp8": 1.0}
# INT4 is of the text core only; the head is computed in float32.
_KINDS = {"text": tuple(BYTES), "vision": ("dense", "fp8"), "head": ("dense",)}
COPY_BYTES = {"cuda": 4 << 30, "cpu": 16 << 20}
SQUARE = {"cuda": 8192, "cpu": 256}


@dataclass(frozen=True)
class Timed:
    """One product of a pass: microseconds of each kernel for one call, and the microseconds below which each
    cannot be for its weights' bytes."""

    matrix: Matrix
    kernels: dict[str, float]
    bounds: dict[str, float]

    def best(self, kinds: Sequence[str]) -> float:
        """Microseconds of one call by the fastest of ``kinds``, bounded by its bytes."""
        return min(max(self.kernels[kind], self.bounds[kind]) for kind in kinds if kind in self.kernels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self.matrix), "kernels_us": self.kernels, "bounds_us": self.bounds}


def measure_floor(
    device: Device, matrices: Sequence[Matrix], dtype: torch.dtype, group: int
) -> dict[str, Any]:
    """The floors of the products ``matrices`` in milliseconds, and what they are made of. Every kernel that
    this device lacks is named with the reason."""
    bandwidth = copy_bandwidth(device)
    timed = [time_matrix(device, matrix, dtype, group, bandwidth) for matrix in matrices]
    absent = {kind: reason for kind in BYTES if (reason := missing(kind, device.torch))}
    return {
        **sum_floors(timed),
        "bandwidth_gb_s": bandwidth / 1e9,
        "square_tflop_s": square_rate(device, dtype),
        "gflop": sum(2.0 * m.m * m.k * m.n * m.count for m in matrices) / 1e9,
        "weights_mb": sum(weight_size(m, "dense", dtype) * m.count for m in matrices) / 1e6,
        "absent_kernels": absent,
        "matrices": [one.to_dict() for one in timed],
    }


def sum_floors(timed: Sequence[Timed]) -> dict[str, float]:
    """``full_precision_ms`` and ``quantized_ms`` of all products, each as often as it comes."""
    return {
        "full_precision_ms": sum(one.best(["dense"]) * one.matrix.count for one in timed) / 1e3,
        "quantized_ms": sum(one.best(list(BYTES)) * one.matrix.count for one in timed) / 1e3,
    }


def weight_size(matrix: Matrix, kind: str, dtype: torch.dtype) -> float:
    """Bytes of one weight of ``matrix`` in a form."""
    each = float(dtype.itemsize) if kind == "dense" else BYTES[kind]
    return each * matrix.k * matrix.n


def time_matrix(device: Device, matrix: Matrix, dtype: torch.dtype, group: int, bandwidth: float) -> Timed:
    """Time every kernel here on one product, with weights and activations drawn at random. ``bandwidth`` is
    in bytes per second."""
    kernels: dict[str, float] = {}
    for kind in BYTES:
        if kind not in _KINDS[matrix.part]:
            continue
        calls = _calls(device, matrix, kind, dtype, group)
        if calls:
            kernels[kind] = min(_microseconds(device, series) for series in calls)
    bounds = {kind: weight_size(matrix, kind, dtype) / bandwidth * 1e6 for kind in kernels}
    return Timed(matrix, kernels, bounds)


def copy_bandwidth(device: Device, repeats: int = 5) -> float:
    """Bytes per second, read and written, of a copy much larger than the cache."""
    size = COPY_BYTES[device.torch.type]
    if device.is_cuda:
        size = min(size, torch.cuda.mem_get_info(device.torch)[0] // 4)
    source = torch.empty(size, dtype=torch.uint8, device=device.torch).random_(0, 256)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(device.milliseconds(lambda: target.copy_(source)) for _ in range(repeats))
    return 2.0 * size / (best / 1e3)


def square_rate(device: Device, dtype: torch.dtype, repeats: int = 5) -> float:
    """TFLOP/s of a large square product on random data."""
    size = SQUARE[device.torch.type]
    a, b = (_random(device, size, size).to(dtype) for _ in range(2))
    a @ b
    best = min(device.milliseconds(lambda: a @ b) for _ in range(repeats))
    return 2.0 * size**3 / (best / 1e3) / 1e12


Series = list[Callable[[], Any]]


def _calls(device: Device, matrix: Matrix, kind: str, dtype: torch.dtype, group: int) -> list[Series]:
    """For each way to compute the product, calls on weights that together exceed the cache; none where the
    form is not there for this size."""
    try:
        form = make_form(kind, device.torch, group)
    except ProviderError:
        return []
    copies = _copies(device, weight_size(matrix, kind, dtype))
    x = _random(device, matrix.m, matrix.k).to(dtype)
    layers = [form(_random_weight(device, matrix, dtype), None) for _ in range(copies)]
    if any(layer.kind != kind for layer in layers):
        return []
    found: list[Series] = [[_product(layer, x) for layer in layers]]
    if kind == "fp8":
        # Activations rounded before, while the series above rounds too: a floor is of the products alone.
        rounded = Float8.rounded(x)
        known = [layer for layer in layers if isinstance(layer, Float8)]
        ways = (False, True) if device.is_cuda else (False,)
        found += [[_multiplied(layer, rounded, fast) for layer in known] for fast in ways]
    if kind == "dense":
        # The other layout: the library may know a faster kernel for it.
        turned = [layer.get_buffer("weight").T.contiguous() for layer in layers if isinstance(layer, Dense)]
        found.append([_matmul(x, weight) for weight in turned])
    return found


def _product(layer: Linear, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: layer.product(x)


def _multiplied(
    layer: Float8, rounded: tuple[torch.Tensor, torch.Tensor], fast: bool
) -> Callable[[], torch.Tensor]:
    return lambda: layer.multiplied(*rounded, fast)


def _matmul(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: torch.matmul(x, weight)


def _random_weight(device: Device, matrix: Matrix, dtype: torch.dtype) -> torch.Tensor:
    return (_random(device, matrix.n, matrix.k) * 0.02).to(dtype)


def _random(device: Device, rows: int, columns: int) -> torch.Tensor:
    # Not of the default generator: after a recording that failed it cannot be drawn from.
    generator = torch.Generator(device=device.torch).manual_seed(0)
    return torch.randn(rows, columns, generator=generator, device=device.torch)


def _copies(device: Device, size: float) -> int:
    return min(max(math.ceil(3 * device.cache_bytes / size), 2), 64) if device.cache_bytes else 2


@torch.no_grad()
def _microseconds(device: Device, series: Series, least: int = 16, repeats: int = 5) -> float:
    """Of one call when the calls follow each other without gaps: on a GPU as one graph."""
    count = max(least, len(series))
    chosen = list(itertools.islice(itertools.cycle(series), count))

    def run() -> None:
        for call in chosen:
            call()

    whole: Callable[[], Any] = Captured(run) if device.is_cuda else run
    device.milliseconds(whole)
    return min(device.milliseconds(whole) for _ in range(repeats)) * 1e3 / count
