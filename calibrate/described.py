"""Descriptions to calibrate on besides the classification, where the bundle is to describe too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from calibrate.inputs import Inputs
from train.batches import IGNORED, Collator, Example, Order
from train.dataset import Sample
from train.loading import Checkpoint
from train.progress import track
from train.vqa.write import write
from wafervlm.task import Task

_LONGEST = 1 << 20


def descriptions(
    checkpoint: Checkpoint, task: Task, samples: Sequence[Sample], size: int, seed: int
) -> tuple[list[Inputs], list[int]]:
    """Conversations in which each of ``samples`` is described in three parts, ``size`` at a time, as measured
    on its dies: inputs of the model, and for each the index of the answer's first token."""
    parts = list(_batches(checkpoint, task, samples, size, seed))
    answers = [int((part["labels"] != IGNORED).any(dim=0).int().argmax()) for part in parts]
    inputs = [{k: v.to(checkpoint.device) for k, v in part.items() if k != "labels"} for part in parts]
    return inputs, answers


def words_loss(checkpoint: Checkpoint, task: Task, samples: Sequence[Sample], size: int, seed: int) -> float:
    """Mean negative log-probability, nats per token, of the descriptions of ``samples``."""
    total, tokens = 0.0, 0
    for part in track(list(_batches(checkpoint, task, samples, size, seed)), "score descriptions"):
        labels = part.pop("labels")[:, 1:].to(checkpoint.device)
        inputs = {name: tensor.to(checkpoint.device) for name, tensor in part.items()}
        with torch.inference_mode():
            logits = checkpoint.model(**inputs, use_cache=False).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        total, tokens = total + float(loss), tokens + int((labels != IGNORED).sum())
    return total / tokens


def _batches(
    checkpoint: Checkpoint, task: Task, samples: Sequence[Sample], size: int, seed: int
) -> list[Inputs]:
    examples = [
        Example(s.wafer, s.label, *write(s.wafer.dies, s.label, np.random.default_rng([seed, 13, i]), "full"))
        for i, s in enumerate(samples)
    ]
    order = Order([e.label for e in examples], [False] * len(examples), seed, balance=False)
    collate = Collator(checkpoint, task, examples, order, max_length=_LONGEST)
    starts = range(0, len(examples), size)
    return [collate([{"position": k} for k in range(i, min(i + size, len(examples)))]) for i in starts]
