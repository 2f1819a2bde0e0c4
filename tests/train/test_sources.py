from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.maps import write_npz, write_synthetic
from train.sources import read_source
from train.sources.drawn import drawn_rows
from train.sources.folders import read_folders
from train.sources.mixedwm38 import read_mixedwm38
from train.sources.npz import read_npz
from train.sources.rows import rows_of_grids
from wafervlm.errors import DatasetError, FileFormatError, ImageError
from wafervlm.render import RenderSpec, render
from wafervlm.wafermap import WaferMap, canonical_digest, grid_digest, transform

A = np.array([[0, 1, 0], [1, 2, 1], [0, 1, 2]], dtype=np.uint8)
B = np.array([[1, 1, 1, 1], [1, 2, 2, 1], [1, 1, 1, 0]], dtype=np.uint8)


def test_npz_round_trip(tmp_path: Path) -> None:
    rows = read_npz(write_npz(tmp_path / "a.npz", [A, B], ["Loc", ""], [7, 90], ["lot1", ""]))
    assert np.array_equal(rows.grid(0), A) and np.array_equal(rows.grid(1), B)
    assert rows.wafer(0) == WaferMap(A, id="7", lot="lot1")
    assert rows.digests.tolist() == [grid_digest(A), grid_digest(B)]
    assert rows.canonical.tolist() == [canonical_digest(A), canonical_digest(B)]
    assert rows.class_counts() == {"Loc": 1}
    taken = rows.take([1])
    assert len(taken) == 1 and np.array_equal(taken.grid(0), B) and taken.source_index.tolist() == [90]


def test_real_npz_states_the_digests_that_are_computed_here(wm811k: Path) -> None:
    rows = read_npz(wm811k / "val.npz")
    assert len(rows) == 517
    for i in range(0, 517, 10):
        assert rows.digests[i] == grid_digest(rows.grid(i))
        assert rows.canonical[i] == canonical_digest(rows.grid(i))


def test_npz_with_a_wrong_digest_is_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", [A, B], ["Loc", "none"])
    arrays = dict(np.load(path))
    np.savez(path, **arrays, map_sha256_24=np.array([grid_digest(B), grid_digest(B)]))
    with pytest.raises(FileFormatError, match="row 0 does not have the digest"):
        read_npz(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heights": np.array([3, 4], np.int16)}, "do not fit together"),
        ({"labels": np.array(["Loc"])}, "do not fit together"),
        ({"offsets": np.array([0, 9])}, "do not fit together"),
        ({"maps": np.full(21, 3, np.uint8)}, "0 no die, 1 pass, 2 fail"),
        ({"maps": np.zeros((3, 7), np.uint8)}, "1-D uint8"),
        ({"labels": np.array(["a", {}], dtype=object)}, "not a .npz of plain arrays"),
    ],
)
def test_npz_whose_arrays_do_not_fit(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write_npz(tmp_path / "a.npz", [A, B], ["Loc", "none"])
    np.savez(path, **{**dict(np.load(path)), **change})
    with pytest.raises(FileFormatError, match=message):
        read_npz(path)


def test_npz_missing_array_and_not_a_zip(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", maps=A.ravel())
    with pytest.raises(FileFormatError, match="no array 'offsets'"):
        read_source(tmp_path / "a.npz")
    with (tmp_path / "c.npz").open("wb") as file:
        np.save(file, A)
    with pytest.raises(FileFormatError, match="not a .npz of plain arrays"):
        read_npz(tmp_path / "c.npz")
    (tmp_path / "b.npz").write_bytes(b"not a zip")
    with pytest.raises(FileFormatError, match="not a .npz file"):
        read_source(tmp_path / "b.npz")
    whole = write_npz(tmp_path / "c.npz", [A, B], ["Loc", "none"]).read_bytes()
    (tmp_path / "c.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError):
        read_source(tmp_path / "c.npz")


def test_conflicting_finds_rotated_and_mirrored_maps_with_two_labels() -> None:
    rows = rows_of_grids([A, transform(A, 5), B, B, A], ["Loc", "none", "Loc", "Loc", ""])
    assert rows.conflicting().tolist() == [True, True, False, False, False]


def test_mixedwm38(wm811k: Path) -> None:
    path = wm811k.parent / "mixedwm38" / "val.npz"
    if not path.is_file():
        pytest.skip(f"no MixedWM38 at {path}")
    rows, arrays = read_source(path), dict(np.load(path))
    assert len(rows) == 570 and not rows.ordered
    short = {"C": "Center", "D": "Donut", "EL": "Edge-Loc", "ER": "Edge-Ring", "L": "Loc", "NF": "Near-full",
             "S": "Scratch", "R": "Random", "Normal": "none"}  # fmt: skip
    for i in range(570):
        assert np.array_equal(rows.grid(i), arrays["maps"][i])
        assert set(rows.labels[i].split("+")) == {
            short[code] for code in str(arrays["pattern"][i]).split("-")
        }


def test_mixedwm38_that_does_not_fit(tmp_path: Path) -> None:
    good = {"maps": np.ones((2, 4, 4), np.uint8), "labels8": np.zeros((2, 8), np.uint8),
            "label_names": np.array(list("abcdefgh"))}  # fmt: skip
    for change in ({"maps": np.full((2, 4, 4), 3, np.uint8)}, {"labels8": np.zeros((2, 7), np.uint8)}):
        np.savez(tmp_path / "a.npz", **{**good, **change})
        with pytest.raises(FileFormatError):
            read_mixedwm38(tmp_path / "a.npz")


def folders(path: Path, spec: RenderSpec) -> Path:
    for label in ("Loc", "none"):
        (path / label).mkdir(parents=True)
    Image.fromarray(render(A, spec)).save(path / "Loc" / "a.png")
    Image.fromarray(render(B, spec)).save(path / "none" / "b.bmp")
    np.save(path / "none" / "c.npy", B)
    return path


def test_folders_of_images_and_grids(tmp_path: Path) -> None:
    spec = RenderSpec(48, 48)
    rows = read_source(folders(tmp_path / "maps", spec), spec)
    assert rows.labels.tolist() == ["Loc", "none", "none"]
    for i, grid in enumerate((A, B, B)):
        assert np.array_equal(render(rows.grid(i), spec), render(grid, spec))
    assert not rows.ordered and set(rows.lots) == {""}


def test_folders_with_lots(tmp_path: Path) -> None:
    path = folders(tmp_path / "maps", RenderSpec())
    with (path / "lots.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "lot"], ["Loc/a.png", "lot7"], ["none/c.npy", "lot8"]])
    assert read_folders(path).lots.tolist() == ["lot7", "", "lot8"]
    (path / "none" / "c.npy").unlink()
    with pytest.raises(DatasetError, match="names none/c.npy, which is not there"):
        read_folders(path)


def test_folders_that_are_empty_or_hold_other_images(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no class folders"):
        read_source(tmp_path)
    path = folders(tmp_path / "maps", RenderSpec())
    (path / "Scratch").mkdir()
    with pytest.raises(DatasetError, match="Scratch is empty"):
        read_folders(path)
    Image.new("RGB", (256, 256), (9, 9, 9)).save(path / "Scratch" / "cat.png")
    with pytest.raises(ImageError):
        read_folders(path)


def test_unknown_and_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        read_source(tmp_path / "nothing.pkl")
    (tmp_path / "a.mat").write_bytes(b"x")
    with pytest.raises(FileFormatError, match="neither a .pkl"):
        read_source(tmp_path / "a.mat")


def test_drawn_maps_are_the_same_each_time_and_balanced_in_lots(tmp_path: Path) -> None:
    rows, again = drawn_rows(5), drawn_rows(5)
    assert rows.digests.tolist() == again.digests.tolist()
    assert set(rows.class_counts().values()) == {5}
    assert len(set(rows.lots.tolist())) == 2 and "" not in rows.lots
    assert len(read_source(write_synthetic(tmp_path / "s.npz", per_class=2))) == 18
