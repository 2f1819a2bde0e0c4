"""The calibrate stage: from checkpoint and dataset to a GPTQ folder, its gates, and its resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.gptq import Scheme
from calibrate.judge import accuracy, agreement, check_gate, score
from calibrate.pack import load_quantized
from calibrate.partial import Partial
from calibrate.stage import CalibrateSettings, calibrate, draw
from tests.calibrate.conftest import IS_TRAINED, WEIGHTS
from train.artefact import Provenance, folder_digest, read_provenance
from train.build import BuildConfig, build_dataset
from train.dataset import DIES, dataset_task, read_split
from train.loading import load_checkpoint
from train.merge import MergeSettings, merge
from train.nano.config import NANO
from wafervlm.errors import CheckpointError, DatasetError, GateError, LeakError

SETTINGS = CalibrateSettings(Scheme(group=32), maps=18, batch=9, check_maps=27)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny model quantized on the synthetic dataset. Do not write to it."""
    out = tmp_path_factory.mktemp("stage") / "gptq"
    calibrate(tiny_checkpoint, synthetic_dataset, out, SETTINGS)
    return out


def weights_digest(folder: Path) -> str:
    return folder_digest(folder / "model.safetensors")


def test_the_folder_holds_model_report_and_provenance(
    finished: Path, tiny_checkpoint: Path, synthetic_dataset: Path
) -> None:
    record = read_provenance(finished)
    report = json.loads((finished / "calibration.json").read_text())
    assert record["stage"] == "calibrate"
    assert record["inputs"]["checkpoint"] == folder_digest(tiny_checkpoint)
    assert record["inputs"]["dataset"] == folder_digest(synthetic_dataset)
    assert record["settings"]["scheme"]["group"] == 32
    assert record["parity"] == report["figures"]
    assert len(report["layers"]) == 14
    for row in report["layers"]:
        assert 0 < row["error"] < row["error_nearest"]
        assert min(row[k] for k in row if k.endswith("absolute_maximum")) > 0
    assert (finished / "task.json").read_bytes() == (synthetic_dataset / "task.json").read_bytes()
    assert not finished.with_name("gptq.partial").exists()


def test_its_figures_are_those_of_the_model_that_loads(
    finished: Path, tiny_checkpoint: Path, synthetic_dataset: Path
) -> None:
    task, figures = dataset_task(synthetic_dataset), read_provenance(finished)["parity"]
    _, checks = draw(synthetic_dataset, SETTINGS)
    before = score(load_checkpoint(tiny_checkpoint), task, checks)
    found = agreement(before, score(load_quantized(finished), task, checks))
    assert figures["maps"] == len(checks) == 27
    assert figures["label_agreement"] == found["label_agreement"]
    np.testing.assert_allclose(figures["kl"], found["kl"], rtol=1e-3)
    assert figures["kl"] < figures["kl_nearest"]


def test_complete_output_is_left_as_it_is(
    finished: Path, tiny_checkpoint: Path, synthetic_dataset: Path
) -> None:
    before = (finished / "provenance.json").stat().st_mtime_ns
    figures = calibrate(tiny_checkpoint, synthetic_dataset, finished, SETTINGS)
    assert figures == read_provenance(finished)["parity"]
    assert (finished / "provenance.json").stat().st_mtime_ns == before


def test_killed_and_run_again_it_gives_the_same(
    finished: Path, tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gptq"
    script = (
        "import sys, time; from pathlib import Path; import calibrate.partial as p\n"
        "from calibrate.gptq import Scheme; from calibrate.stage import CalibrateSettings, calibrate\n"
        "keep = p.Partial.keep\n"
        "def slow(*a): keep(*a); time.sleep(60)\n"
        "p.Partial.keep = slow\n"
        "settings = CalibrateSettings(Scheme(group=32), maps=18, batch=9, check_maps=27)\n"
        "calibrate(*map(Path, sys.argv[1:]), settings)\n"
    )
    arguments = [sys.executable, "-c", script, str(tiny_checkpoint), str(synthetic_dataset), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        layer = tmp_path / "gptq.partial" / "layer-0"
        while not layer.is_dir() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert layer.is_dir()
    assert not out.exists()
    first = (layer / "weights.safetensors").stat().st_mtime_ns
    remembered = []
    remove = Partial.remove

    def watch(partial: Partial) -> None:
        remembered.append((partial.path / "layer-0" / "weights.safetensors").stat().st_mtime_ns)
        remove(partial)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Partial, "remove", watch)
        figures = calibrate(tiny_checkpoint, synthetic_dataset, out, SETTINGS)
    assert remembered == [first]  # the finished layer was not made again
    assert weights_digest(out) == weights_digest(finished)
    assert figures == read_provenance(finished)["parity"]


def test_work_of_another_calibration_is_not_taken(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", Provenance("calibrate", settings={"bits": 4})
    Partial(out, mine).keep(0, {}, [])
    assert Partial(out, mine).load(0) == ({}, [])
    (out.with_name("out.partial") / "layer-0" / "rows.json").write_text("[")
    assert Partial(out, mine).load(0) is None
    Partial(out, mine).keep(0, {}, [])
    assert Partial(out, Provenance("calibrate", settings={"bits": 3})).load(0) is None
    (out.with_name("out.partial") / "provenance.json").write_text("{")
    assert Partial(out, mine).load(0) is None


def test_a_model_that_comes_out_wrong_is_not_written(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibrate.layers.gptq", lambda weight, _, scheme: coarse(weight, scheme))
    with pytest.raises(GateError, match="not below round-to-nearest's"):
        calibrate(tiny_checkpoint, synthetic_dataset, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def coarse(weight: object, scheme: Scheme) -> object:
    """Worse than rounding: the lowest bit is lost."""
    from calibrate.gptq import QuantizedWeight, round_to_nearest

    nearest = round_to_nearest(weight, scheme)  # type: ignore[arg-type]
    return QuantizedWeight(nearest.levels // 2 * 2, nearest.scales)


GOOD = {
    "label_agreement": 0.98,
    "maps": 50,
    "layer_error": 1.0,
    "layer_error_nearest": 2.0,
    "kl": 1.0,
    "kl_nearest": 2.0,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_agreement": 0.9799}, "98.0% of 50 held-out maps, less than 98%"),
        ({"label_agreement": float("nan")}, "held-out maps"),
        ({"layer_error": 2.0}, "mean layer error, 2, is not below"),
        ({"kl": 2.1}, "KL divergence .* 2.1, is not below round-to-nearest's 2;"),
        ({"kl": float("nan")}, "KL divergence"),
    ],
)
def test_the_gate(change: dict[str, float], message: str) -> None:
    check_gate(GOOD)
    with pytest.raises(GateError, match=message):
        check_gate(GOOD | change)


def test_agreement_and_divergence() -> None:
    before = np.log([[0.5, 0.5 - 1e-12, 1e-12], [0.2, 0.7, 0.1]])
    after = np.log([[0.25, 0.75 - 1e-12, 1e-12], [0.2, 0.7, 0.1]])
    found = agreement(before, after)
    assert found["label_agreement"] == 0.5
    np.testing.assert_allclose(found["kl"], (0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2, rtol=1e-6)
    assert agreement(before, before) == {"label_agreement": 1.0, "kl": 0.0}


def test_accuracy_is_the_share_of_right_labels(synthetic_dataset: Path) -> None:
    task, samples = dataset_task(synthetic_dataset), read_split(synthetic_dataset, "tune")
    scores = np.full((len(samples), 9), -5.0)
    scores[:, task.labels.index("Loc")] = -0.1
    assert accuracy(scores, samples, task) == pytest.approx(1 / 9)


def spoilt(dataset: Path, out: Path, **arrays: object) -> Path:
    """A copy of ``dataset`` with some of the arrays of dies.npz replaced."""
    shutil.copytree(dataset, out)
    with np.load(dataset / DIES) as stored:
        np.savez(out / DIES, **{**stored, **arrays})
    return out


@pytest.mark.parametrize("part", ["tune", "test"])
def test_a_lot_that_is_calibrated_on_may_not_be_judged_on(
    synthetic_dataset: Path, tmp_path: Path, part: str
) -> None:
    with np.load(synthetic_dataset / DIES) as stored:
        lots, split = stored["lots"].copy(), stored["split"]
    lots[split == "train"] = "lot A"
    lots[np.flatnonzero(split == part)[-1]] = "lot A"
    leaky = spoilt(synthetic_dataset, tmp_path / "leaky", lots=lots)
    with pytest.raises(LeakError, match=f"lot A of .* is in {part} too"):
        draw(leaky, SETTINGS)


def test_a_dataset_without_tune_maps_is_refused(synthetic_dataset: Path, tmp_path: Path) -> None:
    with np.load(synthetic_dataset / DIES) as stored:
        split = np.where(stored["split"] == "tune", "other", stored["split"])
    with pytest.raises(DatasetError, match="no tune maps"):
        draw(spoilt(synthetic_dataset, tmp_path / "without", split=split), SETTINGS)


def test_a_quantized_checkpoint_is_refused(finished: Path, synthetic_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantized already"):
        calibrate(finished, synthetic_dataset, tmp_path / "out", SETTINGS)


@pytest.fixture(scope="module")
def nano_figures(wm811k: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What calibrating trained nano comes to, on 90 maps and judged on 180."""
    if not IS_TRAINED:
        pytest.skip("nano is not trained yet: no train/nano/weights")
    folder = tmp_path_factory.mktemp("nano")
    data, merged = folder / "data", folder / "merged"
    chosen = BuildConfig(wm811k / "train.npz", train=20, tune=20, test=1, size=(NANO.image, NANO.image))
    build_dataset(chosen, data)
    merge(WEIGHTS / "base", WEIGHTS / "adapter", data, merged, MergeSettings("float16"))
    return calibrate(merged, data, folder / "gptq", replace(SETTINGS, maps=90, check_maps=180))


def test_trained_nano_keeps_its_answers(nano_figures: dict[str, Any]) -> None:
    assert nano_figures["label_agreement"] >= 0.98
    assert nano_figures["kl"] <= nano_figures["kl_nearest"] / 8
    assert nano_figures["layer_error"] <= nano_figures["layer_error_nearest"] / 3
