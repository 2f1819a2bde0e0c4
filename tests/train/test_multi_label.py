"""A multi-label task: every class in one pass, as if it alone were asked about."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import SIDES
from tests.multi_label import multi_task
from tests.train.test_scorer import roughened
from train.encoding import encode_texts, prompt_text
from train.loading import Checkpoint, load_checkpoint
from train.scorer import in_set_mass, label_log_probs, tree_log_probs
from train.tree import label_tree
from wafervlm.errors import TaskError
from wafervlm.render import RgbImage, render
from wafervlm.task import NO, YES, Message, Task
from wafervlm.wafermap import WaferMap

FORMS: dict[str, dict[str, object]] = {
    "a class and a colon": {},
    "image first": {"order": "image-first"},
    "a whole question": {"answer_prefix": "Is there a", "answer_suffix": " on this wafer?"},
    "a system message": {"system": "Read wafer maps."},
    "one class begins another": {"labels": ("ring", "ring arc", "ring: yes"), "answer_suffix": ""},
}


@pytest.fixture(scope="module")
def checkpoint(family_checkpoint: Path) -> Checkpoint:
    return roughened(load_checkpoint(family_checkpoint))


@pytest.fixture(scope="module")
def pictures(synthetic_wafers: list[tuple[WaferMap, str]], family_task: Task) -> list[RgbImage]:
    return [render(wafer, family_task.render) for wafer, _ in synthetic_wafers[:4]]


def asked_alone(checkpoint: Checkpoint, task: Task, label: str, picture: RgbImage) -> float:
    """log P(yes) against no by plain transformers: the conversation up to the question about ``label``, and
    the next token's logits at the first token that yes and no do not share."""
    text = prompt_text(checkpoint.processor, task) + task.stem(label)
    ids = [checkpoint.tokenizer(text + answer, add_special_tokens=False)["input_ids"] for answer in (YES, NO)]
    at = next(n for n, (yes, no) in enumerate(zip(*ids, strict=False)) if yes != no)
    shared = checkpoint.tokenizer.decode(ids[0][:at])
    with torch.no_grad():
        logits = checkpoint.model(**encode_texts(checkpoint, [shared], [picture])).logits[0, -1]
    return float(logits.double()[[ids[0][at], ids[1][at]]].log_softmax(0)[0])


@pytest.mark.parametrize("form", FORMS)
def test_one_pass_is_each_class_asked_alone(
    form: str, family: str, checkpoint: Checkpoint, pictures: list[RgbImage]
) -> None:
    task = multi_task(SIDES[family], **FORMS[form])
    together = tree_log_probs(checkpoint, task, pictures, batch_size=3)
    alone = [[asked_alone(checkpoint, task, label, p) for label in task.labels] for p in pictures]
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    np.testing.assert_allclose(label_log_probs(checkpoint, task, pictures), alone, atol=1e-5, rtol=0)
    assert together.std(axis=0).max() > 0.01  # the image matters
    assert np.abs(np.exp(together).sum(axis=1) - 1).min() > 0.01  # and nothing makes the classes share


def test_a_class_does_not_depend_on_the_others(
    family: str, checkpoint: Checkpoint, pictures: list[RgbImage]
) -> None:
    task = multi_task(SIDES[family])
    fewer = multi_task(SIDES[family], labels=("Scratch", "Center"))
    whole = tree_log_probs(checkpoint, task, pictures)
    np.testing.assert_allclose(tree_log_probs(checkpoint, fewer, pictures), whole[:, [3, 0]], atol=1e-5)


def test_the_mass_is_that_of_yes_and_no(
    family: str, checkpoint: Checkpoint, pictures: list[RgbImage]
) -> None:
    task = multi_task(SIDES[family])
    mass = in_set_mass(checkpoint, task, pictures)
    expected = np.zeros(len(pictures))
    for label in task.labels:
        text = prompt_text(checkpoint.processor, task) + task.stem(label)
        with torch.no_grad():
            inputs = encode_texts(checkpoint, [text] * len(pictures), pictures)
            shares = checkpoint.model(**inputs).logits[:, -1].double().softmax(-1)
        first = [checkpoint.tokenizer(text + a)["input_ids"] for a in (YES, NO)]
        at = len(checkpoint.tokenizer(text)["input_ids"])
        expected += shares[:, [ids[at] for ids in first]].sum(-1).numpy() / len(task.labels)
    np.testing.assert_allclose(mass, expected, atol=1e-5)


def test_what_yes_and_no_share_is_not_chosen_among(checkpoint: Checkpoint, family: str) -> None:
    tree = label_tree(checkpoint.tokenizer, multi_task(SIDES[family]))
    assert sorted(len(node.branches) for node in tree.nodes if node.branches) == [2, 2, 2, 2]
    assert not tree.nodes[0].branches
    assert len(tree.nodes) < 1 + sum(len(sequence) for sequence in tree.sequences)  # Edge is asked once


class Lines:
    """A tokenizer whose every line is one token, the case of its letters left out."""

    def apply_chat_template(self, messages: list[Message], **_: object) -> str:
        turns = [part["text"] for part in messages[-1]["content"] if part["type"] == "text"]
        return "?\n" + (f"{turns[0]}\n" if messages[-1]["role"] == "assistant" else "")

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [zlib.crc32(line.lower().encode()) for line in text.splitlines(keepends=True)]}


def test_a_question_that_merges_with_its_answer_is_refused() -> None:
    with pytest.raises(TaskError, match="question about 'Center' of task 'mixed' merges with the answer"):
        label_tree(Lines(), multi_task(64))
    assert label_tree(Lines(), multi_task(64, answer_suffix=":\n")).denials


def test_classes_of_the_same_tokens_are_refused() -> None:
    spelled = multi_task(64, answer_suffix=":\n", spellings={"Center": "RING", "Scratch": "r\u0131ng"})
    assert label_tree(Lines(), spelled).denials
    with pytest.raises(TaskError, match="'Center' and 'Scratch' of task 'mixed' cannot be told apart"):
        label_tree(Same(), spelled)


class Same(Lines):
    """Lines that does not know a dotless i."""

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        return super().__call__(text.replace("\u0131", "i"), **options)
