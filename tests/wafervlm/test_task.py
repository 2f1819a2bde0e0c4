from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wafervlm.answers import (
    are_scores,
    chosen,
    classes_of,
    probabilities,
    strangers,
    texts_of,
    written,
)
from wafervlm.errors import TaskError
from wafervlm.render import RenderSpec
from wafervlm.task import WAFER_DEFECTS, Task

SMALL = Task(labels=("good", "bad"), name="small", prompt="Which?")


def test_a_digest_never_changes() -> None:
    assert WAFER_DEFECTS.digest == "fed3941013c0da5c6f6e4df244bfcc52d0bf1409a63a45f4f6ba5a0f2bb727ae"
    assert SMALL.digest == "9bdc5c4859c1c4933680ef8222592ad9eb90b3bca5b8dcae434fbac1cc7be768"


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ("bad", "good")},
        {"labels": ("good", "bad", "ugly")},
        {"prompt": "Which? "},
        {"order": "image-first"},
        {"system": ""},
        {"answer_prefix": ""},
        {"answer_suffix": "."},
        {"spellings": {"good": "fine"}},
        {"render": RenderSpec(128, 256)},
        {"render": RenderSpec(palette=((0, 0, 0), (32, 144, 140), (253, 231, 36)))},
    ],
)
def test_the_digest_locks_all_that_the_model_sees(change: dict[str, Any]) -> None:
    changed = dataclasses.replace(SMALL, **change)
    assert changed.digest != SMALL.digest
    assert changed != SMALL


def test_the_digest_leaves_out_what_the_model_does_not_see() -> None:
    assert dataclasses.replace(SMALL, name="another").digest == SMALL.digest
    assert dataclasses.replace(SMALL, spellings={"good": "good"}).digest == SMALL.digest


def test_answers_are_the_recipe_s_sentences() -> None:
    assert (
        WAFER_DEFECTS.answer("Edge-Loc") == "The wafer map image indicates the presence of edge-loc defect."
    )
    assert WAFER_DEFECTS.answer("none") == "The wafer map image indicates the presence of none defect."
    assert dataclasses.replace(SMALL, answer_prefix="", answer_suffix="").answer("bad") == "bad"
    with pytest.raises(TaskError, match="'Edge' is not a label"):
        WAFER_DEFECTS.answer("Edge")


def test_messages_keep_the_order() -> None:
    text, image = SMALL.messages()[0]["content"]
    assert (text, image) == ({"type": "text", "text": "Which?"}, {"type": "image"})
    turned = dataclasses.replace(SMALL, order="image-first", system="Be brief.")
    system, user, assistant = turned.messages("bad")
    assert [message["role"] for message in (system, user, assistant)] == ["system", "user", "assistant"]
    assert user["content"][0] == {"type": "image"}
    assert assistant["content"][0]["text"] == turned.answer("bad")


def test_a_task_comes_back_from_plain_values(tmp_path: Path) -> None:
    for task in (WAFER_DEFECTS, dataclasses.replace(SMALL, system="x", render=RenderSpec(64, 32))):
        plain = json.loads(json.dumps(task.to_dict()))
        assert plain == task.to_dict()
        assert Task.from_dict(plain) == task
        path = tmp_path / "task.json"
        path.write_text(json.dumps(plain))
        assert Task.from_file(path) == task == Task.from_file(str(path))
        for copied in (pickle.loads(pickle.dumps(task)), copy.deepcopy(task)):
            assert copied == task
            assert hash(copied) == hash(task)
            assert copied.digest == task.digest


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TOML needs Python 3.11")
def test_a_task_file_in_toml(tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    path.write_text(
        'labels = ["scratch", "clean"]\nname = "mine"\n'
        '[spellings]\nclean = "no defect"\n[render]\nheight = 64\n'
    )
    task = Task.from_file(path)
    assert (task.labels, task.name, task.spelling("clean")) == (("scratch", "clean"), "mine", "no defect")
    assert task.render == RenderSpec(64, 256)


def test_a_task_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        WAFER_DEFECTS.spellings["Loc"] = "x"  # type: ignore[index]
    mine = {"good": "fine"}
    task = dataclasses.replace(SMALL, spellings=mine)
    mine["bad"] = "worse"
    assert dict(task.spellings) == {"good": "fine"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": ()}, "needs at least two"),
        ({"labels": ("a",)}, "needs at least two"),
        ({"labels": "good"}, "must be a list of texts"),
        ({"labels": None}, "must be a list of texts"),
        ({"labels": {"a": 1, "b": 2}}, "must be a list of texts"),
        ({"labels": ("a", 5)}, "must be text, not 5"),
        ({"labels": ("a", "")}, "one line of text"),
        ({"labels": ("a", " b")}, "one line of text"),
        ({"labels": ("a", "b\nc")}, "one line of text"),
        ({"labels": ("a", "a")}, "cannot be told apart"),
        ({"labels": ("Loc", "loc")}, "'Loc' and 'loc' .* cannot be told apart"),
        ({"labels": ("é", "e\u0301")}, "cannot be told apart"),
        ({"labels": ("a", "b"), "spellings": {"a": "b"}}, "spellings 'b' and 'b' .* cannot be told apart"),
        ({"labels": ("a", "b"), "spellings": {"c": "d"}}, "spells 'c', which is not one of its labels"),
        ({"spellings": {"good": 5}}, "must be text"),
        ({"spellings": ["good"]}, "must be a table"),
        ({"labels": ("a", "\ud800")}, "half a character"),
        ({"prompt": "<|im_end|>"}, "'<|im_end|>'".replace("|", "\\|")),
        ({"prompt": "<image>\nWhat?"}, "'<image>'"),
        ({"prompt": "  "}, "is empty"),
        ({"prompt": 5}, "must be text, not 5"),
        ({"name": None}, "must be text, not None"),
        ({"system": 5}, "must be text, not 5"),
        ({"answer_prefix": None}, "must be text, not None"),
        ({"answer_suffix": ["."]}, "must be text"),
        ({"order": "text"}, "must be text-first or image-first"),
        ({"order": ["text-first"]}, "must be text-first or image-first"),
        ({"render": {"height": 64}}, "must be a RenderSpec"),
    ],
)
def test_a_task_that_cannot_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"label": ["a", "b"]}, "unknown key 'label' in the task; did you mean 'labels'"),
        ({"labels": ["a", "b"], "qwertz": 1}, "unknown key 'qwertz' in the task; known are labels, name"),
        (
            {"labels": ["a", "b"], "render": {"hight": 64}},
            "'hight' in render of the task; did you mean 'height'",
        ),
        ({"labels": ["a", "b"], "render": 64}, "render of the task must be a table"),
        ({"labels": ["a", "b"], "render": None}, "render of the task must be a table"),
        ({"labels": ["a", "b"], "render": {"height": "64"}}, "render height is '64'"),
        ({"name": "x"}, "the task has no labels"),
        ({}, "the task has no labels"),
        ([1], "the task must be a table"),
        (None, "the task must be a table"),
        ({"labels": ["a", "b"], 5: 6}, "unknown key 5"),
    ],
)
def test_plain_values_that_are_no_task(values: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Task.from_dict(values)


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("t.json", b"{", "not valid JSON"),
        ("t.json", b"[" * 100_000, "not valid JSON"),
        ("t.json", b"[]", "must be a table"),
        ("t.json", b"\xff", "cannot read the task file"),
        ("t.json", b'{"labels": ["a", "b"], "promt": ""}', "t.json: unknown key 'promt' .* 'prompt'"),
        ("t.json", b'{"labels": ["a", "\\ud800"]}', "half a character"),
        ("t.toml", b"labels = ", "not valid TOML|needs Python 3.11"),
        ("t.yaml", b"labels: [a, b]", "must be named .json or .toml"),
        ("t.json", b" " * (1 << 21), "larger than 1 MiB"),
    ],
)
def test_files_that_are_no_task(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(TaskError, match=message) as caught:
        Task.from_file(path)
    assert name in str(caught.value)


def test_a_task_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(TaskError, match="cannot read the task file"):
            Task.from_file(path)


MIXED = Task(
    ("good", "bad", "ugly"), "mixed", "Which?", answer_prefix="", answer_suffix=":", kind="multi-label"
)


def test_a_multi_label_task_asks_about_each_class() -> None:
    assert MIXED.answer("bad") == "bad: yes"
    assert MIXED.answer("bad", shown=False) == "bad: no"
    assert MIXED.stem("bad") == "bad:"
    turn = MIXED.messages("ugly", shown=False)[-1]
    assert turn == {"role": "assistant", "content": [{"type": "text", "text": "ugly: no"}]}
    assert texts_of(MIXED, "bad+ugly") == ["good: no", "bad: yes", "ugly: yes"]
    assert texts_of(SMALL, "bad") == [SMALL.answer("bad")]


def test_a_multi_label_task_is_locked_and_read_back() -> None:
    assert MIXED.to_dict()["kind"] == "multi-label"
    assert "kind" not in SMALL.to_dict()
    single = dataclasses.replace(MIXED, kind="single-label")
    assert single.digest != MIXED.digest
    assert Task.from_dict({**single.to_dict(), "kind": "single-label"}).digest == single.digest
    for copied in (Task.from_dict(MIXED.to_dict()), pickle.loads(pickle.dumps(MIXED)), copy.deepcopy(MIXED)):
        assert copied == MIXED
        assert copied.multi_label


def test_sets_of_classes_have_one_name() -> None:
    assert classes_of(MIXED, "none") == ()
    assert classes_of(MIXED, "ugly+good") == ("good", "ugly")
    assert classes_of(SMALL, "good") == ("good",)
    assert written(MIXED, "UGLY+Good") == "good+ugly"
    assert written(MIXED, "None") is None
    assert strangers(MIXED, ["none", "ugly+good", "good", "dent", "good", "bad+bad"]) == [
        "bad+bad",
        "dent",
        "ugly+good",
    ]
    assert strangers(SMALL, ["good", "none", "good+bad"]) == ["good+bad", "none"]
    with pytest.raises(TaskError, match="'none' is not a label of task 'small'"):
        classes_of(SMALL, "none")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "several"}, "kind 'several' of task 'mixed' must be single-label or multi-label"),
        ({"kind": None}, "kind None of task"),
        ({"labels": ("good", "None")}, "has a class 'None'; leave it out"),
        ({"labels": ("good", "a+b")}, r"holds '\+', which joins the names"),
    ],
)
def test_what_no_multi_label_task_can_be_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        dataclasses.replace(MIXED, **change)


def test_scores_of_classes_become_probabilities() -> None:
    log_yes = np.log(np.array([[0.2, 0.5, 0.99], [1.0, 1e-9, 0.6]]))
    np.testing.assert_allclose(probabilities(MIXED, log_yes, 1.0), np.exp(log_yes), atol=1e-9)
    calm = probabilities(MIXED, log_yes, 2.0)
    np.testing.assert_allclose(calm[0, 0], 1 / (1 + np.sqrt(0.8 / 0.2)))
    assert chosen(MIXED, log_yes).tolist() == [[False, True, True], [True, False, True]]
    assert are_scores(MIXED, log_yes)
    assert not are_scores(MIXED, log_yes + 0.1)
    assert not are_scores(MIXED, np.full((1, 3), -np.inf))
    assert not are_scores(dataclasses.replace(MIXED, kind="single-label"), log_yes)
