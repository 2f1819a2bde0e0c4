"""Merging a large checkpoint tensor by tensor, shard by shard: the base is never in memory whole.

Each weight is merged in float32, then cast and written. The gates are the same as of a merge in memory, with
one decoder layer at a time, and therefore on fewer maps: every pass reads the whole base again.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.families import Family
from train.loading import CONFIG, Checkpoint, checkpoint_family, load_processor, read_config
from train.lora import Lora
from train.progress import Progress
from train.scorer import Scores, tree_log_probs
from train.shards import SHARD_BYTES, ShardWriter, Slot
from train.streamed import ROWS, Stored, load_streamed, residency_of
from wafervlm.answers import same
from wafervlm.errors import CheckpointError, GateError
from wafervlm.render import RgbImage
from wafervlm.task import Task

logger = logging.getLogger(__name__)

_DTYPE_KEYS = ("dtype", "torch_dtype")


@dataclass(frozen=True)
class Gates:
    """``exact``: the largest difference that merging may make; ``agreement``: the least share of equal labels
    after casting. Of few maps one may change all the same: a near tie."""

    exact: float
    agreement: float


class Merged(Stored):
    """The tensors of a base with an adapter merged in, in float32."""

    def __init__(self, path: Path, family: Family, lora: Lora) -> None:
        super().__init__(path, family)
        self._lora = lora

    def tensor(self, name: str) -> torch.Tensor:
        return self._lora.merged(name, super().tensor(name))

    def pieces(self, name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The tensor ``name`` in ``dtype``; what the adapter leaves alone in pieces of some rows."""
        slot = self.shards.slot(self.names[name])
        if name.removesuffix(".weight") in self._lora.pairs or not slot.shape:
            yield self.tensor(name).to(dtype)
            return
        for start in range(0, slot.shape[0], ROWS):
            yield self.shards.rows(slot.name, start, min(start + ROWS, slot.shape[0])).to(dtype)


def merge_streamed(
    base: Path,
    adapter: Path,
    task: Task,
    images: Sequence[RgbImage],
    folder: Path,
    *,
    dtype: str,
    device: str,
    gates: Gates,
    unchanged: Sequence[str],
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write the merged checkpoint's files to ``folder`` and return the gates' figures on ``images``.

    ``unchanged`` names the base's files that are copied. Raises GateError where a gate is missed, which
    leaves ``folder`` incomplete; CheckpointError where the adapter does not fit the base.
    """
    family = checkpoint_family(base)
    lora = Lora(adapter, family)
    merged = Merged(base, family, lora)
    _check_targets(lora, merged, base)
    before = _scores(_adapted(base, family, lora, device), task, images, "score base and adapter")
    after = _scores(load_streamed(base, family, merged, device=device), task, images, "score merged")
    distance = float(np.abs(after - before).max())
    if not distance <= gates.exact:
        raise GateError(
            f"merging {adapter} changes label log-probabilities by {distance:.1e}, and {gates.exact:.0e} is "
            "allowed; nothing was written"
        )
    write_merged(base, merged, folder, dtype, unchanged, shard_bytes)
    written = load_streamed(
        folder, family, Stored(folder, family, getattr(torch, dtype)), dtype=dtype, device=device
    )
    after = _scores(written, task, images, f"score as {dtype}")
    equal = same(task, after, before)
    if not np.isfinite(after).all() or (equal.mean() < gates.agreement and (~equal).sum() > 1):
        raise GateError(
            f"after casting to {dtype} labels agree on {equal.mean():.1%} of {len(images)} maps, and "
            f"{gates.agreement:.0%} is needed; nothing was written. Merge with dtype float32"
        )
    return {
        "merge_distance": distance,
        "cast_distance": float(np.abs(after - before).max()),
        "cast_agreement": float(equal.mean()),
        "maps": len(images),
        "streamed": True,
    }


def write_merged(
    base: Path, merged: Merged, folder: Path, dtype: str, unchanged: Sequence[str], shard_bytes: int
) -> None:
    """Write the merged weights, cast to ``dtype``, under the base's names, and its other files."""
    number = getattr(torch, dtype)
    stored = {stored: name for name, stored in merged.names.items()}
    config = read_config(base)
    tied = _is_tied(config)
    slots = [
        Slot(slot.name, number if slot.dtype.is_floating_point else slot.dtype, slot.shape)
        for slot in merged.shards.slots.values()
        if not (tied and slot.name == "lm_head.weight")
    ]
    with (
        ShardWriter(folder, slots, shard_bytes) as writer,
        Progress("merge, MB", sum(slot.nbytes for slot in slots) // 10**6) as progress,
    ):
        for slot in slots:
            writer.write(slot.name, merged.pieces(stored[slot.name], slot.dtype))
            progress.advance(slot.nbytes // 10**6)
    (folder / CONFIG).write_text(json.dumps(_in_dtype(config, dtype), indent=2) + "\n", encoding="utf-8")
    for name in unchanged:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    if not (folder / "preprocessor_config.json").exists():
        load_processor(base).image_processor.save_pretrained(folder)


def _adapted(base: Path, family: Family, lora: Lora, device: str) -> Checkpoint:
    plain = load_streamed(base, family, Stored(base, family), device=device)
    lora.attach(plain.model)
    return plain


def _scores(checkpoint: Checkpoint, task: Task, images: Sequence[RgbImage], description: str) -> Scores:
    residency = residency_of(checkpoint)
    with Progress(description, len(residency or ())) as progress:
        if residency is not None:
            residency.watch = progress.advance
        return tree_log_probs(checkpoint, task, images, batch_size=len(images))


def _check_targets(lora: Lora, merged: Merged, base: Path) -> None:
    missing = sorted(module for module in lora.pairs if f"{module}.weight" not in merged)
    if not missing:
        return
    if "lm_head" in missing:
        raise CheckpointError(
            f"the adapter in {lora.path} changes lm_head, which is tied to the embeddings of {base}: merged "
            "into one it would change both; train it without"
        )
    raise CheckpointError(
        f"the adapter in {lora.path} does not fit the model: {missing[0]} and {len(missing) - 1} more layers "
        f"are not in {base}; use the base that it was trained on"
    )


def _is_tied(config: dict[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings")))


def _in_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """``config`` with ``dtype`` wherever it names one, and at its top."""
    changed = {
        key: _in_dtype(value, dtype) if isinstance(value, dict) else dtype if key in _DTYPE_KEYS else value
        for key, value in config.items()
    }
    if "architectures" in config and not any(key in config for key in _DTYPE_KEYS):
        changed["dtype"] = dtype
    return changed
