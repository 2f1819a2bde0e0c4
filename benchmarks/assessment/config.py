"""The settings of an assessment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.assessment.subjects import Subject
from train.vqa.endpoint import EndpointSettings
from train.vqa.replies import check_prices
from wafervlm.errors import UsageError


@dataclass(frozen=True)
class JudgeConfig:
    """A language model that scores descriptions: ``maps`` at most, each ``repeats`` times with each prompt;
    ``prices`` of a million prompt and completion tokens; ``trials`` of the alignment's search; replies are
    kept in ``cache``, beside the output when None."""

    endpoint: EndpointSettings
    maps: int = 100
    repeats: int = 2
    prices: tuple[float, float] | None = None
    trials: int = 200
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("maps", "repeats", "trials"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of the judge is {getattr(self, name)}; it must be at least 1")
        check_prices(self.prices)


@dataclass(frozen=True)
class AssessmentConfig:
    """Who is asked, about what, and how the answers are judged."""

    subjects: tuple[Subject, ...]
    maps: Path | None
    """Labelled maps: a dataset folder (its part ``split``), a .npz; planted ones alone when None."""
    split: str = "test"
    per_class: int = 0
    """Maps at most of each class, 0 for all."""
    planted: int = 330
    """Planted wafers, as many of each kind; 0 for none."""
    questions: int = 1
    """Questions of each dimension about each labelled map; 0 asks for the description alone."""
    system_turn: bool = False
    """Ask the questions of a folder of words with its system turn, which only checkpoints can be given."""
    classify: bool = True
    """Take the accuracy of each subject on the labelled maps too."""
    task: Path | None = None
    """Task file; that of the first subject that has one when None."""
    causes: Path | None = None
    """Table of causes; the workshop's own when None."""
    answers: Path | None = None
    """Where answers are kept; beside the output when None."""
    judge: JudgeConfig | None = None
    max_tokens: int = 256
    batch: int = 32
    threads: int = 2
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.subjects:
            raise UsageError("name at least one subject: --subject sft=runs/merged")
        names = [subject.name for subject in self.subjects]
        if len(set(names)) < len(names):
            raise UsageError(f"subjects {', '.join(names)} must have different names")
        for name in ("max_tokens", "batch", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("per_class", "planted", "questions"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.maps is None and not self.planted:
            raise UsageError("there is nothing to ask about: give --maps, or planted wafers")

    def plain(self) -> dict[str, Any]:
        """The settings that decide the figures, without paths, which say nothing elsewhere."""
        kept = ("split", "per_class", "planted", "questions", "system_turn", "classify", "max_tokens", "seed")
        found: dict[str, Any] = {name: getattr(self, name) for name in kept}
        if self.judge is not None:
            asked = self.judge.endpoint
            found["judge"] = {
                **{name: getattr(self.judge, name) for name in ("maps", "repeats", "trials")},
                **{name: getattr(asked, name) for name in ("url", "model", "temperature", "max_tokens")},
            }
        return found
