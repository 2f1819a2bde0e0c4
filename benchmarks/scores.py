"""The maps that a benchmark judges on, and the label scores of a bundle and of checkpoints on them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.statistics import Floats
from train.dataset import DIES, Sample, read_labelled
from train.loading import Checkpoint, load_checkpoint
from train.progress import Progress
from train.scorer import in_set_mass, label_log_probs, tree_log_probs
from train.sources import read_source
from train.speed import fast_vision
from train.split_files import apply_split, read_split_file, split_path
from wafervlm.answers import strangers
from wafervlm.errors import DatasetError, UsageError
from wafervlm.model import WaferVLM
from wafervlm.render import RgbImage, render
from wafervlm.task import Task

log = logging.getLogger(__name__)

BATCH = 16
CHECKED = 18


def load_maps(path: Path, task: Task, *, split: str = "test", split_file: str | None = None) -> list[Sample]:
    """The labelled maps of part ``split`` of a dataset folder, or of any other source: all of it, or the
    part ``split`` of a split file. Raises DatasetError where a label is not one of the task's."""
    if (path / DIES).is_file():
        samples = read_labelled(path, split)
    elif split_file:
        samples = _of_split(path, task, split, split_file)
    else:
        samples = read_labelled(path, spec=task.render)
    unknown = strangers(task, [sample.label for sample in samples])
    if unknown:
        raise DatasetError(
            f"{path} has a map labelled {unknown[0]!r}, which is not one of the task's labels: "
            f"{', '.join(task.labels)}"
        )
    if not samples:
        raise DatasetError(f"{path} has no labelled maps to judge on")
    return samples


def _of_split(path: Path, task: Task, split: str, split_file: str) -> list[Sample]:
    rows = read_source(path, task.render)
    places = apply_split(rows, read_split_file(split_path(split_file))).get(split)
    if places is None or not len(places):
        raise UsageError(f"split {split_file} has no part {split!r} with maps of {path}")
    return [Sample(rows.wafer(int(row)), str(rows.labels[row])) for row in places]


def samples_digest(samples: Sequence[Sample]) -> str:
    """sha256, 64 hex digits, of the maps and their labels, in order."""
    lines = (f"{sample.wafer.digest} {sample.label}\n" for sample in samples)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def images_of(samples: Sequence[Sample], task: Task) -> list[RgbImage]:
    """The images of ``samples`` as the task draws them."""
    return [render(sample.wafer, task.render) for sample in samples]


def bundle_log_probs(model: WaferVLM, samples: Sequence[Sample]) -> Floats:
    """Label log-probabilities (N, L) float64 of a bundle as deployed, before temperature."""
    rows = []
    with Progress("score the bundle", len(samples)) as progress:
        for start in range(0, len(samples), BATCH):
            images = images_of(samples[start : start + BATCH], model.task)
            rows.append(model.label_log_probs(np.stack(images)))
            progress.advance(len(images))
    return np.concatenate(rows).astype(np.float64)


def checkpoint_log_probs(
    checkpoint: Checkpoint, task: Task, samples: Sequence[Sample], what: str = "the reference"
) -> Floats:
    """Label log-probabilities (N, L) float64 of a transformers checkpoint, one forward for each image."""
    return tree_log_probs(checkpoint, task, images_of(samples, task), progress=f"score {what}")


def open_checkpoint(path: Path, device: str) -> Checkpoint:
    """Load ``path`` for scoring on ``device``: bfloat16 on a GPU, float32 on a CPU."""
    checkpoint = load_checkpoint(path, dtype="bfloat16" if device == "cuda" else "float32", device=device)
    fast_vision(checkpoint.model)
    return checkpoint


def alarms(checkpoint: Checkpoint, task: Task, samples: Sequence[Sample]) -> dict[str, Any]:
    """Two checks of the reference's own scores, on a few maps spread over ``samples``: how far one forward
    with all labels is from a forward for each label, and how much probability the whole vocabulary puts on
    the labels. A low mass is the sign of a wrong prompt, which label scores hide."""
    places = np.unique(np.linspace(0, len(samples) - 1, CHECKED).astype(int))
    images = images_of([samples[i] for i in places], task)
    together = tree_log_probs(checkpoint, task, images)
    apart = label_log_probs(checkpoint, task, images)
    return {
        "maps": len(images),
        "one_forward_max_abs_difference": float(np.abs(together - apart).max()),
        "in_set_mass": float(in_set_mass(checkpoint, task, images).mean()),
    }
