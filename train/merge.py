"""Merging a LoRA adapter into its base: in float32, then cast, with a gate after each.

Merging in bfloat16 is off by 1e-2 where float32 is off by 1e-6. Before casting, the label
log-probabilities of the merged model must equal those of base and adapter; after casting, the labels that
the written folder gives must still agree.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from train.artefact import (
    PROVENANCE,
    Provenance,
    folder_digest,
    is_complete,
    read_provenance,
    write_provenance,
    writing,
)
from train.dataset import TASK, Sample, dataset_task, read_split
from train.inventory import take_inventory
from train.loading import DTYPES, Checkpoint, load_checkpoint, quiet_transformers
from train.merge_streamed import Gates, merge_streamed
from train.samples import held_out
from train.scorer import Scores, tree_log_probs
from train.shards import SHARD_BYTES
from wafervlm.answers import same
from wafervlm.errors import ConfigError, GateError, TaskError
from wafervlm.files import check_writable
from wafervlm.render import RgbImage, render
from wafervlm.task import Task

logger = logging.getLogger(__name__)

STAGE = "merge"
EXACT = 1e-4
AGREEMENT = 0.99
MAPS, STREAMED_MAPS = 200, 16
Stream = Literal["auto", "always", "never"]
STREAMS: tuple[Stream, ...] = ("auto", "always", "never")
# Files of the base that an adapter does not change; which of them there are depends on who wrote the base.
UNCHANGED = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)


@dataclass(frozen=True)
class MergeSettings:
    """``dtype`` of the merged weights: float32, bfloat16 or float16. ``maps`` is how many maps of the
    dataset, held out from training where it has such, the gates are taken on (None: 200, and 16 where the
    merge is streamed); ``device`` is where. ``stream``: whether it goes tensor by tensor, "auto" for a
    model that takes more than 2 GB in float32."""

    dtype: str = "bfloat16"
    maps: int | None = None
    device: str = "cpu"
    stream: Stream = "auto"

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise ConfigError(f"stream is {self.stream!r}; it must be one of {', '.join(STREAMS)}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is not known; choose {', '.join(DTYPES)}")
        if self.maps is not None and self.maps < 1:
            raise ConfigError(f"maps is {self.maps}; the gates need at least one map")


def merge(base: Path, adapter: Path, dataset: Path, out: Path, settings: MergeSettings) -> dict[str, Any]:
    """Write base + adapter to ``out`` as a checkpoint folder that transformers and vLLM load.

    Returns the gates' figures: ``merge_distance`` and ``cast_distance``, the largest differences of a label's
    log-probability from base + adapter before and after casting, ``cast_agreement``, the share of equal
    labels, and ``maps``. An ``out`` that is complete and made from the same inputs is left as it is; one that
    an earlier merge wrote is replaced. Raises GateError, writing nothing, where a gate is missed;
    CheckpointError, DatasetError, TaskError or UsageError for what cannot be merged.
    """
    task = _common_task(adapter, dataset)
    streamed = is_streamed(base, settings)
    settings = replace(settings, maps=settings.maps or (STREAMED_MAPS if streamed else MAPS))
    provenance = _provenance(base, adapter, dataset, settings)
    if out.exists() and is_complete(out, provenance):
        logger.info("%s is complete and made from the same inputs", out)
        return dict(read_provenance(out)["parity"])
    check_writable(out)
    images = [render(sample.wafer, task.render) for sample in gate_samples(dataset, settings.maps or MAPS)]
    check = _merge_streamed if streamed else merge_checked
    with writing(out, overwrite=_is_merged(out)) as folder:
        parity = check(base, adapter, task, images, folder, settings)
        shutil.copyfile(dataset / TASK, folder / TASK)
        write_provenance(folder, replace(provenance, parity=parity))
    return parity


def is_streamed(base: Path, settings: MergeSettings) -> bool:
    """Whether a merge of ``base`` goes tensor by tensor. Raises CheckpointError for a base that is not
    whole."""
    return settings.stream == "always" or (settings.stream == "auto" and take_inventory(base).large)


def _merge_streamed(
    base: Path, adapter: Path, task: Task, images: Sequence[RgbImage], folder: Path, settings: MergeSettings
) -> dict[str, Any]:
    logger.info("%s is merged tensor by tensor; the gates are taken on %d maps", base, len(images))
    return merge_streamed(
        base,
        adapter,
        task,
        images,
        folder,
        dtype=settings.dtype,
        device=settings.device,
        gates=Gates(EXACT, AGREEMENT),
        unchanged=UNCHANGED,
        shard_bytes=SHARD_BYTES,
    )


def merge_checked(
    base: Path, adapter: Path, task: Task, images: Sequence[RgbImage], folder: Path, settings: MergeSettings
) -> dict[str, Any]:
    """Write the merged checkpoint's files to ``folder`` and return the gates' figures on ``images``.

    Raises GateError where a gate is missed, which leaves ``folder`` incomplete.
    """
    merged, before, distance = merge_float32(base, adapter, task, images, settings.device)
    write_checkpoint(merged, folder, settings.dtype)
    del merged  # the next one needs the memory
    written = load_checkpoint(folder, dtype=settings.dtype, device=settings.device)
    after = tree_log_probs(written, task, images, progress=f"score as {settings.dtype}")
    agreement = float(same(task, after, before).mean())
    if not agreement >= AGREEMENT:
        raise GateError(
            f"after casting to {settings.dtype} labels agree on {agreement:.1%} of {len(images)} maps, and "
            f"{AGREEMENT:.0%} is needed; nothing was written. Merge with dtype float32"
        )
    return {
        "merge_distance": distance,
        "cast_distance": float(np.abs(after - before).max()),
        "cast_agreement": agreement,
        "maps": len(images),
    }


def merge_float32(
    base: Path, adapter: Path, task: Task, images: Sequence[RgbImage], device: str = "cpu"
) -> tuple[Checkpoint, Scores, float]:
    """The merged model in float32, the label log-probabilities (N, L) of base + adapter on ``images``, and
    the largest difference of the merged model's from them. Raises GateError where it is above 1e-4."""
    adapted = load_checkpoint(base, adapter=adapter, device=device)
    before = tree_log_probs(adapted, task, images, progress="score base and adapter")
    with warnings.catch_warnings(action="ignore"):  # what peft warns of, the gate measures
        merged = replace(adapted, model=adapted.model.merge_and_unload().eval())
    after = tree_log_probs(merged, task, images, progress="score merged")
    distance = float(np.abs(after - before).max())
    # Written so that a distance that is not a number fails too.
    if not distance <= EXACT:
        raise GateError(
            f"merging {adapter} changes label log-probabilities by {distance:.1e}, and {EXACT:.0e} is "
            "allowed; nothing was written. The adapter changes a layer that cannot be merged, as one of two "
            "tied embeddings"
        )
    return merged, before, distance


def write_checkpoint(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Cast the model of ``checkpoint``, in place, to ``dtype`` and write it to ``folder``, with tokenizer,
    chat template and processor files as they are in the folder it came from. Tied weights stay tied."""
    with quiet_transformers():
        checkpoint.model.to(getattr(torch, dtype)).save_pretrained(folder)
    for name in UNCHANGED:
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, folder / name)
    if not (folder / "preprocessor_config.json").exists():
        # A processor that transformers 5 saved has these settings elsewhere; other tools look here.
        checkpoint.processor.image_processor.save_pretrained(folder)


def _common_task(adapter: Path, dataset: Path) -> Task:
    task = dataset_task(dataset)
    if (adapter / TASK).is_file() and Task.from_file(adapter / TASK).digest != task.digest:
        raise TaskError(
            f"{adapter} was trained for another task than that of {dataset}; name the dataset that it was "
            "trained on"
        )
    return task


def gate_samples(dataset: Path, count: int) -> list[Sample]:
    """At most ``count`` samples, evenly over the held-out part, or over the training part without one."""
    samples = held_out(dataset) or read_split(dataset, "train")
    return [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, count).astype(int))]


def _is_merged(out: Path) -> bool:
    return (out / PROVENANCE).is_file() and read_provenance(out).get("stage") == STAGE


def _provenance(base: Path, adapter: Path, dataset: Path, settings: MergeSettings) -> Provenance:
    inputs = {
        "base": folder_digest(base),
        "adapter": folder_digest(adapter),
        "dataset": folder_digest(dataset),
    }
    if (adapter / PROVENANCE).is_file():
        trained_on = read_provenance(adapter).get("inputs", {}).get("base", inputs["base"])
        if trained_on != inputs["base"]:
            logger.warning("%s was trained on another folder than %s; the gates cannot tell", adapter, base)
    return Provenance(STAGE, inputs, {"dtype": settings.dtype, "maps": settings.maps})
