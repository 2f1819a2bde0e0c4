"""How far a quantized model is from its full-precision parent, and the gate that it must pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import rel_entr

from calibrate.interval import Floats, Ints, mean_interval, share_interval
from train.dataset import Sample
from train.loading import Checkpoint
from train.progress import track
from train.scorer import Scores, tree_log_probs
from wafervlm.answers import chosen, same, truth_of
from wafervlm.errors import GateError
from wafervlm.render import render
from wafervlm.task import Task

AGREEMENT = 0.98
_BATCH = 32


def score(
    checkpoint: Checkpoint, task: Task, samples: Sequence[Sample], description: str = "score maps"
) -> Scores:
    """Label log-probabilities (N, L) float64 of ``checkpoint`` on ``samples``."""
    parts = [samples[i : i + _BATCH] for i in range(0, len(samples), _BATCH)]
    return np.concatenate(
        [
            tree_log_probs(checkpoint, task, [render(s.wafer, task.render) for s in part], batch_size=_BATCH)
            for part in track(parts, description)
        ]
    )


def agreement(before: Scores, after: Scores, task: Task | None = None) -> dict[str, float]:
    """Share of equal labels, and the mean KL divergence in nats of the label distribution ``after`` from
    ``before``, both (N, L) log-probabilities, of the labels or, where ``task`` is multi-label, of its
    classes, whose divergences add up."""
    equal, divergence = _equal(before, after, task), _kl(before, after, task)
    return {"label_agreement": float(equal.mean()), "kl": float(divergence.mean())}


def intervals(before: Scores, after: Scores, lots: Ints, task: Task | None = None) -> dict[str, float]:
    """The 95 % intervals of what ``agreement`` gives, over ``lots`` (N,), as ``..._low`` and ``..._high``."""
    low, high = share_interval(_equal(before, after, task), lots)
    kl_low, kl_high = mean_interval(_kl(before, after, task), lots)
    return {"label_agreement_low": low, "label_agreement_high": high, "kl_low": kl_low, "kl_high": kl_high}


def _equal(before: Scores, after: Scores, task: Task | None) -> Floats:
    if task is not None:
        return np.asarray(same(task, before, after), dtype=np.float64)
    return np.asarray(before.argmax(axis=1) == after.argmax(axis=1), dtype=np.float64)


def _kl(before: Scores, after: Scores, task: Task | None) -> Floats:
    p, q = np.exp(before), np.maximum(np.exp(after), 1e-300)
    divergence = rel_entr(p, q)
    if task is not None and task.multi_label:
        divergence = divergence + rel_entr(-np.expm1(before), np.maximum(-np.expm1(after), 1e-300))
    return np.asarray(divergence.sum(axis=1), dtype=np.float64)


def accuracy(scores: Scores, samples: Sequence[Sample], task: Task) -> float:
    """Share of ``samples`` whose answer in ``scores`` (N, L) is theirs."""
    truth = truth_of(task, [sample.label for sample in samples])
    return float((chosen(task, scores) == truth).all(axis=1).mean())


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean layer error and round-to-nearest's, and the largest absolute value that any activation reached."""
    maxima = ("absolute_maximum", "output_absolute_maximum", "hidden_absolute_maximum")
    return {
        "layer_error": float(np.mean([row["error"] for row in rows])),
        "layer_error_nearest": float(np.mean([row["error_nearest"] for row in rows])),
        "absolute_maximum": max(float(row[name]) for row in rows for name in maxima),
    }


def check_gate(figures: Mapping[str, Any]) -> None:
    """Raise GateError where labels agree with full precision on less than 98 % of the maps, or where the
    layers' error or the KL divergence is no better than round-to-nearest's."""
    if not figures["label_agreement"] >= AGREEMENT:
        raise GateError(
            f"labels agree with full precision on {figures['label_agreement']:.1%} of {figures['maps']} "
            f"held-out maps, less than {AGREEMENT:.0%}; use more bits, smaller groups or more maps"
        )
    for key, what in (("layer_error", "mean layer error"), ("kl", "KL divergence of the label distribution")):
        if not figures[key] < figures[f"{key}_nearest"]:
            raise GateError(
                f"the {what}, {figures[key]:.2g}, is not below round-to-nearest's "
                f"{figures[f'{key}_nearest']:.2g}; calibrate on more maps"
            )
