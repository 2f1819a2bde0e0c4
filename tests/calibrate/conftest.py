"""What is calibrated in the tests: trained nano where its weights are in the tree, else the tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrate.inputs import Inputs, batches
from train.dataset import Sample
from train.loading import Checkpoint, load_checkpoint
from train.synthetic import wafers
from wafervlm.render import RenderSpec
from wafervlm.task import WAFER_DEFECTS, Task

WEIGHTS = Path(__file__).resolve().parents[2] / "train" / "nano" / "weights"
IS_TRAINED = (WEIGHTS / "base").is_dir() and (WEIGHTS / "adapter").is_dir()


def merged_nano() -> Checkpoint:
    """Trained nano: its committed base and adapter, merged in float32."""
    loaded = load_checkpoint(WEIGHTS / "base", adapter=WEIGHTS / "adapter")
    return replace(loaded, model=loaded.model.merge_and_unload().eval())


@pytest.fixture(
    scope="session", params=["trained nano" if IS_TRAINED else "tiny model, nano is not trained yet"]
)
def nano(tiny_checkpoint: Path) -> Checkpoint:
    """Trained nano, or the tiny random model in its place, as the test's name says. Do not change it."""
    return merged_nano() if IS_TRAINED else load_checkpoint(tiny_checkpoint)


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny model, loaded anew for each test, since calibration works in place."""
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Eighteen synthetic maps, two of each class."""
    labels = list(WAFER_DEFECTS.labels) * 2
    return [Sample(wafer, label) for wafer, label in zip(wafers(labels, seed=5), labels, strict=True)]


@pytest.fixture
def inputs(checkpoint: Checkpoint, tiny_task: Task, samples: list[Sample]) -> list[Inputs]:
    """Calibration inputs of the tiny model in batches of eight, eight and two, with padding."""
    return batches(checkpoint, tiny_task, samples, "wafers", 8, seed=0)


def task_for(checkpoint: Checkpoint) -> Task:
    """The nine classes on images of the size that ``checkpoint`` takes."""
    side = round(checkpoint.processor.image_processor.size["shortest_edge"] ** 0.5)
    return replace(WAFER_DEFECTS, render=RenderSpec(side, side))


def correlated(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs (tokens, width) float32 as layers have them: correlated, and of very different strength."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(tokens, width)) @ rng.normal(size=(width, width)) / np.sqrt(width)
    return torch.tensor(mixed * np.exp(rng.normal(size=width)), dtype=torch.float32)
