"""Label scores of a checkpoint: the reference, label by label, and the same from one forward per image.

A label's score is its probability among the labels as sampling constrained to them would draw it: the
logits at each node of the label tree are normalised over the branches of that node, and a label's value
is the sum of their logarithms along its path. The mass that the full vocabulary puts on the labels does
not enter the score; ``in_set_mass`` measures it, as an alarm for a prompt the model was not trained on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.batches import Pixels
from train.loading import Checkpoint, check_image, encode, encode_texts, prompt_text
from train.tree import LabelTree, label_tree
from wafervlm.errors import TaskError
from wafervlm.render import RgbImage
from wafervlm.task import Task

Scores = NDArray[np.float64]


def label_log_probs(
    checkpoint: Checkpoint, task: Task, images: Sequence[RgbImage], *, batch_size: int = 16
) -> Scores:
    """The reference: log-probability of every label for every image, (N, L) float64 in task order.

    Each label is a conversation of its own through the unmodified model, with the model's own mask and
    positions; only the normalisation is ours. Raises TaskError and ImageError.
    """
    sequences = label_tree(checkpoint.tokenizer, task).sequences
    scores = np.zeros((len(images), len(sequences)))
    with _evaluating(checkpoint.model):
        prompt = _prompt_ids(checkpoint, task).shape[1]
        for chosen in _batches(len(images), batch_size):
            for column, label in enumerate(task.labels):
                inputs = encode(checkpoint, task, images[chosen], [label] * len(images[chosen]))
                logits = _sequence_logits(checkpoint, inputs, prompt, sequences[column])
                scores[chosen, column] = _constrained(logits, sequences[column], sequences)
    return scores


def tree_log_probs(
    checkpoint: Checkpoint, task: Task, images: Sequence[RgbImage], *, batch_size: int = 16
) -> Scores:
    """The same as ``label_log_probs`` from one forward pass per image, (N, L) float64: the labels follow
    the prompt as a tree of tokens, each of which sees the prompt and its own line of ancestors."""
    return tree_scores(checkpoint, task, images, batch_size=batch_size)[0]


def in_set_mass(
    checkpoint: Checkpoint, task: Task, images: Sequence[RgbImage], *, batch_size: int = 16
) -> Scores:
    """The probability, (N,) float64, that unconstrained sampling writes one of the labels after the answer
    prefix, up to the last token at which labels part. A model gives almost 1 to the prompt it was trained
    on; a low value says that prompt, template and model do not belong together."""
    return tree_scores(checkpoint, task, images, batch_size=batch_size)[1]


def tree_scores(
    checkpoint: Checkpoint, task: Task, images: Sequence[RgbImage], *, batch_size: int = 16
) -> tuple[Scores, Scores]:
    """What ``tree_log_probs`` (N, L) and ``in_set_mass`` (N,) return, from the same forward passes."""
    tree = label_tree(checkpoint.tokenizer, task)
    scores, mass = np.zeros((len(images), len(tree.labels))), np.zeros(len(images))
    with _evaluating(checkpoint.model):
        layout = _lay_out(checkpoint, task, tree)
        pixels = Pixels(checkpoint.processor, task.render)
        for chosen in _batches(len(images), batch_size):
            logits = _tree_logits(checkpoint, layout, pixels([check_image(i, task) for i in images[chosen]]))
            scores[chosen], mass[chosen] = _walk(tree, logits)
    return scores, mass


@dataclass(frozen=True, eq=False)
class _Layout:
    """Prompt and tree as the model takes them: ``ids`` and image ``types`` (1, T), ``positions`` (3, 1, T),
    the additive ``mask`` (1, 1, T, T), and the ``rows`` (R,) at which the nodes of the tree stand."""

    ids: torch.Tensor
    types: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor


def _lay_out(checkpoint: Checkpoint, task: Task, tree: LabelTree) -> _Layout:
    inputs = _prompt_inputs(checkpoint, task)
    device, prompt = checkpoint.device, inputs["input_ids"].shape[1]
    fed = torch.tensor([[tree.nodes[i].token for i in tree.fed]], dtype=torch.long, device=device)
    depths = torch.tensor([tree.nodes[i].depth for i in tree.fed], dtype=torch.long, device=device)
    positions, _ = checkpoint.network.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
    )
    # The root is the last token of the prompt, so a node's depth counts from the prompt's last position.
    nodes = (positions.max() + depths).expand(3, 1, -1)
    return _Layout(
        ids=torch.cat([inputs["input_ids"], fed], dim=1),
        types=torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(fed)], dim=1),
        positions=torch.cat([positions, nodes], dim=2),
        mask=_mask(prompt, tree).to(device=device, dtype=checkpoint.network.dtype),
        rows=torch.arange(len(tree.nodes), device=device) + prompt - 1,
    )


def _mask(prompt: int, tree: LabelTree) -> torch.Tensor:
    """(1, 1, T, T) float32, 0 where a token sees another, else the lowest number. It is additive because
    eager attention adds a boolean mask to its scores, in silence."""
    sees = torch.ones(prompt + len(tree.fed), prompt + len(tree.fed), dtype=torch.bool).tril()
    sees[prompt:, prompt:] = False
    for node in tree.fed:
        sees[prompt - 1 + node, [prompt - 1 + above for above in tree.ancestors(node)]] = True
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.bfloat16).min)[None, None]


def _tree_logits(checkpoint: Checkpoint, layout: _Layout, pixels: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (B, R, vocabulary) at the nodes of the tree."""
    count = len(pixels["image_grid_thw"])
    logits: torch.Tensor = checkpoint.model(
        input_ids=layout.ids.expand(count, -1),
        mm_token_type_ids=layout.types.expand(count, -1),
        position_ids=layout.positions.expand(-1, count, -1),
        attention_mask=layout.mask.expand(count, -1, -1, -1),
        logits_to_keep=layout.rows,
        use_cache=False,
        **{key: value.to(checkpoint.device) for key, value in pixels.items()},
    ).logits
    return logits


def _walk(tree: LabelTree, logits: torch.Tensor) -> tuple[Scores, Scores]:
    """Log-probabilities (B, L) over the labels and the mass (B,) of all labels, from logits at the nodes."""
    whole = logits.double().log_softmax(-1)  # (B, R, vocabulary)
    columns, masses = [], []
    for sequence in tree.sequences:
        among, of_all = whole.new_zeros(len(whole)), whole.new_zeros(len(whole))
        for node, token in _steps(tree, sequence):
            branches = list(tree.nodes[node].branches)
            of_all += whole[:, node, token]
            among += whole[:, node, token] - whole[:, node, branches].logsumexp(-1)
        columns.append(among)
        masses.append(of_all)
    return torch.stack(columns, 1).cpu().numpy(), torch.stack(masses, 1).exp().sum(1).cpu().numpy()


def _steps(tree: LabelTree, sequence: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The nodes on the way of a label, from the root to the last at which it parts from another, each with
    the token that follows it."""
    children = {(node.parent, node.token): index for index, node in enumerate(tree.nodes)}
    node: int | None = 0
    for token in sequence:
        if node is None:
            return
        yield node, token
        node = children.get((node, token))


def _sequence_logits(
    checkpoint: Checkpoint, inputs: dict[str, Any], prompt: int, sequence: Sequence[int]
) -> torch.Tensor:
    """Logits (B, len(sequence), vocabulary) that predict ``sequence`` after ``prompt`` tokens."""
    end = prompt + len(sequence)
    if inputs["input_ids"][0, prompt:end].tolist() != list(sequence):
        raise TaskError(
            "the processor writes an answer in other tokens than the tokenizer; use another template"
        )
    cut = {key: inputs[key][:, :end] for key in ("input_ids", "attention_mask", "mm_token_type_ids")}
    logits: torch.Tensor = checkpoint.model(
        **{**inputs, **cut}, logits_to_keep=len(sequence) + 1, use_cache=False
    ).logits
    return logits[:, :-1]


def _constrained(
    logits: torch.Tensor, sequence: Sequence[int], all_sequences: Sequence[Sequence[int]]
) -> Scores:
    """Log-probability (B,) of ``sequence`` among ``all_sequences``: at each token those are counted that
    some sequence with the same beginning goes on with."""
    total = torch.zeros(len(logits), dtype=torch.float64)
    for n, token in enumerate(sequence):
        rivals = sorted({s[n] for s in all_sequences if tuple(s[:n]) == tuple(sequence[:n]) and len(s) > n})
        drawn = logits[:, n, rivals].double().log_softmax(-1)
        total += drawn[:, rivals.index(token)].cpu()
    return total.numpy()


def _prompt_ids(checkpoint: Checkpoint, task: Task) -> torch.Tensor:
    return _prompt_inputs(checkpoint, task)["input_ids"]


def _prompt_inputs(checkpoint: Checkpoint, task: Task) -> dict[str, torch.Tensor]:
    """Inputs for a blank image up to where labels part: the prompt and the answer prefix, as one text."""
    blank = np.zeros((task.render.height, task.render.width, 3), dtype=np.uint8)
    text = prompt_text(checkpoint.processor, task) + task.answer_prefix
    return encode_texts(checkpoint, [text], [blank])


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without gradients and dropout; the mode that the model was in comes back."""
    training = model.training
    model.eval()
    try:
        # Not inference_mode: autocast may keep what it casts here for a backward pass later.
        with torch.no_grad():
            yield
    finally:
        model.train(training)
