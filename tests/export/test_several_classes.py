"""A multi-label task as a graph and as a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from scipy.special import expit

import wafervlm
from export.stage import ExportConfig, build_model, export
from export.thresholds import fit_classes
from export.weights import Weights
from tests.conftest import SIDES
from tests.export.models import random_images, run
from tests.multi_label import multi_task
from train.loading import load_checkpoint
from train.scorer import label_log_probs
from train.synthetic import wafers
from wafervlm.answers import log_odds
from wafervlm.commands import predict
from wafervlm.errors import ManifestError
from wafervlm.manifest import Manifest
from wafervlm.render import render
from wafervlm.verification import verify
from wafervlm.wafermap import WaferMap


def test_the_graph_is_each_class_asked_alone(family: str, rough: Path, opset: int, tmp_path: Path) -> None:
    task, images = multi_task(SIDES[family]), random_images(3, SIDES[family])
    ir.save(build_model(Weights(rough), task, opset=opset), tmp_path / "model.onnx")
    expected = label_log_probs(load_checkpoint(rough), task, images)
    found = run(tmp_path / "model.onnx", images)
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    assert np.abs(np.exp(expected).sum(axis=1) - 1).min() > 0.01


@pytest.fixture(scope="module")
def shown() -> list[tuple[WaferMap, str]]:
    names = ["Center", "Edge-Ring", "Scratch", "none"] * 3
    return list(
        zip(wafers(names, seed=5), ["Center", "Edge-Loc+Edge-Ring", "Scratch", "none"] * 3, strict=True)
    )


@pytest.fixture(scope="module")
def bundle(
    tiny_checkpoint: Path, shown: list[tuple[WaferMap, str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    grids = [wafer.dies.ravel() for wafer, _ in shown]
    np.savez(
        folder / "tune.npz",
        maps=np.concatenate(grids),
        offsets=np.cumsum([0, *map(len, grids)]),
        heights=[wafer.shape[0] for wafer, _ in shown],
        widths=[wafer.shape[1] for wafer, _ in shown],
        labels=[label for _, label in shown],
    )
    config = ExportConfig(tiny_checkpoint, multi_task(64), tune=folder / "tune.npz", golden_maps=6)
    export(config, folder / "bundle")
    return folder / "bundle"


def test_a_prediction_names_the_classes_over_the_threshold(
    bundle: Path, shown: list[tuple[WaferMap, str]]
) -> None:
    task = multi_task(64)
    with wafervlm.load(bundle) as model:
        found = [model.predict(wafer) for wafer, _ in shown]
        manifest = model.manifest
        log_yes = model.label_log_probs(np.stack([render(wafer, task.render) for wafer, _ in shown]))
    chances = expit(log_odds(log_yes) / manifest.temperature)
    for answer, chance in zip(found, chances, strict=True):
        np.testing.assert_allclose(list(answer.scores.values()), chance, atol=1e-5)
        named = chance >= manifest.threshold
        assert answer.labels == tuple(np.array(task.labels)[named])
        assert answer.label == ("+".join(answer.labels) or "none")
        assert answer.confidence == pytest.approx(np.where(named, chance, 1 - chance).prod())
        assert answer.to_dict()["labels"] == answer.labels
        assert answer.plot().size[0] == 960


def test_the_bundle_verifies_and_the_command_answers(
    bundle: Path, shown: list[tuple[WaferMap, str]], tmp_path: Path
) -> None:
    report = verify(bundle)
    assert report["exact"]["max_abs_difference"] < 1e-4
    assert report["exact"]["label_agreement"] == 1.0
    np.save(tmp_path / "map.npy", shown[0][0].dies)
    chosen = ["--bundle", str(bundle), "--json"]
    done = CliRunner().invoke(predict, [str(tmp_path / "map.npy"), *chosen])
    assert done.exit_code == 0, done.output
    said = json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))
    assert set(said["scores"]) == set(multi_task(64).labels)
    assert said["label"] == ("+".join(said["labels"]) or "none")
    assert 0 < said["threshold"] < 1


def test_a_manifest_states_the_threshold_of_a_multi_label_task_alone(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    assert Manifest.from_json(text.encode()).to_json() == text
    for threshold in (0, 1.5, "half"):
        values = {**json.loads(text), "threshold": threshold}
        with pytest.raises(ManifestError, match="threshold in manifest.json"):
            Manifest.from_json(json.dumps(values).encode())
    without = json.loads(text)
    del without["threshold"]
    with pytest.raises(ManifestError, match="lacks the key 'threshold'"):
        Manifest.from_json(json.dumps(without).encode())
    embedded = json.loads(wafervlm.load().manifest.to_json())
    assert "threshold" not in embedded
    assert "kind" not in embedded["task"]
    with pytest.raises(ManifestError, match="unknown key 'threshold'"):
        Manifest.from_json(json.dumps({**embedded, "threshold": 0.5}).encode())


def test_temperature_and_threshold_are_those_that_made_the_scores() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, (4000, 5))
    truth = rng.random(odds.shape) < expit(odds)
    fit = fit_classes(np.log(expit(3 * odds)), truth)
    assert fit.temperature == pytest.approx(3, rel=0.1)
    assert fit.threshold == pytest.approx(0.5, abs=0.1)
    assert fit.ece_after < 0.02 < fit.ece_before
    assert fit.nll_after < fit.nll_before
    shifted = fit_classes(np.log(expit(odds)), odds > 0.8)
    assert shifted.threshold > 0.55
    assert shifted.exact_after > shifted.exact_before
