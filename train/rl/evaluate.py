"""The policy on held-out wafers: prompts answered greedily and rewarded, and the classes still told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from train.assembly import figures
from train.dataset import Sample
from train.loading import Checkpoint
from train.rl.claims import checked_claims
from train.rl.prompts import Prompts
from train.rl.reward import PARTS, Reward, weighed
from train.rl.rows import PolicyRow
from train.scorer import tree_log_probs
from wafervlm.claims import measure_claims
from wafervlm.render import render
from wafervlm.task import Task

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """The ``text`` of an answer, its length in ``tokens``, and whether it ``ended`` or was cut."""

    text: str
    tokens: int
    ended: bool


def answer_greedily(
    checkpoint: Checkpoint,
    prompts: Prompts,
    rows: Sequence[PolicyRow],
    *,
    max_tokens: int,
    ends: Sequence[int],
    batch: int = _AT_ONCE,
) -> list[Answer]:
    """The likeliest answer, token by token, to each of ``rows``; ``ends`` are the tokens that end one."""
    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    config = GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=tokenizer.pad_token_id,
        # A drawn image token would stand for an image that is not there.
        suppress_tokens=[checkpoint.network.config.image_token_id],
        disable_compile=True,
    )
    answers = []
    for first in range(0, len(rows), batch):
        inputs = prompts.encode(rows[first : first + batch])
        inputs = {key: value.to(checkpoint.device) for key, value in inputs.items()}
        with torch.no_grad():
            drawn = model.generate(**inputs, generation_config=config)
        drawn = drawn[:, inputs["input_ids"].shape[1] :].tolist()
        answers += [_answer(tokenizer, ids, frozenset(ends)) for ids in drawn]
    return answers


def judged(
    rows: Sequence[PolicyRow], answers: Sequence[Answer], reward: Reward, weights: Any
) -> dict[str, float]:
    """tune_reward, tune_<part> of it, the mean length in tokens, and the figures of the claims:
    tune_precision, tune_contradictions (share of the claims) and tune_claims_said (claims an answer)."""
    parts = [reward.parts(row, said.text, ended=said.ended) for row, said in zip(rows, answers, strict=True)]
    found = {"tune_reward": _mean(weighed(part, weights) for part in parts)}
    for name in PARTS:
        values = [value for part in parts if (value := part.get(name)) is not None]
        if values:
            found[f"tune_{name}"] = _mean(values)
    claims = measure_claims(
        checked_claims(said.text, row.geometry) for row, said in zip(rows, answers, strict=True)
    )
    found["tune_length"] = _mean(float(said.tokens) for said in answers)
    figures_of = {
        "tune_precision": claims.precision,
        "tune_contradictions": claims.contradiction_rate,
        "tune_claims_said": claims.claims_per_answer,
    }
    # Without any claim there is nothing to divide by.
    return {**found, **{name: value for name, value in figures_of.items() if math.isfinite(value)}}


def classification(
    checkpoint: Checkpoint, task: Task, samples: Sequence[Sample], batch: int
) -> Callable[[], dict[str, float]]:
    """A function that gives tune_accuracy, tune_recall and tune_loss of the classes of ``samples``."""
    images = [render(sample.wafer, task.render) for sample in samples]
    truth = np.array([task.labels.index(sample.label) for sample in samples])
    return lambda: figures(tree_log_probs(checkpoint, task, images, batch_size=batch), truth)


def _answer(tokenizer: Any, ids: list[int], ends: frozenset[int]) -> Answer:
    last = next((place for place, token in enumerate(ids) if token in ends), None)
    kept = ids if last is None else ids[: last + 1]
    return Answer(tokenizer.decode(kept, skip_special_tokens=True), len(kept), last is not None)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
