from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.assessment.answers import answer_all, answer_figures
from benchmarks.assessment.generation import Generator
from benchmarks.assessment.speaker import Asked
from benchmarks.assessment.subjects import Subject
from train.encoding import encode_texts, prompt_text
from train.loading import load_checkpoint
from train.vqa.replies import Reply, ReplyCache
from wafervlm.errors import UsageError
from wafervlm.render import render
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap
from wafervlm.words.question import DESCRIBE_QUESTION

TOKENS = 12


@pytest.fixture(scope="module")
def asked(synthetic_wafers: list[tuple[WaferMap, str]]) -> list[Asked]:
    """Descriptions, and questions of other lengths between them."""
    questions = (DESCRIBE_QUESTION, DESCRIBE_QUESTION, "Where do the dies fail?")
    system = (None, None, "Answer shortly.")
    return [
        Asked(wafer, questions[at % 3], system[at % 3]) for at, (wafer, _) in enumerate(synthetic_wafers[:7])
    ]


@torch.inference_mode()
def alone(folder: Path, task: Task, one: Asked) -> list[int]:
    """The tokens that transformers generates for one wafer by itself."""
    checkpoint = load_checkpoint(folder)
    text = prompt_text(checkpoint.processor, replace(task, prompt=one.question, system=one.system))
    inputs = encode_texts(checkpoint, [text], [render(one.wafer, task.render)])
    whole = checkpoint.model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    tokens: list[int] = whole[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


def test_a_batch_answers_as_each_wafer_alone(
    tiny_checkpoint: Path, tiny_task: Task, asked: list[Asked]
) -> None:
    generator = Generator(tiny_checkpoint, None, tiny_task, device="cpu", batch=4)
    found = dict(generator.answers(asked, TOKENS))
    assert sorted(found) == list(range(len(asked)))
    tokenizer = generator.checkpoint.tokenizer
    for place, one in enumerate(asked):
        tokens = alone(tiny_checkpoint, tiny_task, one)
        assert found[place].text == tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert found[place].completion_tokens == len(tokens)
        assert found[place].finish == ("stop" if tokens[-1] == tokenizer.eos_token_id else "length")


def test_answers_are_not_generated_twice(
    tiny_checkpoint: Path, tiny_task: Task, asked: list[Asked], tmp_path: Path
) -> None:
    generator = Generator(tiny_checkpoint, None, tiny_task, device="cpu", batch=4)
    first = answer_all("a", "digest", generator, asked[:3], ReplyCache(tmp_path / "kept"), TOKENS)
    called: list[int] = []
    generate = generator.answers

    def counted(wanted: list[Asked], limit: int):  # type: ignore[no-untyped-def]
        called.append(len(wanted))
        return generate(wanted, limit)

    generator.answers = counted  # type: ignore[assignment,method-assign]
    again = answer_all("a", "digest", generator, asked, ReplyCache(tmp_path / "kept"), TOKENS)
    assert called == [len(asked) - 3]
    assert [reply.text for reply in again[:3]] == [reply.text for reply in first]
    answer_all("b", "another", generator, asked[:2], ReplyCache(tmp_path / "kept"), TOKENS)
    answer_all("a", "digest", generator, asked[:2], ReplyCache(tmp_path / "kept"), TOKENS - 1)
    assert called[1:] == [2, 2]


def test_answers_that_are_cut_or_empty_are_counted() -> None:
    replies = [Reply("", "stop", 9, 1), Reply("a b", "length", 9, 5), Reply("a", "stop", 9, 3)]
    found = answer_figures(replies)
    assert found == {"answers": 3, "cut": 1, "empty": 1, "tokens_per_answer": 3.0}


def test_a_subject_is_read_and_told_apart(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plus = tmp_path / "a+b"
    plus.mkdir()
    assert Subject.parse(f"x={plus}") == Subject("x", plus)
    found = Subject.parse(f"sft={tiny_checkpoint}+{plus}")
    assert (found.folder, found.adapter) == (tiny_checkpoint, plus)
    (plus / "file").write_text("1")
    assert found.digest != Subject.parse(f"sft={tiny_checkpoint}").digest
    assert not found.is_bundle
    for text, why in (
        ("runs", "must be NAME=FOLDER"),
        ("=runs", "must be NAME=FOLDER"),
        (f"x={tmp_path / 'no'}", "does not exist; check the path"),
        (f"x={tiny_checkpoint}+{tmp_path / 'no'}", "does not exist"),
    ):
        with pytest.raises(UsageError, match=why):
            Subject.parse(text)
