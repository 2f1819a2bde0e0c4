"""A line run once for all tests of the benchmark: the tiny model on synthetic maps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.line import Outcome, drive
from benchmarks.line_stages import STAGES
from benchmarks.recipe import Recipe, read_recipe
from tests.conftest import ROOT
from train.artefact import PROVENANCE

RECIPE = """
[line]
name = "tiny"
output = "{output}"
base = "{base}"
threads = 1
[data]
source = "synthetic"
size = 64
train_per_class = 4
tune_per_class = 2
test_per_class = 3
[lora]
rank = 2
[train]
max_steps = 2
batch = 9
evaluations = 1
learning_rate = 1e-4
[merge]
dtype = "float32"
maps = 9
[calibrate]
maps = 9
check_maps = 9
scheme.group = 32
[benchmark]
latency_maps = 10
generate_maps = 2
footprint = false
"""


@dataclass(frozen=True)
class Ran:
    """A line that was killed once and then driven to its end; ``survived`` are the stages that stood when it
    was killed, with the times of their provenance."""

    recipe: Recipe
    folder: Path
    outcome: Outcome
    survived: dict[str, int]


@pytest.fixture(scope="session")
def recipe_file(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a line that takes seconds."""
    folder = tmp_path_factory.mktemp("line")
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(output=folder, base=tiny_checkpoint), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def ran(recipe_file: Path) -> Ran:
    """That line, killed after merging and driven to its end. Do not write to it."""
    recipe = read_recipe(recipe_file)
    _kill_when(recipe.folder / "merge" / PROVENANCE, recipe_file)
    survived = stamps(recipe.folder)
    return Ran(recipe, recipe.folder, drive(recipe), survived)


def stamps(folder: Path) -> dict[str, int]:
    """When the provenance of each stage that stands was written."""
    found = {stage: folder / stage / PROVENANCE for stage in STAGES}
    return {stage: path.stat().st_mtime_ns for stage, path in found.items() if path.is_file()}


def _kill_when(there: Path, recipe: Path) -> None:
    """Run the recipe as a command, and kill -9 it once ``there`` is written."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "wafervlm.cli", "run", str(recipe)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not there.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert there.is_file()
    assert process.returncode == -signal.SIGKILL
