"""Checkpoints for the tests of export, of one family or of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export.builder import IR_VERSIONS
from tests.export.models import quantized, roughened


@pytest.fixture(scope="session")
def rough_folder(
    tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Gives a family's tiny model with noise on every parameter: ``float32``, ``bfloat16``, or ``int4``, the
    latter's text core rounded to 4 bits in groups of 32. Each is made when it is first asked for."""
    root = tmp_path_factory.mktemp("rough")

    @functools.cache
    def folder(family: str, kind: str) -> Path:
        out = root / f"{family}-{kind}"
        if kind == "int4":
            return quantized(folder(family, "bfloat16"), out)
        return roughened(tiny_folder(family), out, dtype=getattr(torch, kind))

    return folder


@pytest.fixture(scope="session")
def checkpoint(rough_folder: Callable[[str, str], Path]) -> Path:
    """The tiny Qwen3-VL with noise on every parameter, float32."""
    return rough_folder("qwen3_vl", "float32")


@pytest.fixture(scope="session")
def half_checkpoint(rough_folder: Callable[[str, str], Path]) -> Path:
    """The same in bfloat16."""
    return rough_folder("qwen3_vl", "bfloat16")


@pytest.fixture(scope="session")
def int4_checkpoint(rough_folder: Callable[[str, str], Path]) -> Path:
    """The bfloat16 model with the text core rounded to 4 bits in groups of 32."""
    return rough_folder("qwen3_vl", "int4")


@pytest.fixture(scope="module", params=sorted(IR_VERSIONS))
def opset(request: pytest.FixtureRequest) -> int:
    """Each ONNX operator set that export writes, in turn."""
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def rough(family: str, rough_folder: Callable[[str, str], Path]) -> Path:
    """The tiny model of each family with noise on every parameter, float32."""
    return rough_folder(family, "float32")


@pytest.fixture(scope="module")
def rough_half(family: str, rough_folder: Callable[[str, str], Path]) -> Path:
    """The same in bfloat16."""
    return rough_folder(family, "bfloat16")


@pytest.fixture(scope="module")
def rough_int4(family: str, rough_folder: Callable[[str, str], Path]) -> Path:
    """The bfloat16 model with the text core rounded to 4 bits in groups of 32."""
    return rough_folder(family, "int4")
