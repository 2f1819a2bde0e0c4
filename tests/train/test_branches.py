"""Training on a multi-label task: all classes of a map at once is each in a conversation of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.conftest import SIDES
from tests.multi_label import multi_task
from tests.train.test_scorer import roughened
from train.batches import IGNORED, Order
from train.branches import BranchCollator, judged_classes
from train.dataset import Sample
from train.encoding import encode
from train.loading import Checkpoint, load_checkpoint
from train.samples import task_examples
from train.scorer import tree_log_probs
from wafervlm.answers import texts_of
from wafervlm.errors import TaskError
from wafervlm.render import render
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap

SHOWN = ("Center+Scratch", "none", "Edge-Loc+Edge-Ring+Scratch")


@pytest.fixture(scope="module")
def checkpoint(family_checkpoint: Path) -> Checkpoint:
    return roughened(load_checkpoint(family_checkpoint))


@pytest.fixture(scope="module")
def task(family: str) -> Task:
    return multi_task(SIDES[family])


@pytest.fixture(scope="module")
def samples(synthetic_wafers: list[tuple[WaferMap, str]]) -> list[Sample]:
    return [Sample(wafer, label) for (wafer, _), label in zip(synthetic_wafers, SHOWN, strict=False)]


def collator(checkpoint: Checkpoint, task: Task, samples: list[Sample], length: int = 4096) -> BranchCollator:
    order = Order([s.label for s in samples], [False] * len(samples), 0, balance=False)
    return BranchCollator(checkpoint, task, task_examples(samples, task), order, length)


def test_the_loss_is_that_of_each_class_asked_alone(
    checkpoint: Checkpoint, task: Task, samples: list[Sample]
) -> None:
    together = collator(checkpoint, task, samples)
    batch = together([{"position": k} for k in range(len(samples))])
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = checkpoint.model(**batch, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none")
    order = Order([s.label for s in samples], [False] * len(samples), 0, balance=False)
    for row in range(len(samples)):
        sample = samples[order[row][0]]
        alone = [asked_alone(checkpoint, task, sample, label) for label in task.labels]
        np.testing.assert_allclose(float(losses[row].sum()), sum(alone), atol=2e-4)
        assert int((labels[row] != IGNORED).sum()) == sum(answer_lengths(checkpoint, task, sample))


def asked_alone(checkpoint: Checkpoint, task: Task, sample: Sample, label: str) -> float:
    """Negative log-probability of yes or no and the end of the turn after the question about ``label``, by
    transformers on one ordinary conversation."""
    image, shown = render(sample.wafer, task.render), label in sample.label.split("+")
    inputs = encode(checkpoint, task, [image], [label], [shown])
    ids = inputs["input_ids"][0]
    answered = answer_length(checkpoint, task, label, shown)
    with torch.no_grad():
        logits = checkpoint.model(**inputs).logits[0, -answered - 1 : -1]
    return float(F.cross_entropy(logits, ids[-answered:], reduction="sum"))


def answer_lengths(checkpoint: Checkpoint, task: Task, sample: Sample) -> list[int]:
    present = sample.label.split("+")
    return [answer_length(checkpoint, task, label, label in present) for label in task.labels]


def answer_length(checkpoint: Checkpoint, task: Task, label: str, shown: bool) -> int:
    tokenizer = checkpoint.tokenizer
    question, whole = (tokenizer(t)["input_ids"] for t in (task.stem(label), task.answer(label, shown)))
    return len(whole) - len(question) + 1  # with the end of the turn


def test_answers_are_learned_and_questions_are_not(
    checkpoint: Checkpoint, task: Task, samples: list[Sample]
) -> None:
    found = collator(checkpoint, task, samples)
    batch = found([{"position": 0}])
    learned = batch["input_ids"][0][batch["labels"][0] != IGNORED]
    assert checkpoint.tokenizer.decode(learned).count(checkpoint.tokenizer.eos_token) == len(task.labels)
    assert "Center" not in checkpoint.tokenizer.decode(learned)
    tokens = checkpoint.tokenizer(" yes no Center:", add_special_tokens=False)["input_ids"]
    assert set(tokens[:3]) <= set(found.answer_tokens())


def test_the_judged_figures_are_those_of_transformers(
    checkpoint: Checkpoint, task: Task, samples: list[Sample]
) -> None:
    log_yes = tree_log_probs(checkpoint, task, [render(s.wafer, task.render) for s in samples])
    found = judged_classes(task, log_yes, SHOWN)
    yes = np.exp(log_yes)
    truth = np.array([[label in shown.split("+") for label in task.labels] for shown in SHOWN])
    assert found["tune_loss"] == pytest.approx(-np.log(np.where(truth, yes, 1 - yes)).sum(axis=1).mean())
    assert found["tune_accuracy"] == pytest.approx(np.mean([((yes > 0.5) == truth).all(axis=1)]))
    right = judged_classes(task, np.log(np.where(truth, 0.9, 0.1)), SHOWN)
    assert (right["tune_accuracy"], right["tune_recall"]) == (1.0, 1.0)


def test_what_is_too_long_or_no_answer_is_refused(
    checkpoint: Checkpoint, task: Task, samples: list[Sample]
) -> None:
    image = render(samples[0].wafer, task.render)
    longest = max(encode(checkpoint, task, [image], [label])["input_ids"].shape[1] for label in task.labels)
    with pytest.raises(TaskError, match="the 4 answers of task 'mixed' make"):
        collator(checkpoint, task, samples, length=longest)([{"position": 0}])
    assert texts_of(task, "Scratch") == ["Center: no", "Edge-Loc: no", "Edge-Ring: no", "Scratch: yes"]
    with pytest.raises(TaskError, match="'Dent' is not a label"):
        texts_of(task, "Center+Dent")
    with pytest.raises(TaskError, match="names a class of task 'mixed' twice"):
        texts_of(task, "Center+Center")
