"""Label scores: the tree in one pass against each label in a pass of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from train.loading import Checkpoint, encode, load_checkpoint, prompt_text
from train.scorer import in_set_mass, label_log_probs, tree_log_probs
from train.tree import label_tree
from wafervlm.errors import UsageError
from wafervlm.render import RgbImage, render
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    loaded = load_checkpoint(tiny_checkpoint)
    torch.manual_seed(0)
    for parameter in loaded.model.parameters():  # untrained logits are nearly equal: make them differ
        parameter.data += 0.15 * torch.randn_like(parameter)
    return loaded


@pytest.fixture(scope="module")
def pictures(synthetic_wafers: list[tuple[WaferMap, str]], tiny_task: Task) -> list[RgbImage]:
    return [render(wafer, tiny_task.render) for wafer, _ in synthetic_wafers[:5]]


TASKS = {
    "the recipe's sentence": {},
    "image first": {"order": "image-first"},
    "bare labels": {"answer_prefix": "", "answer_suffix": ""},
    "one label begins another": {
        "labels": ("ring", "ring arc", "ring arc two", "blob"), "spellings": {}, "answer_suffix": "",
    },
    "single tokens": {"labels": ("ring", "rim"), "spellings": {}, "answer_suffix": " defect."},
    "a system message": {"system": "Read wafer maps."},
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_tree_equals_separate_passes(
    name: str, checkpoint: Checkpoint, tiny_task: Task, pictures: list[RgbImage]
) -> None:
    task = replace(tiny_task, **TASKS[name])
    reference = label_log_probs(checkpoint, task, pictures, batch_size=2)
    assert reference.std() > 0.05
    np.testing.assert_allclose(tree_log_probs(checkpoint, task, pictures, batch_size=3), reference, atol=2e-5)
    np.testing.assert_allclose(np.exp(reference).sum(axis=1), 1.0, atol=1e-9)


def test_reference_equals_the_probability_of_the_written_answer(
    checkpoint: Checkpoint, tiny_task: Task, pictures: list[RgbImage]
) -> None:
    """With every branch of the vocabulary restricted by hand, token by token, on the encoded answer."""
    tree = label_tree(checkpoint.tokenizer, tiny_task)
    scores = label_log_probs(checkpoint, tiny_task, pictures[:1])
    for row, label in enumerate(tiny_task.labels):
        inputs = encode(checkpoint, tiny_task, pictures[:1], [label])
        with torch.inference_mode():
            logits = checkpoint.model(**inputs).logits[0].double()
        ids = inputs["input_ids"][0].tolist()
        start = len(encode(checkpoint, tiny_task, pictures[:1])["input_ids"][0]) + len(tree.prefix_ids)
        total, node = 0.0, 0
        for place, token in enumerate(tree.sequences[row], start=start):
            assert ids[place] == token
            if node is None:
                continue
            branches = list(tree.nodes[node].branches)
            total += float(logits[place - 1, branches].log_softmax(-1)[branches.index(token)])
            below = [i for i, n in enumerate(tree.nodes) if n.parent == node and n.token == token]
            node = below[0] if below else None
        assert scores[0, row] == pytest.approx(total, abs=1e-5)


def test_wrong_positions_would_show(
    checkpoint: Checkpoint, tiny_task: Task, pictures: list[RgbImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.scorer import TreePass

    reference = label_log_probs(checkpoint, tiny_task, pictures)
    right = TreePass._positions
    monkeypatch.setattr(
        TreePass, "_positions", lambda *a: right(*a) + torch.arange(right(*a).shape[2]) // 40 * 5
    )
    assert np.abs(tree_log_probs(checkpoint, tiny_task, pictures) - reference).max() > 1e-3


def test_mass_of_an_untrained_model_is_small(
    checkpoint: Checkpoint, tiny_task: Task, pictures: list[RgbImage]
) -> None:
    mass = in_set_mass(checkpoint, tiny_task, pictures)
    assert mass.shape == (5,)
    assert ((mass > 0) & (mass < 0.5)).all()


def test_prompt_and_answer_are_the_templates(checkpoint: Checkpoint, tiny_task: Task) -> None:
    whole = checkpoint.tokenizer.apply_chat_template(tiny_task.messages("Donut"), tokenize=False)
    assert whole.startswith(prompt_text(checkpoint.processor, tiny_task, "Donut"))


def test_no_image_is_an_error(checkpoint: Checkpoint, tiny_task: Task) -> None:
    with pytest.raises(UsageError, match="no image"):
        label_log_probs(checkpoint, tiny_task, [])
