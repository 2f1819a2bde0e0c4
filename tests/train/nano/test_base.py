"""Training the base: its batches, its schedule, and going on where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train.nano.base as base
from train.nano.config import TINY
from train.nano.corpus import tokenizer_texts

SETTINGS = replace(base.BaseSettings(), steps=4, word_steps=2, batch=2, save_every=2, warmup=2, questions=2)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "NANO", TINY)
    monkeypatch.setattr(base, "tokenizer_texts", lambda seed: tokenizer_texts(seed, scenes=20))


def test_schedule_rises_stays_and_falls() -> None:
    settings = base.BaseSettings(steps=1000, warmup=100, decay=0.3)
    rates = [base.learning_rate(step, settings) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[100] == rates[699] == settings.learning_rate
    assert rates[-1] < 1e-5
    assert rates[850] == pytest.approx(settings.learning_rate / 2)
    words = [base.learning_rate(step, settings) for step in range(1000, settings.total)]
    assert max(words) < settings.learning_rate / 2
    assert words[0] > 0
    assert words[-1] < 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_interrupted_training_comes_to_the_same_weights(tmp_path: Path) -> None:
    base.train_base(None, tmp_path / "whole", SETTINGS)

    class Stop(Exception):
        pass

    def stop_after_four(partial: Path, step: int, loss: float, seconds: float) -> None:
        if step == 4:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_log", stop_after_four)
        with pytest.raises(Stop):
            base.train_base(None, tmp_path / "parts", SETTINGS)
    base.train_base(None, tmp_path / "parts", SETTINGS)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert (tmp_path / "whole-curve.png").read_bytes().startswith(b"\x89PNG")
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=1e-6)


def test_maps_with_clusters_are_shown_more_often() -> None:
    plain = np.ones((20, 20), dtype=np.uint8)
    marked = plain.copy()
    marked[5:10, 5:10] = 2
    weights = base.interest([plain, marked])
    assert weights.sum() == pytest.approx(1.0)
    assert weights[1] > 1.3 * weights[0]
