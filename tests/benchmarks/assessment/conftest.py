"""Real maps as cases, and texts about them that are true, or false by a known share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.assessment.cases import Cases, real_cases
from tests.train.vqa.conftest import ScriptedModel
from train.dataset import Sample
from train.vqa.build import VqaConfig, build_vqa
from wafervlm.wafermap import WaferMap


@pytest.fixture(scope="session")
def real(real_wafers: list[tuple[WaferMap, str]]) -> Cases:
    """About ninety real maps, ten of each class; every five of them a lot."""
    samples = [
        Sample(WaferMap(wafer.dies, id=wafer.id, lot=f"lot {number // 5}"), label)
        for number, (wafer, label) in enumerate(real_wafers)
    ]
    return real_cases(samples)


@pytest.fixture(scope="session")
def words_folder(synthetic_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``wafervlm data vqa`` writes about the synthetic dataset. Do not write to it."""
    out = tmp_path_factory.mktemp("words") / "words"
    build_vqa(VqaConfig(synthetic_dataset), out)
    return out


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedModel]:
    """A scripted judge on loopback, which is no language model."""
    pytest.importorskip("openai", reason="the openai client is not installed")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ScriptedModel()
    yield server
    server.close()
