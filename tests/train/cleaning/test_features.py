"""Features: what a turned wafer keeps, and what the vision tower of either family gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from train.cleaning.features import read_features
from train.cleaning.geometry import NAMES, geometry_features, longest_arc
from train.cleaning.partial import Partial
from train.cleaning.vision import native_spec, vision_features
from train.encoding import encode
from train.loading import load_checkpoint
from train.sources.rows import Rows, rows_of_grids
from wafervlm.errors import FileFormatError, UsageError
from wafervlm.render import RenderSpec, render
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap, transform


def test_a_turned_or_mirrored_wafer_keeps_its_features(synthetic_wafers: list[tuple[WaferMap, str]]) -> None:
    kept = np.array(
        [
            np.isclose(geometry_features(transform(wafer.dies, s)), geometry_features(wafer.dies), atol=1e-9)
            for wafer, _ in synthetic_wafers[:9]
            for s in range(1, 8)
        ]
    )
    # Dies on the border of two rings or sectors may change sides, and clusters of one size their order.
    hourly = np.array([name.startswith(("rim_", "middle_")) for name in NAMES])
    assert kept[:, ~hourly].mean() > 0.95
    assert kept[:, hourly].mean() > 0.5


def test_features_tell_a_ring_from_a_lone_cluster() -> None:
    y, x = np.mgrid[-15:16, -15:16] / 15.5
    wafer = (np.hypot(x, y) <= 1).astype(np.uint8)
    ring = np.where((np.hypot(x, y) > 0.85) & (wafer == 1), 2, wafer).astype(np.uint8)
    blob = np.where(np.hypot(x - 0.4, y) < 0.2, 2, wafer).astype(np.uint8)
    of_ring, of_blob = (
        dict(zip(NAMES, geometry_features(grid).tolist(), strict=True)) for grid in (ring, blob)
    )
    assert of_ring["rim_arc"] == 1.0 and of_blob["rim_arc"] == 0.0
    assert of_blob["clusters"] == 1 and of_blob["cluster_0_of_failing"] == 1.0
    assert of_blob["cluster_0_radius"] == pytest.approx(0.4, abs=0.03)
    # Four standard deviations of a disc are its diameter, here a fifth of the wafer's.
    assert of_blob["cluster_0_length"] == pytest.approx(0.2, abs=0.02)


def test_the_longest_arc_goes_over_twelve() -> None:
    hours = np.zeros(12)
    hours[[11, 0, 1, 5]] = 0.9
    assert longest_arc(hours) == 3 / 12
    assert longest_arc(np.zeros(12)) == 0.0
    assert longest_arc(np.ones(12)) == 1.0


def test_vision_features_are_those_of_the_model_fed_by_its_processor(
    family_checkpoint: Path, family_task: Task, synthetic_wafers: list[tuple[WaferMap, str]]
) -> None:
    checkpoint = load_checkpoint(family_checkpoint)
    grids = [wafer.dies for wafer, _ in synthetic_wafers[:3]]
    found = vision_features(checkpoint, grids, family_task.render, batch=2)
    for grid, pooled in zip(grids, found, strict=True):
        inputs = encode(checkpoint, family_task, [render(grid, family_task.render)])
        with torch.inference_mode():
            tokens = checkpoint.network.model.get_image_features(
                inputs["pixel_values"], inputs["image_grid_thw"]
            ).pooler_output[0]
        wanted = torch.cat([tokens.mean(dim=0), tokens.amax(dim=0)]).numpy()
        np.testing.assert_allclose(pooled, wanted, atol=1e-5)


def test_a_run_that_was_stopped_goes_on(
    family_checkpoint: Path,
    family_task: Task,
    synthetic_wafers: list[tuple[WaferMap, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = load_checkpoint(family_checkpoint)
    grids = [wafer.dies for wafer, _ in synthetic_wafers[:7]]
    looked: list[int] = []

    def look(*_: object, **__: object) -> None:
        looked.append(0)
        if len(looked) == 3:
            raise KeyboardInterrupt

    hook = checkpoint.network.model.visual.register_forward_pre_hook(look)
    partial = Partial(tmp_path / "kept.partial", "these maps")
    with pytest.raises(KeyboardInterrupt):
        vision_features(checkpoint, grids, family_task.render, batch=2, partial=partial)
    # As where the power went while a row was written.
    with partial.path.open("ab") as file:
        file.write(b"\0\0\0")
    found = vision_features(checkpoint, grids, family_task.render, batch=2, partial=partial)
    assert len(looked) == 3 + 2
    hook.remove()
    whole = vision_features(checkpoint, grids, family_task.render, batch=2)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    others = Partial(partial.path, "other maps")
    assert len(others.begin(whole.shape[1])) == 0


def test_a_size_that_the_checkpoint_does_not_take_is_replaced(family_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(family_checkpoint)
    images = checkpoint.processor.image_processor
    spec = native_spec(checkpoint, RenderSpec(37, 53))
    assert spec.height == spec.width and spec.height % (images.patch_size * images.merge_size) == 0


@pytest.fixture
def few(synthetic_wafers: list[tuple[WaferMap, str]]) -> Rows:
    return rows_of_grids(
        [w.dies for w, _ in synthetic_wafers[:4]], [label for _, label in synthetic_wafers[:4]]
    )


@pytest.mark.parametrize("name", ["features.npz", "features", "kept.features.v2", "deeper/features"])
def test_kept_features_are_taken_for_the_same_maps_only(
    name: str, tiny_checkpoint: Path, tmp_path: Path, few: Rows
) -> None:
    keep, spec = tmp_path / "kept" / name, RenderSpec(64, 64)
    first = read_features(few, tiny_checkpoint, spec=spec, keep=keep)
    written = keep.stat().st_mtime_ns
    again = read_features(few, tiny_checkpoint, spec=spec, keep=keep)
    assert keep.stat().st_mtime_ns == written
    np.testing.assert_array_equal(first.vision, again.vision)
    fewer = read_features(few.take([0, 2]), tiny_checkpoint, spec=spec, keep=keep)
    np.testing.assert_allclose(fewer.geometry, first.geometry[[0, 2]])
    assert [path for path in (tmp_path / "kept").rglob("*") if path.is_file()] == [keep]


def npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def spoiled(path: Path) -> None:
    np.savez_compressed(path, geometry=np.arange(999))
    data = bytearray(path.read_bytes())
    data[100:110] = b"\xff" * 10
    path.write_bytes(data)


OTHER_FILES: dict[str, Callable[[Path], object]] = {
    "another archive": lambda path: np.savez(path, maps=np.zeros(3), labels=np.array(["a"])),
    "a lone array": npy,
    "text": lambda path: path.write_text("maps and labels, no archive"),
    "nothing": lambda path: path.touch(),
    "a cut archive": lambda path: path.write_bytes(b"PK\x03\x04 and no more"),
    "a spoiled archive": spoiled,
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_another_file_is_not_taken_for_kept_features(
    what: str, tiny_checkpoint: Path, tmp_path: Path, few: Rows
) -> None:
    path = tmp_path / "maps.npz"
    OTHER_FILES[what](path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(FileFormatError, match=r"maps\.npz holds no features that wafervlm data clean kept"):
        read_features(few, tiny_checkpoint, spec=RenderSpec(64, 64), keep=path)
    assert before is None or path.read_bytes() == before


def test_features_that_could_not_be_kept_are_not_computed(
    tiny_checkpoint: Path, tmp_path: Path, few: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("train.cleaning.features._compute", lambda *_: pytest.fail("computed for nothing"))
    with pytest.raises(UsageError, match="features cannot be written"):
        read_features(few, tiny_checkpoint, keep=tmp_path / "file" / "features")
