"""Archives: what they hold, how they are cut, and that a map that cannot be read is a map with an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wafervlm.archive import Archive, Found, find_archive, read_part
from wafervlm.archive_files import Piece
from wafervlm.errors import UsageError
from wafervlm.render import RenderSpec, render
from wafervlm.wafermap import WaferMap

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'wafervlm[archive]'")
SPEC = RenderSpec(32, 32)


def write_packed(path: Path, wafers: list[WaferMap]) -> None:
    """As WM-811K comes: grids of any shape one after the other."""
    sizes = [wafer.dies.size for wafer in wafers]
    np.savez_compressed(
        path,
        maps=np.concatenate([wafer.dies.ravel() for wafer in wafers]),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        heights=np.array([wafer.shape[0] for wafer in wafers], np.int16),
        widths=np.array([wafer.shape[1] for wafer in wafers], np.int16),
    )


def write_parquet(path: Path, wafers: list[WaferMap], *, flat: bool = False, rows: int = 4) -> None:
    """Die grids in a column, as rows or flat, ``rows`` to a row group."""
    table = {"id": [wafer.id for wafer in wafers], "dies": [wafer.dies.tolist() for wafer in wafers]}
    if flat:
        table["dies"] = [wafer.dies.tobytes() for wafer in wafers]
        table |= {key: [w.shape[i] for w in wafers] for i, key in enumerate(("height", "width"))}
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=rows)


def everything(archive: Archive, size: int) -> list[Found]:
    return [found for part in archive.parts(size) for found in read_part(part, SPEC)]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_every_map_is_found_once_however_it_is_stored(
    tmp_path: Path, wafers: list[WaferMap], size: int
) -> None:
    square = [WaferMap(np.where(np.arange(81).reshape(9, 9) % k == 0, 2, 1)) for k in (2, 3, 5)]
    (tmp_path / "below").mkdir()
    np.save(tmp_path / "a.npy", wafers[0].dies)
    np.savez(tmp_path / "b.npz", dies=wafers[1].dies)
    Image.fromarray(render(square[0], SPEC)).save(tmp_path / "below" / "c.png")
    write_packed(tmp_path / "d.npz", wafers[2:12])
    np.savez(tmp_path / "e.npz", maps=np.stack([wafer.dies for wafer in square]))
    write_parquet(tmp_path / "f.parquet", wafers[12:22])
    write_parquet(tmp_path / "g.parquet", wafers[22:30], flat=True, rows=3)
    archive = find_archive([tmp_path])
    found = everything(archive, size)
    assert [each.error for each in found] == [""] * archive.count == [""] * 34
    names = [f"d.npz#{row}" for row in range(10)] + [f"e.npz#{row}" for row in range(3)]
    grids = {each.id: each.wafer for each in found}
    assert list(grids) == ["a.npy", "b.npz", "below/c.png", *names, *(w.id for w in wafers[12:30])]
    wanted = [wafers[0], wafers[1], None, *wafers[2:12], *square, *wafers[12:30]]
    for (name, wafer), other in zip(grids.items(), wanted, strict=True):
        assert wafer is not None and wafer.id == name
        if other is not None:
            np.testing.assert_array_equal(wafer.dies, other.dies)
    picture = grids["below/c.png"]
    assert picture is not None
    np.testing.assert_array_equal(render(picture, SPEC), render(square[0], SPEC))


def test_parts_hold_as_many_as_asked(tmp_path: Path) -> None:
    pieces = (
        Piece(tmp_path, "a", "npz", 0, 5),
        Piece(tmp_path, "b", "file"),
        Piece(tmp_path, "c", "npz", 0, 4),
    )
    parts = Archive(pieces, "").parts(4)
    cut = [[(p.name, p.first, p.count) for p in part] for part in parts]
    assert cut == [[("a", 0, 4)], [("a", 4, 1), ("b", 0, 1), ("c", 0, 2)], [("c", 2, 2)]]


def test_what_cannot_be_read_has_an_error_and_the_rest_go_on(tmp_path: Path, wafers: list[WaferMap]) -> None:
    good = wafers[0].dies
    np.save(tmp_path / "a.npy", good)
    (tmp_path / "b.npy").write_bytes(b"nothing")
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04nothing")
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    pyarrow.parquet.write_table(pyarrow.table({"grid": [1]}), tmp_path / "e.parquet")
    bad = np.full((9, 9), 7, np.uint8)
    np.savez(tmp_path / "f.npz", maps=np.stack([bad, np.ones_like(bad)]))
    np.savez(tmp_path / "g.npz", maps=good.ravel(), offsets=[0, 5], heights=[3], widths=[3])
    np.savez(tmp_path / "h.npz", maps=good.ravel(), offsets=[0, 9, 4], heights=[3, 3], widths=[3, 3])
    table = {"id": ["x", "y", "z"], "dies": [[[1, 1], [1]], None, good.tolist()]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "i.parquet")
    found = everything(find_archive([tmp_path]), 3)
    said = {each.id: each.error for each in found if each.error}
    assert [each.id for each in found if each.wafer is not None] == ["a.npy", "f.npz#1", "z"]
    for name, why in {
        "b.npy": "neither a .npy nor a .npz",
        "c.npz": "not a readable .npz",
        "d.parquet": "not a readable Parquet file",
        "e.parquet": "no column 'dies'",
        "f.npz#0": "holds the value 7",
        "g.npz#0": "is 3x3 and has 5 dies",
        "h.npz#0": "do not fit together",
        "h.npz#1": "do not fit together",
        "x": "rows of one length",
        "y": "dies",
    }.items():
        assert why in said.pop(name)
    assert not said


def test_odd_columns_and_arrays_end_in_the_rows_error(tmp_path: Path) -> None:
    """Whatever types a file has: nothing else may come out of reading it."""
    uneven = [[1, 1], [1, 1, 1], [2]]  # as many dies as three rows of two
    columns = {
        "a": {"dies": [uneven]},
        "b": {"dies": ["text"]},
        "c": {"dies": [[1] * 9], "height": ["3"], "width": ["x"]},
        "d": {"dies": [[1] * 9], "height": [-3], "width": [-3]},
        "e": {"dies": [7], "height": [1], "width": [1]},
        "f": {"dies": [uneven], "height": [2], "width": [3]},
        "g": {"dies": [b"123456789"], "height": [3], "width": [None]},
    }
    for name, table in columns.items():
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / f"{name}.parquet")
    flat, text = np.ones(9, np.uint8), np.array(["x", "y"])
    np.savez(tmp_path / "h.npz", maps=flat, offsets=text, heights=[3], widths=[3])
    np.savez(tmp_path / "i.npz", maps=flat, offsets=[0, 9], heights=[-3], widths=[-3])
    np.savez(tmp_path / "j.npz", maps=flat, offsets=[0, 9], heights=[[3]], widths=[[3]])
    found = everything(find_archive([tmp_path]), 4)
    assert [each.id[0] for each in found] == [*columns, "h", "i", "j"]
    assert all(each.wafer is None and each.error for each in found)


def test_bins_map_codes_everywhere(tmp_path: Path) -> None:
    codes = np.where(np.eye(5), 9, 4).astype(np.uint8)
    np.save(tmp_path / "a.npy", codes)
    np.savez(tmp_path / "b.npz", maps=codes[None])
    parts = find_archive([tmp_path]).parts(10)
    for each in read_part(parts[0], SPEC, {"4": 1, "9": 2}):
        assert each.wafer is not None
        np.testing.assert_array_equal(each.wafer.dies, np.where(np.eye(5), 2, 1))


def test_the_fingerprint_changes_with_any_file(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, np.ones((5, 5), np.uint8))
    before = find_archive([tmp_path])
    assert find_archive([tmp_path]) == before
    np.save(tmp_path / "b.npy", np.ones((5, 6), np.uint8))
    assert find_archive([tmp_path]).fingerprint != before.fingerprint


def test_where_there_is_nothing_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no file named .npy"):
        find_archive([tmp_path])
    with pytest.raises(UsageError, match="does not exist"):
        find_archive([tmp_path / "none"])


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path: Path, wafers: list[WaferMap]) -> None:
    for index, name in enumerate(("a/x.npy", "b/x.npy", "b/deep/y.npy", "z.npy")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / name, wafers[index].dies)

    def names(*paths: str) -> list[str]:
        return [found.id for found in everything(find_archive([tmp_path / path for path in paths]), 2)]

    assert names("a", "b") == ["a/x.npy", "b/deep/y.npy", "b/x.npy"]
    assert names("a/x.npy", "b/x.npy", "z.npy") == ["a/x.npy", "b/x.npy", "z.npy"]
    assert names("b") == ["deep/y.npy", "x.npy"]
    assert names("b/x.npy") == ["x.npy"]
    # Named twice, a file is scored once.
    assert names("b", "a/../b/deep", "b/x.npy") == ["deep/y.npy", "x.npy"]
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "x.npy").symlink_to(tmp_path / "a" / "x.npy")
    assert names("links") == ["x.npy"]
