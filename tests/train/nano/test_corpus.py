"""The base's corpus: measured answers, and no class in it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from train.nano.corpus import (
    CLASS_NAMES,
    QUESTIONS,
    WEIGHTS,
    letter_pieces,
    repeated_words,
    said_turns,
    segments,
    turns,
)
from train.nano.raw_clusters import sight
from train.synthetic import scene
from wafervlm.claims import check, extract
from wafervlm.geometry import measure
from wafervlm.task import WAFER_DEFECTS


def test_no_class_is_named() -> None:
    rng = np.random.default_rng(0)
    texts = [wording for q in QUESTIONS.values() for wording in q.wordings]
    for _ in range(200):
        texts += [turn.answer for turn in turns(scene(rng), rng, len(QUESTIONS))]
    names = "|".join(re.escape(label) for label in WAFER_DEFECTS.labels)
    found = [text for text in texts if re.search(rf"\b({names})\b", text, re.IGNORECASE)]
    assert not found


def test_answers_are_measured_on_the_dies() -> None:
    dies = np.ones((20, 20), dtype=np.uint8)
    dies[:10] = 2
    found = sight(dies)
    assert QUESTIONS["share"].answer(found) == "50 percent."
    assert QUESTIONS["grid"].answer(found) == "99999 99999 66666 00000 00000"
    assert QUESTIONS["clusters"].answer(found) == "1."
    assert QUESTIONS["largest extent"].answer(found).startswith("200 dies")
    assert QUESTIONS["largest place"].answer(found).endswith("12 o'clock.")
    assert QUESTIONS["second place"].answer(found) == "There is no such cluster."


def test_every_weight_has_its_question() -> None:
    assert set(WEIGHTS) <= set(QUESTIONS)


@pytest.mark.parametrize("image_first", [True, False])
def test_only_answers_are_learned(image_first: bool) -> None:
    rng = np.random.default_rng(1)
    asked = turns(scene(rng), rng, 3)
    parts = list(segments(asked, 4, image_first))
    learned = "".join(text for text, is_learned in parts if is_learned)
    given = "".join(text for text, is_learned in parts if not is_learned)
    assert learned == " ".join(turn.answer for turn in asked) + "<|im_end|>"
    assert all(turn.question in given for turn in asked)
    assert given.count("<|image_pad|>") == 4
    before = given.index("<|image_pad|>") < given.index(asked[0].question)
    assert before == image_first


def test_words_to_repeat_use_all_letters_and_no_class_name(tiny_checkpoint: Path) -> None:
    pieces = letter_pieces(PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint))
    rng = np.random.default_rng(2)
    asked = [repeated_words(pieces, rng) for _ in range(2000)]
    assert all(turn.question == f"Repeat: {turn.answer}" for turn in asked)
    frame = {"the", "wafer", "map", "image", "indicates", "presence", "of", "defect."}
    words = {word for turn in asked for word in turn.answer.split() if word.lower() not in frame}
    assert not {word.casefold() for word in words} & CLASS_NAMES
    assert set("abcdefghijklmnopqrstuvwxyz") <= set("".join(words))
    assert any("indicates the presence of" in turn.answer for turn in asked)


def test_what_is_said_of_dies_is_checked_and_names_no_cause() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        dies = scene(rng)
        geometry = measure(dies)
        asked = said_turns(dies, rng, 3)
        assert len({turn.question for turn in asked}) == len(asked) <= 3
        for turn in asked:
            assert "candidate" not in turn.answer.lower()
            assert "type" not in turn.question
            assert not any(found.contradicted for found in check(extract(turn.answer), geometry))
