"""The numbers of report.json against recomputation from the models themselves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, confusion_matrix

from benchmarks.config import BenchmarkConfig
from benchmarks.contenders import NAMES
from benchmarks.footprint import measure_footprint
from benchmarks.stage import benchmark, summary
from export.stage import ExportConfig, export
from tests.benchmarks.conftest import Ran
from train.dataset import dataset_task, read_split
from train.loading import load_checkpoint
from train.scorer import label_log_probs
from wafervlm.errors import SetupError, UsageError
from wafervlm.loading import load
from wafervlm.render import render


@pytest.fixture(scope="module")
def folder(ran: Ran) -> Path:
    return ran.folder / "benchmark"


def test_accuracy_is_that_of_the_models(ran: Ran, folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    samples = read_split(ran.folder / "data", "test")
    with load(ran.folder / "export", threads=1) as model:
        task = model.task
        answers = model.predict_batch([sample.wafer for sample in samples])
    truth = [sample.label for sample in samples]
    checkpoint = load_checkpoint(ran.folder / "merge")
    scores = label_log_probs(checkpoint, task, [render(s.wafer, task.render) for s in samples])
    parents = [task.labels[i] for i in scores.argmax(axis=1)]
    ours = [answer.label for answer in answers]
    assert report["accuracy"]["bundle"] == pytest.approx(accuracy_score(truth, ours))
    assert report["accuracy"]["reference"] == pytest.approx(accuracy_score(truth, parents))
    assert report["agreement"] == pytest.approx(accuracy_score(parents, ours))
    counted = confusion_matrix(truth, ours, labels=list(task.labels))
    assert report["models"]["bundle"]["confusion"] == counted.tolist()
    base = label_log_probs(
        load_checkpoint(ran.recipe.line.base), task, [render(s.wafer, task.render) for s in samples]
    )
    zero_shot = [task.labels[i] for i in base.argmax(axis=1)]
    assert report["accuracy"]["base"] == pytest.approx(accuracy_score(truth, zero_shot))
    # Every confidence is that of predict, so the calibration error can be had from it alone.
    confidence = np.array([answer.confidence for answer in answers])
    right = np.array(ours) == np.array(truth)
    place = np.minimum((15 * confidence).astype(int), 14)
    gaps = [abs((right[place == b] - confidence[place == b]).sum()) for b in range(15)]
    assert report["ece"] == pytest.approx(sum(gaps) / len(right), abs=1e-6)


def test_kl_is_that_of_the_stored_scores(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    stored = np.load(folder / "scores.npz")
    p, q = (log_softmax(stored[f"maps_{who}"], axis=1) for who in ("reference", "bundle"))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    assert report["comparison"]["kl"]["mean"] == pytest.approx(kl.mean(), rel=1e-3)
    assert kl.mean() > 0
    found = report["comparison"]["kl"]
    assert 0 < found["mean_low"] < found["mean"] < found["mean_high"] < found["max"]
    assert report["reference_checks"]["one_forward_max_abs_difference"] < 1e-4


def test_the_report_says_what_it_must(ran: Ran, folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert set(report["latency_ms"]) == set(NAMES)
    for name, times in report["latency_ms"].items():
        assert 0 < times["p50"] <= times["p90"] <= times["p99"]
        assert times["calls"] == (2 if name == "reference_generate" else 10)
        assert sum(times["parts"].values()) <= 1.05 * times["p99"]
    ratio = report["latency_ms"]["openvino"]["p50"] / report["latency_ms"]["bundle"]["p50"]
    assert report["latency"]["ratios"]["openvino"]["call"] == pytest.approx(ratio)
    for found in report["latency"]["ratios"].values():
        assert 0 < found["call_low"] <= found["call"] <= found["call_high"]
        assert 0 < found["run_low"] <= found["run"] <= found["run_high"]
    assert report["latency"]["agreement"]["bundle"] == 1
    assert report["machine"]["threads"] == 1
    assert report["reference_is_parent"]
    assert [record["stage"] for record in report["provenance"]] == ["data", "train", "merge", "calibrate"]
    assert json.loads(json.dumps(summary(report)))["accuracy"] == report["accuracy"]
    text = json.dumps(report) + (folder / "report.html").read_text(encoding="utf-8")
    assert str(ran.folder) not in text
    assert "/tmp/" not in text


def test_the_page_is_whole_and_needs_nothing(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "@import" not in page
    assert page.count("<svg") == 4
    for heading in ("Benchmark selection", "Zero-shot evaluation", "Problem analysis", "Data curation"):
        assert heading in page
    for heading in ("Post-training", "Re-evaluation", "Latency", "Provenance", "Machine"):
        assert heading in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_quick_look_at_the_natural_mix_with_a_bundle_given(ran: Ran, tmp_path: Path) -> None:
    """The full-precision bundle judged against its own checkpoint: nothing may differ."""
    static = tmp_path / "static"
    export(ExportConfig(ran.folder / "merge", dataset_task(ran.folder / "data"), ran.folder / "data"), static)
    config = BenchmarkConfig(
        reference=ran.folder / "merge",
        maps=ran.folder / "data",
        bundle=static,
        natural=ran.folder / "data",
        full_precision=static,
        threads=1,
        latency_maps=4,
        generate_maps=1,
        quick=True,
        footprint=False,
    )
    report, made = benchmark(config, tmp_path / "out")
    assert made
    assert report["agreement"] == report["natural"]["comparison"]["agreement"]["value"] == 1
    assert report["comparison"]["kl"]["max"] < 1e-9
    assert report["natural"]["maps"]["count"] == 27
    assert "screening" in report["natural"]["models"]["bundle"]
    assert report["verdict"]["answer"] == "undecided"
    assert benchmark(config, tmp_path / "out") == (report, False)
    with pytest.raises(UsageError, match="other inputs or settings"):
        benchmark(replace(config, margin=0.02), tmp_path / "out")


def test_load_time_and_memory_are_those_of_a_fresh_process(ran: Ran) -> None:
    wafer = read_split(ran.folder / "data", "test")[0].wafer
    task = dataset_task(ran.folder / "data")
    bundle, reference = ran.folder / "export", ran.folder / "merge"
    targets = {"bundle": bundle, "reference_one_forward": reference}
    found = measure_footprint(targets, {"reference_one_forward": "float32"}, task, wafer, 1)
    sizes = sum(path.stat().st_size for path in bundle.iterdir())
    assert found["bundle"]["disk_mib"] == pytest.approx(sizes / 2**20)
    # torch alone takes more than the station does; a process that inherited our memory would show as equal.
    assert 10 < found["bundle"]["peak_mib"] < 0.5 * found["reference_one_forward"]["peak_mib"]
    assert all(figures["load_ms"] > 0 < figures["first_answer_ms"] for figures in found.values())
    with pytest.raises(SetupError, match="does not answer in a fresh process"):
        measure_footprint({"bundle": reference}, {}, task, wafer, 1)


def test_what_cannot_be_judged_is_refused(ran: Ran, tmp_path: Path) -> None:
    good = BenchmarkConfig(
        reference=ran.folder / "merge", maps=ran.folder / "data", bundle=ran.folder / "export"
    )
    with pytest.raises(UsageError, match="does not exist"):
        benchmark(replace(good, natural=tmp_path / "nowhere.npz"), tmp_path / "out")
    with pytest.raises(UsageError, match="margin"):
        replace(good, margin=1.5)
    with pytest.raises(UsageError, match="threads is 0"):
        replace(good, threads=0)
    with pytest.raises((SetupError, UsageError)):
        replace(good, device="tpu")
    with pytest.raises(UsageError, match="int4 bundle"):
        benchmark(replace(good, full_precision=ran.folder / "export"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
