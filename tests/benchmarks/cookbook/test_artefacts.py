"""Which artefacts are reported: what belongs together, not what happens to be newest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.cookbook.artefacts import KINDS, choose, find
from tests.benchmarks.cookbook.conftest import Runs
from train.artefact import PROVENANCE
from wafervlm.errors import ManifestError, UsageError


@pytest.fixture
def copied(runs: Runs, tmp_path: Path) -> Path:
    """A folder of runs with the line's adapter and benchmark, and a newer adapter of another training."""
    for stage in ("train", "benchmark", "merge"):
        shutil.copytree(runs.line / stage, tmp_path / "runs" / "line" / stage)
    other = tmp_path / "runs" / "other"
    shutil.copytree(runs.line / "train", other)
    record = json.loads((other / PROVENANCE).read_text())
    (other / PROVENANCE).write_text(json.dumps({**record, "created": "2999-01-01T00:00:00Z"}))
    (tmp_path / "runs" / "begun.partial").mkdir()
    (tmp_path / "runs" / "begun.partial" / PROVENANCE).write_text("{}")
    return tmp_path / "runs"


def test_a_line_is_found_whole(runs: Runs) -> None:
    found = {artefact.kind for artefact in find(runs.line)}
    assert found == set(KINDS) - {"words", "comparison", "rl", "vqa", "cleaned", "base"}


def test_what_was_judged_wins_over_what_is_newest(copied: Path) -> None:
    assert [one.path.name for one in choose(copied, {})["adapter"]] == ["train"]
    shutil.rmtree(copied / "line" / "benchmark")
    shutil.rmtree(copied / "line" / "merge")
    assert [one.path.name for one in choose(copied, {})["adapter"]] == ["other"]


def test_what_is_named_wins(copied: Path) -> None:
    chosen = choose(copied, {"adapter": (copied / "other",)})
    assert [one.path.name for one in chosen["adapter"]] == ["other"]


def test_a_quick_look_is_the_last_choice(copied: Path) -> None:
    look = copied / "look"
    shutil.copytree(copied / "line" / "benchmark", look)
    record = json.loads((look / PROVENANCE).read_text())
    record["settings"]["quick"], record["created"] = True, "2999-01-01T00:00:00Z"
    (look / PROVENANCE).write_text(json.dumps(record))
    assert [one.path.name for one in choose(copied, {})["benchmark"]] == ["benchmark"]


def test_what_is_no_such_artefact_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was written by the stage 'train', and --vqa names what"):
        choose(None, {"vqa": (copied / "other",)})
    with pytest.raises(UsageError, match="--zero-shot names one"):
        choose(None, {"zero_shot": (tmp_path / "nowhere",)})
    (tmp_path / "bare").mkdir()
    with pytest.raises(ManifestError, match="no readable provenance"):
        choose(None, {"gptq": (tmp_path / "bare",)})
    with pytest.raises(UsageError, match="holds no artefact"):
        choose(tmp_path / "bare", {})
    with pytest.raises(UsageError, match="is not a folder of runs"):
        choose(tmp_path / "nowhere", {})
    base = choose(None, {"base": (tmp_path / "bare",)})["base"][0]
    assert base.stage == "" and not base.inputs
