"""Shared pieces of the tests: a tiny random-weight model, its task, and real wafer maps."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
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
# The model families, each with the side in pixels of the images that its tiny model is tested on.
SIDES = {"qwen3_vl": 64, "qwen2_5_vl": 84}


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
    return square_task(64)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a family's tiny checkpoint, made when it is first asked for."""

    @functools.cache
    def folder(family: str) -> Path:
        from tests.tiny_models import BUILDERS

        out = tmp_path_factory.mktemp(family) / "checkpoint"
        BUILDERS[family](out)
        return out

    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_folder: Callable[[str], Path]) -> Path:
    """Folder of a random-weight Qwen3-VL of 0.3 M parameters, with its processor. Do not write to it."""
    return tiny_folder("qwen3_vl")


@pytest.fixture(scope="module", params=list(SIDES))
def family(request: pytest.FixtureRequest) -> str:
    """The name of each family in turn: a test that asks for it, or for what follows, runs on all."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def family_checkpoint(family: str, tiny_folder: Callable[[str], Path]) -> Path:
    """Folder of the family's tiny checkpoint. Do not write to it."""
    return tiny_folder(family)


@pytest.fixture(scope="module")
def family_task(family: str) -> Task:
    """The nine classes on images of the family's size."""
    return square_task(SIDES[family])


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Gives a dataset folder of synthetic maps on images of a side, made when it is first asked for."""

    @functools.cache
    def folder(side: int) -> Path:
        from train.build import BuildConfig, build_dataset

        out = tmp_path_factory.mktemp("synthetic") / "dataset"
        build_dataset(BuildConfig(source=Path("synthetic"), train=6, test=3, tune=3, size=(side, side)), out)
        return out

    return folder


@pytest.fixture(scope="session")
def synthetic_dataset(synthetic_folder: Callable[[int], Path]) -> Path:
    """A dataset folder of synthetic maps on 64x64 images. Do not write to it."""
    return synthetic_folder(64)


@pytest.fixture(scope="module")
def family_dataset(family: str, synthetic_folder: Callable[[int], Path]) -> Path:
    """The same maps on images of the family's size. Do not write to it."""
    return synthetic_folder(SIDES[family])


def square_task(side: int) -> Task:
    """The nine classes on images of ``side`` pixels."""
    return Task(labels=WAFER_DEFECTS.labels, spellings=WAFER_DEFECTS.spellings, render=RenderSpec(side, side))
