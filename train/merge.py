# NOTE FOR HELPER B1 (remove later): the founder wrote families.py, loading.py, scorer.py, merge.py and their tests at 08:40
# because nothing was here yet. Do not rewrite them: review them, improve what is wrong, add what your task asks beyond them.
"""Merging a LoRA adapter into its base: in float32, then cast, with a gate after each.

Merging in bfloat16 is off by 1e-2 where float32 is off by 1e-6. Before casting, the label
log-probabilities of the merged model must equal those of base and adapter; after casting, the labels must
still agree.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.artefact import Provenance, folder_digest, is_complete, read_provenance, write_provenance, writing
from train.dataset import dataset_task, read_split
from train.loading import Checkpoint, load_checkpoint
from train.scorer import Floats, tree_log_probs
from wafervlm.errors import GateError
from wafervlm.render import RgbImage, render
from wafervlm.task import Task

logger = logging.getLogger(__name__)

EXACT = 1e-4
AGREEMENT = 0.99


@dataclass(frozen=True)
class MergeSettings:
    """``dtype`` of the merged weights: float32, bfloat16 or float16. ``maps`` is how many maps of the
    dataset's tune part the gates are taken on."""

    dtype: str = "bfloat16"
    maps: int = 64


def merge(base: Path, adapter: Path, dataset: Path, out: Path, settings: MergeSettings) -> dict[str, Any]:
    """Write base + adapter to ``out`` as a checkpoint folder that transformers and vLLM load.

    Returns the gate's figures. Raises GateError, writing nothing, where a gate is missed.
    """
    provenance = _provenance(base, adapter, dataset, settings)
    if out.exists() and is_complete(out, provenance):
        logger.info("%s is complete and made from the same inputs", out)
        return dict(read_provenance(out)["parity"])
    task = dataset_task(dataset)
    images = [
        render(sample.wafer, task.render) for sample in _spread(read_split(dataset, "tune"), settings.maps)
    ]
    merged, parity = merge_checked(base, adapter, task, images, settings.dtype)
    with writing(out, overwrite=True) as folder:
        write_checkpoint(merged, folder)
        (folder / "task.json").write_bytes((dataset / "task.json").read_bytes())
        write_provenance(folder, replace(provenance, parity=parity))
    return parity


def merge_checked(
    base: Path, adapter: Path, task: Task, images: Sequence[RgbImage], dtype: str
) -> tuple[Checkpoint, dict[str, Any]]:
    """The merged checkpoint cast to ``dtype``, and how far it is from base + adapter on ``images``."""
    loaded = load_checkpoint(base, adapter=adapter)
    before = tree_log_probs(loaded, task, images)
    merged = replace(loaded, model=loaded.model.merge_and_unload().eval())
    distance = float(np.abs(tree_log_probs(merged, task, images) - before).max())
    if not distance <= EXACT:
        raise GateError(
            f"merging {adapter} changes label log-probabilities by {distance:.1e}, more than {EXACT:.0e}; "
            "the adapter does not belong to this base, or its layers cannot be merged"
        )
    merged = replace(merged, model=merged.model.to(getattr(torch, dtype)))
    agreement, cast_distance = _after_cast(merged, task, images, before)
    if agreement < AGREEMENT:
        raise GateError(
            f"after casting to {dtype} labels agree on {agreement:.1%} of {len(images)} maps, less than "
            f"{AGREEMENT:.0%}; merge with dtype float32"
        )
    parity = {"merge_distance": distance, "cast_distance": cast_distance, "cast_agreement": agreement}
    return merged, {**parity, "maps": len(images)}


def write_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write model, tokenizer, chat template and processor files to ``folder``; tied weights stay tied."""
    checkpoint.model.save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)
    # processor_config.json holds these settings too; other tools look for the older file.
    for name in (
        "preprocessor_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "vocab.json",
        "merges.txt",
    ):
        source = checkpoint.path / name
        if source.is_file() and not (folder / name).exists():
            shutil.copyfile(source, folder / name)


def _after_cast(
    merged: Checkpoint, task: Task, images: Sequence[RgbImage], before: Floats
) -> tuple[float, float]:
    after = tree_log_probs(merged, task, images)
    agreement = float((after.argmax(axis=1) == before.argmax(axis=1)).mean())
    return agreement, float(np.abs(after - before).max())


def _spread(samples: list[Any], count: int) -> list[Any]:
    """``count`` samples, evenly over the list."""
    return [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, count).astype(int))]


def _provenance(base: Path, adapter: Path, dataset: Path, settings: MergeSettings) -> Provenance:
    inputs = {
        "base": folder_digest(base),
        "adapter": folder_digest(adapter),
        "dataset": folder_digest(dataset),
    }
    return Provenance("merge", inputs, {"dtype": settings.dtype, "maps": settings.maps})
