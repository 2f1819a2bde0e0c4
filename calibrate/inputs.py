"""What a model is calibrated on: the deployed prompt, image and answer, and two foreign diets to compare with."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch

from train.dataset import Sample
from train.loading import Checkpoint, encode
from wafervlm.errors import DatasetError, WaferVLMWarning
from wafervlm.render import RgbImage, render
from wafervlm.task import Task

Inputs = dict[str, torch.Tensor]
MOST_DISCS = 60


def stratified(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """At most ``count`` of ``samples``, as evenly over the classes as they allow, drawn by ``seed``; classes with
    too few maps give all they have and the others make up for it. Sorted by class."""
    rng = np.random.default_rng([seed, 7])
    members: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        members[sample.label].append(sample)
    if not members:
        raise DatasetError("there are no maps to calibrate on")
    shuffled = {label: [members[label][i] for i in rng.permutation(len(members[label]))] for label in sorted(members)}
    rounds = max(len(found) for found in shuffled.values())
    taken = [found[n] for n in range(rounds) for found in shuffled.values() if n < len(found)][:count]
    return sorted(taken, key=lambda sample: sample.label)


def wafer_inputs(checkpoint: Checkpoint, task: Task, samples: Sequence[Sample], batch: int) -> list[Inputs]:
    """The deployed prompt, the rendered wafer and the true answer with the end of its turn, for each of
    ``samples``, in batches."""
    images = [render(sample.wafer, task.render) for sample in samples]
    return image_inputs(checkpoint, task, images, [sample.label for sample in samples], batch)


def image_inputs(
    checkpoint: Checkpoint, task: Task, images: Sequence[RgbImage], labels: Sequence[str], batch: int
) -> list[Inputs]:
    """The deployed prompt, each of ``images`` and the answer that names its label, in batches."""
    starts = range(0, len(images), batch)
    return [encode(checkpoint, task, images[i : i + batch], labels[i : i + batch]) for i in starts]


def text_inputs(checkpoint: Checkpoint, count: int, length: int, batch: int, seed: int) -> list[Inputs]:
    """``count`` passages of ``length`` tokens of English prose, without an image: the language reference that
    every Python brings along."""
    rng = np.random.default_rng([seed, 9])
    prose = "\n".join(topics[name] for name in sorted(topics))
    ids = torch.tensor(checkpoint.tokenizer(prose, add_special_tokens=False)["input_ids"])
    starts = rng.integers(0, max(1, len(ids) - length), count)
    rows = torch.stack([ids[int(start) : int(start) + length] for start in starts]).to(checkpoint.device)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in rows.split(batch)]


def generic_images(task: Task, count: int, seed: int) -> list[RgbImage]:
    """``count`` images of the task's size that have the statistics of photographs and show no wafer: discs of
    any size and colour that hide one another ("dead leaves", Lee, Mumford and Huang, 2001), shaded, with
    noise."""
    rng = np.random.default_rng([seed, 11])
    return [_dead_leaves(rng, task.render.height, task.render.width) for _ in range(count)]


def warn_if_few(inputs: Sequence[Inputs], widest: int) -> int:
    """The number of distinct tokens in ``inputs``; warns where they are fewer than the ``widest`` layer has
    inputs, since then its Hessian is singular. What all prompts begin with counts once."""
    rows = [ids[mask.bool()] for part in inputs for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True)]
    shared = _common_beginning(rows) if "pixel_values" in inputs[0] else 0
    distinct = shared + sum(len(row) - shared for row in rows)
    if distinct < widest:
        warnings.warn(
            f"{distinct} distinct tokens calibrate a layer of {widest} inputs; give at least "
            f"{-(-(widest - shared) // max(1, (distinct - shared) // len(rows)))} maps",
            WaferVLMWarning,
            stacklevel=2,
        )
    return distinct


def _common_beginning(rows: Sequence[torch.Tensor]) -> int:
    """How many tokens all rows share before their first difference or the first image token, whose content
    differs although its id does not."""
    shortest = min(len(row) for row in rows)
    stacked = torch.stack([row[:shortest] for row in rows])
    same = (stacked == stacked[0]).all(dim=0)
    # An image is the one token that comes many times in a row.
    same[1:] &= stacked[0, 1:] != stacked[0, :-1]
    return int(same.long().cumprod(0).sum())


def _dead_leaves(rng: np.random.Generator, height: int, width: int) -> RgbImage:
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    image = np.broadcast_to(rng.uniform(0, 255, 3), (height, width, 3)).copy()
    for _ in range(int(rng.integers(10, MOST_DISCS))):
        radius = 0.03 / np.sqrt(rng.uniform(0.005, 1.0))  # area follows a power law, as of things in photographs
        inside = np.hypot(x - rng.uniform(), y - rng.uniform()) < radius
        shade = 1 + rng.normal(0, 0.5) * (x - 0.5) + rng.normal(0, 0.5) * (y - 0.5)
        image[inside] = (rng.uniform(0, 255, 3) * shade[..., None])[inside]
    noisy: Any = image + rng.normal(0, rng.uniform(0, 12), image.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)
