"""The forms a linear layer can be computed in: full precision, INT4 weights, FP8 weights and activations.

A form is made from a full-precision weight. ``check`` compares it with the weight that it stands for: a
kernel that computes something else is not timed.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.gpu.capture import Captured
from calibrate.gptq import QuantizedWeight, Scheme, round_to_nearest
from wafervlm.errors import GateError, ProviderError

FP8 = torch.float8_e4m3fn
LARGEST_FP8 = 448.0
# A relative error of products in bfloat16 and FP8 that rounding explains.
ALLOWED = 0.06


class Linear(nn.Module):
    """``x`` (M, K) to (M, N). ``kind`` names the form; ``dense`` (N, K) is what its weight stands for."""

    kind = "dense"

    def __init__(self, inputs: int, outputs: int, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.bias: torch.Tensor | None
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def dense(self) -> torch.Tensor:
        """The weight (N, K) float32 that this form computes with."""
        raise NotImplementedError

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (M, K) times the weight, without the bias."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.product(x)
        return out if self.bias is None else out + self.bias


class Dense(Linear):
    """Full precision."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias)
        self.weight: torch.Tensor
        self.register_buffer("weight", weight.detach().contiguous())

    def dense(self) -> torch.Tensor:
        return self.weight.float()

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class Int4(Linear):
    """INT4 weights, rounded to nearest in groups, through torch's own weight-only kernel. Scales are of the
    activations' type there."""

    kind = "int4"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, group: int) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias)
        quantized = round_to_nearest(weight, Scheme(group=group))
        self.group, self.dtype = group, weight.dtype
        scales = quantized.scales.T.to(weight.dtype)
        self.packed: torch.Tensor
        self.scales: torch.Tensor
        self.register_buffer("packed", _pack_for_torch(quantized.levels))
        self.register_buffer("scales", torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous())
        self._levels = quantized.levels if weight.device.type == "cpu" else quantized.levels.cpu()

    def dense(self) -> torch.Tensor:
        scales = self.scales[..., 0].float().T
        return QuantizedWeight(self._levels.to(scales.device), scales).dense()

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu":
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, self.group, self.scales)
        else:
            out = torch.ops.aten._weight_int4pack_mm(x, self.packed, self.group, self.scales)
        return cast("torch.Tensor", out)


class Int4Triton(Linear):
    """The same levels through the kernel of ``int4_kernel``; for each number of rows the fastest of its
    configurations is taken, on the first call."""

    kind = "int4-triton"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, group: int) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias)
        from benchmarks.gpu import int4_kernel

        quantized = round_to_nearest(weight, Scheme(group=group))
        self.packed: torch.Tensor
        self.scales: torch.Tensor
        self.register_buffer("packed", int4_kernel.pack(quantized.levels, group))
        self.register_buffer("scales", quantized.scales.T.contiguous())
        self._levels = quantized.levels.cpu()

    def dense(self) -> torch.Tensor:
        scales = self.scales.T
        return QuantizedWeight(self._levels.to(scales.device), scales).dense()

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return _triton_matmul()(x.contiguous(), self.packed, self.scales)


class Float8(Linear):
    """FP8 (e4m3) weights with a scale for each output, activations with a scale for each row, found on the
    way."""

    kind = "fp8"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias)
        largest = weight.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
        self.levels: torch.Tensor
        self.scales: torch.Tensor
        self.register_buffer("levels", (weight.float() * (LARGEST_FP8 / largest)).to(FP8))
        self.register_buffer("scales", (largest / LARGEST_FP8).T.contiguous())  # (1, N)

    def dense(self) -> torch.Tensor:
        return self.levels.float() * self.scales.T

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiplied(*self.rounded(x)).to(x.dtype)

    @staticmethod
    def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` (M, K) in FP8, and the scale (M, 1) float32 of each row."""
        scales = x.abs().amax(dim=1, keepdim=True).float().clamp_min(1e-12) / LARGEST_FP8
        return (x / scales).to(FP8), scales

    def multiplied(self, x: torch.Tensor, scales: torch.Tensor, fast: bool = False) -> torch.Tensor:
        """The product (M, N) bfloat16 of what ``rounded`` gives: the matrix product alone. ``fast`` sums in
        fewer bits, which only a GPU does."""
        # Scales of rows and columns come with bfloat16 results only.
        return torch._scaled_mm(
            x,
            self.levels.t(),
            scale_a=scales,
            scale_b=self.scales,
            out_dtype=torch.bfloat16,
            use_fast_accum=fast,
        )


Form = Callable[[torch.Tensor, torch.Tensor | None], Linear]


def make_form(kind: str, device: torch.device, group: int) -> Form:
    """The form called ``kind`` where this device has it. A weight whose size the form cannot take stays
    dense. Raises ProviderError with the reason where the device lacks it."""
    reason = missing(kind, device)
    if reason:
        raise ProviderError(reason)

    def make(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        outputs, inputs = weight.shape
        if kind in ("int4", "int4-triton") and inputs % group == 0 and outputs % 16 == 0:
            # The packed layout of torch's kernel has tiles of 128 inputs.
            if kind == "int4" and (inputs % 128 == 0 or device.type == "cpu"):
                return Int4(weight, bias, group)
            if kind == "int4-triton":
                return Int4Triton(weight, bias, group)
        if kind == "fp8" and inputs % 16 == 0 and outputs % 16 == 0:
            return Float8(weight, bias)
        return Dense(weight, bias)

    return make


def missing(kind: str, device: torch.device) -> str:
    """Why the form ``kind`` cannot be had on ``device``; "" where it can."""
    if kind == "int4-triton":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return "" if device.type == "cuda" or interpreted else "Triton's kernels need a CUDA device"
    if kind in ("dense", "int4", "fp8") and device.type == "cpu":
        return ""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    least = {"dense": (0, 0), "int4": (8, 0), "fp8": (8, 9)}[kind]
    if capability < least:
        return f"{kind} needs compute capability {least[0]}.{least[1]}, and this device has {capability}"
    return ""


@torch.no_grad()
def check(layer: Linear, rows: int, dtype: torch.dtype, seed: int = 0) -> float:
    """The relative error of ``layer`` on random inputs against its own weight in float32.

    Raises GateError where it is more than rounding explains.
    """
    device = next(layer.buffers()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    x = torch.randn(rows, layer.inputs, generator=generator, device=device).to(dtype)
    wanted = x.float() @ layer.dense().T
    error = float((layer.product(x).float() - wanted).norm() / wanted.norm())
    if not error <= ALLOWED:
        raise GateError(
            f"the {layer.kind} kernel is {error:.2g} off its own weights at {rows}x{layer.inputs}x"
            f"{layer.outputs} ({ALLOWED:g} is allowed); it is not timed"
        )
    return error


def _pack_for_torch(levels: torch.Tensor) -> torch.Tensor:
    """Levels (N, K) -8 to 7 in the layout of torch's weight-only kernel."""
    raised = levels.to(torch.int32) + 8
    if levels.device.type == "cpu":
        return cast("torch.Tensor", torch.ops.aten._convert_weight_to_int4pack_for_cpu(raised, 8))
    pairs = ((raised[:, ::2] << 4) | raised[:, 1::2]).to(torch.uint8)
    return cast("torch.Tensor", torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), 8))


@functools.cache
def _triton_matmul() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The kernel as an operator of its own, which torch.compile leaves as it is."""
    from benchmarks.gpu import int4_kernel

    chosen: dict[tuple[int, ...], Any] = {}

    @torch.library.custom_op("wafervlm_benchmarks::int4_matmul", mutates_args=())
    def matmul(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        key = (*x.shape, packed.shape[1], scales.shape[0])
        if key not in chosen:
            chosen[key] = _fastest(int4_kernel, x, packed, scales)
        return int4_kernel.matmul(x, packed, scales, chosen[key])

    @matmul.register_fake
    def _(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return x.new_empty(x.shape[0], packed.shape[1])

    return matmul  # type: ignore[no-any-return,unused-ignore]


def _fastest(kernel: Any, x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> Any:
    if not x.is_cuda:
        return kernel.CONFIGS[0]
    times, errors = {}, []
    for config in kernel.CONFIGS:
        try:
            times[config] = _time(functools.partial(kernel.matmul, x, packed, scales, config))
        except Exception as error:
            # A configuration that this GPU has no room for.
            errors.append(error)
    if not times:
        raise ProviderError(
            f"no configuration of the INT4 kernel runs on this GPU; the first ends in "
            f"{type(errors[0]).__name__}: {errors[0]}"
        ) from errors[0]
    return min(times, key=lambda config: times[config])


def _time(call: Callable[[], Any], calls: int = 20) -> float:
    """Milliseconds of ``calls`` calls replayed as one graph: launched one by one, small kernels all take as
    long as their launch."""
    replayed = Captured(lambda: [call() for _ in range(calls)])
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replayed()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)))
    return min(times)
