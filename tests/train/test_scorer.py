"""Label scores: the tree in one pass against each label in a pass of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from train.encoding import encode, prompt_text
from train.loading import Checkpoint, load_checkpoint
from train.scorer import TreePass, in_set_mass, label_log_probs, tree_log_probs
from train.tree import label_tree
from wafervlm.errors import TaskError, UsageError
from wafervlm.render import RgbImage, render
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap

LENGTHS: dict[str, Any] = {"labels": ("dies", "q", "qz", "x", "yes"), "spellings": {}, "answer_suffix": ""}
TASKS: dict[str, dict[str, Any]] = {
    "the recipe's sentence": {},
    "image first": {"order": "image-first"},
    "bare labels": {"answer_prefix": "", "answer_suffix": ""},
    "one, two and three tokens": LENGTHS,
    "one, two and three tokens, image first": {**LENGTHS, "order": "image-first"},
    "one label begins another": {
        "labels": ("ring", "ring arc", "ring arc two", "blob"),
        "spellings": {},
        "answer_suffix": "",
    },
    "single tokens": {"labels": ("ring", "rim"), "spellings": {}, "answer_suffix": " defect."},
    "all labels begin alike": {"labels": ("ring a", "ring b"), "spellings": {}, "answer_suffix": ""},
    "a system message": {"system": "Read wafer maps."},
}


@pytest.fixture(scope="module")
def checkpoint(family_checkpoint: Path) -> Checkpoint:
    return roughened(load_checkpoint(family_checkpoint))


@pytest.fixture(scope="module")
def pictures(synthetic_wafers: list[tuple[WaferMap, str]], family_task: Task) -> list[RgbImage]:
    return [render(wafer, family_task.render) for wafer, _ in synthetic_wafers[:5]]


def roughened(checkpoint: Checkpoint) -> Checkpoint:
    """The logits of an untrained model are nearly equal: make them differ."""
    generator = torch.Generator().manual_seed(0)
    for parameter in checkpoint.model.parameters():
        parameter.data += 0.15 * torch.randn(parameter.shape, generator=generator)
    return checkpoint


@pytest.mark.parametrize("name", TASKS)
def test_tree_equals_separate_passes(
    name: str, checkpoint: Checkpoint, family_task: Task, pictures: list[RgbImage]
) -> None:
    task = replace(family_task, **TASKS[name])
    reference = label_log_probs(checkpoint, task, pictures, batch_size=2)
    assert reference.dtype == np.float64
    assert reference.shape == (5, len(task.labels))
    assert reference.std(axis=0).max() > 0.01  # the image matters
    np.testing.assert_allclose(np.exp(reference).sum(axis=1), 1.0, atol=1e-6)
    tree = tree_log_probs(checkpoint, task, pictures, batch_size=3)
    np.testing.assert_allclose(tree, reference, atol=1e-5, rtol=0)


def test_the_tasks_cover_labels_of_one_two_and_three_tokens(
    checkpoint: Checkpoint, family_task: Task
) -> None:
    tree = label_tree(checkpoint.tokenizer, replace(family_task, **LENGTHS))
    assert [len(sequence) - 1 for sequence in tree.sequences[:3]] == [1, 2, 3]
    assert tree.sequences[2][:2] == tree.sequences[1][:2]  # and one label begins another


def test_reference_is_the_constrained_probability_of_the_written_answer(
    checkpoint: Checkpoint, family_task: Task, pictures: list[RgbImage]
) -> None:
    """By hand, with the logits of the whole answer and the nodes of the tree."""
    tree = label_tree(checkpoint.tokenizer, family_task)
    scores = label_log_probs(checkpoint, family_task, pictures[:1])
    for row, label in enumerate(family_task.labels):
        inputs = encode(checkpoint, family_task, pictures[:1], [label])
        with torch.inference_mode():
            logits = checkpoint.model(**inputs).logits[0].double()
        ids = inputs["input_ids"][0].tolist()
        start = encode(checkpoint, family_task, pictures[:1])["input_ids"].shape[1] + len(tree.prefix_ids)
        assert ids[start : start + len(tree.sequences[row])] == list(tree.sequences[row])
        expected = 0.0
        for node, branch in tree.paths[row]:
            choice = logits[start - 1 + tree.nodes[node].depth, list(tree.nodes[node].branches)]
            expected += float(choice.log_softmax(-1)[branch])
        assert scores[0, row] == pytest.approx(expected, abs=1e-5)


def test_mass_is_what_the_whole_vocabulary_puts_on_the_labels(
    checkpoint: Checkpoint, family_task: Task, pictures: list[RgbImage]
) -> None:
    task = replace(family_task, labels=("q", "qz", "qx"), spellings={}, answer_suffix="")
    tree, expected = label_tree(checkpoint.tokenizer, task), np.zeros(len(pictures))
    for row, label in enumerate(task.labels):
        inputs = encode(checkpoint, task, pictures, [label] * len(pictures))
        start = encode(checkpoint, task, pictures)["input_ids"].shape[1] + len(tree.prefix_ids)
        with torch.inference_mode():
            whole = checkpoint.model(**inputs).logits.double().log_softmax(-1)
        # The labels part at their third token for the last time.
        steps = [whole[:, start - 1 + n, token] for n, token in enumerate(tree.sequences[row][:3])]
        expected += torch.stack(steps).sum(0).exp().numpy()
    mass = in_set_mass(checkpoint, task, pictures, batch_size=2)
    np.testing.assert_allclose(mass, expected, rtol=1e-4)
    assert ((mass > 0) & (mass < 0.5)).all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_mask_holds_in_both_attentions(
    implementation: str, family_checkpoint: Path, family_task: Task, pictures: list[RgbImage]
) -> None:
    loaded = roughened(load_checkpoint(family_checkpoint))
    reference = label_log_probs(loaded, family_task, pictures)
    loaded.model.set_attn_implementation(implementation)
    np.testing.assert_allclose(tree_log_probs(loaded, family_task, pictures), reference, atol=1e-5, rtol=0)


def drop_branches(plan: TreePass) -> TreePass:
    causal = torch.ones(plan.mask.shape[-2:], dtype=torch.bool).tril()
    return replace(plan, mask=plan.mask.masked_fill(causal, 0.0))


def shift_nodes(plan: TreePass) -> TreePass:
    positions = plan.positions.clone()
    positions[..., plan.rows[1] :] += 1
    return replace(plan, positions=positions)


def flatten_positions(plan: TreePass) -> TreePass:
    return replace(plan, positions=torch.arange(plan.positions.shape[-1]).expand(3, 1, -1))


@pytest.mark.parametrize("damage", [drop_branches, shift_nodes, flatten_positions])
def test_a_wrong_mask_or_position_would_show(
    damage: Callable[[TreePass], TreePass],
    checkpoint: Checkpoint,
    family_task: Task,
    pictures: list[RgbImage],
) -> None:
    reference = label_log_probs(checkpoint, family_task, pictures)
    plan = damage(TreePass.of(checkpoint, family_task))
    found = plan.score(checkpoint, encode(checkpoint, family_task, pictures))
    assert np.abs(found - reference).max() > 1e-3


def test_bfloat16_stays_near(family_checkpoint: Path, family_task: Task, pictures: list[RgbImage]) -> None:
    half = load_checkpoint(family_checkpoint, dtype="bfloat16")
    reference = label_log_probs(load_checkpoint(family_checkpoint), family_task, pictures)
    found = tree_log_probs(half, family_task, pictures)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, reference, atol=0.05)


def test_scoring_while_training_changes_nothing(
    family_checkpoint: Path, family_task: Task, pictures: list[RgbImage]
) -> None:
    """Dropout is off while scoring and on again afterwards; autocast can go on to a backward pass."""
    loaded = load_checkpoint(family_checkpoint)
    wrapped = get_peft_model(
        loaded.model,
        LoraConfig(r=2, lora_dropout=0.5, target_modules=loaded.family.lora_targets(vision=False)),
    ).train()
    adapted = replace(loaded, model=wrapped)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    inputs = encode(adapted, family_task, pictures[:1], ["Loc"])
    with torch.autocast("cpu", torch.bfloat16):
        first, again = (tree_log_probs(adapted, family_task, pictures) for _ in range(2))
        wrapped(**inputs, labels=inputs["input_ids"]).loss.backward()
    np.testing.assert_array_equal(first, again)
    assert wrapped.training
    np.testing.assert_allclose(first, label_log_probs(adapted, family_task, pictures), atol=0.1)


def test_prompt_and_answer_are_the_templates(checkpoint: Checkpoint, family_task: Task) -> None:
    whole = checkpoint.tokenizer.apply_chat_template(family_task.messages("Donut"), tokenize=False)
    assert whole.startswith(prompt_text(checkpoint.processor, family_task, "Donut"))


def test_no_image_is_an_error(checkpoint: Checkpoint, family_task: Task) -> None:
    for score in (label_log_probs, tree_log_probs, in_set_mass):
        with pytest.raises(UsageError, match="no image"):
            score(checkpoint, family_task, [])


def test_inputs_of_another_task_are_refused(
    checkpoint: Checkpoint, family_task: Task, pictures: list[RgbImage]
) -> None:
    other = encode(checkpoint, replace(family_task, prompt="What is it?"), pictures)
    with pytest.raises(TaskError, match="not the one that this tree was laid out for"):
        TreePass.of(checkpoint, family_task).score(checkpoint, other)


def test_a_prefix_that_merges_with_the_prompt_is_refused(family_checkpoint: Path, family_task: Task) -> None:
    """ "assistant" and a line end, then a prefix that begins with a line end: "\\n\\n" is one token here."""
    loaded = load_checkpoint(family_checkpoint)
    loaded.tokenizer.add_tokens(["\n\n"])
    with pytest.raises(TaskError, match="change its beginning"):
        TreePass.of(loaded, replace(family_task, answer_prefix="\nIt is"))
