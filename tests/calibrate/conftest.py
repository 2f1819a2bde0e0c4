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
HAS_BASE = (WEIGHTS / "base" / "model.safetensors").is_file()
IS_TRAINED = HAS_BASE and (WEIGHTS / "adapter" / "adapter_config.json").is_file()
STANDS_FOR_NANO = "trained" if IS_TRAINED else "trained base" if HAS_BASE else "tiny model, nano is not there"


@pytest.fixture(scope="session", params=[STANDS_FOR_NANO])
def nano(tiny_checkpoint: Path) -> Checkpoint:
    """Trained nano: its committed base with its adapter merged in, or what stands for it, as the test's name
    says. Do not change it."""
    if not IS_TRAINED:
        return load_checkpoint(WEIGHTS / "base" if HAS_BASE else tiny_checkpoint)
    loaded = load_checkpoint(WEIGHTS / "base", adapter=WEIGHTS / "adapter")
    return replace(loaded, model=loaded.model.merge_and_unload().eval())


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


@pytest.fixture
def family_model(family_checkpoint: Path) -> Checkpoint:
    """Each family's tiny model, loaded anew for each test."""
    return load_checkpoint(family_checkpoint)


@pytest.fixture
def family_inputs(family_model: Checkpoint, family_task: Task, samples: list[Sample]) -> list[Inputs]:
    """Calibration inputs of the family's tiny model in batches of eight, eight and two, with padding."""
    return batches(family_model, family_task, samples, "wafers", 8, seed=0)


def task_for(checkpoint: Checkpoint) -> Task:
    """The nine classes on images of the size that ``checkpoint`` takes."""
    side = round(checkpoint.processor.image_processor.size["shortest_edge"] ** 0.5)
    return replace(WAFER_DEFECTS, render=RenderSpec(side, side))


def correlated(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs (tokens, width) float32 as layers have them: correlated, and of very different strength."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(tokens, width)) @ rng.normal(size=(width, width)) / np.sqrt(width)
    return torch.tensor(mixed * np.exp(rng.normal(size=width)), dtype=torch.float32)
