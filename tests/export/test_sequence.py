"""The plan of the sequence against what transformers makes of the same tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.operators import HIDDEN
from export.sequence import Sequence, image_grid, plan_sequence
from export.weights import Weights
from tests.export.models import make_task, random_images
from train.encoding import encode
from train.loading import load_checkpoint
from train.tree import LabelTree, label_tree
from wafervlm.errors import TaskError
from wafervlm.render import RenderSpec
from wafervlm.task import Order, Task

TASK = make_task(("qa", "qb", "ring", "ring q"))


def planned(checkpoint: Path, task: Task) -> tuple[Sequence, LabelTree]:
    loaded = load_checkpoint(checkpoint)
    tree = label_tree(loaded.tokenizer, task)
    return plan_sequence(loaded.tokenizer, task, tree, loaded.model.config), tree


@pytest.mark.parametrize("order", ["text-first", "image-first"])
def test_tokens_and_positions_are_those_of_the_processor(
    rough: Path, family_task: Task, order: Order
) -> None:
    loaded = load_checkpoint(rough)
    task = replace(TASK, order=order, render=family_task.render)
    plan, tree = planned(rough, task)
    inputs = encode(loaded, task, random_images(1, task.render.height))
    ids = [*plan.before, *[loaded.model.config.image_token_id] * plan.image_tokens, *plan.after]
    prompt = inputs["input_ids"][0].tolist()
    assert ids[: len(prompt)] == prompt
    assert ids[len(prompt) : -len(tree.fed)] == list(tree.prefix_ids)
    expected, _ = loaded.model.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
    )
    np.testing.assert_array_equal(plan.positions[:, : len(prompt)], expected[:, 0].numpy())
    after = len(prompt) + len(tree.prefix_ids) - 1
    assert (np.diff(plan.positions[:, len(prompt) - 1 : after + 1]) == 1).all()
    depths = [tree.nodes[i].depth for i in tree.fed]
    np.testing.assert_array_equal(plan.positions[0, after + 1 :] - plan.positions[0, after], depths)


def test_a_node_sees_the_prompt_and_the_nodes_above_it(checkpoint: Path) -> None:
    plan, tree = planned(checkpoint, TASK)
    fixed, prompt = len(plan.before), plan.length - len(tree.fed)
    assert set(np.unique(plan.mask)) == {np.float32(HIDDEN), np.float32(0)}
    sees = plan.mask == 0
    assert sees[:, :fixed].all()
    np.testing.assert_array_equal(sees[:prompt, fixed:], np.tri(prompt, plan.length, dtype=bool))
    for row, node in enumerate(tree.fed, start=prompt):
        above = {prompt + tree.fed.index(i) for i in tree.ancestors(node)}
        assert set(np.flatnonzero(sees[row, fixed:])) == {*range(prompt), *above}
    assert len(tree.fed) > 2


def test_rows_are_the_branching_nodes(checkpoint: Path) -> None:
    plan, tree = planned(checkpoint, replace(TASK, order="image-first"))
    branching = [i for i, node in enumerate(tree.nodes) if len(node.branches) > 1]
    assert len(plan.rows) == len(branching) > 1
    tokens = {i: plan.after[row - plan.image_tokens] for i, row in zip(branching, plan.rows, strict=True)}
    assert all(tokens[i] == tree.nodes[i].token for i in branching if i)
    assert tokens[0] == tree.prefix_ids[-1]


def test_the_grid_must_be_whole(checkpoint: Path) -> None:
    config = Weights(checkpoint).config
    assert image_grid(TASK, config) == (1, 8, 8)
    with pytest.raises(TaskError, match="multiples of 16"):
        image_grid(replace(TASK, render=RenderSpec(64, 72)), config)


def test_a_prompt_without_an_image_is_refused(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    tree = label_tree(loaded.tokenizer, TASK)
    loaded.tokenizer.chat_template = loaded.tokenizer.chat_template.replace("<|image_pad|>", "")
    with pytest.raises(TaskError, match="exactly one image"):
        plan_sequence(loaded.tokenizer, TASK, tree, loaded.model.config)
