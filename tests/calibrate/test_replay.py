"""Exact replay: layer by layer, the hidden states are those of the model's own forward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import calibrate.replay
from calibrate.inputs import Inputs, batches
from calibrate.replay import Batch, begin, check_exact, full_forward, step, text_core
from tests.calibrate.conftest import task_for
from train.dataset import Sample
from train.loading import Checkpoint, load_checkpoint
from wafervlm.errors import SetupError

TOLERANCE = 1e-6


def largest_difference(
    checkpoint: Checkpoint, inputs: Inputs, additions: Sequence[torch.Tensor] | None
) -> float:
    """Over all layers and tokens that are not padding, between replay with ``additions`` and full forward."""
    expected, batch = full_forward(checkpoint.model, inputs), begin(checkpoint.model, inputs)
    if additions is not None:
        batch.additions = additions
    worst = 0.0
    for index, wanted in enumerate(expected):
        worst = max(worst, float((batch.hidden - wanted)[batch.valid].abs().max()))
        if index < len(expected) - 1:
            batch.hidden = step(checkpoint.model, index, batch)
    return worst


@pytest.fixture(scope="session")
def wafer_inputs(nano: Checkpoint, samples: list[Sample]) -> list[Inputs]:
    return batches(nano, task_for(nano), samples, "wafers", 9, seed=0)


def test_hidden_states_are_those_of_the_full_forward(nano: Checkpoint, wafer_inputs: list[Inputs]) -> None:
    for inputs in wafer_inputs:
        assert largest_difference(nano, inputs, None) <= TOLERANCE
        assert check_exact(nano.model, inputs) <= TOLERANCE


def test_every_family_is_replayed_exactly(family_model: Checkpoint, family_inputs: list[Inputs]) -> None:
    for inputs in family_inputs:
        assert largest_difference(family_model, inputs, None) <= TOLERANCE
    check_exact(family_model.model, family_inputs[0])


def test_without_deepstack_they_are_not(nano: Checkpoint, wafer_inputs: list[Inputs]) -> None:
    assert len(begin(nano.model, wafer_inputs[0]).additions) > 0
    assert largest_difference(nano, wafer_inputs[0], []) > 1e3 * TOLERANCE


def test_without_deepstack_calibration_refuses(
    nano: Checkpoint, wafer_inputs: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(model: object, inputs: Inputs) -> Batch:
        batch = begin(model, inputs)
        batch.additions = []
        return batch

    monkeypatch.setattr(calibrate.replay, "begin", forgetful)
    with pytest.raises(SetupError, match="decoder layer 1 are .* off those of the full forward"):
        check_exact(nano.model, wafer_inputs[0])


def test_a_last_layer_that_differs_is_noticed(
    family_model: Checkpoint, family_inputs: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slightly_off(model: object, index: int, batch: Batch) -> torch.Tensor:
        return step(model, index, batch) * (1 + 1e-5 * (index == 1))

    monkeypatch.setattr(calibrate.replay, "step", slightly_off)
    with pytest.raises(SetupError, match="before decoder layer 2"):
        check_exact(family_model.model, family_inputs[0])


@pytest.mark.parametrize("kind", ["images", "text"])
def test_foreign_inputs_are_replayed_exactly_too(nano: Checkpoint, samples: list[Sample], kind: str) -> None:
    for inputs in batches(nano, task_for(nano), samples[:4], kind, 4, seed=0):  # type: ignore[arg-type]
        assert check_exact(nano.model, inputs) <= TOLERANCE


def test_half_precision_is_replayed_exactly(tiny_checkpoint: Path, samples: list[Sample]) -> None:
    half = load_checkpoint(tiny_checkpoint, dtype="bfloat16")
    inputs = batches(half, task_for(half), samples[:4], "wafers", 4, seed=0)[0]
    assert check_exact(half.model, inputs) <= 8 * torch.finfo(torch.bfloat16).eps


def test_padding_is_known(family_model: Checkpoint, family_inputs: list[Inputs]) -> None:
    batch = begin(family_model.model, family_inputs[0])
    assert torch.equal(batch.valid, family_inputs[0]["attention_mask"].bool())
    assert not batch.valid.all()  # the answers differ in length


def test_nothing_is_left_behind_in_the_model(family_model: Checkpoint, family_inputs: list[Inputs]) -> None:
    check_exact(family_model.model, family_inputs[0])
    assert not any(
        module._forward_pre_hooks or module._forward_hooks for module in family_model.model.modules()
    )
    assert len(text_core(family_model.model).layers) == 2
