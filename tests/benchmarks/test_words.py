"""Generated text timed against transformers' generate."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.words import Call, _later, _rate, asked, main
from export.stage import ExportConfig, export
from wafervlm.task import Task


def test_the_figures_of_calls() -> None:
    calls = [Call((1, 2, 3), 0.5, 0.3), Call((4,), 0.5, 0.2)]
    assert _rate(calls, "seconds") == 4
    assert _rate(calls, "processor") == 8
    assert abs(_later(calls, [Call((1,), 0.1, 0.1), Call((4,), 0.5, 0.2)]) - 100) < 1e-9


def test_questions_are_of_distinct_wafers() -> None:
    pairs = asked(5)
    assert len({wafer.digest for wafer, _ in pairs}) == 5
    assert all(question.count("?") == 3 for _, question in pairs)
    assert asked(5) == pairs


def test_a_bundle_is_timed_and_its_answers_are_equal(
    tiny_checkpoint: Path, tiny_task: Task, tmp_path: Path
) -> None:
    export(
        ExportConfig(checkpoint=tiny_checkpoint, task=tiny_task, words=True, golden_maps=1), tmp_path / "b"
    )
    arguments = [str(tmp_path / "b"), "--reference", str(tiny_checkpoint), "--answers", "2"]
    done = CliRunner().invoke(
        main, [*arguments, "--max-tokens", "6", "--threads", "1", "--json"], catch_exceptions=False
    )
    figures = json.loads(done.stdout)
    assert (figures["answers"], figures["equal_answers"]) == (2, 2)
    assert figures["tokens_per_second"] > 0 and figures["ms_per_token_after_the_first"] > 0
    assert figures["machine"]["threads"] == 1
