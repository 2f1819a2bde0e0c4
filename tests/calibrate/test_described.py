"""Descriptions among what is calibrated on: where the answers begin, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibrate.described import descriptions, words_loss
from calibrate.gptq import Scheme
from calibrate.stage import CalibrateSettings, calibrate
from train.artefact import read_provenance
from train.dataset import Sample
from train.loading import Checkpoint
from wafervlm.errors import ConfigError
from wafervlm.task import Task

pytestmark = pytest.mark.filterwarnings("ignore:.*distinct tokens calibrate")


def test_answers_begin_where_the_assistant_speaks(
    checkpoint: Checkpoint, tiny_task: Task, samples: list[Sample]
) -> None:
    inputs, begins = descriptions(checkpoint, tiny_task, samples, 7, seed=0)
    assert [len(part["input_ids"]) for part in inputs] == [7, 7, 4]
    for part, begin in zip(inputs, begins, strict=True):
        for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True):
            said = checkpoint.tokenizer.decode(ids[begin:][mask[begin:].bool()])
            assert said.startswith("1. Spatial distribution: ")
            assert said.endswith(checkpoint.tokenizer.eos_token)
            assert "3. Root-cause candidates: " in said


def test_the_loss_is_that_of_transformers(
    checkpoint: Checkpoint, tiny_task: Task, samples: list[Sample]
) -> None:
    found = words_loss(checkpoint, tiny_task, samples, 5, seed=0)
    inputs, begins = descriptions(checkpoint, tiny_task, samples, 1, seed=0)
    total, count = 0.0, 0
    for part, begin in zip(inputs, begins, strict=True):
        labels = part["input_ids"].clone()
        labels[:, :begin] = -100
        tokens = labels.shape[1] - begin
        with torch.no_grad():
            total += tokens * float(checkpoint.model(**part, labels=labels).loss)
        count += tokens
    assert found == pytest.approx(total / count, rel=1e-5)


def test_a_checkpoint_calibrated_on_both_reports_both(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    settings = CalibrateSettings(Scheme(group=32), maps=18, batch=9, check_maps=18, words=9)
    figures = calibrate(tiny_checkpoint, synthetic_dataset, tmp_path / "gptq", settings)
    alone = calibrate(tiny_checkpoint, synthetic_dataset, tmp_path / "alone", replace(settings, words=0))
    assert figures["distinct_tokens"] > alone["distinct_tokens"]
    # Random weights have no words to lose: which rounding is better shows on nano alone.
    for name in ("words_loss", "words_loss_nearest"):
        assert figures[name] != figures["words_loss_full"]
        assert figures[name] == pytest.approx(figures["words_loss_full"], abs=0.01)
    assert "words_loss" not in alone
    assert read_provenance(tmp_path / "gptq")["settings"]["words"] == 9


def test_more_descriptions_than_maps_are_refused() -> None:
    with pytest.raises(ConfigError, match="words is 19"):
        CalibrateSettings(maps=18, words=19)
