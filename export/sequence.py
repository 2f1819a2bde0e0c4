"""Sequence: which tokens the graph computes, at which positions, and what each of them sees.

The whole answer is one sequence: fixed text, image, text after it with the answer's prefix, and the
inner nodes of the label tree. What stands before the image never changes, so it is not in the graph:
its keys and values are constants. A tree node sees the prompt and the nodes above it, no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig

from export.families import graph_family
from export.operators import HIDDEN
from train.tree import LabelTree
from wafervlm.errors import TaskError
from wafervlm.task import Task


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """``before`` and ``after``: token ids on both sides of the image (``after`` ends with the tree's fed
    nodes). ``positions`` (3, P + T) int64: temporal, height and width position of the P tokens before
    the image and the T that the graph computes. ``mask`` (T, P + T) float32: 0 where a token sees
    another, else -1e4. ``rows``: of the T tokens, those at which labels branch."""

    before: tuple[int, ...]
    image_tokens: int
    after: tuple[int, ...]
    positions: NDArray[np.int64]
    mask: NDArray[np.float32]
    rows: tuple[int, ...]

    @property
    def length(self) -> int:
        """T, the tokens that the graph computes."""
        return self.image_tokens + len(self.after)


def plan_sequence(tokenizer: Any, task: Task, tree: LabelTree, config: PretrainedConfig) -> Sequence:
    """Lay out the tokens of ``task``. Raises TaskError where the prompt has not exactly one image."""
    text = tokenizer.apply_chat_template(task.messages(), tokenize=False, add_generation_prompt=True)
    ids = list(tokenizer(text + task.answer_prefix, add_special_tokens=False)["input_ids"])
    if ids.count(config.image_token_id) != 1:
        raise TaskError("the chat template does not put exactly one image into the prompt of this task")
    place = ids.index(config.image_token_id)
    grid = image_grid(task, config)
    merge = config.vision_config.spatial_merge_size
    image_tokens = grid[1] * grid[2] // merge**2
    before, after = tuple(ids[:place]), tuple(ids[place + 1 :])
    fed = tuple(token for i in tree.fed if (token := tree.nodes[i].token) is not None)
    root = image_tokens + len(after) - 1
    row_of = {0: root} | {node: root + 1 + i for i, node in enumerate(tree.fed)}
    return Sequence(
        before=before,
        image_tokens=image_tokens,
        after=after + fed,
        positions=_positions(config, before, image_tokens, after, grid, tree),
        mask=_mask(len(before), root + 1, tree),
        rows=tuple(row_of[i] for i, node in enumerate(tree.nodes) if len(node.branches) > 1),
    )


def image_grid(task: Task, config: PretrainedConfig) -> tuple[int, int, int]:
    """Patches of one image as (frames, rows, columns). Raises TaskError where the size does not fit."""
    patch = config.vision_config.patch_size
    unit = patch * config.vision_config.spatial_merge_size
    height, width = task.render.height, task.render.width
    if height % unit or width % unit:
        raise TaskError(
            f"images of task {task.name!r} are {height}x{width} pixels; this model needs multiples of {unit}"
        )
    return 1, height // patch, width // patch


def _positions(
    config: PretrainedConfig,
    before: tuple[int, ...],
    image_tokens: int,
    after: tuple[int, ...],
    grid: tuple[int, int, int],
    tree: LabelTree,
) -> NDArray[np.int64]:
    """What transformers' own ``get_rope_index`` gives for the prompt, then the root's plus a node's depth."""
    with torch.device("meta"):
        model = graph_family(config).model(config)
    types = [0] * len(before) + [1] * image_tokens + [0] * len(after)
    positions, _ = model.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.long),
        mm_token_type_ids=torch.tensor([types]),
        image_grid_thw=torch.tensor([grid]),
    )
    prompt: NDArray[np.int64] = positions[:, 0].numpy()
    depths = np.array([tree.nodes[i].depth for i in tree.fed], dtype=np.int64)
    nodes = np.broadcast_to(prompt.max() + depths, (3, len(depths)))
    return np.concatenate([prompt, nodes], axis=1)


def _mask(fixed: int, prompt: int, tree: LabelTree) -> NDArray[np.float32]:
    """(T, P + T) for P ``fixed`` tokens, ``prompt`` computed ones and the tree's fed nodes."""
    row_of = {node: prompt + i for i, node in enumerate(tree.fed)}
    length = prompt + len(row_of)
    sees = np.zeros((length, length), dtype=bool)
    sees[:prompt, :prompt] = np.tri(prompt, dtype=bool)
    sees[prompt:, :prompt] = True
    for node, row in row_of.items():
        sees[row, [row_of[above] for above in tree.ancestors(node)]] = True
    whole = np.concatenate([np.ones((length, fixed), dtype=bool), sees], axis=1)
    return np.where(whole, np.float32(0), np.float32(HIDDEN))
