"""Wafers with several patterns through the whole line: maps, training, merge, GPTQ, bundle, figures."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.line import drive
from benchmarks.mixed import REPORT, STAGES, run, table
from benchmarks.recipe import Recipe, read_recipe
from train.dataset import read_labelled
from wafervlm.bundle import open_bundle
from wafervlm.errors import TaskError, UsageError, WaferVLMWarning
from wafervlm.task import WAFER_DEFECTS
from wafervlm.verification import verify

CLASSES = ("Center", "Edge-Ring", "Scratch")
RECIPE = """
[line]
name = "mixed"
output = "{folder}/runs"
base = "{base}"
threads = 1
[data]
source = "{folder}/train.npz"
task = "{folder}/task.json"
train_per_class = 0
tune_per_class = 0
test_per_class = 0
[examples]
augment = "strong"
[lora]
rank = 2
[train]
max_steps = 2
batch = 8
evaluations = 1
learning_rate = 1e-4
[merge]
dtype = "float32"
maps = 9
[calibrate]
maps = 120
check_maps = 18
scheme.group = 32
"""


def write_maps(path: Path, each: int, seed: int) -> None:
    """``each`` maps of every set of three classes, as MixedWM38 stores them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:20j, -1:1:20j]
    radius = np.hypot(x, y)
    hot = np.array(list(itertools.product((0, 1), repeat=3)) * each, dtype=np.uint8)
    maps = []
    for center, ring, scratch in hot:
        fails = rng.random(radius.shape) < 0.05
        fails |= bool(center) & (radius < 0.3)
        fails |= bool(ring) & (radius > 0.85)
        fails |= bool(scratch) & (np.abs(x - y + rng.uniform(-0.3, 0.3)) < 0.06)
        maps.append(np.where(radius <= 1, 1 + fails, 0).astype(np.uint8))
    np.savez(path, maps=np.stack(maps), labels8=hot, label_names=np.array(CLASSES))


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("mixed")
    task = {
        "labels": ["Scratch", "Center", "Edge-Ring"],
        "kind": "multi-label",
        "answer_prefix": "",
        "answer_suffix": ":",
        "render": {"height": 64, "width": 64},
    }
    (folder / "task.json").write_text(json.dumps(task))
    write_maps(folder / "train.npz", each=24, seed=0)
    write_maps(folder / "val.npz", each=3, seed=1)
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder, base=tiny_checkpoint))
    return read_recipe(folder / "recipe.toml")


@pytest.fixture(autouse=True)
def no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights are close to a tie on every class, and any rounding decides it; the gate has tests of
    its own."""
    monkeypatch.setattr("calibrate.stage.check_gate", lambda figures: None)


def test_the_line_runs_from_maps_to_figures(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.warns(WaferVLMWarning, match="lots of all its maps"):
        report = run(recipe, tmp_path, trees=20)
    assert json.loads((tmp_path / REPORT).read_text())["models"].keys() == report["models"].keys()
    assert list(report["seconds"]) == list(STAGES)
    trees = report["models"]["trees on measured, sets"]
    assert trees["exact"]["wafers"] == 24
    assert trees["exact"]["value"] > 0.6  # the sets are plain to see
    assert trees["sets"] == 8
    assert 0 <= report["models"]["nano"]["exact"]["value"] <= 1
    assert len(list(table(report))) == len(report["models"]) == 6

    samples = read_labelled(recipe.folder / "data")
    assert {"none", "Scratch+Center", "Scratch+Center+Edge-Ring"} <= {sample.label for sample in samples}
    turns = json.loads((recipe.folder / "data" / "annotations" / "tune.json").read_text())
    said = {turn["conversations"][1]["value"] for turn in turns}
    assert said == {f"{label}: {answer}" for label in CLASSES for answer in ("yes", "no")}

    bundle = recipe.folder / "export"
    manifest = open_bundle(bundle).manifest
    assert manifest.task.multi_label
    assert 0.2 <= manifest.threshold <= 0.8
    assert manifest.parity["temperature_exact_after"] >= manifest.parity["temperature_exact_before"] - 0.2
    assert verify(bundle, threads=1)["exact"]["max_abs_difference"] < 1e-3

    log = (recipe.folder / "train" / "log.csv").read_text().splitlines()
    assert {"tune_accuracy", "tune_recall", "tune_loss"} <= set(log[0].split(","))


def test_what_this_line_cannot_do_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is multi-label.*python -m benchmarks\.mixed"):
        drive(recipe)
    single = tmp_path / "single.json"
    single.write_text(json.dumps(WAFER_DEFECTS.to_dict()))
    with pytest.raises(UsageError, match="is not multi-label"):
        run(replace(recipe, data=replace(recipe.data, task=str(single))), tmp_path)
    few = tmp_path / "few.json"
    few.write_text(json.dumps({"labels": ["Center", "Scratch"], "kind": "multi-label"}))
    with pytest.raises(TaskError, match="'Edge-Ring' is not a label"):
        run(replace(recipe, data=replace(recipe.data, task=str(few))), tmp_path)
