"""Every contender must answer what the model answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.contenders import OpenVino, Station
from benchmarks.prompted import Generate, OneForward, fastest, precisions_of
from export.stage import ExportConfig, export
from tests.export.models import roughened
from train.loading import load_checkpoint
from train.scorer import label_log_probs
from train.synthetic import wafers
from wafervlm.render import render
from wafervlm.task import Task


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model rough enough to give different maps different labels."""
    return roughened(tiny_checkpoint, tmp_path_factory.mktemp("rough") / "model", scale=0.15)


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("grids")
    found = []
    for i, wafer in enumerate(wafers(["Near-full", "none", "Edge-Ring", "Random", "Donut"], seed=8)):
        found.append(folder / f"{i}.npy")
        np.save(found[-1], wafer.dies)
    return found


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tiny_task: Task, grids: list[Path]) -> list[str]:
    images = [render(np.load(path), tiny_task.render) for path in grids]
    scores = label_log_probs(load_checkpoint(checkpoint), tiny_task, images)
    return [tiny_task.labels[i] for i in scores.argmax(axis=1)]


def test_all_name_the_reference_label(
    checkpoint: Path, tiny_task: Task, grids: list[Path], expected: list[str], tmp_path: Path
) -> None:
    export(ExportConfig(checkpoint, tiny_task), tmp_path / "bundle")
    bundle = tmp_path / "bundle"
    # OpenVINO computes in bfloat16 where the processor can, so that a near tie may fall otherwise.
    contenders = (Station(bundle, 1), OneForward(load_checkpoint(checkpoint), tiny_task), OpenVino(bundle, 1))
    for contender in contenders:
        answers = [contender(path) for path in grids]
        wrong = sum(answer.label != label for answer, label in zip(answers, expected, strict=True))
        assert wrong <= (1 if isinstance(contender, OpenVino) else 0), contender.about
        assert all(answer.timing_ms["run"] > 0 for answer in answers)
        assert {"read", "render", "run"} <= set(answers[0].timing_ms)


def test_generate_reads_its_own_answer(checkpoint: Path, tiny_task: Task, grids: list[Path]) -> None:
    """What is generated is greedy and ends with the turn; a text that is no answer names no label."""
    contender = Generate(load_checkpoint(checkpoint), tiny_task)
    image = render(np.load(grids[0]), tiny_task.render)
    text = contender.text(image)
    assert text == contender.text(image)
    assert contender(grids[0]).label in ("", *tiny_task.labels)
    for label in tiny_task.labels:
        assert contender.label_in(tiny_task.answer(label)) == label
    assert contender.label_in("The wafer map image indicates the presence of soup defect.") == ""


def test_the_faster_precision_is_taken(checkpoint: Path, tiny_task: Task, grids: list[Path]) -> None:
    contender, tried = fastest(OneForward, precisions_of(checkpoint), tiny_task, grids)
    assert set(tried) == {"float32", "bfloat16"}
    assert contender.about.endswith(min(tried, key=lambda precision: tried[precision]))
