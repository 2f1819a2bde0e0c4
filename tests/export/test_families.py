"""The whole line on the tiny model of each family: adapter, merge, GPTQ, bundle, prediction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import wafervlm
from calibrate.gptq import Scheme
from calibrate.pack import load_quantized
from calibrate.stage import CalibrateSettings, calibrate
from export.families import GRAPHS, graph_family
from export.stage import ExportConfig, export
from export.vision import VisionTower
from train.config import settings_from
from train.curves import read_log
from train.dataset import dataset_task, read_split
from train.families import FAMILIES
from train.loading import load_checkpoint
from train.merge import MergeSettings, merge
from train.scorer import label_log_probs
from train.sft import fine_tune
from wafervlm.bundle import open_bundle
from wafervlm.golden import read_golden
from wafervlm.render import render
from wafervlm.verification import verify


@dataclass(frozen=True)
class Line:
    """What each stage wrote."""

    base: Path
    dataset: Path
    adapter: Path
    merged: Path
    gptq: Path
    bundle: Path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def line(
    family_checkpoint: Path, family_dataset: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Line:
    root = tmp_path_factory.mktemp("line")
    done = Line(
        family_checkpoint, family_dataset, *(root / n for n in ("adapter", "merged", "gptq", "bundle"))
    )
    table = {
        "output": str(done.adapter),
        "model": {"base": str(done.base), "device": "cpu"},
        "data": {"dataset": str(done.dataset)},
        "lora": {"rank": 8, "vision": True},
        "train": {"batch": 9, "threads": 1, "max_steps": 12, "learning_rate": 1e-2, "evaluations": 1},
    }
    fine_tune(settings_from(table)[0])
    merge(done.base, done.adapter, done.dataset, done.merged, MergeSettings(maps=9))
    settings = CalibrateSettings(Scheme(group=32), maps=18, batch=9, check_maps=27)
    calibrate(done.merged, done.dataset, done.gptq, settings)
    export(ExportConfig(done.gptq, dataset_task(done.dataset), accuracy_level=0), done.bundle)
    return done


def test_every_family_has_a_graph() -> None:
    assert set(GRAPHS) == {family.name for family in FAMILIES.values()}
    for family in FAMILIES.values():
        graph = graph_family(family.model.config_class())
        assert graph is GRAPHS[family.name]
        assert issubclass(graph.vision, VisionTower)
        assert graph.model.__module__ == family.model.__module__


def test_the_loss_falls_and_the_adapter_is_on_text_and_vision(line: Line) -> None:
    losses = [row["loss"] for row in read_log(line.adapter / "log.csv") if "loss" in row]
    assert losses[-1] < losses[0] - 0.5
    names = set(load_file(line.adapter / "adapter_model.safetensors"))
    for part in ("language_model.layers.1.mlp.down_proj", "visual.blocks.0.attn.qkv", "visual.merger"):
        assert any(part in name for name in names)


def test_what_merge_wrote_loads_in_transformers(line: Line) -> None:
    found, report = AutoModelForImageTextToText.from_pretrained(line.merged, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(found) is load_checkpoint(line.base).family.model
    stored, base = (set(load_file(path / "model.safetensors")) for path in (line.merged, line.base))
    assert stored == base


def test_the_graphs_scores_are_those_of_the_gptq_checkpoint(line: Line) -> None:
    task, quantized = dataset_task(line.dataset), load_quantized(line.gptq)
    golden = read_golden(open_bundle(line.bundle))
    images = [render(wafer, task.render) for wafer in golden.maps]
    np.testing.assert_allclose(golden.reference, label_log_probs(quantized, task, images), atol=1e-5)
    assert verify(line.bundle)["exact"]["max_abs_difference"] < 1e-5


def test_predictions_are_the_merged_models(line: Line) -> None:
    task = dataset_task(line.dataset)
    wafers = [sample.wafer for sample in read_split(line.dataset, "test")]
    images = [render(wafer, task.render) for wafer in wafers]
    scores = label_log_probs(load_checkpoint(line.merged), task, images)
    with wafervlm.load(line.bundle, threads=1) as model:
        answers = model.predict_batch(wafers)
        alone = model.predict(wafers[0])
    found = np.array([[answer.scores[label] for label in task.labels] for answer in answers])
    # Four bits, and a temperature of 1: near full precision, not equal to it.
    np.testing.assert_allclose(found, np.exp(scores), atol=0.02)
    assert alone.label == answers[0].label
