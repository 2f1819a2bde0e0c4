"""From settings to figures: ask every subject, and judge what was said."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assessment.answers import answer_all, answer_figures
from benchmarks.assessment.cases import Cases, planted_cases, real_cases
from benchmarks.assessment.claims import Ratio, check_answers, claim_figures, ratios
from benchmarks.assessment.config import AssessmentConfig
from benchmarks.assessment.rules import (
    Rubrics,
    description_scores,
    question_scores,
    read_questions,
    score_ratios,
    write_rubrics,
)
from benchmarks.assessment.speaker import Answering, Asked
from benchmarks.assessment.struck import struck_figures
from benchmarks.assessment.subjects import Subject
from benchmarks.scores import samples_digest
from benchmarks.statistics import mean_class_recall, mean_class_recall_interval, ratio_difference_by_lot
from train.artefact import folder_digest
from train.dataset import DIES, read_labelled
from train.rubrics.formula import FORMULAS
from train.samples import at_most
from train.vqa.build import RL
from train.vqa.causes import CAUSES, Causes, default_causes, read_causes
from train.vqa.replies import Reply, ReplyCache
from wafervlm.errors import DatasetError
from wafervlm.task import WAFER_DEFECTS, Task
from wafervlm.words.question import DESCRIBE_QUESTION

REAL, PLANTED = "real", "planted"
# Ratios by set and name; what two subjects are compared by.
Ratios = dict[str, dict[str, Ratio]]


@dataclass(frozen=True, slots=True, eq=False)
class Exam:
    """What all subjects are asked: ``sets`` of wafers by name, the ``rubrics`` of the labelled maps, the
    ``task`` that draws them."""

    task: Task
    sets: Mapping[str, Cases]
    rubrics: Rubrics | None


@dataclass(slots=True)
class Assessed:
    """One subject's ``figures`` for the report, its ``descriptions`` by set, and the ``ratios`` behind the
    figures."""

    subject: Subject
    figures: dict[str, Any]
    descriptions: dict[str, list[str]] = field(default_factory=dict)
    ratios: Ratios = field(default_factory=dict)


def prepare(config: AssessmentConfig) -> Exam:
    """Read and plant the wafers, and write their rubrics. Raises DatasetError, TaskError and ConfigError."""
    task, sets, rubrics = _task(config), {}, None
    if config.maps is not None:
        sets[REAL] = real_cases(_samples(config, config.maps, task))
        rubrics = write_rubrics(sets[REAL], _causes(config), config.questions, config.seed)
        if (questions := _questions_file(config)) is not None:
            folder = questions.parent
            asked = read_questions(folder, config.split, sets[REAL].samples, system=config.system_turn)
            rubrics = Rubrics(rubrics.descriptions, rubrics.references, tuple(asked))
    if config.planted:
        sets[PLANTED] = planted_cases(config.planted, config.seed)
    return Exam(task, sets, rubrics)


def assess(config: AssessmentConfig, exam: Exam, subject: Subject, cache: ReplyCache) -> Assessed:
    """Ask ``subject`` everything and take its figures. Raises what loading it raises."""
    digest = subject.digest
    options = {"device": config.device, "threads": config.threads, "batch": config.batch}
    with subject.open(exam.task, **options) as ready:  # type: ignore[arg-type]
        found = Assessed(subject, {"about": ready.about, "digest": digest})
        for name, cases in exam.sets.items():
            asked = [Asked(case.wafer, DESCRIBE_QUESTION) for case in cases.cases]
            title = f"{subject.name} about {name} maps"
            replies = answer_all(title, digest, ready, asked, cache, config.max_tokens)
            _judge_descriptions(found, name, cases, replies)
        if exam.rubrics is not None:
            _judge_rules(found, exam.rubrics, exam.sets[REAL])
            if exam.rubrics.questions:
                asked = _questions(exam.rubrics, exam.sets[REAL])
                title = f"{subject.name}, questions"
                replies = answer_all(title, digest, ready, asked, cache, config.max_tokens)
                texts = [reply.text for reply in replies]
                found.figures["questions"] = {
                    **answer_figures(replies),
                    **question_scores(texts, exam.rubrics.questions, exam.sets[REAL]),
                }
            if config.classify:
                _classify(found, ready, exam)
    return found


def differences(assessed: Sequence[Assessed], exam: Exam) -> list[dict[str, Any]]:
    """Each subject's figures less those of the one before it, on the same wafers and lots."""
    rows = []
    for before, after in itertools.pairwise(assessed):
        for name, cases in exam.sets.items():
            for figure, ratio in after.ratios[name].items():
                other = before.ratios[name].get(figure)
                if other is None:
                    continue
                found = ratio_difference_by_lot(
                    (other.above, other.below), (ratio.above, ratio.below), cases.lots
                )
                rows.append(
                    {
                        "of": after.subject.name,
                        "less": before.subject.name,
                        "maps": name,
                        "figure": figure,
                        "difference": None if found is None else found.to_dict(),
                    }
                )
    return rows


def digests(config: AssessmentConfig, exam: Exam) -> dict[str, str]:
    """sha256 of all that subjects are asked about and judged by: each set of maps with their labels, the
    task, the table of causes, the file of questions. No name of a subject has a space, these have."""
    found = {f"{name} maps": samples_digest(cases.samples) for name, cases in exam.sets.items()}
    found["task of images"] = exam.task.digest
    if exam.rubrics is not None:
        found["table of causes"] = folder_digest(config.causes or CAUSES)
    if (questions := _questions_file(config)) is not None:
        found["file of questions"] = folder_digest(questions)
    return found


def _judge_descriptions(found: Assessed, name: str, cases: Cases, replies: Sequence[Reply]) -> None:
    texts = [reply.text for reply in replies]
    checks = check_answers(texts, cases)
    found.descriptions[name] = texts
    found.ratios[name] = ratios(checks, cases)
    found.figures[name] = {
        **answer_figures(replies),
        "claims": claim_figures(checks, cases),
        "after_check": struck_figures(texts, cases),
    }


def _judge_rules(found: Assessed, rubrics: Rubrics, cases: Cases) -> None:
    texts = found.descriptions[REAL]
    found.figures[REAL]["rules"] = description_scores(texts, rubrics, cases)
    for name, formula in FORMULAS.items():
        found.ratios[REAL][f"rule_score_{name}"] = score_ratios(texts, rubrics, formula)["whole"]


def _classify(found: Assessed, ready: Answering, exam: Exam) -> None:
    cases, labels = exam.sets[REAL], list(exam.task.labels)
    if not {case.label for case in cases.cases} <= set(labels):
        found.figures["classification"] = None
        return
    scores = ready.log_probs(cases.samples, found.subject.name)
    answer = np.asarray(scores.argmax(axis=1), dtype=np.int64)
    truth = np.array([labels.index(case.label) for case in cases.cases], dtype=np.int64)
    right = Ratio((answer == truth).astype(np.float64), np.ones(len(truth)))
    found.ratios[REAL]["accuracy"] = right
    accuracy = right.interval(cases.lots)
    low, high = mean_class_recall_interval(truth, answer, cases.lots)
    recall = {"value": mean_class_recall(truth, answer), "low": low, "high": high}
    found.figures["classification"] = {
        "accuracy": None if accuracy is None else accuracy.to_dict(),
        "mean_class_recall": recall,
    }


def _questions(rubrics: Rubrics, cases: Cases) -> list[Asked]:
    return [Asked(cases.cases[one.place].wafer, one.text, one.system) for one in rubrics.questions]


def _questions_file(config: AssessmentConfig) -> Path | None:
    """The questions of a folder of words, None where there are none to ask."""
    path = None if config.maps is None or not config.questions else config.maps / RL
    return path if path is not None and path.is_file() else None


def _samples(config: AssessmentConfig, maps: Path, task: Task) -> list[Any]:
    is_dataset = (maps / DIES).is_file()
    samples = read_labelled(maps, config.split if is_dataset else None, spec=task.render)
    kept = at_most([sample.label for sample in samples], config.per_class, config.seed)
    if not kept:
        raise DatasetError(f"{maps} has no labelled map to ask about")
    return [samples[place] for place in kept]


def _task(config: AssessmentConfig) -> Task:
    if config.task is not None:
        return Task.from_file(config.task)
    tasks = [task for subject in config.subjects if (task := subject.task()) is not None]
    if tasks:
        return tasks[0]
    if config.maps is not None and (config.maps / "task.json").is_file():
        return Task.from_file(config.maps / "task.json")
    return WAFER_DEFECTS


def _causes(config: AssessmentConfig) -> Causes:
    return default_causes() if config.causes is None else read_causes(config.causes)
