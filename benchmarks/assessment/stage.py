"""The stage: an assessment of subjects in, a folder with its figures out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.assessment.config import AssessmentConfig, JudgeConfig
from benchmarks.assessment.judged import judge_all
from benchmarks.assessment.measuring import REAL, Assessed, Exam, assess, differences, digests, prepare
from benchmarks.assessment.tables import write_tables
from benchmarks.machine import describe_machine
from train.artefact import Provenance, is_complete, require_free, write_provenance, writing
from train.dataset import write_task
from train.vqa.build import TABLE
from train.vqa.endpoint import require_replies
from train.vqa.replies import ReplyCache
from wafervlm import console
from wafervlm.claims import distinct

REPORT, MARKDOWN, HTML, ANSWERS = "words.json", "words.md", "words.html", "answers.jsonl"
NO_JUDGE = "no endpoint was given, so no language model judged the answers"


def assess_words(config: AssessmentConfig, out: Path) -> tuple[dict[str, Any], bool]:
    """Write words.json, words.md, words.html and answers.jsonl to ``out``; return the report, and whether it
    was made now. A complete ``out`` of the same inputs and settings is left as it is; one that was written
    while the judge left requests without a reply is written again, and asks for these.

    Answers and a judge's replies are kept beside ``out`` as they come, so that a run that was stopped goes
    on. Raises UsageError, DatasetError, CheckpointError, IntegrityError, ConfigError, ProviderError.
    """
    out = Path(out)
    exam = prepare(config)
    inputs = {subject.name: subject.digest for subject in config.subjects} | digests(config, exam)
    provenance = Provenance("words", inputs, config.plain(), config.seed)
    known = is_complete(out, provenance)
    if known:
        report: dict[str, Any] = json.loads((out / REPORT).read_text(encoding="utf-8"))
        if not missing_replies(report):
            return report, False
    else:
        require_free(out, provenance)
    machine = describe_machine(config.threads)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        assessed, report = _measure(config, exam, out)
    finally:
        torch.set_num_threads(threads_before)
    report = {"machine": machine, "settings": config.plain(), "inputs": inputs, **report}
    with writing(out, overwrite=known) as work:
        (work / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        write_tables(report, work / MARKDOWN, work / HTML)
        _write_answers(assessed, exam, work / ANSWERS)
        _keep_given(config, exam, work)
        figures = {"missing_replies": missing_replies(report)} if report["judge"] else {}
        write_provenance(work, replace(provenance, parity=figures))
    return report, True


def missing_replies(report: Mapping[str, Any]) -> int:
    """How many requests to the judge of ``report`` had no reply that they may have later."""
    return int((report["judge"] or {}).get("missing", 0))


def require_judged(config: AssessmentConfig, out: Path, report: Mapping[str, Any]) -> None:
    """Raise ProviderError where replies of the judge are missing in ``out``, whose ``report`` this is."""
    if config.judge is not None and report["judge"]:
        asked, url = report["judge"]["requests"], config.judge.endpoint.url
        kept, excluded = _kept(config.judge, out), report["judge"]["excluded"]
        require_replies(missing_replies(report), asked, url, out, kept, excluded)


def _kept(judge: JudgeConfig, out: Path) -> Path:
    return judge.cache or out.with_name(f"{out.name}.judge.jsonl")


def _measure(config: AssessmentConfig, exam: Exam, out: Path) -> tuple[list[Assessed], dict[str, Any]]:
    cache = ReplyCache(config.answers or out.with_name(f"{out.name}.answers.jsonl"))
    assessed = [assess(config, exam, subject, cache) for subject in config.subjects]
    report: dict[str, Any] = {
        "maps": {name: len(cases) for name, cases in exam.sets.items()},
        "subjects": {one.subject.name: one.figures for one in assessed},
        "differences": differences(assessed, exam),
        "judge": None,
    }
    if config.judge is None or exam.rubrics is None:
        report["judge_note"] = NO_JUDGE if config.judge is None else "there are no labelled maps to judge"
        console.say(report["judge_note"])
    else:
        descriptions = {one.subject.name: one.descriptions[REAL] for one in assessed}
        cache = ReplyCache(_kept(config.judge, out))
        report["judge"] = judge_all(
            config.judge, descriptions, exam.sets[REAL], exam.rubrics, cache, config.seed
        )
    return assessed, report


def _write_answers(assessed: list[Assessed], exam: Exam, path: Path) -> None:
    """Every description with its claims and verdicts, a line each, to be looked at and counted again."""
    with path.open("w", encoding="utf-8") as file:
        for one in assessed:
            for name, texts in one.descriptions.items():
                for case, text in zip(exam.sets[name].cases, texts, strict=True):
                    line: dict[str, Any] = {"subject": one.subject.name, "maps": name, "id": case.wafer.id}
                    line |= {"label": case.label, "text": text, "claims": _claims(case.ruler, text)}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _keep_given(config: AssessmentConfig, exam: Exam, work: Path) -> None:
    """The task and the table of causes where they were given, so that the same may be given again."""
    if config.task is not None:
        write_task(exam.task, work)
    if config.causes is not None:
        shutil.copyfile(config.causes, work / TABLE)


def _claims(ruler: Any, text: str) -> list[dict[str, Any]]:
    return [
        {
            "kind": item.claim.kind,
            "value": item.claim.value,
            "negated": item.claim.negated,
            "text": item.claim.text,
            "verdict": item.verdict.value,
            "why": item.why,
        }
        for item in ruler.check(distinct(text))
    ]
