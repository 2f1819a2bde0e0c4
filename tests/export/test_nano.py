"""Rebuilding the embedded bundle."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export import nano
from export.stage import ExportConfig, export
from train.dataset import read_labelled
from wafervlm.bundle import EMBEDDED, MANIFEST, open_bundle
from wafervlm.errors import GateError, UsageError
from wafervlm.task import Task


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tiny_task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nano") / "bundle"
    export(ExportConfig(checkpoint=checkpoint, task=tiny_task), out)
    return out


def test_the_same_weights_compare_as_equal(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    figures = nano.compare(open_bundle(copy), open_bundle(bundle))
    assert figures == {"max_abs_difference": 0.0, "kl": 0.0, "label_agreement": 1.0}
    nano.check(figures)


def test_other_weights_are_found_out(
    bundle: Path, tiny_checkpoint: Path, tiny_task: Task, tmp_path: Path
) -> None:
    export(ExportConfig(checkpoint=tiny_checkpoint, task=tiny_task), tmp_path / "other")
    figures = nano.compare(open_bundle(tmp_path / "other"), open_bundle(bundle))
    with pytest.raises(GateError, match="is not the embedded one"):
        nano.check(figures)
    export(ExportConfig(checkpoint=tiny_checkpoint, task=replace(tiny_task, prompt="?")), tmp_path / "asked")
    with pytest.raises(GateError, match="another task"):
        nano.compare(open_bundle(tmp_path / "asked"), open_bundle(bundle))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    recipe = nano.NanoRecipe(weights=tmp_path)
    with pytest.raises(UsageError, match="there is no base"):
        nano.rebuild(tmp_path / "maps.npz", tmp_path, tmp_path / "bundle", recipe)


def test_the_temperature_is_fitted_on_the_natural_mix(wm811k: Path, tmp_path: Path) -> None:
    path = nano._tune_maps(wm811k / "train_pool.npz", nano.NanoRecipe(), tmp_path / "tune.npz")
    labels = [sample.label for sample in read_labelled(path)]
    assert len(labels) > 1000
    assert 0.5 < np.mean([label == "none" for label in labels]) < 0.75


@pytest.mark.slow
def test_the_embedded_bundle_is_rebuilt_from_its_weights(wm811k: Path, tmp_path: Path) -> None:
    if not (nano.WEIGHTS / "adapter").is_dir() or not (EMBEDDED / MANIFEST).is_file():
        pytest.skip(f"no weights at {nano.WEIGHTS}, or no embedded bundle")
    nano.rebuild(wm811k / "train_pool.npz", tmp_path, tmp_path / "bundle", nano.NanoRecipe())
    nano.check(nano.compare(open_bundle(tmp_path / "bundle"), open_bundle()))
