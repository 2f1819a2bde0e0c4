"""Training on a multi-label task: the answers about all classes of a map in one pass.

After the prompt stand the answers, one for each class, as branches: each sees the prompt and itself and
counts its positions on from the prompt, so that it is learned as if it stood in a conversation of its own.
Only what follows the question about a class, yes or no and the end of the turn, carries a label for the loss.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.batches import IGNORED, Batch, Collator, Example, Order, tokenize_turn
from train.encoding import prompt_text
from train.loading import Checkpoint
from wafervlm.answers import chosen, classes_of, log_odds, truth_of
from wafervlm.errors import TaskError
from wafervlm.render import render
from wafervlm.task import Task

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Branches:
    """One conversation: ``ids`` (T,) of the prompt and then of all branches; ``labels`` (T,), IGNORED where
    nothing is learned; ``branch`` (T,), the number of each token's branch, -1 in the prompt; ``steps`` (T,),
    how far a token of a branch is from the prompt's last, 0 in the prompt."""

    ids: torch.Tensor
    labels: torch.Tensor
    branch: torch.Tensor
    steps: torch.Tensor

    @property
    def hidden(self) -> torch.Tensor:
        """(T, T) bool: what a token does not see."""
        own = self.branch[:, None] == self.branch
        return ~((own | (self.branch == -1)) & torch.ones_like(own).tril())


def lay_out(processor: Any, task: Task, label: str, *, max_length: int) -> Branches:
    """The branches of a map whose classes ``label`` names. Raises TaskError as ``tokenize_turn`` does, and
    where the question about a class merges with the answer."""
    present = classes_of(task, label)
    ids: list[int] = []
    labels: list[int] = []
    branch: list[int] = []
    steps: list[int] = []
    for number, name in enumerate(task.labels):
        answer = task.answer(name, name in present)
        turn, opening = tokenize_turn(processor, task, task.prompt, answer, max_length=max_length)
        question, answered = question_tokens(processor, task, name), list(turn[opening:])
        if answered[: len(question)] != question or not question:
            raise TaskError(
                f"the question about {name!r} of task {task.name!r} is no token of its own before the "
                "answer; change answer_prefix or answer_suffix"
            )
        if not ids:
            ids += turn[:opening]
            labels, branch, steps = [IGNORED] * opening, [-1] * opening, [0] * opening
        ids += answered
        labels += [IGNORED] * len(question) + answered[len(question) :]
        branch += [number] * len(answered)
        steps += range(1, len(answered) + 1)
    if len(ids) > max_length:
        raise TaskError(
            f"the {len(task.labels)} answers of task {task.name!r} make {len(ids)} tokens; raise "
            f"model.max_length, now {max_length}, or render smaller images"
        )
    return Branches(*(torch.tensor(values) for values in (ids, labels, branch, steps)))


def question_tokens(processor: Any, task: Task, label: str) -> list[int]:
    """The tokens of the answer that ask about ``label``, before yes or no."""
    tokenize = functools.partial(processor.tokenizer, add_special_tokens=False)
    text = prompt_text(processor, task)
    found: list[int] = tokenize(text + task.stem(label))["input_ids"][len(tokenize(text)["input_ids"]) :]
    return found


class BranchCollator(Collator):
    """A Collator of a multi-label task: rows ``{"position": k}`` become, besides what the model always takes,
    an additive attention_mask (B, 1, T, T) and position_ids (3, B, T)."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        task: Task,
        examples: Sequence[Example],
        order: Order,
        max_length: int,
        strong: int | None = None,
    ) -> None:
        super().__init__(checkpoint, task, examples, order, max_length, strong)
        self._network = checkpoint.network
        self._laid_out = functools.cache(
            functools.partial(lay_out, checkpoint.processor, task, max_length=max_length)
        )

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        positions = [int(row["position"]) for row in rows]
        images = [render(self._dies(position), self._task.render) for position in positions]
        laid = [self._laid_out(self._examples[self._order[position][0]].label) for position in positions]
        pixels = self._pixels(images)
        return {**self._branched(laid, pixels["image_grid_thw"]), **pixels}

    def answer_tokens(self) -> list[int]:
        """Ids, ascending, of the tokens of all questions about classes and their answers."""
        laid = [self._laid_out(label) for label in {example.label for example in self._examples}]
        return sorted({int(token) for one in laid for token in one.ids[one.branch >= 0]})

    def _branched(self, laid: Sequence[Branches], grids: torch.Tensor) -> Batch:
        length = max(len(one.ids) for one in laid)
        ids = torch.full((len(laid), length), self._pad)
        labels = torch.full((len(laid), length), IGNORED)
        steps = torch.zeros((len(laid), length), dtype=torch.long)
        # What fills a row up sees itself, or its attention would be over nothing.
        hidden = ~torch.eye(length, dtype=torch.bool).expand(len(laid), -1, -1).clone()
        for row, one in enumerate(laid):
            size = len(one.ids)
            ids[row, :size], labels[row, :size], steps[row, :size] = one.ids, one.labels, one.steps
            hidden[row, :size, :size] = one.hidden
        types = (ids == self._image_token).long()
        # Additive and finite in any type, as in train.scorer.
        mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float16).min)
        return {
            "input_ids": ids,
            "labels": labels,
            "mm_token_type_ids": types,
            "attention_mask": mask[:, None].to(self._network.dtype),
            "position_ids": self._positions(ids, types, steps, grids),
        }

    def _positions(
        self, ids: torch.Tensor, types: torch.Tensor, steps: torch.Tensor, grids: torch.Tensor
    ) -> torch.Tensor:
        """(3, B, T): the prompt's as the model computes them, then each branch counting on from it."""
        prompt = int((steps[0] == 0).int().cumprod(0).sum())
        asked, _ = self._network.model.get_rope_index(
            ids[:, :prompt], image_grid_thw=grids, mm_token_type_ids=types[:, :prompt]
        )
        after = asked.amax(dim=(0, 2))[:, None] + steps[:, prompt:]
        return torch.cat([asked, after.expand(3, -1, -1)], dim=2)


def judged_classes(task: Task, log_yes: Scores, labels: Sequence[str]) -> dict[str, float]:
    """tune_accuracy (the share of maps of which just the right classes are named), tune_recall (the mean over
    the classes that occur) and tune_loss (mean over the maps of the negative log-probability of all classes'
    answers) of log P(yes) (N, L) against ``labels`` (N)."""
    truth, answer = truth_of(task, labels), chosen(task, log_yes)
    occurring = truth.any(axis=0)
    recalls = (truth & answer).sum(axis=0)[occurring] / truth.sum(axis=0)[occurring]
    losses = np.logaddexp(0.0, np.where(truth, -1.0, 1.0) * log_odds(log_yes))
    return {
        "tune_accuracy": float((truth == answer).all(axis=1).mean()),
        "tune_recall": float(recalls.mean()) if len(recalls) else 1.0,
        "tune_loss": float(losses.sum(axis=1).mean()),
    }
