from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.assessment.cases import Cases, real_cases
from benchmarks.assessment.rules import (
    CONSISTENCY,
    Rubrics,
    description_scores,
    question_scores,
    read_questions,
    write_rubrics,
)
from train.dataset import read_split
from train.rubrics.formula import STRICT, score
from train.vqa.build import RL
from train.vqa.causes import default_causes
from train.vqa.facts import facts
from train.vqa.prompts import SYSTEM_PROMPT, tagged
from train.vqa.rows import read_list
from wafervlm.errors import DatasetError


@pytest.fixture(scope="module")
def rubrics(real: Cases) -> Rubrics:
    return write_rubrics(real, default_causes(), 2, seed=0)


def test_references_earn_all_and_answers_that_look_at_no_wafer_little(real: Cases, rubrics: Rubrics) -> None:
    right = description_scores(rubrics.references, rubrics, real)
    assert right["strict"]["whole"]["value"] > 0.97 and right["published"]["whole"]["value"] > 0.97
    turned = [*rubrics.references[45:], *rubrics.references[:45]]
    for texts in (turned, [""] * len(real), [rubrics.references[0]] * len(real)):
        assert description_scores(texts, rubrics, real)["strict"]["whole"]["value"] < 0.6


def test_a_score_is_that_of_the_formula(real: Cases, rubrics: Rubrics) -> None:
    texts = [f"{text[:120]}" for text in rubrics.references]
    found = description_scores(texts, rubrics, real)["strict"]["spatial"]
    by_hand = [
        score(text, phrases["spatial"].must_hit, phrases["spatial"].must_avoid, STRICT).value
        for text, phrases in zip(texts, rubrics.descriptions, strict=True)
    ]
    assert found["value"] == pytest.approx(np.mean([one for one in by_hand if one is not None]))
    assert 0.2 < found["value"] < 1


def test_every_dimension_and_consistency_is_asked(real: Cases, rubrics: Rubrics) -> None:
    counts = {
        name: sum(question.dimension == name for question in rubrics.questions)
        for name in ("spatial", "morphology", "root_cause", CONSISTENCY)
    }
    assert counts["morphology"] == 2 * len(real)
    # Where label and dies disagree on a place, a share alone may be all that is told of where dies fail.
    asked = Counter(question.place for question in rubrics.questions if question.dimension == "spatial")
    fewer = [case for place, case in enumerate(real.cases) if asked[place] < 2]
    assert max(asked.values()) == 2 and len(fewer) < 3
    assert all(facts(case.wafer.dies, case.label).disputed for case in fewer)
    assert counts["root_cause"] > len(real) and counts[CONSISTENCY] > len(real)
    found = question_scores([q.reference for q in rubrics.questions], rubrics.questions, real)
    assert found[CONSISTENCY]["value"] == 1
    for formula in ("published", "optimised", "strict"):
        for dimension in ("spatial", "morphology", "root_cause"):
            assert found[formula][dimension]["value"] > 0.97
    assert found["strict"]["spatial"]["wafers"] == counts["spatial"]


def test_tags_are_taken_off_and_a_wrong_verdict_counts(real: Cases, rubrics: Rubrics) -> None:
    questions = rubrics.questions[:40]
    plain = question_scores([q.reference for q in questions], questions, real)
    tags = question_scores([tagged("I look.", q.reference) for q in questions], questions, real)
    assert tags == plain
    swapped = ["No." if q.reference.startswith("Yes") else "Yes." for q in questions]
    assert question_scores(swapped, questions, real)[CONSISTENCY]["value"] == 0


def test_the_rows_of_a_folder_of_words_are_asked_about_their_maps(words_folder: Path) -> None:
    samples = read_split(words_folder, "test")
    cases = real_cases(samples)
    questions = read_questions(words_folder, "test", samples, system=True)
    assert {question.dimension for question in questions} == {"spatial", "morphology", "root_cause"}
    assert {question.system for question in questions} == {SYSTEM_PROMPT}
    right = question_scores([q.reference for q in questions], questions, cases)
    assert right["strict"]["spatial"]["value"] > 0.97
    moved = [replace(q, place=(q.place + 7) % len(samples)) for q in questions]
    assert moved != questions
    few = read_questions(words_folder, "test", samples[:3], system=False)
    assert {question.place for question in few} <= {0, 1, 2} and len(few) < len(questions)


def test_a_row_without_a_class_is_named(words_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(words_folder, tmp_path / "words")
    entries = read_list(folder / RL)
    entry = next(entry for entry in entries if entry["part"] == "test")
    entry["wafer_label"] = []
    (folder / RL).write_text(json.dumps(entries))
    with pytest.raises(
        DatasetError, match=f"wafer_label of row {entry['id']} of .* is empty; name the class"
    ):
        read_questions(folder, "test", read_split(folder, "test"), system=False)
