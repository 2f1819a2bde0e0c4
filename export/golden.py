"""Which maps go into a bundle as golden maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from train.dataset import Sample
from train.synthetic import scene, wafers
from wafervlm.errors import DatasetError, UsageError
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap

PER_LABEL = 2
# Each map takes seconds there: of the reference, and of every machine that verifies the bundle.
LARGE_PER_LABEL = 1


def drawn_evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most ``count`` of ``samples``, one of each label before a second of any."""
    seen: dict[str, int] = {}
    ranks = []
    for sample in samples:
        ranks.append(seen.get(sample.label, 0))
        seen[sample.label] = ranks[-1] + 1
    chosen = sorted(np.argsort(ranks, kind="stable")[:count])
    return [samples[i] for i in chosen]


def synthetic_golden(task: Task, seed: int, per_label: int = PER_LABEL) -> list[Sample]:
    """Synthetic maps, ``per_label`` of each label; a label without a generator gets scenes labelled ""."""
    samples = []
    for place, label in enumerate(task.labels):
        try:
            samples += [Sample(wafer, label) for wafer in wafers([label] * per_label, seed=seed + place)]
        except UsageError:
            rng = np.random.default_rng(seed + place)
            scenes = [WaferMap(scene(rng), id=f"scene-{place}-{i}") for i in range(per_label)]
            samples += [Sample(wafer, "") for wafer in scenes]
    return samples


def chosen_golden(
    samples: Sequence[Sample], task: Task, seed: int, per_label: int = PER_LABEL
) -> list[Sample]:
    """Up to ``per_label`` of ``samples`` for each label, of a multi-label task for each set of classes that
    occurs, drawn at random. Raises DatasetError for none."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in sorted({sample.label for sample in samples}) if task.multi_label else task.labels:
        of_label = [sample for sample in samples if sample.label == label]
        chosen += [of_label[i] for i in np.sort(rng.permutation(len(of_label))[:per_label])]
    if not chosen:
        raise DatasetError(
            "golden maps are to come from the dataset, and it has no map with a label of the task"
        )
    return chosen
