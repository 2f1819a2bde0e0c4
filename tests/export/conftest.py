"""Checkpoints for the tests of export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.export.models import quantized, roughened


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with noise on every parameter, float32."""
    return roughened(tiny_checkpoint, tmp_path_factory.mktemp("rough") / "float32")


@pytest.fixture(scope="session")
def half_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in bfloat16."""
    return roughened(tiny_checkpoint, tmp_path_factory.mktemp("rough") / "bfloat16", dtype=torch.bfloat16)


@pytest.fixture(scope="session")
def int4_checkpoint(half_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bfloat16 model with the text core rounded to 4 bits in groups of 32."""
    return quantized(half_checkpoint, tmp_path_factory.mktemp("rough") / "int4")
