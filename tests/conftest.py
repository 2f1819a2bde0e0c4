"""Shared pieces of the tests: a tiny random-weight model, its task, and real wafer maps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from wafervlm.render import RenderSpec
from wafervlm.task import WAFER_DEFECTS, Task
from wafervlm.wafermap import WaferMap

ROOT = Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    """Where the real maps lie: $WAFERVLM_DATA, else shared/data beside the checkout."""
    return Path(os.environ.get("WAFERVLM_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def wm811k() -> Path:
    """Folder of the real WM-811K maps."""
    folder = data_folder() / "wm811k"
    if not (folder / "val.npz").is_file():
        pytest.skip(f"no real wafer maps at {folder}; set WAFERVLM_DATA to the folder that holds wm811k/")
    return folder


@pytest.fixture(scope="session")
def real_wafers(wm811k: Path) -> list[tuple[WaferMap, str]]:
    """About ninety labelled real maps, ten of each class, in lot order."""
    with np.load(wm811k / "val.npz") as stored:
        arrays: dict[str, Any] = dict(stored)
    chosen = np.sort(
        np.concatenate([np.flatnonzero(arrays["labels"] == c)[:10] for c in WAFER_DEFECTS.labels])
    )
    found = []
    for i in chosen:
        dies = arrays["maps"][arrays["offsets"][i] : arrays["offsets"][i + 1]]
        grid = dies.reshape(arrays["heights"][i], arrays["widths"][i])
        found.append((WaferMap(grid, id=f"row-{arrays['source_index'][i]}"), str(arrays["labels"][i])))
    return found


@pytest.fixture(scope="session")
def synthetic_wafers() -> list[tuple[WaferMap, str]]:
    """Thirty-six synthetic maps, four of each class."""
    from train.synthetic import wafers

    labels = list(WAFER_DEFECTS.labels) * 4
    return list(zip(wafers(labels, seed=3), labels, strict=True))


@pytest.fixture(scope="session")
def tiny_task() -> Task:
    """The nine classes on 64x64 images."""
    return Task(labels=WAFER_DEFECTS.labels, spellings=WAFER_DEFECTS.spellings, render=RenderSpec(64, 64))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random-weight Qwen3-VL of 0.3 M parameters, with its processor. Do not write to it."""
    from train.nano.config import TINY, build_model_folder, train_tokenizer
    from train.nano.corpus import tokenizer_texts

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tokenizer = train_tokenizer(tokenizer_texts(seed=1, scenes=20), TINY.vocabulary)
    build_model_folder(folder, TINY, tokenizer, seed=1)
    return folder


@pytest.fixture(scope="session")
def synthetic_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of synthetic maps on 64x64 images. Do not write to it."""
    from train.build import BuildConfig, build_dataset

    out = tmp_path_factory.mktemp("synthetic") / "dataset"
    build_dataset(BuildConfig(source=Path("synthetic"), train=6, test=3, tune=3, size=(64, 64)), out)
    return out
