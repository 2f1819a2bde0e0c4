"""A subject of each family on the CPU: the tiny checkpoint, with norms and biases that are not all ones and
zeros, so that one left out shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.subject import Subject, subject_of
from tests.conftest import SIDES
from train.loading import load_checkpoint

MAPS = 5


@pytest.fixture(scope="session")
def cpu() -> Device:
    return Device("cpu")


@pytest.fixture(scope="module")
def subject(family: str, family_checkpoint: Path) -> Subject:
    checkpoint = load_checkpoint(family_checkpoint)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    checkpoint.model.requires_grad_(False)
    return subject_of(checkpoint, SIDES[family], MAPS, trained=False, seed=0)
