"""Calibration with one decoder layer in memory gives what it gives with all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibrate.gptq import Scheme
from calibrate.layers import linears
from calibrate.stage import CalibrateSettings, calibrate, load
from train.streamed import residency_of
from wafervlm.errors import ConfigError

SETTINGS = CalibrateSettings(Scheme(group=32), maps=9, batch=9, check_maps=9, weigh="same")


@pytest.fixture(scope="module")
def whole(family_checkpoint: Path, family_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "gptq"
    calibrate(family_checkpoint, family_dataset, out, SETTINGS)
    return out


@pytest.mark.parametrize("offload", ["host", "disk"])
def test_weights_are_the_same_to_the_bit(
    whole: Path, family_checkpoint: Path, family_dataset: Path, tmp_path: Path, offload: str
) -> None:
    out = tmp_path / "gptq"
    calibrate(family_checkpoint, family_dataset, out, replace(SETTINGS, offload=offload))
    for file in ("model.safetensors", "config.json"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize("offload", ["host", "disk"])
def test_one_layer_is_there_at_a_time_and_keeps_its_changes(family_checkpoint: Path, offload: str) -> None:
    checkpoint = load(family_checkpoint, replace(SETTINGS, offload=offload))
    residency = residency_of(checkpoint)
    assert residency is not None
    first, second = (next(iter(linears(checkpoint.model, i).values())) for i in (0, 1))
    assert first.weight.device.type == second.weight.device.type == "meta"
    residency.enter("model.language_model.layers.0")
    with torch.no_grad():
        first.weight.fill_(3.0)
    residency.enter("model.language_model.layers.1")
    assert first.weight.device.type == "meta" and second.weight.device.type == "cpu"
    residency.enter("model.language_model.layers.0")
    assert (first.weight == 3.0).all()
    assert second.weight.device.type == "meta"


def test_a_backward_pass_through_offloaded_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="set weigh to same"):
        CalibrateSettings(offload="host")
    with pytest.raises(ConfigError, match="none, host, disk"):
        CalibrateSettings(offload="tape")  # type: ignore[arg-type]
