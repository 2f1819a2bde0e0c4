"""The zero-shot stage: what a base checkpoint answers before it is fine-tuned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import scored
from benchmarks.scores import checkpoint_log_probs, open_checkpoint, samples_digest
from benchmarks.statistics import Floats
from train.artefact import Provenance, folder_digest, is_complete, read_provenance, write_provenance, writing
from train.dataset import Sample
from train.scorer import in_set_mass
from train.sources.npz import load_arrays
from wafervlm.errors import UsageError
from wafervlm.render import render
from wafervlm.task import Task

STAGE, SCORES, FIGURES = "zero-shot", "scores.npz", "figures.json"
_MASS_MAPS = 16


def zero_shot(
    base: Path, task: Task, samples: Sequence[Sample], out: Path, device: str = "cpu"
) -> dict[str, Any]:
    """Score ``samples`` with the checkpoint ``base`` and write scores.npz and figures.json to ``out``.

    Returns the figures of ``accuracy.scored`` and ``in_set_mass``, the probability that the whole vocabulary
    puts on the labels: near 0 where the base does not answer in the task's form at all.
    """
    provenance = _provenance(base, task, samples)
    if is_complete(out, provenance):
        figures: dict[str, Any] = json.loads((out / FIGURES).read_text(encoding="utf-8"))
        return figures
    checkpoint = open_checkpoint(base, device)
    log_probs = checkpoint_log_probs(checkpoint, task, samples, "the base, zero-shot")
    images = [render(sample.wafer, task.render) for sample in samples[:_MASS_MAPS]]
    figures = scored(log_probs, samples, task.labels)
    figures["in_set_mass"] = float(in_set_mass(checkpoint, task, images).mean())
    with writing(out, overwrite=True) as work:
        digests = np.array([sample.wafer.digest for sample in samples])
        np.savez_compressed(work / SCORES, allow_pickle=False, log_probs=log_probs, digests=digests)
        (work / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        write_provenance(work, provenance)
    return figures


def read_zero_shot(folder: Path, task: Task, samples: Sequence[Sample]) -> Floats | None:
    """The label log-probabilities (N, L) that ``zero_shot`` wrote to ``folder``; None where it is something
    else, such as a checkpoint. Raises UsageError where they are of other maps or of another task."""
    if not (folder / SCORES).is_file() or not (folder / FIGURES).is_file():
        return None
    arrays = load_arrays(folder / SCORES, ("log_probs", "digests"))
    place = {str(digest): row for row, digest in enumerate(arrays["digests"])}
    task_digest = read_provenance(folder).get("inputs", {}).get("task")
    if task_digest != task.digest or any(sample.wafer.digest not in place for sample in samples):
        raise UsageError(
            f"{folder} holds the zero-shot scores of other maps or another task; name the base itself"
        )
    log_probs: Floats = arrays["log_probs"][[place[sample.wafer.digest] for sample in samples]]
    return log_probs


def _provenance(base: Path, task: Task, samples: Sequence[Sample]) -> Provenance:
    inputs = {"base": folder_digest(base), "maps": samples_digest(samples), "task": task.digest}
    return Provenance(STAGE, inputs, {})
