"""GPTQ of one matrix: the Hessian, the rounding, and what it refuses."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from calibrate.gptq import Hessian, Scheme, gptq, group_scales, layer_error, round_to_nearest
from calibrate.inputs import batches
from calibrate.replay import begin, step, text_core
from tests.calibrate.conftest import correlated, task_for
from train.dataset import Sample
from train.loading import Checkpoint
from wafervlm.errors import CheckpointError, ConfigError

WIDTH, OUTPUTS = 256, 48


def hessian_of(inputs: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    hessian = Hessian(inputs.shape[-1], dtype=dtype)
    hessian.add(inputs)
    return hessian.matrix


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return torch.randn(OUTPUTS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def hessian() -> torch.Tensor:
    return hessian_of(correlated(2000, WIDTH))


def check_in_batches(inputs: torch.Tensor, sizes: list[int], dtype: torch.dtype) -> None:
    """The Hessian of ``inputs`` (T, K) is the same in batches of ``sizes`` and at once: the sum of x xᵀ."""
    parts = Hessian(inputs.shape[1], dtype=dtype)
    for part in inputs.split(sizes):
        parts.add(part)
    exact = inputs.double().T @ inputs.double()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    for found in (parts.matrix, hessian_of(inputs, dtype)):
        assert float((found - exact).abs().max() / exact.abs().max()) < tolerance
    assert parts.tokens == len(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hessian_in_batches_equals_at_once(dtype: torch.dtype) -> None:
    check_in_batches(correlated(1000, 64), [1, 7, 392, 600], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hessian_of_nanos_inputs_in_batches_equals_at_once(
    nano: Checkpoint, samples: list[Sample], dtype: torch.dtype
) -> None:
    batch = begin(nano.model, batches(nano, task_for(nano), samples, "wafers", 18, seed=0)[0])
    caught: list[torch.Tensor] = []
    queries = text_core(nano.model).layers[0].self_attn.q_proj
    hook = queries.register_forward_pre_hook(lambda _, args: caught.append(args[0][batch.valid]))
    with torch.no_grad():
        step(nano.model, 0, batch)
    hook.remove()
    (inputs,) = caught
    assert len(inputs) > 1000
    check_in_batches(inputs, [1, 99, 400, len(inputs) - 500], dtype)


def test_hessian_of_batches_of_sequences_equals_that_of_their_tokens() -> None:
    inputs = correlated(60, 32)
    flat, shaped = Hessian(32), Hessian(32)
    flat.add(inputs)
    shaped.add(inputs.view(4, 15, 32))
    assert torch.equal(flat.matrix, shaped.matrix)
    assert flat.tokens == shaped.tokens == 60


def test_hessian_of_half_precision_inputs_is_summed_in_its_own_precision() -> None:
    inputs = torch.full((5000, 8), 1.0, dtype=torch.bfloat16)
    assert (hessian_of(inputs, torch.float32) == 5000).all()  # bfloat16 would stop counting at 256


def by_the_book(weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Levels by the definition: after each column, the inverse Hessian of the columns that are left."""
    scales = group_scales(weight, scheme, hessian.diagonal()).double().repeat_interleave(scheme.group, dim=1)
    work, levels = weight.double().clone(), torch.zeros_like(weight, dtype=torch.int8)
    damped = hessian.double() + scheme.damping * hessian.diagonal().mean() * torch.eye(len(hessian))
    left = torch.argsort(hessian.diagonal(), descending=True, stable=True).tolist()
    if not scheme.act_order:
        left = list(range(len(hessian)))
    while left:
        inverse = torch.linalg.inv(damped[left][:, left])
        column = left[0]
        level = (work[:, column] / scales[:, column]).round().clamp(scheme.lowest, scheme.highest)
        error = (work[:, column] - level * scales[:, column]) / inverse[0, 0]
        work[:, left] -= error[:, None] * inverse[0]
        levels[:, column] = level.to(torch.int8)
        left.pop(0)
    return levels


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (3, 96)])
def test_gptq_equals_its_definition(bits: int, group: int, act_order: bool) -> None:
    # 192 columns are a block and a half.
    weight, inputs = torch.randn(16, 192, generator=torch.Generator().manual_seed(2)), correlated(900, 192)
    scheme = Scheme(bits=bits, group=group, act_order=act_order)
    expected = by_the_book(weight, hessian_of(inputs), scheme)
    assert torch.equal(gptq(weight, hessian_of(inputs), scheme).levels, expected)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize(("bits", "group"), [(4, 128), (4, 32), (3, 128), (3, 32), (2, 64), (8, 128)])
def test_gptq_is_much_better_than_rounding(
    weight: torch.Tensor, hessian: torch.Tensor, bits: int, group: int, precision: torch.dtype
) -> None:
    scheme, matrix = Scheme(bits=bits, group=group), hessian.to(precision)
    quantized = gptq(weight, matrix, scheme)
    assert scheme.lowest <= int(quantized.levels.min()) < 0 < int(quantized.levels.max()) <= scheme.highest
    nearest = layer_error(weight, round_to_nearest(weight, scheme).dense(), hessian)
    assert layer_error(weight, quantized.dense(), hessian) < 0.6 * nearest


def test_act_order_and_chosen_ranges_both_help(weight: torch.Tensor, hessian: torch.Tensor) -> None:
    best = Scheme(group=64)
    errors = {
        name: layer_error(weight, gptq(weight, hessian, scheme).dense(), hessian)
        for name, scheme in {
            "best": best,
            "no order": replace(best, act_order=False),
            "no clip": replace(best, clip=False),
        }.items()
    }
    assert errors["best"] < 0.9 * errors["no order"]
    assert errors["best"] < 0.95 * errors["no clip"]


def test_groups_stay_contiguous_and_their_scales_fixed(weight: torch.Tensor, hessian: torch.Tensor) -> None:
    scheme = Scheme(group=32)
    quantized = gptq(weight, hessian, scheme)
    assert quantized.scales.shape == (OUTPUTS, WIDTH // 32)
    assert quantized.scales.dtype == torch.float16
    assert torch.equal(quantized.scales, group_scales(weight, scheme, hessian.diagonal()))


def test_without_correlation_gptq_rounds_to_nearest(weight: torch.Tensor) -> None:
    scheme = Scheme(group=32, clip=False)
    strengths = torch.linspace(0.5, 2.0, WIDTH, dtype=torch.float64)
    assert torch.equal(gptq(weight, strengths.diag(), scheme).levels, round_to_nearest(weight, scheme).levels)


def test_dead_columns_are_rounded_and_leave_the_others_alone() -> None:
    weight, inputs = torch.randn(16, 96, generator=torch.Generator().manual_seed(3)), correlated(500, 96)
    scheme, dead = Scheme(group=32, clip=False), slice(32, 64)
    without = torch.cat([inputs[:, :32], inputs[:, 64:]], dim=1)
    inputs[:, dead] = 0
    quantized = gptq(weight, hessian_of(inputs), scheme)
    assert torch.equal(quantized.levels[:, dead], round_to_nearest(weight, scheme).levels[:, dead])
    alone = gptq(torch.cat([weight[:, :32], weight[:, 64:]], dim=1), hessian_of(without), scheme)
    kept = torch.cat([quantized.levels[:, :32], quantized.levels[:, 64:]], dim=1)
    assert torch.equal(kept, alone.levels)


def test_all_columns_dead_is_rounding(weight: torch.Tensor) -> None:
    scheme = Scheme(group=32, clip=False)
    quantized = gptq(weight, torch.zeros(WIDTH, WIDTH), scheme)
    assert torch.equal(quantized.levels, round_to_nearest(weight, scheme).levels)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_singular_hessian_is_damped(weight: torch.Tensor, precision: torch.dtype) -> None:
    hessian = hessian_of(correlated(5, WIDTH), precision)  # rank 5 of 256
    quantized, plain = gptq(weight, hessian, Scheme(group=32)), round_to_nearest(weight, Scheme(group=32))
    assert layer_error(weight, quantized.dense(), hessian) < layer_error(weight, plain.dense(), hessian)


def test_damping_is_raised_until_it_suffices(weight: torch.Tensor, caplog: pytest.LogCaptureFixture) -> None:
    hessian = hessian_of(correlated(5, WIDTH), torch.float32)
    hessian -= 1e-4 * hessian.diagonal().mean() * torch.eye(WIDTH)  # rounding can leave it indefinite
    hessian.diagonal().clamp_(min=1e-6)
    with caplog.at_level(logging.WARNING, logger="calibrate.gptq"):
        quantized = gptq(weight, hessian, Scheme(group=32, damping=1e-6))
    assert "damping is raised" in caplog.text
    assert torch.isfinite(quantized.dense()).all()


def test_more_damping_comes_nearer_to_rounding(weight: torch.Tensor, hessian: torch.Tensor) -> None:
    plain = round_to_nearest(weight, Scheme(group=32)).levels
    same = [
        float((gptq(weight, hessian, Scheme(group=32, clip=False, damping=d)).levels == plain).float().mean())
        for d in (1e-4, 1e-2, 1.0)
    ]
    assert same[0] < same[1] < same[2]


def test_what_no_damping_helps_is_refused(weight: torch.Tensor) -> None:
    hessian = -torch.ones(WIDTH, WIDTH)
    hessian.diagonal().fill_(1.0)
    with pytest.raises(CheckpointError, match="too alike"):
        gptq(weight, hessian, Scheme(group=32))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(
    weight: torch.Tensor, hessian: torch.Tensor, value: float
) -> None:
    broken = hessian.clone()
    broken[3, 4] = value
    with pytest.raises(CheckpointError, match="inputs of a layer are not finite"):
        gptq(weight, broken, Scheme(group=32))
    spoilt = weight.clone()
    spoilt[1, 2] = value
    with pytest.raises(CheckpointError, match="weight of the model is not finite"):
        gptq(spoilt, hessian, Scheme(group=32))


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="96 inputs, which do not divide into groups of 64"):
        gptq(torch.ones(8, 96), torch.eye(96), Scheme(group=64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "bits is 1"),
        ({"bits": 9}, "bits is 9"),
        ({"group": 20}, "group is 20"),
        ({"group": 0}, "group is 0"),
        ({"damping": 0.0}, "damping is 0"),
        ({"damping": -0.1}, "damping is -0.1"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"precision": "float16"}, "precision is 'float16'"),
    ],
)
def test_schemes_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scheme(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("strength", [1e-9, 1e-4, 1.0, 1e4])
def test_scales_fit_float16_at_any_strength(strength: float) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(4)) * strength
    weight[0, :32] = 0
    quantized = round_to_nearest(weight, Scheme(group=32))
    assert torch.isfinite(quantized.scales).all()
    assert (quantized.scales > 0).all()
    if strength >= 1e-4:
        step = quantized.scales.float().repeat_interleave(32, dim=1)
        assert (
            (quantized.dense() - weight).abs() <= 0.58 * step
        ).all()  # half a step, and a small scale rounds


def test_layer_error_is_that_of_the_outputs(weight: torch.Tensor) -> None:
    inputs = correlated(300, WIDTH)
    quantized = round_to_nearest(weight, Scheme(group=32)).dense()
    exact, approximate = inputs.double() @ weight.double().T, inputs.double() @ quantized.double().T
    expected = float((approximate - exact).square().sum() / exact.square().sum())
    np.testing.assert_allclose(layer_error(weight, quantized, hessian_of(inputs)), expected, rtol=1e-9)
