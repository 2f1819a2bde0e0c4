"""Order, augmentation and tensors of training batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from train.batches import IGNORED, Collator, Example, Order, Pixels, names_direction, tokenize_turn
from train.encoding import encode
from train.loading import Checkpoint, load_checkpoint, load_processor
from train.wording import Wording
from wafervlm.errors import DatasetError, TaskError
from wafervlm.render import RenderSpec, render
from wafervlm.task import RECIPE_CONTEXT, WAFER_DEFECTS as TASK, Task
from wafervlm.wafermap import DieGrid, WaferMap

Pairs = list[tuple[WaferMap, str]]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def family_model(family_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(family_checkpoint)


def examples_of(pairs: Pairs, task: Task) -> list[Example]:
    return [Example(wafer, label, task.prompt, task.answer(label)) for wafer, label in pairs]


def collator(checkpoint: Checkpoint, task: Task, examples: list[Example], turn: bool = True) -> Collator:
    order = Order([e.label for e in examples], [turn] * len(examples), seed=4, balance=True)
    return Collator(checkpoint, task, examples, order, max_length=4096)


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"position": first + k} for k in range(count)]


# Order


@settings(max_examples=40)
@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=40), st.integers(0, 99))
def test_balanced_order_shows_every_class_equally_and_every_map_in_turn(labels: list[str], seed: int) -> None:
    order = Order(labels, [True] * len(labels), seed, balance=True)
    classes, widest = len(set(labels)), max(Counter(labels).values())
    drawn = [order[k][0] for k in range(classes * widest)]
    for block in range(widest):
        shown = [labels[i] for i in drawn[block * classes : (block + 1) * classes]]
        assert sorted(shown) == sorted(set(labels))
    for label in set(labels):
        members = [i for i, other in enumerate(labels) if other == label]
        shown = [i for i in drawn if labels[i] == label]
        # Whole shuffles: counts differ by one at most.
        assert max(shown.count(i) for i in members) - min(shown.count(i) for i in members) <= 1


def test_natural_order_shows_each_map_once_per_round() -> None:
    labels = ["a"] * 9 + ["b"]
    order = Order(labels, [True] * 10, seed=0, balance=False)
    for first in (0, 10, 20):
        assert sorted(order[first + k][0] for k in range(10)) == list(range(10))


def test_a_position_is_the_same_whatever_came_before() -> None:
    labels = list("aabbbc") * 5
    whole = Order(labels, [True] * 30, seed=3, balance=True)
    drawn = [whole[k] for k in range(400)]
    resumed = Order(labels, [True] * 30, seed=3, balance=True)
    assert [resumed[k] for k in range(250, 400)] == drawn[250:]
    other = Order(labels, [True] * 30, seed=4, balance=True)
    assert [other[k] for k in range(400)] != drawn


def test_all_symmetries_come_and_none_where_it_would_lie() -> None:
    order = Order(["a", "b"], [True, False], seed=0, balance=True)
    drawn = [order[k] for k in range(400)]
    assert {turn for index, turn in drawn if index == 0} == set(range(8))
    assert {turn for index, turn in drawn if index == 1} == {0}


def test_no_maps_are_refused() -> None:
    with pytest.raises(DatasetError, match="no map"):
        Order([], [], seed=0, balance=True)


# Directions


@pytest.mark.parametrize(
    "text",
    [
        "The cluster is at 3 o'clock.",
        "failing dies in the upper-left quadrant",
        "a band at the top",
        "Lower right",
        "row 3, column 4.",
        "clock position 11",
        "a vertical line",
        "in the NORTH-EAST",
    ],
)
def test_direction_is_found(text: str) -> None:
    assert names_direction(text)


@pytest.mark.parametrize("label", TASK.labels)
def test_the_nine_classes_name_no_direction(label: str) -> None:
    example = Example(WaferMap(np.ones((3, 3), int)), label, TASK.prompt, TASK.answer(label))
    assert example.turns
    assert not replace(example, answer="It is in the upper half.").turns
    assert not replace(example, question="What fails at 6 o'clock?").turns


# Tensors


def test_tokens_and_pixels_equal_the_processors(
    family_model: Checkpoint, family_task: Task, synthetic_wafers: Pairs
) -> None:
    examples = examples_of(synthetic_wafers, family_task)
    make = collator(family_model, family_task, examples)
    order = Order([e.label for e in examples], [True] * len(examples), seed=4, balance=True)
    batch = make(rows(12, first=20))
    drawn = [order[20 + k] for k in range(12)]
    assert len({turn for _, turn in drawn}) > 3
    assert make._pixels.vectorised
    images = [render(examples[i].wafer.transformed(turn), family_task.render) for i, turn in drawn]
    exact = encode(family_model, family_task, images, [examples[i].label for i, _ in drawn])
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw"):
        assert torch.equal(batch[name], exact[name].long()), name
    torch.testing.assert_close(batch["pixel_values"], exact["pixel_values"], rtol=0, atol=1e-6)


def test_only_the_answer_and_its_end_are_learned(
    family_model: Checkpoint, family_task: Task, synthetic_wafers: Pairs
) -> None:
    examples = examples_of(synthetic_wafers, family_task)
    make = collator(family_model, family_task, examples, turn=False)
    order = Order([e.label for e in examples], [False] * len(examples), seed=4, balance=True)
    batch = make(rows(9))
    for k in range(9):
        learned = batch["labels"][k][batch["labels"][k] != IGNORED]
        answer = family_task.answer(examples[order[k][0]].label)
        assert family_model.tokenizer.decode(learned) == answer + family_model.tokenizer.eos_token


def test_equal_to_the_trainers_own_collation(
    checkpoint: Checkpoint, tiny_task: Task, synthetic_wafers: Pairs
) -> None:
    examples = examples_of(synthetic_wafers, tiny_task)
    batch = collator(checkpoint, tiny_task, examples, turn=False)(rows(4))
    order = Order([e.label for e in examples], [False] * len(examples), seed=4, balance=True)
    chosen = [examples[order[k][0]] for k in range(4)]
    theirs = DataCollatorForVisionLanguageModeling(checkpoint.processor, completion_only_loss=True)(
        [
            {
                "images": [Image.fromarray(render(example.wafer, tiny_task.render))],
                "prompt": tiny_task.messages(),
                "completion": tiny_task.messages(example.label)[-1:],
            }
            for example in chosen
        ]
    )
    newline = checkpoint.tokenizer("\n")["input_ids"]
    for k in range(4):
        # The template ends a turn with a line end, which their collation learns too.
        ours = batch["input_ids"][k][batch["attention_mask"][k] == 1].tolist()
        assert theirs["input_ids"][k][theirs["attention_mask"][k] == 1].tolist() == ours + newline
        learned = batch["labels"][k][batch["labels"][k] != IGNORED].tolist()
        assert theirs["labels"][k][theirs["labels"][k] != IGNORED].tolist() == learned + newline
    torch.testing.assert_close(batch["pixel_values"], theirs["pixel_values"], rtol=0, atol=1e-6)


def test_questions_of_different_length_are_padded(
    checkpoint: Checkpoint, tiny_task: Task, synthetic_wafers: Pairs
) -> None:
    wafer, _ = synthetic_wafers[0]
    examples = [
        Example(wafer, "a", RECIPE_CONTEXT + "Is it a scratch?", "No."),
        Example(wafer, "b", "What?", "The wafer map image indicates the presence of loc defect."),
    ]
    batch = collator(checkpoint, tiny_task, examples)(rows(2))
    lengths = batch["attention_mask"].sum(1)
    assert lengths[0] != lengths[1] and int(lengths.max()) == batch["input_ids"].shape[1]
    padding = batch["attention_mask"] == 0
    assert (batch["input_ids"][padding] == checkpoint.tokenizer.pad_token_id).all()
    assert (batch["labels"][padding] == IGNORED).all()


@pytest.mark.parametrize(
    ("mean", "normalise"), [([0.5, 0.5, 0.5], True), ([0.48, 0.46, 0.41], True), ([0.5, 0.5, 0.5], False)]
)
def test_pixels_equal_the_processor_whatever_its_normalisation(
    tiny_checkpoint: Path, mean: list[float], normalise: bool
) -> None:
    processor = load_processor(tiny_checkpoint)
    processor.image_processor.image_mean = mean
    processor.image_processor.do_normalize = normalise
    processor.image_processor.size = {"shortest_edge": 64 * 64, "longest_edge": 128 * 128}
    pixels = Pixels(processor, RenderSpec(64, 96))
    assert pixels.vectorised is normalise
    images = list(np.random.default_rng(1).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8))
    exact = processor.image_processor([Image.fromarray(image) for image in images], return_tensors="pt")
    found = pixels(images)
    torch.testing.assert_close(found["pixel_values"], exact["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(found["image_grid_thw"], exact["image_grid_thw"])


def test_what_cannot_be_trained_on_is_refused(checkpoint: Checkpoint, tiny_task: Task) -> None:
    with pytest.raises(TaskError, match="raise model.max_length, now 20"):
        tokenize_turn(checkpoint.processor, tiny_task, tiny_task.prompt, "No.", max_length=20)
    with pytest.raises(TaskError, match="multiples of 16"):
        Pixels(checkpoint.processor, RenderSpec(60, 64))


def test_strong_augmentation_is_one_of_the_position(
    checkpoint: Checkpoint, tiny_task: Task, synthetic_wafers: Pairs
) -> None:
    examples = examples_of(synthetic_wafers, tiny_task)
    order = Order([e.label for e in examples], [True] * len(examples), seed=4, balance=True)
    strong = Collator(checkpoint, tiny_task, examples, order, 4096, strong=4)
    plain = Collator(checkpoint, tiny_task, examples, order, 4096)
    batch, again = strong(rows(12)), strong(rows(9, first=3))
    patches = len(batch["pixel_values"]) // 12
    torch.testing.assert_close(batch["pixel_values"][3 * patches :], again["pixel_values"], rtol=0, atol=0)
    torch.testing.assert_close(batch["input_ids"], plain(rows(12))["input_ids"])
    assert not torch.equal(batch["pixel_values"], plain(rows(12))["pixel_values"])


def test_strong_augmentation_leaves_alone_what_the_order_may_not_turn(
    checkpoint: Checkpoint, tiny_task: Task, synthetic_wafers: Pairs
) -> None:
    examples = examples_of(synthetic_wafers, tiny_task)
    order = Order([e.label for e in examples], [False] * len(examples), seed=4, balance=True)
    strong = Collator(checkpoint, tiny_task, examples, order, 4096, strong=4)
    plain = Collator(checkpoint, tiny_task, examples, order, 4096)
    assert torch.equal(strong(rows(12))["pixel_values"], plain(rows(12))["pixel_values"])


def test_a_map_without_words_is_asked_for_its_class(
    checkpoint: Checkpoint, tiny_task: Task, synthetic_wafers: Pairs
) -> None:
    examples = examples_of(synthetic_wafers, tiny_task)
    order = Order([e.label for e in examples], [False] * len(examples), seed=4, balance=True)
    silent = {examples[order[0][0]].label}

    def write(dies: DieGrid, label: str, _: np.random.Generator) -> tuple[str, str] | None:
        return None if label in silent else ("What is seen?", "Nothing at all.")

    words = Collator(checkpoint, tiny_task, examples, order, 4096, wording=Wording(1.0, 0, 4, write))
    plain = Collator(checkpoint, tiny_task, examples, order, 4096)
    labels = [examples[order[k][0]].label for k in range(12)]
    assert 0 < sum(label in silent for label in labels) < 12
    for k, label in enumerate(labels):
        one, other = words(rows(1, first=k))["input_ids"], plain(rows(1, first=k))["input_ids"]
        assert torch.equal(one, other) == (label in silent)
    assert set(plain.answer_tokens()) < set(words.answer_tokens())
