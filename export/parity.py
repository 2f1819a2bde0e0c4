"""Parity: the graph's scores against those of transformers on the same weights, label by label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibrate.pack import load_quantized
from train.loading import Checkpoint, load_checkpoint
from train.scorer import label_log_probs
from wafervlm.answers import same
from wafervlm.bundle import Bundle
from wafervlm.errors import GateError
from wafervlm.render import RgbImage
from wafervlm.runtimes import open_runtime
from wafervlm.task import Task

GATE = 1e-3
DEPLOYED_AGREEMENT = 0.9
CHUNK = 16


def load_reference(checkpoint: Path, quantized: bool) -> Checkpoint:
    """The model whose scores are the truth: a quantized one with its weights multiplied out."""
    return load_quantized(checkpoint) if quantized else load_checkpoint(checkpoint)


def reference_scores(checkpoint: Checkpoint, task: Task, images: Sequence[RgbImage]) -> NDArray[np.float64]:
    """Label log-probabilities (N, L) of transformers, from a forward pass of its own for each label."""
    scores: NDArray[np.float64] = label_log_probs(checkpoint, task, images)
    return scores


def graph_scores(
    bundle: Bundle, images: Sequence[RgbImage], *, accuracy_level: int, threads: int | None = None
) -> NDArray[np.float32]:
    """Label log-probabilities (N, L) of a bundle's graph at ``accuracy_level``, as a station runs it."""
    runtime = open_runtime("onnx", bundle, threads=threads, accuracy_level=accuracy_level)
    try:
        parts = [runtime.run(np.stack(images[i : i + CHUNK])) for i in range(0, len(images), CHUNK)]
    finally:
        runtime.close()
    return np.concatenate(parts)


def check_parity(graph: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """The largest difference; raises GateError where it is above 1e-3 or either is not finite."""
    difference = float(np.abs(graph.astype(np.float64) - reference).max())
    if not difference <= GATE:
        raise GateError(
            f"the graph's label log-probabilities are {difference:.2g} off those of transformers on the same "
            f"weights, and {GATE:g} is allowed; nothing was written. Report it with its config.json"
        )
    return difference


def check_deployed(
    graph: NDArray[np.floating], reference: NDArray[np.floating], task: Task | None = None
) -> float:
    """The largest difference of a graph that computes in integers; raises GateError where it is not finite
    or labels agree on fewer than nine maps in ten, those of ``task`` where it is given; of few maps one may
    differ all the same, a near tie."""
    difference = float(np.abs(graph.astype(np.float64) - reference).max())
    agrees = same(task, graph, reference) if task else graph.argmax(axis=1) == reference.argmax(axis=1)
    agreement = float(agrees.mean())
    if not np.isfinite(difference) or (agreement < DEPLOYED_AGREEMENT and (~agrees).sum() > 1):
        raise GateError(
            f"as deployed, the graph gives the checkpoint's label on {agreement:.0%} of the golden maps, and "
            f"{DEPLOYED_AGREEMENT:.0%} is asked for; nothing was written. Export it with accuracy level 0 "
            "and the vision tower in float32"
        )
    return difference
