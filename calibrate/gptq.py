"""GPTQ on one weight matrix, and rounding to nearest for comparison.

Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", 2022 (arXiv 2210.17323). Weights are rounded one input column at a time; the error
of each rounding is made good, as far as the Hessian of the layer's output error allows, by the columns not
yet rounded. Columns are taken in order of their activations' energy ("act-order"), while the groups and
their scales are fixed beforehand from neighbouring columns ("static groups"): the accuracy of act-order
without a permutation at run time. Levels are symmetric.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

import torch

from wafervlm.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

BLOCK = 128
# Candidate ranges of a group, as shares of its largest weight.
RATIOS = tuple(1.0 - 0.0125 * n for n in range(41))
MOST_DAMPING = 1.0
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-24, 65504.0  # what float16 can hold


@dataclass(frozen=True)
class Scheme:
    """How weights are quantized: ``bits`` 2 to 8, ``group`` input columns per scale, ``damping`` of the
    Hessian's diagonal as a share of its mean, ``act_order``, whether each group's range is chosen to have the
    least error (``clip``) rather than to hold its largest weight, and the ``precision`` of the Hessian.
    Raises ConfigError."""

    bits: int = 4
    group: int = 128
    damping: float = 0.01
    act_order: bool = True
    clip: bool = True
    precision: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9):
            raise ConfigError(f"bits is {self.bits}; it must be 2 to 8, and 3 and 4 are usual")
        if self.group < 8 or self.group % 8:
            raise ConfigError(f"group is {self.group}; it must be a multiple of 8, and 32 and 128 are usual")
        if not 0 < self.damping <= MOST_DAMPING:
            raise ConfigError(
                f"damping is {self.damping:g}; it must lie between 0 and {MOST_DAMPING:g}, usually 0.01"
            )
        if self.precision not in ("float32", "float64"):
            raise ConfigError(f"precision is {self.precision!r}; it must be float32 or float64")

    @property
    def lowest(self) -> int:
        """The lowest level, -8 for four bits."""
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The highest level, 7 for four bits."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True)
class QuantizedWeight:
    """``levels`` (N, K) int8 and ``scales`` (N, K / group) float16: the weight is their product."""

    levels: torch.Tensor
    scales: torch.Tensor

    def dense(self) -> torch.Tensor:
        """The weight (N, K) float32 that the levels stand for."""
        group = self.levels.shape[1] // self.scales.shape[1]
        return self.levels.float() * self.scales.float().repeat_interleave(group, dim=1)

    def rows(self, first: int, last: int) -> QuantizedWeight:
        """Outputs ``first`` to ``last``, the last left out."""
        return QuantizedWeight(self.levels[first:last], self.scales[first:last])


class Hessian:
    """The sum of w x xᵀ over the inputs x (K,) of a layer, with the weight w of each token, half the Hessian
    of its weighted squared output error. As a plain sum it does not depend on how the inputs come in
    batches."""

    def __init__(
        self, size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.matrix = torch.zeros(size, size, dtype=dtype, device=device)
        self.tokens = 0

    def add(self, inputs: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add ``inputs`` (..., K) of any float dtype, each counting 1 or its share of ``weights`` (...)."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(self.matrix)
        weighted = rows if weights is None else rows * weights.reshape(-1, 1).to(self.matrix)
        self.matrix.addmm_(weighted.T, rows)
        self.tokens += len(rows)


def check_group(columns: int, scheme: Scheme, name: str = "a layer") -> None:
    """Raise ConfigError where the input columns do not divide into groups."""
    if columns % scheme.group:
        raise ConfigError(
            f"{name} has {columns} inputs, which do not divide into groups of {scheme.group}; "
            "choose another group"
        )


def group_scales(weight: torch.Tensor, scheme: Scheme, energy: torch.Tensor | None = None) -> torch.Tensor:
    """The scale of every group, (N, K / group) float16, for ``weight`` (N, K).

    The full range is ``2 max|w| / (2^bits - 1)``, as AutoGPTQ has it. With ``scheme.clip`` the ratio among
    RATIOS with the least squared rounding error is taken, each column weighted by ``energy`` (K,), the
    diagonal of the Hessian, where given. Raises CheckpointError for a weight that is not finite.
    """
    check_group(weight.shape[1], scheme)
    grouped = weight.float().unflatten(1, (-1, scheme.group))  # (N, groups, group)
    largest = grouped.abs().amax(dim=2)
    if not torch.isfinite(largest).all():
        raise CheckpointError("a weight of the model is not finite, so it cannot be quantized")
    # Any scale does for a group of zeros.
    full = torch.where(largest > 0, largest, torch.ones_like(largest)) / (scheme.highest + 0.5)
    best = _storable(full)
    if not scheme.clip:
        return best
    weights = torch.ones_like(weight[0]) if energy is None else energy
    weights = weights.float().unflatten(0, (-1, scheme.group))
    best_error = torch.full_like(full, torch.inf)
    for ratio in RATIOS:
        scale = _storable(full * ratio)
        spread = scale[..., None].float()
        error = ((_round(grouped, spread, scheme) * spread - grouped).square() * weights).sum(dim=2)
        better = error < best_error
        best, best_error = torch.where(better, scale, best), torch.where(better, error, best_error)
    return best


def round_to_nearest(weight: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
    """Every weight to the nearest level of its group's full range, without looking at activations."""
    scales = group_scales(weight, replace(scheme, clip=False))
    grouped = weight.float().unflatten(1, (-1, scheme.group))
    return QuantizedWeight(
        _round(grouped, scales[..., None].float(), scheme).flatten(1).to(torch.int8), scales
    )


def gptq(weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
    """Quantize ``weight`` (N, K) so that its outputs on the inputs behind ``hessian`` (K, K) change least.

    Computed in the dtype of ``hessian``. A column whose input was always zero is rounded to nearest. The
    diagonal is damped, ten times more each time that is not enough. Raises CheckpointError where values are
    not finite or no damping up to 1 suffices, ConfigError where groups do not divide K.
    """
    if not torch.isfinite(hessian).all():
        raise CheckpointError("the inputs of a layer are not finite; the model overflows in this precision")
    work, energy = weight.to(hessian), hessian.diagonal()
    scales = group_scales(weight, scheme, energy)
    order = torch.arange(len(hessian), device=hessian.device)
    if scheme.act_order:
        order = torch.argsort(energy, descending=True, stable=True)
    factor = _inverse_factor(hessian[order][:, order], scheme.damping)
    spread = scales.to(hessian).repeat_interleave(scheme.group, dim=1)
    levels = torch.empty_like(work, dtype=torch.int8)
    levels[:, order] = _quantize_columns(work[:, order], spread[:, order], factor, scheme)
    return QuantizedWeight(levels, scales)


def layer_error(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    """The share of a layer's output energy that quantization changes: tr(D H Dᵀ) / tr(W H Wᵀ)."""
    whole = weight.to(hessian)
    difference = quantized.to(hessian) - whole
    energy = ((whole @ hessian) * whole).sum().clamp_min(1e-30)
    return float(((difference @ hessian) * difference).sum() / energy)


def _round(weight: torch.Tensor, scale: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return torch.clamp(torch.round(weight / scale), scheme.lowest, scheme.highest)


def _storable(scale: torch.Tensor) -> torch.Tensor:
    """``scale`` as the float16 of a checkpoint, never zero nor infinite."""
    return scale.clamp(SMALLEST_SCALE, LARGEST_SCALE).half()


def _inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor U of the inverse of the damped ``hessian``: UᵀU = H⁻¹."""
    energy = hessian.diagonal()
    dead = energy <= 0
    mean = energy[~dead].mean() if not dead.all() else torch.ones_like(energy[0])
    # A dead column has no part in any output: on its own, it passes no error on and takes none over.
    matrix = hessian + torch.diag(torch.where(dead, mean, torch.zeros_like(energy)))
    while damping <= MOST_DAMPING:
        damped = matrix.clone()
        damped.diagonal().add_(damping * mean)
        factor: torch.Tensor
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and torch.isfinite(factor).all():
                return factor
        damping *= 10
        logger.warning("the Hessian of a layer cannot be factorised; its damping is raised to %g", damping)
    raise CheckpointError("the inputs of a layer are too alike to calibrate on; give more maps")


def _quantize_columns(
    work: torch.Tensor, scales: torch.Tensor, factor: torch.Tensor, scheme: Scheme
) -> torch.Tensor:
    """Levels (N, K) int8, column by column; each column's error is taken up by the columns after it, at
    once within a block and after it for the rest."""
    work, levels = work.clone(), torch.empty_like(work, dtype=torch.int8)
    for start in range(0, work.shape[1], BLOCK):
        end = min(start + BLOCK, work.shape[1])
        errors = torch.empty_like(work[:, start:end])
        for column in range(start, end):
            level = _round(work[:, column], scales[:, column], scheme)
            levels[:, column] = level.to(torch.int8)
            error = (work[:, column] - level * scales[:, column]) / factor[column, column]
            work[:, column + 1 : end].addr_(error, factor[column, column + 1 : end], alpha=-1)
            errors[:, column - start] = error
        work[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    return levels
