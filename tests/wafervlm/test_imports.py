"""The station imports nothing of the workshop, and the command line answers without numpy."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import wafervlm

ROOT = Path(wafervlm.__file__).parents[1]
WALLED = (
    *("torch", "transformers", "peft", "trl", "onnx", "onnx_ir", "accelerate", "datasets", "tokenizers"),
    *("safetensors", "rich", "matplotlib", "sklearn", "pandas", "jinja2", "train", "calibrate", "export"),
    *("benchmarks", "scipy", "onnxruntime", "openvino", "psutil"),
)
WALL = f"""
import importlib, sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {WALLED!r}:
            raise ImportError(f"{{name}} is behind the wall")

sys.meta_path.insert(0, Wall())
"""


def modules() -> list[str]:
    return sorted(found.name for found in pkgutil.walk_packages(wafervlm.__path__, "wafervlm."))


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_module_imports_behind_the_wall() -> None:
    assert {"wafervlm.model", "wafervlm.cli", "wafervlm.commands", "wafervlm.runtimes.onnx"} <= set(modules())
    done = python(
        WALL + "for name in ['wafervlm', *sys.argv[1:]]: importlib.import_module(name)\nprint('all')",
        *modules(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all"


def test_the_wall_holds() -> None:
    """The test above could not fail if the wall let something through."""
    done = python(WALL + "import json, train.tree")
    assert done.returncode == 1
    assert "train is behind the wall" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["predict", "--help"], ["nonsense"]])
def test_help_needs_neither_numpy_nor_a_runtime(arguments: list[str]) -> None:
    code = (
        "import sys; from wafervlm.cli import main; main(sys.argv[1:]);"
        "heavy = {'numpy', 'PIL', 'onnxruntime', 'torch', 'train'} & set(sys.modules);"
        "print(*heavy, file=sys.stderr)"
    )
    done = python(code, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == ""


def test_help_takes_less_than_a_third_of_a_second() -> None:
    """The least of five, in time on the CPU: what a busy machine adds is not ours."""
    spent = []
    for _ in range(5):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-m", "wafervlm.cli", "--help"], cwd=ROOT, capture_output=True, check=True
        )
        after = os.times()
        spent.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert b"predict" in done.stdout
    assert 0 < min(spent) < 0.3, spent
