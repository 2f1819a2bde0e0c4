"""A folder of words about synthetic maps, and an SFT adapter to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from train.config import settings_from
from train.sft import fine_tune
from train.vqa.build import VqaConfig, build_vqa


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory, synthetic_dataset: Path) -> Path:
    """What ``wafervlm data vqa`` writes about three synthetic maps of each class and part. Do not write to
    it."""
    out = tmp_path_factory.mktemp("rl") / "words"
    build_vqa(VqaConfig(synthetic_dataset, per_class=3), out)
    return out


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, words: Path) -> Path:
    """An SFT adapter on the tiny model, with embeddings of its own. Do not write to it."""
    out = tmp_path_factory.mktemp("sft") / "adapter"
    table = {
        "output": str(out),
        "model": {"base": str(tiny_checkpoint), "device": "cpu"},
        "data": {"dataset": str(words), "words": 0.5, "tune_maps": 9},
        "lora": {"rank": 4, "vision": True, "tokens": True},
        "train": {"batch": 4, "max_steps": 2, "learning_rate": 1e-2, "threads": 1},
    }
    fine_tune(settings_from(table)[0])
    return out
