"""What a model is calibrated on: deployed prompt, image and answer; and two foreign diets to compare with."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from pydoc_data.topics import topics
from typing import Any, Literal

import numpy as np
import torch

from train.branches import question_tokens
from train.dataset import Sample
from train.encoding import encode
from train.loading import Checkpoint
from wafervlm.answers import classes_of
from wafervlm.errors import ConfigError, DatasetError, WaferVLMWarning
from wafervlm.render import RgbImage, render
from wafervlm.task import Task

Inputs = dict[str, torch.Tensor]
Kind = Literal["wafers", "images", "text"]
_DISCS = (10, 60)
_LONGEST_WORD = 20  # more characters than a token of prose has on average, spaces included


def stratified(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """At most ``count`` of ``samples``, as evenly over the classes as they allow, drawn by ``seed``: a class
    with too few gives all it has, and the others make up for it. Sorted by class. Raises DatasetError where
    there is nothing to draw from."""
    if not samples or count < 1:
        raise DatasetError(f"{count} maps cannot be drawn from {len(samples)}")
    rng = np.random.default_rng([seed, 7])
    members: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        members[sample.label].append(sample)
    shuffled = [[found[i] for i in rng.permutation(len(found))] for _, found in sorted(members.items())]
    rounds = max(len(found) for found in shuffled)
    drawn = [found[n] for n in range(rounds) for found in shuffled if n < len(found)][:count]
    return sorted(drawn, key=lambda sample: sample.label)


def batches(
    checkpoint: Checkpoint, task: Task, samples: Sequence[Sample], kind: Kind, size: int, seed: int
) -> list[Inputs]:
    """Inputs of the model to calibrate on, one for each of ``samples``, ``size`` at a time.

    ``kind`` "wafers" is what is deployed: the prompt, the rendered wafer and the true answer with the end of
    its turn. To compare with: "images", the same with images that show no wafer, and "text", passages of
    prose of the same length without an image.
    """
    if size < 1:
        raise ConfigError(f"{size} conversations at a time cannot be; choose 1 or more")
    if kind == "text":
        length = encode(
            checkpoint, task, [render(samples[0].wafer, task.render)], answered(task, samples)[0][:1]
        )
        return _passages(checkpoint, len(samples), length["input_ids"].shape[1], size, seed)
    if kind == "images":
        images = generic_images(task, len(samples), seed)
    else:
        images = [render(sample.wafer, task.render) for sample in samples]
    labels, shown = answered(task, samples)
    return [
        encode(
            checkpoint, task, [images[i] for i in part], [labels[i] for i in part], [shown[i] for i in part]
        )
        for part in together(task, len(images), size)
    ]


def together(task: Task, count: int, size: int) -> list[range]:
    """Which of ``count`` conversations go together, ``size`` at a time: those in a row, or of a multi-label
    task those about one class, whose answers begin at one place."""
    step = len(task.labels) if task.multi_label else 1
    rows = [range(first, count, step) for first in range(min(step, count))]
    return [row[i : i + size] for row in rows for i in range(0, len(row), size)]


def questions(checkpoint: Checkpoint, task: Task, count: int, size: int) -> list[int]:
    """Of each of ``together`` how many tokens of the answer ask about a class, and are given when deployed: 0
    but for a multi-label task."""
    parts = together(task, count, size)
    if not task.multi_label:
        return [0] * len(parts)
    asked = [task.labels[part[0] % len(task.labels)] for part in parts]
    lengths = {label: len(question_tokens(checkpoint.processor, task, label)) for label in set(asked)}
    return [lengths[label] for label in asked]


def answered(task: Task, samples: Sequence[Sample]) -> tuple[list[str], list[bool]]:
    """The class that is answered about for each of ``samples``, and whether it is shown: its own, or of a
    multi-label task one class after the other."""
    if not task.multi_label:
        return [sample.label for sample in samples], [True] * len(samples)
    asked = [task.labels[place % len(task.labels)] for place in range(len(samples))]
    pairs = zip(asked, samples, strict=True)
    return asked, [label in classes_of(task, sample.label) for label, sample in pairs]


def generic_images(task: Task, count: int, seed: int) -> list[RgbImage]:
    """``count`` images of the task's size that have the statistics of photographs and show no wafer: discs of
    any size and colour that hide one another ("dead leaves": Lee, Mumford and Huang, 2001), shaded, with
    noise."""
    rng = np.random.default_rng([seed, 11])
    return [_dead_leaves(rng, task.render.height, task.render.width) for _ in range(count)]


def distinct_tokens(inputs: Sequence[Inputs], image_token: int) -> int:
    """How many tokens of ``inputs`` differ in themselves or in what came before them. The text before the
    image (``image_token`` is its id) is the same in all prompts and counts once; from the image on no two
    are alike."""
    rows = [
        ids[mask.bool()]
        for part in inputs
        for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True)
    ]
    shortest = min(len(row) for row in rows)
    stacked = torch.stack([row[:shortest] for row in rows])
    same = (stacked == stacked[0]).all(dim=0) & (stacked[0] != image_token)
    shared = int(same.long().cumprod(0).sum())
    return shared + sum(len(row) - shared for row in rows)


def warn_if_few(distinct: int, maps: int, widest: int) -> None:
    """Warn where ``distinct`` tokens of ``maps`` maps are fewer than the ``widest`` layer has inputs: its
    Hessian is singular then, and only the damping decides on what was not seen."""
    if distinct < widest:
        needed = -(-maps * widest // distinct)
        warnings.warn(
            f"{distinct} distinct tokens calibrate a layer of {widest} inputs; give about {needed} maps",
            WaferVLMWarning,
            stacklevel=2,
        )


def _passages(checkpoint: Checkpoint, count: int, length: int, size: int, seed: int) -> list[Inputs]:
    """``count`` passages of ``length`` tokens from the language reference that every Python brings along."""
    rng = np.random.default_rng([seed, 9])
    prose = "\n".join(topics[name] for name in sorted(topics))
    reach = length * _LONGEST_WORD
    starts = rng.integers(0, len(prose) - reach, count).tolist()
    texts = [prose[start : start + reach] for start in starts]
    encoded = checkpoint.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=length)
    rows = torch.tensor(encoded["input_ids"], device=checkpoint.device)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in rows.split(size)]


def _dead_leaves(rng: np.random.Generator, height: int, width: int) -> RgbImage:
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    image: Any = np.broadcast_to(rng.uniform(0, 255, 3), (height, width, 3)).copy()
    for _ in range(int(rng.integers(*_DISCS))):
        # The areas of things in photographs follow a power law.
        radius = 0.03 / np.sqrt(rng.uniform(0.005, 1.0))
        inside = np.hypot(x - rng.uniform(), y - rng.uniform()) < radius
        shade = 1 + rng.normal(0, 0.5) * (x - 0.5) + rng.normal(0, 0.5) * (y - 0.5)
        image[inside] = (rng.uniform(0, 255, 3) * shade[..., None])[inside]
    noisy: RgbImage = np.clip(np.round(image + rng.normal(0, rng.uniform(0, 12), image.shape)), 0, 255)
    return noisy.astype(np.uint8)
