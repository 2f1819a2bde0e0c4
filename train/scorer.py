"""Label scores of a transformers model.

``label_log_probs`` is the reference for everything that scores labels: each label in a conversation of its
own. ``tree_log_probs`` gives the same numbers from one pass per image, all labels as a tree after the prompt.

A label's score is its probability as sampling constrained to the labels would draw it: token by token, the
logits are normalised over what some label goes on with. The mass that the full vocabulary puts on the labels
does not enter; ``in_set_mass`` measures it, as an alarm for a prompt that the model was not trained on.

Of a multi-label task the scores are log P(yes) of each class, normalised against no alone; the reference asks
about each class in a conversation of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.encoding import check_image_size, encode, encode_texts, prompt_text
from train.loading import Checkpoint
from train.progress import track
from train.tree import LabelTree, label_tree
from wafervlm.errors import TaskError, UsageError
from wafervlm.render import RgbImage
from wafervlm.task import Task

Scores = NDArray[np.float64]
Inputs = dict[str, torch.Tensor]
Sequences = Sequence[Sequence[int]]


def label_log_probs(
    checkpoint: Checkpoint, task: Task, images: Sequence[RgbImage], *, batch_size: int = 16
) -> Scores:
    """The reference: log-probabilities (N, L) float64 of the labels in task order, each label scored by a
    forward pass of its own over prompt, answer prefix and label tokens, with the model's own mask and
    positions. Rows sum to 1 in probability, but for a multi-label task. Raises TaskError, ImageError and,
    without images, UsageError."""
    tree = label_tree(checkpoint.tokenizer, task)
    opening = _opening(checkpoint, task, task.answer_prefix)["input_ids"][0].tolist()
    rows = []
    with _evaluating(checkpoint.model):
        for batch in _batches(images, batch_size):
            columns = []
            for place, (label, sequence) in enumerate(zip(task.labels, tree.sequences, strict=True)):
                inputs = encode(checkpoint, task, batch, [label] * len(batch))
                logits = _predicting(checkpoint, inputs, opening, sequence)
                columns.append(_constrained(logits, sequence, tree.rivals(place)))
            rows.append(np.stack(columns, axis=1))
    return np.concatenate(rows)


def tree_log_probs(
    checkpoint: Checkpoint,
    task: Task,
    images: Sequence[RgbImage],
    *,
    batch_size: int = 16,
    progress: str = "",
) -> Scores:
    """The same (N, L) from one forward pass per image; ``progress`` is what to call it on stderr."""
    plan, batches = TreePass.of(checkpoint, task), _batches(images, batch_size)
    shown = track(batches, progress) if progress else batches
    return np.concatenate([plan.score(checkpoint, encode(checkpoint, task, batch)) for batch in shown])


def in_set_mass(
    checkpoint: Checkpoint, task: Task, images: Sequence[RgbImage], *, batch_size: int = 16
) -> Scores:
    """The probability (N,) float64 that unconstrained sampling goes on from the answer prefix to one of the
    labels, up to the last token at which labels part; of a multi-label task that it goes on from a class's
    question to yes or no, the mean over the classes. Near 1 for a model that was trained on this prompt; a
    low value is the alarm for a wrong one, which label scores hide."""
    plan = TreePass.of(checkpoint, task)
    batches = _batches(images, batch_size)
    return np.concatenate([plan.mass(checkpoint, encode(checkpoint, task, batch)) for batch in batches])


@dataclass(frozen=True, eq=False)
class TreePass:
    """All labels in one pass: after the prompt stand the answer prefix and the inner nodes of the ``tree``,
    each node seeing the prompt, the prefix and its own ancestors only.

    ``prompt`` (P,) are the token ids that ``encode`` gives for the task, ``added`` (A,) those after them;
    ``positions`` (3, 1, P + A) their rotary positions, ``mask`` (1, 1, P + A, P + A) what each does not see,
    ``rows`` (R,) where the nodes stand.
    """

    tree: LabelTree
    prompt: torch.Tensor
    added: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, checkpoint: Checkpoint, task: Task) -> TreePass:
        """The plan for ``task`` on ``checkpoint``. Raises TaskError."""
        tree = label_tree(checkpoint.tokenizer, task)
        inputs = _opening(checkpoint, task)
        prompt, device = inputs["input_ids"][0], checkpoint.device
        whole = _opening(checkpoint, task, task.answer_prefix)["input_ids"][0].tolist()
        if whole != prompt.tolist() + list(tree.prefix_ids):
            raise TaskError(
                f"answer_prefix of task {task.name!r} merges with the prompt before it; change its beginning"
            )
        fed = [token for i in tree.fed if (token := tree.nodes[i].token) is not None]
        root = len(whole) - 1
        return cls(
            tree=tree,
            prompt=prompt,
            added=torch.tensor([*tree.prefix_ids, *fed], dtype=torch.long, device=device),
            positions=_positions(checkpoint, inputs, tree),
            mask=_mask(root, tree).to(device=device, dtype=checkpoint.network.dtype),
            rows=torch.arange(len(tree.nodes), device=device) + root,
        )

    def score(self, checkpoint: Checkpoint, inputs: Inputs) -> Scores:
        """Label log-probabilities (B, L) for prompts that ``encode`` made for the task."""
        logits = self.logits(checkpoint, inputs).double()
        choices = {i: list(node.branches) for i, node in enumerate(self.tree.nodes) if node.branches}
        drawn = {i: logits[:, i, branches].log_softmax(-1) for i, branches in choices.items()}
        steps = [[drawn[node][:, branch] for node, branch in path] for path in self.tree.paths]
        scores: Scores = torch.stack([torch.stack(path).sum(0) for path in steps], dim=1).cpu().numpy()
        return scores

    def mass(self, checkpoint: Checkpoint, inputs: Inputs) -> Scores:
        """The probability (B,) of all labels together in the whole vocabulary."""
        whole = self.logits(checkpoint, inputs).double().log_softmax(-1)
        if self.tree.denials:
            choices = [node for ((node, _),) in self.tree.paths]
            either = [whole[:, node, list(self.tree.nodes[node].branches)] for node in choices]
            mean: Scores = torch.stack(either).exp().sum(-1).mean(0).cpu().numpy()
            return mean
        labels = [
            torch.stack([whole[:, node, token] for node, token in _way(self.tree, sequence)]).sum(0)
            for sequence in self.tree.sequences
        ]
        total: Scores = torch.stack(labels).exp().sum(0).cpu().numpy()
        return total

    def logits(self, checkpoint: Checkpoint, inputs: Inputs) -> torch.Tensor:
        """Logits (B, R, vocabulary) at the nodes of the tree."""
        ids = inputs["input_ids"]
        if ids.shape[1] != len(self.prompt) or (ids != self.prompt).any():
            raise TaskError(
                "the prompt is not the one that this tree was laid out for; encode it for its task"
            )
        added = self.added.expand(len(ids), -1)
        with _evaluating(checkpoint.model):
            logits: torch.Tensor = checkpoint.model(
                input_ids=torch.cat([ids, added], dim=1),
                mm_token_type_ids=torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(added)], dim=1),
                attention_mask=self.mask.expand(len(ids), -1, -1, -1),
                position_ids=self.positions.expand(-1, len(ids), -1),
                pixel_values=inputs["pixel_values"],
                image_grid_thw=inputs["image_grid_thw"],
                logits_to_keep=self.rows,
                use_cache=False,
            ).logits
        return logits


def _positions(checkpoint: Checkpoint, prompt: Inputs, tree: LabelTree) -> torch.Tensor:
    """Rotary positions (3, 1, T): the prompt's as the model computes them, then counting on by depth."""
    asked, _ = checkpoint.network.model.get_rope_index(
        prompt["input_ids"],
        image_grid_thw=prompt["image_grid_thw"],
        mm_token_type_ids=prompt["mm_token_type_ids"],
    )
    prefix = len(tree.prefix_ids)
    steps = [*range(1, prefix + 1), *(prefix + tree.nodes[i].depth for i in tree.fed)]
    after = asked.max() + torch.tensor(steps, dtype=asked.dtype, device=asked.device)
    return torch.cat([asked, after.expand(3, 1, -1)], dim=2)


def _mask(root: int, tree: LabelTree) -> torch.Tensor:
    """Additive mask (1, 1, T, T) float32: causal up to the ``root``, then each node sees its own line only.

    It is additive because eager attention adds whatever it is given: a boolean mask is silently wrong.
    """
    length = root + len(tree.nodes)
    sees = torch.ones(length, length, dtype=torch.bool).tril()
    sees[root + 1 :, root + 1 :] = False
    for node in tree.fed:
        sees[root + node, [root + above for above in tree.ancestors(node)]] = True
    # The lowest number of the narrowest type, so that no cast makes it infinite.
    return torch.zeros(1, 1, length, length).masked_fill(~sees, torch.finfo(torch.float16).min)


def _way(tree: LabelTree, sequence: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The nodes that a label passes, each with the token it takes there; those with one branch too."""
    below = {(node.parent, node.token): index for index, node in enumerate(tree.nodes)}
    node: int | None = 0
    for token in sequence:
        if node is not None:
            yield node, token
            node = below.get((node, token))


def _predicting(
    checkpoint: Checkpoint, inputs: Inputs, opening: list[int], sequence: Sequence[int]
) -> torch.Tensor:
    """Logits (B, len(sequence), vocabulary) from which ``sequence`` is predicted after the ``opening``."""
    end = len(opening) + len(sequence)
    if inputs["input_ids"][0, :end].tolist() != opening + list(sequence):
        raise TaskError(
            "the answer as a whole is made of other tokens than its parts; change the task's answer"
        )
    cut = {key: inputs[key][:, :end] for key in ("input_ids", "attention_mask", "mm_token_type_ids")}
    logits: torch.Tensor = checkpoint.model(
        **{**inputs, **cut}, logits_to_keep=len(sequence) + 1, use_cache=False
    ).logits
    return logits[:, :-1]


def _constrained(logits: torch.Tensor, sequence: Sequence[int], sequences: Sequences) -> Scores:
    """Log-probability (B,) of ``sequence``: each token against those with which some of ``sequences`` goes on
    after the same beginning. ``logits`` are (B, len(sequence), vocabulary)."""
    total = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for n, token in enumerate(sequence):
        rivals = sorted({other[n] for other in sequences if other[:n] == sequence[:n] and len(other) > n})
        total += logits[:, n, rivals].double().log_softmax(-1)[:, rivals.index(token)]
    return np.asarray(total.cpu())


def _opening(checkpoint: Checkpoint, task: Task, prefix: str = "") -> Inputs:
    """Inputs for a blank image, up to where the answer begins, with the answer's ``prefix``."""
    check_image_size(checkpoint.processor, task.render.height, task.render.width)
    blank = np.zeros((task.render.height, task.render.width, 3), dtype=np.uint8)
    return encode_texts(checkpoint, [prompt_text(checkpoint.processor, task) + prefix], [blank])


def _batches(images: Sequence[RgbImage], size: int) -> list[Sequence[RgbImage]]:
    if not len(images):
        raise UsageError("there is no image to score")
    return [images[start : start + size] for start in range(0, len(images), size)]


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without gradients and dropout; the mode that the model was in comes back."""
    training = model.training
    model.eval()
    try:
        # Not inference_mode: what autocast keeps of the weights may be needed by a backward pass later.
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()
