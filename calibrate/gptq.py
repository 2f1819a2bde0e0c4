# NOTE FOR HELPER C (remove later): the founder wrote gptq.py, replay.py, layers.py, pack.py, stage.py and commands.py
# at 08:45 because nothing was here yet, and overwrote your first gptq.py and pack.py: sorry. Keep these as the base (improve
# them where yours was better). Yours remain: inputs.py if not there, compare.py (the table), all tests in tests/calibrate.
"""GPTQ on one weight matrix (Frantar et al., 2023), and rounding to nearest for comparison.

Quantization is symmetric, in groups of input columns that stay contiguous. With act-order the columns are
quantized in the order of their activations' energy, while the groups' scales are fixed beforehand ("static
groups"): accuracy of act-order without a permutation at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wafervlm.errors import ConfigError

BLOCK = 128
# Candidate clipping ratios for a group's range, as shares of its largest weight.
RATIOS = tuple(1.0 - 0.02 * n for n in range(16))


@dataclass(frozen=True)
class Scheme:
    """How weights are quantized: ``bits`` 2 to 8, ``group`` input columns per scale, ``damping`` of the
    Hessian's diagonal as a share of its mean, ``act_order``, and whether each group's range is chosen to
    have the least squared error (``clip``) rather than to hold its largest weight."""

    bits: int = 4
    group: int = 128
    damping: float = 0.01
    act_order: bool = True
    clip: bool = True

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9):
            raise ConfigError(f"bits is {self.bits}; it must be 2 to 8")
        if self.group < 8:
            raise ConfigError(f"group is {self.group}; usual are 32 and 128")
        if not 0 < self.damping < 1:
            raise ConfigError(f"damping is {self.damping:g}; it must lie between 0 and 1, usually 0.01")

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


class Hessian:
    """The mean of x xᵀ over all input tokens of a layer, gathered batch by batch, (K, K) float64."""

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Add the input tokens of a batch: (..., K) of any float dtype."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self.total += (rows.T @ rows).double()
        self.tokens += len(rows)

    def mean(self) -> torch.Tensor:
        """The matrix so far."""
        return self.total / max(self.tokens, 1)


def check_group(columns: int, scheme: Scheme, name: str = "the layer") -> None:
    """Raise ConfigError where the input columns do not divide into groups."""
    if columns % scheme.group:
        raise ConfigError(f"{name} has {columns} inputs, which do not divide into groups of {scheme.group}")


def group_scales(weight: torch.Tensor, scheme: Scheme, energy: torch.Tensor | None = None) -> torch.Tensor:
    """The scale of every group, (N, K / group) float16, for ``weight`` (N, K).

    With ``scheme.clip`` the ratio among RATIOS with the least squared rounding error is taken, each column
    weighted by ``energy`` (K,), the diagonal of the Hessian, where given.
    """
    check_group(weight.shape[1], scheme)
    grouped = weight.float().unflatten(1, (-1, scheme.group))
    largest = grouped.abs().amax(dim=2).clamp_min(1e-8)
    full = largest / (scheme.highest + 0.5)
    if not scheme.clip:
        return full.half()
    weights = torch.ones_like(weight[0]) if energy is None else energy.float()
    weights = weights.unflatten(0, (-1, scheme.group))
    best, best_error = full.half(), torch.full_like(full, torch.inf)
    for ratio in RATIOS:
        scale = (full * ratio).half()
        rounded = _round(grouped, scale[..., None], scheme) * scale[..., None].float()
        error = ((rounded - grouped).square() * weights).sum(dim=2)
        better = error < best_error
        best, best_error = torch.where(better, scale, best), torch.where(better, error, best_error)
    return best


def round_to_nearest(weight: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
    """Every weight to its nearest level, without looking at activations."""
    scales = group_scales(weight, Scheme(**{**vars(scheme), "clip": False}))
    grouped = weight.float().unflatten(1, (-1, scheme.group))
    return QuantizedWeight(_round(grouped, scales[..., None], scheme).flatten(1).to(torch.int8), scales)


def gptq(weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
    """Quantize ``weight`` (N, K) so that its outputs on the inputs behind ``hessian`` (K, K) change least.

    Columns whose input is always zero get level 0. The inverse is damped, more where that is not enough.
    """
    hessian = hessian.double().clone()
    work = weight.double().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    work[:, dead] = 0
    scales = group_scales(work, scheme, hessian.diagonal())
    order = torch.arange(len(hessian), device=weight.device)
    if scheme.act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    factor = _inverse_factor(hessian[order][:, order], scheme.damping)
    levels = torch.empty_like(work, dtype=torch.int8)
    levels[:, order] = _quantize_columns(
        work[:, order], factor, scales.repeat_interleave(scheme.group, 1)[:, order], scheme
    )
    return QuantizedWeight(levels, scales)


def layer_error(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    """The share of a layer's output energy that quantization changes: tr(D H Dᵀ) / tr(W H Wᵀ)."""
    difference, whole, h = (quantized.double() - weight.double()), weight.double(), hessian.double()
    energy = ((whole @ h) * whole).sum().clamp_min(1e-30)
    return float(((difference @ h) * difference).sum() / energy)


def _round(weight: torch.Tensor, scale: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return torch.clamp(torch.round(weight / scale.to(weight.dtype)), scheme.lowest, scheme.highest)


def _inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped ``hessian``."""
    mean = hessian.diagonal().mean()
    eye = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    while True:
        lower, failed = torch.linalg.cholesky_ex(hessian + damping * mean * eye)
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return factor
        damping *= 10


def _quantize_columns(
    work: torch.Tensor, factor: torch.Tensor, scales: torch.Tensor, scheme: Scheme
) -> torch.Tensor:
    """Levels (N, K) int8, column by column; each column's error is taken up by the columns after it, at
    once within a block and after it for the rest."""
    levels = torch.empty_like(work, dtype=torch.int8)
    for start in range(0, work.shape[1], BLOCK):
        end = min(start + BLOCK, work.shape[1])
        errors = torch.zeros_like(work[:, start:end])
        for column in range(start, end):
            level = _round(work[:, column], scales[:, column], scheme)
            levels[:, column] = level.to(torch.int8)
            error = (work[:, column] - level * scales[:, column].double()) / factor[column, column]
            work[:, column:end] -= error[:, None] * factor[column, column:end][None]
            errors[:, column - start] = error
        work[:, end:] -= errors @ factor[start:end, end:]
    return levels
