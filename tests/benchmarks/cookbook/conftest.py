"""What a line leaves, with words, cleaned labels and reinforcement learning beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.assessment.config import AssessmentConfig
from benchmarks.assessment.stage import assess_words
from benchmarks.assessment.subjects import Subject
from tests.benchmarks.conftest import Ran
from tests.conftest import ROOT
from train.build import BuildConfig
from train.cleaning.clean import CleanConfig, clean
from train.rl.gspo import reinforce
from train.rl.settings import read_rl_settings
from train.vqa.build import VqaConfig, build_vqa

RL = {
    "model.device": "cpu",
    "data.tune_rows": 9,
    "data.tune_maps": 9,
    "rl.prompts": 2,
    "rl.completions": 4,
    "rl.max_tokens": 3,
    "rl.updates": 2,
    "train.batch": 4,
    "train.max_steps": 2,
    "train.evaluations": 1,
    "train.threads": 1,
}


@dataclass(frozen=True)
class Runs:
    """Where each artefact lies that is not of the line at ``line``."""

    line: Path
    beside: Path
    base: Path

    @property
    def named(self) -> dict[str, tuple[Path, ...]]:
        """The artefacts beside the line, as options name them."""
        return {name: (self.beside / name,) for name in ("vqa", "cleaned", "rl", "words")}


@pytest.fixture(scope="session")
def runs(ran: Ran, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The tiny line and what comes beside it. Do not write to it."""
    beside, data, adapter = tmp_path_factory.mktemp("beside"), ran.folder / "data", ran.folder / "train"
    build_vqa(VqaConfig(data), beside / "vqa")
    clean(CleanConfig(BuildConfig(source=data), base=tiny_checkpoint), beside / "cleaned")
    folders = {"model.base": tiny_checkpoint, "model.adapter": adapter, "data.dataset": beside / "vqa"}
    values = {**RL, **{key: str(path) for key, path in folders.items()}, "output": str(beside / "rl")}
    reinforce(read_rl_settings(ROOT / "train" / "nano" / "rl.toml", (), values))
    subjects = (Subject("base", tiny_checkpoint), Subject("rl", tiny_checkpoint, beside / "rl"))
    asked = {"per_class": 1, "planted": 11, "questions": 0, "max_tokens": 4, "threads": 1}
    assess_words(AssessmentConfig(subjects, data, **asked), beside / "words")  # type: ignore[arg-type]
    return Runs(ran.folder, beside, tiny_checkpoint)
