"""Symmetric integer levels in groups: what a quantized matrix is, its scales, and rounding to nearest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wafervlm.errors import CheckpointError, UsageError

# The smallest positive float16; a scale below it would be stored as 0.
SMALLEST_SCALE = 2.0**-24
LARGEST_SCALE = 65504.0
SEARCH_STEPS = 40
SEARCH_LOWEST = 0.5


@dataclass(frozen=True, slots=True)
class Scheme:
    """``bits`` per weight, 2 to 8, and ``group_size`` neighbouring inputs of one output that share a scale."""

    bits: int = 4
    group_size: int = 128

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"{self.bits} bits per weight cannot be; choose 2 to 8 (3 and 4 are usual)")
        if self.group_size < 8 or self.group_size % 8:
            raise UsageError(f"groups of {self.group_size} cannot be; choose a multiple of 8 (32 or 128 are usual)")

    @property
    def low(self) -> int:
        """The lowest level, -8 at 4 bits."""
        return -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The highest level, 7 at 4 bits."""
        return 2 ** (self.bits - 1) - 1

    def groups(self, inputs: int) -> int:
        """How many groups ``inputs`` make. Raises UsageError where they do not divide."""
        if inputs % self.group_size:
            raise UsageError(
                f"groups of {self.group_size} do not divide a layer with {inputs} inputs; choose another group size"
            )
        return inputs // self.group_size


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A weight matrix as ``levels`` (N, K) int8 times ``scales`` (N, K / group_size) float16, N outputs and K
    inputs; the group of input k is k // group_size."""

    levels: torch.Tensor
    scales: torch.Tensor

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.levels.shape[1] // self.scales.shape[1]

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The matrix (N, K) multiplied out in float32, then cast to ``dtype``."""
        scales = self.scales.float().repeat_interleave(self.group_size, dim=1)
        return (self.levels.float() * scales).to(dtype)

    def to(self, device: torch.device | str) -> QuantizedMatrix:
        """The same on ``device``."""
        return QuantizedMatrix(self.levels.to(device), self.scales.to(device))


def round_to_nearest(weight: torch.Tensor, scheme: Scheme) -> QuantizedMatrix:
    """``weight`` (N, K) with every weight rounded to the nearest level of its group's full range: the plain
    method that GPTQ must beat. Raises CheckpointError for a weight that is not finite."""
    scales = full_range_scales(weight, scheme)
    spread = scales.float().repeat_interleave(scheme.group_size, dim=1)
    return QuantizedMatrix(nearest(weight.float(), spread, scheme).to(torch.int8), scales)


def nearest(weight: torch.Tensor, scale: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The level, still as a float, that lies nearest to ``weight`` at ``scale``."""
    return torch.clamp(torch.round(weight / scale), scheme.low, scheme.high)


def full_range_scales(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Scales (N, groups) float16 at which the levels span from minus to plus a group's absolute maximum:
    ``2 max|w| / (2^bits - 1)``, as AutoGPTQ has them."""
    return storable(_largest(weight, scheme) * (2.0 / (2**scheme.bits - 1)))


def searched_scales(weight: torch.Tensor, importance: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Scales (N, groups) float16 that minimise ``sum_k importance_k (w_k - q_k)^2`` of each group.

    A grid from half to the whole of the full range is searched: a group's rare large weights may be clipped
    where that serves the others. ``importance`` (K,) is the diagonal of the Hessian.
    """
    largest = _largest(weight, scheme) * (2.0 / (2**scheme.bits - 1))
    grouped = weight.float().unflatten(1, (-1, scheme.group_size))  # (N, groups, size)
    weights = importance.float().view(1, -1, scheme.group_size)
    best = torch.full_like(largest, torch.inf)
    chosen = storable(largest)
    for step in range(SEARCH_STEPS + 1):
        scale = storable(largest * (1 - (1 - SEARCH_LOWEST) * step / SEARCH_STEPS))
        spread = scale.float().unsqueeze(2)
        error = ((nearest(grouped, spread, scheme) * spread - grouped) ** 2 * weights).sum(2)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
    return chosen


def storable(scale: torch.Tensor) -> torch.Tensor:
    """``scale`` as the float16 that a checkpoint holds, never 0 nor infinite."""
    return scale.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float16)


def _largest(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Absolute maxima (N, groups) float32; 1 for a group of zeros, whose scale does not matter."""
    scheme.groups(weight.shape[1])
    largest = weight.float().abs().unflatten(1, (-1, scheme.group_size)).amax(2)
    if not torch.isfinite(largest).all():
        raise CheckpointError("a weight of the model is not finite; it cannot be quantized")
    return torch.where(largest > 0, largest, torch.ones_like(largest))
