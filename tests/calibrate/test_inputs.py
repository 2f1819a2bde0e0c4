"""Calibration inputs: the deployed prompt, image and answer, and the two diets to compare with."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrate.inputs import (
    Inputs,
    batches,
    distinct_tokens,
    generic_images,
    questions,
    stratified,
    together,
    warn_if_few,
)
from tests.multi_label import multi_task
from train.dataset import Sample
from train.encoding import encode
from train.loading import Checkpoint, load_checkpoint
from train.synthetic import wafers
from wafervlm.errors import ConfigError, DatasetError, ImageError, WaferVLMWarning
from wafervlm.render import read_back, render
from wafervlm.task import Task


def test_classes_are_drawn_evenly(samples: list[Sample]) -> None:
    many = [s for s in samples for _ in range(5) if s.label != "Donut"]
    few = [s for s in samples if s.label == "Donut"]
    drawn = stratified(many + few, 40, seed=1)
    counts = Counter(sample.label for sample in drawn)
    assert counts["Donut"] == 2
    assert sum(counts.values()) == 40
    others = [count for label, count in counts.items() if label != "Donut"]
    assert len(others) == 8
    assert max(others) - min(others) <= 1
    assert [s.label for s in drawn] == sorted(s.label for s in drawn)


def test_drawing_is_by_seed_and_without_repetition(samples: list[Sample]) -> None:
    first, again, other = (stratified(samples, 9, seed=seed) for seed in (1, 1, 2))
    assert [s.wafer.digest for s in first] == [s.wafer.digest for s in again]
    assert [s.wafer.digest for s in first] != [s.wafer.digest for s in other]
    everything = stratified(samples, 1000, seed=1)
    assert Counter(s.wafer.digest for s in everything) == Counter(s.wafer.digest for s in samples)


@pytest.mark.parametrize("count", [0, 5])
def test_nothing_to_draw_is_refused(samples: list[Sample], count: int) -> None:
    with pytest.raises(DatasetError, match="cannot be drawn"):
        stratified(samples if count == 0 else [], count, seed=0)


def test_wafers_are_what_is_deployed(
    checkpoint: Checkpoint, tiny_task: Task, samples: list[Sample], inputs: list[Inputs]
) -> None:
    assert [len(part["input_ids"]) for part in inputs] == [8, 8, 2]
    sample, part = samples[3], inputs[0]
    row = part["input_ids"][3][part["attention_mask"][3].bool()]
    prompt = encode(checkpoint, tiny_task, [render(sample.wafer, tiny_task.render)])
    assert torch.equal(row[: prompt["input_ids"].shape[1]], prompt["input_ids"][0])
    answer = checkpoint.tokenizer.decode(row[prompt["input_ids"].shape[1] :])
    assert answer == tiny_task.answer(sample.label) + checkpoint.tokenizer.eos_token
    assert torch.equal(part["pixel_values"].chunk(8)[3], prompt["pixel_values"])


def test_generic_images_show_no_wafer(tiny_task: Task) -> None:
    images = generic_images(tiny_task, 6, seed=2)
    for image in images:
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert image.std() > 5
        with pytest.raises(ImageError):
            read_back(image, tiny_task.render)
    assert all(
        np.array_equal(a, b) for a, b in zip(images, generic_images(tiny_task, 6, seed=2), strict=True)
    )
    assert not np.array_equal(images[0], images[1])


def test_diets_differ_in_nothing_but_what_they_are_called(
    checkpoint: Checkpoint, tiny_task: Task, samples: list[Sample], inputs: list[Inputs]
) -> None:
    images = batches(checkpoint, tiny_task, samples, "images", 8, seed=0)
    for part, deployed in zip(images, inputs, strict=True):
        assert torch.equal(part["input_ids"], deployed["input_ids"])
        assert part["pixel_values"].shape == deployed["pixel_values"].shape
        assert not torch.equal(part["pixel_values"], deployed["pixel_values"])
    text = batches(checkpoint, tiny_task, samples, "text", 8, seed=0)
    first = int(inputs[0]["attention_mask"][0].sum())
    assert [tuple(part["input_ids"].shape) for part in text] == [(8, first), (8, first), (2, first)]
    assert all(set(part) == {"input_ids", "attention_mask"} for part in text)
    assert len({tuple(row.tolist()) for part in text for row in part["input_ids"]}) == len(samples)
    assert distinct_tokens(text, 0) == len(samples) * first
    assert " the " in checkpoint.tokenizer.decode(text[0]["input_ids"].flatten())


def test_an_empty_batch_is_refused(checkpoint: Checkpoint, tiny_task: Task, samples: list[Sample]) -> None:
    with pytest.raises(ConfigError, match="0 conversations at a time"):
        batches(checkpoint, tiny_task, samples, "wafers", 0, seed=0)


def test_distinct_tokens_count_the_prompt_once(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    ids, start = inputs[0]["input_ids"][0].tolist(), checkpoint.model.config.image_token_id
    before = ids.index(start)
    total = sum(int(part["attention_mask"].sum()) for part in inputs)
    assert distinct_tokens(inputs, start) == total - 17 * before


def test_too_few_tokens_are_warned_of() -> None:
    warn_if_few(1000, 10, 1000)
    with pytest.warns(
        WaferVLMWarning, match="900 distinct tokens calibrate a layer of 9728 inputs; give about 109"
    ):
        warn_if_few(900, 10, 9728)


def test_a_multi_label_task_is_calibrated_on_every_class(tiny_checkpoint: Path) -> None:
    checkpoint, task = load_checkpoint(tiny_checkpoint), multi_task(64)
    shown = ["Center+Scratch", "none", "Edge-Loc", "Edge-Ring+Scratch"] * 3
    samples = [Sample(w, label) for w, label in zip(wafers(["Center"] * 12, seed=0), shown, strict=True)]
    inputs = batches(checkpoint, task, samples, "wafers", 2, seed=0)
    given = questions(checkpoint, task, len(samples), 2)
    texts = [checkpoint.tokenizer.decode(ids) for part in inputs for ids in part["input_ids"]]
    for (place, label), text in zip(
        [(i, task.labels[i % 4]) for part in together(task, 12, 2) for i in part], texts, strict=True
    ):
        assert f"{label}: {'yes' if label in shown[place].split('+') else 'no'}" in text
    prompt = encode(checkpoint, task, [render(samples[0].wafer, task.render)])["input_ids"].shape[1]
    for part, more in zip(inputs, given, strict=True):
        for ids in part["input_ids"]:
            verdict = checkpoint.tokenizer.decode(ids[prompt + more :])
            assert verdict.strip().startswith(("yes", "no"))
    assert together(replace(task, kind="single-label"), 5, 2) == [range(2), range(2, 4), range(4, 5)]
