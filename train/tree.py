"""The label tree: all answers of a task as one tree of tokens.

An answer is encoded whole, as the model was trained to write it; what follows the prompt and the answer
prefix is the label and the token after it. Answers that begin alike share nodes. The score of a label is
the product, over the nodes on its path, of the probability of its branch among the branches of that node:
what sampling constrained to the labels would draw. A node with one branch has probability 1. The token
after a label is part of its path, so that a label which is the beginning of another is told from it.

Of a multi-label task each class has two answers, yes and no, and is asked about by itself: the tree holds
the beginnings of all these answers, and what is scored is the choice between the two, at the node where they
part. What a node sees is its own line alone, so each class is scored as if no other had been asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wafervlm.errors import TaskError
from wafervlm.task import Task


@dataclass(frozen=True, slots=True)
class Node:
    """An inner node: the ``token`` that leads to it (None at the root), its ``parent``'s index (-1 at the
    root), its ``depth`` (0 at the root) and the token ids of its ``branches``, among which is chosen; of a
    multi-label task only the nodes have any at which yes and no part."""

    token: int | None
    parent: int
    depth: int
    branches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelTree:
    """``sequences`` hold, per label in task order, the token ids of the label and of the token after it.
    ``nodes`` are the inner nodes that lie before the last choice, parents first; ``paths`` hold, per label,
    its (node index, branch index) steps, those with a single branch left out. ``prefix_ids`` are the token
    ids of the answer before the labels part. Of a multi-label task ``sequences`` are those of the answer yes,
    up to the token that says so, and ``denials`` those of the answer no."""

    labels: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    prefix_ids: tuple[int, ...]
    nodes: tuple[Node, ...]
    paths: tuple[tuple[tuple[int, int], ...], ...]
    denials: tuple[tuple[int, ...], ...] = ()

    def rivals(self, place: int) -> tuple[tuple[int, ...], ...]:
        """The sequences among which label number ``place`` is scored, its own among them."""
        return (self.sequences[place], self.denials[place]) if self.denials else self.sequences

    @property
    def fed(self) -> tuple[int, ...]:
        """Indices of the nodes whose token is fed to the model: all but the root."""
        return tuple(range(1, len(self.nodes)))

    def ancestors(self, index: int) -> tuple[int, ...]:
        """Indices of ``index`` and the nodes above it, the root left out, deepest first."""
        line = []
        while index > 0:
            line.append(index)
            index = self.nodes[index].parent
        return tuple(line)


def label_tree(tokenizer: Any, task: Task) -> LabelTree:
    """Build the tree of ``task`` with a Hugging Face ``tokenizer``.

    Raises TaskError where the first token of a label merges with the answer prefix, or where two labels
    cannot be told apart.
    """
    open_turn, end_turn = _turn(tokenizer, task)
    prefix = _ids(tokenizer, open_turn + task.answer_prefix)
    opening = len(_ids(tokenizer, open_turn))
    if task.multi_label:
        said, denied = _verdicts(tokenizer, task, open_turn, end_turn, prefix)
        nodes, paths = _grow_verdicts(said, denied)
        return LabelTree(task.labels, said, prefix[opening:], nodes, paths, denied)
    sequences = tuple(_sequence(tokenizer, task, label, open_turn, end_turn, prefix) for label in task.labels)
    _check_distinct(task, sequences)
    nodes, paths = _grow(sequences)
    return LabelTree(task.labels, sequences, prefix[opening:], nodes, paths)


def _turn(tokenizer: Any, task: Task) -> tuple[str, str]:
    """The conversation's text up to the answer, and what the template writes after an answer."""
    before = tokenizer.apply_chat_template(task.messages(), tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(task.messages(task.labels[0]), tokenize=False)
    answer = before + task.answer(task.labels[0])
    if not whole.startswith(answer):
        raise TaskError(
            "the chat template does not write the answer right after the prompt; use another template"
        )
    return before, whole[len(answer) :]


def _sequence(
    tokenizer: Any, task: Task, label: str, open_turn: str, end_turn: str, prefix: tuple[int, ...]
) -> tuple[int, ...]:
    whole = _whole(tokenizer, task, label, open_turn + task.answer(label) + end_turn, prefix)
    after = len(_ids(tokenizer, task.answer_suffix + end_turn))
    # The token after the label; where the label merges with what follows, the whole rest is the label's.
    stop = len(whole) - after + 1
    following = _ids(tokenizer, task.answer_suffix + end_turn)
    if whole[len(whole) - after :] != following:
        stop = len(whole)
    return whole[len(prefix) : stop]


def _whole(tokenizer: Any, task: Task, label: str, text: str, prefix: tuple[int, ...]) -> tuple[int, ...]:
    whole = _ids(tokenizer, text)
    if whole[: len(prefix)] != prefix:
        raise TaskError(
            f"label {label!r} merges with the text before it into one token; change answer_prefix of task "
            f"{task.name!r} so that it ends where a token ends"
        )
    return whole


Sequences = tuple[tuple[int, ...], ...]


def _verdicts(
    tokenizer: Any, task: Task, open_turn: str, end_turn: str, prefix: tuple[int, ...]
) -> tuple[Sequences, Sequences]:
    """Per class the tokens of the answers yes and no, each up to the first that the other has not."""
    said, denied = [], []
    for label in task.labels:
        texts = (open_turn + task.answer(label, shown) + end_turn for shown in (True, False))
        yes, no = (_whole(tokenizer, task, label, text, prefix)[len(prefix) :] for text in texts)
        question = _ids(tokenizer, open_turn + task.stem(label))[len(prefix) :]
        if yes[: len(question)] != question or no[: len(question)] != question:
            raise TaskError(
                f"the question about {label!r} of task {task.name!r} merges with the answer after it into "
                "one token; change answer_suffix so that it ends where a token ends"
            )
        parting = next(n for n, (one, other) in enumerate(zip(yes, no, strict=False)) if one != other)
        said.append(yes[: parting + 1])
        denied.append(no[: parting + 1])
    twice = next((n for n, sequence in enumerate(said) if sequence in said[:n]), None)
    if twice is not None:
        first = task.labels[said.index(said[twice])]
        raise TaskError(
            f"labels {first!r} and {task.labels[twice]!r} of task {task.name!r} cannot be told apart: they "
            "are the same tokens; spell one of them differently"
        )
    return tuple(said), tuple(denied)


def _grow_verdicts(
    said: Sequences, denied: Sequences
) -> tuple[tuple[Node, ...], tuple[tuple[tuple[int, int], ...], ...]]:
    choices = {yes[:-1]: (yes[-1], no[-1]) for yes, no in zip(said, denied, strict=True)}
    needed = {path[:n] for path in choices for n in range(len(path) + 1)}
    order = sorted(needed, key=lambda path: (len(path), path))
    index = {path: i for i, path in enumerate(order)}
    nodes = tuple(
        Node(path[-1] if path else None, index[path[:-1]] if path else -1, len(path), choices.get(path, ()))
        for path in order
    )
    return nodes, tuple(((index[yes[:-1]], 0),) for yes in said)


def _check_distinct(task: Task, sequences: tuple[tuple[int, ...], ...]) -> None:
    for one, first in enumerate(sequences):
        for other, second in enumerate(sequences):
            if one != other and second[: len(first)] == first:
                raise TaskError(
                    f"labels {task.labels[one]!r} and {task.labels[other]!r} of task {task.name!r} cannot be "
                    "told apart: as tokens one begins the other; spell one of them differently"
                )


def _grow(
    sequences: tuple[tuple[int, ...], ...],
) -> tuple[tuple[Node, ...], tuple[tuple[tuple[int, int], ...], ...]]:
    branches = _branches(sequences)
    # Below the last choice of a label nothing is left to be decided: such nodes are not fed.
    needed = {p[:n] for p, b in branches.items() if len(b) > 1 for n in range(len(p) + 1)}
    order = sorted(needed, key=lambda path: (len(path), path))
    index = {path: i for i, path in enumerate(order)}
    nodes = tuple(
        Node(path[-1] if path else None, index[path[:-1]] if path else -1, len(path), tuple(branches[path]))
        for path in order
    )
    paths = tuple(
        tuple(
            (index[s[:n]], branches[s[:n]].index(s[n]))
            for n in range(len(s))
            if s[:n] in index and len(branches[s[:n]]) > 1
        )
        for s in sequences
    )
    return nodes, paths


def _branches(sequences: tuple[tuple[int, ...], ...]) -> dict[tuple[int, ...], list[int]]:
    """Every proper beginning of a sequence, with the tokens that may follow it, in order of first use."""
    found: dict[tuple[int, ...], list[int]] = {}
    for sequence in sequences:
        for n, token in enumerate(sequence):
            tokens = found.setdefault(sequence[:n], [])
            if token not in tokens:
                tokens.append(token)
    return found


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
