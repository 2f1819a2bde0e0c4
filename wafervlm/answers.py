"""Answers: what label scores (..., L) say, of a task with one label an answer and of a multi-label task.

The scores of the first are log-probabilities of its labels, of which one is the answer. Those of the second
are log P(yes) of each class by itself, and the answer is the classes over a threshold. Only numpy is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.errors import TaskError
from wafervlm.prediction import set_confidence, softmax
from wafervlm.task import JOIN, NONE, Task

EVEN = 0.5
"""The threshold at which yes and no are equally likely; a temperature does not move it."""
# Below any P(no) that float32 scores can tell from 0; its logarithm stays finite.
_LEAST = 1e-38

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def classes_of(task: Task, answer: str) -> tuple[str, ...]:
    """The classes that ``answer`` names, in the task's order: one, or of a multi-label task any number, as
    "Center+Scratch" or "none" does. Raises TaskError for what is no answer of the task."""
    if task.multi_label and answer == NONE:
        return ()
    named = answer.split(JOIN) if task.multi_label else [answer]
    for label in named:
        if label not in task.labels:
            raise TaskError(f"{label!r} is not a label of task {task.name!r}: {', '.join(task.labels)}")
    if len(set(named)) < len(named):
        raise TaskError(f"{answer!r} names a class of task {task.name!r} twice")
    return tuple(label for label in task.labels if label in named)


def joined(classes: Iterable[str]) -> str:
    """The answer of a multi-label task that names ``classes``."""
    return JOIN.join(classes) or NONE


def texts_of(task: Task, answer: str) -> list[str]:
    """What a model writes to give ``answer``: one text, or of a multi-label task one about each class."""
    present = classes_of(task, answer)
    return [task.answer(name, name in present) for name in (task.labels if task.multi_label else present)]


def probabilities(task: Task, log_probs: NDArray[np.floating[Any]], temperature: float) -> Floats:
    """Probabilities (..., L): of the labels, which sum to 1, or of each class of a multi-label task."""
    if not task.multi_label:
        return softmax(log_probs, temperature)
    odds = log_odds(log_probs) / temperature
    # tanh saturates where exp would overflow.
    return np.asarray(0.5 * (1 + np.tanh(0.5 * odds)), dtype=np.float64)


def log_odds(log_yes: NDArray[np.floating[Any]]) -> Floats:
    """log P(yes) - log P(no) of ``log_yes``, of any shape: log P(yes), normalised against no alone."""
    yes = log_yes.astype(np.float64)
    return np.asarray(yes - np.log(np.maximum(-np.expm1(yes), _LEAST)), dtype=np.float64)


def are_scores(task: Task, scores: NDArray[np.floating[Any]]) -> bool:
    """Whether ``scores`` (B, L) can be such log-probabilities."""
    powers = np.exp(scores.astype(np.float64))
    if not np.isfinite(scores).all():
        return False
    # 1e-3 leaves room for float32 over hundreds of labels and for nothing else.
    excess = powers - 1 if task.multi_label else np.abs(powers.sum(axis=1) - 1)
    return not scores.size or float(excess.max()) <= 1e-3


def chosen(task: Task, scores: NDArray[np.floating[Any]]) -> Bools:
    """Which labels are the answer, (..., L): the best one, or of a multi-label task those whose yes is more
    likely than no."""
    if task.multi_label:
        return np.asarray(scores >= np.log(EVEN))
    return np.asarray(scores.argmax(axis=-1)[..., None] == np.arange(scores.shape[-1]))


def same(task: Task, one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> Bools:
    """Where two models' scores (..., L) give the same answer, (...)."""
    return np.asarray((chosen(task, one) == chosen(task, other)).all(axis=-1))


def truth_of(task: Task, labels: Sequence[str]) -> Bools:
    """Which classes each of ``labels`` (N) names, (N, L). Raises TaskError."""
    rows = [[name in classes_of(task, label) for name in task.labels] for label in labels]
    return np.array(rows, dtype=bool).reshape(-1, len(task.labels))


def strangers(task: Task, labels: Iterable[str]) -> list[str]:
    """Those of ``labels``, once each and sorted, that are no answer of ``task`` as the task writes it."""
    return [label for label in sorted(set(labels)) if written(task, label) != label]


def written(task: Task, label: str) -> str | None:
    """``label`` as ``task`` writes it ("edge-loc" is Edge-Loc; several classes stand in the task's order);
    None where it is none of its answers."""
    names = {name.lower(): name for name in task.labels}
    parts = label.split(JOIN) if task.multi_label else [label]
    named = JOIN.join(names.get(part.lower(), part) for part in parts)
    try:
        return joined(classes_of(task, named))
    except TaskError:
        return None


def answer_of(task: Task, row: Floats, threshold: float) -> dict[str, Any]:
    """The fields label, confidence and scores of a Prediction for the probabilities ``row`` (L,), and of a
    multi-label task its ``threshold``."""
    scores = dict(zip(task.labels, row.tolist(), strict=True))
    if not task.multi_label:
        best = int(row.argmax())
        return {"label": task.labels[best], "confidence": float(row[best]), "scores": scores}
    found = tuple(label for label, score in scores.items() if score >= threshold)
    sure = set_confidence(scores, found)
    return {"label": joined(found), "confidence": sure, "scores": scores, "threshold": threshold}
