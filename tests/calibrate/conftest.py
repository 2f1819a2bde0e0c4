"""What is calibrated in the tests: trained nano where its weights are in the tree, else the tiny model."""

from __future__ import annotations

import warnings
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

NANO = Path(__file__).resolve().parents[2] / "train" / "nano"


def trained_nano() -> Path | None:
    """The first folder of trained nano weights in the tree."""
    found = sorted(path.parent for path in NANO.glob("*/model.safetensors"))
    return found[0] if found else None


@pytest.fixture(scope="session")
def nano(tiny_checkpoint: Path) -> Path:
    """Folder of trained nano, or of the tiny random model where there is none, which is said."""
    trained = trained_nano()
    if trained is None:
        warnings.warn(pytest.PytestWarning("no trained nano in train/nano: the tiny random model stands for it"))
    return trained or tiny_checkpoint


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
