from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from wafervlm.errors import FileFormatError, UsageError, WaferMapError, WaferVLMError
from wafervlm.readers import read_file, read_wafer
from wafervlm.readers.bins import Bins
from wafervlm.render import RenderSpec, render
from wafervlm.wafermap import WaferMap

GRID = np.array([[0, 1, 1, 0], [1, 2, 1, 1], [1, 1, 2, 1], [0, 1, 1, 0], [0, 0, 1, 0]], np.uint8)
BINS = {".": 0, "1": 1, "X": 2}
CODES = [["." if die == 0 else "1" if die == 1 else "X" for die in row] for row in GRID]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines(separator: str, codes: list[list[str]] = CODES) -> str:
    return "\n".join(separator.join(row) for row in codes) + "\n"


@pytest.mark.parametrize("separator", [",", ";", "\t", " ", "   ", ", ", ""])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_separator_and_line_end(tmp_path: Path, separator: str, end: str) -> None:
    path = write(tmp_path / "lot7-w03.csv", lines(separator).replace("\n", end))
    wafer = read_wafer(path, bins=BINS)
    assert np.array_equal(wafer.dies, GRID)
    assert wafer.id == "lot7-w03"
    assert read_wafer(str(path), bins=BINS) == wafer


@pytest.mark.parametrize("suffix", [".csv", ".TXT", ".asc", ".tsv"])
def test_plain_codes_need_no_bins(tmp_path: Path, suffix: str) -> None:
    text = "\n".join(" ".join(map(str, row)) for row in GRID)
    assert np.array_equal(read_wafer(write(tmp_path / f"w{suffix}", text)).dies, GRID)


def test_numpy_savetxt_is_read(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "w.txt", GRID, header="lot 7")
    np.savetxt(tmp_path / "w.csv", GRID, delimiter=",", fmt="%g")
    assert np.array_equal(read_wafer(tmp_path / "w.txt").dies, GRID)
    assert np.array_equal(read_wafer(tmp_path / "w.csv").dies, GRID)


@pytest.mark.parametrize(
    "text, bins",
    [
        ("\ufeff" + lines(","), BINS),
        ("\n# lot 7\n\n" + lines("") + "\n\n", BINS),
        (lines("").replace(".", " "), {" ": 0, "1": 1, "X": 2}),
        (lines("").replace("1", ","), {".": 0, ",": 1, "X": 2}),
        (lines("").replace(".", "#"), {"#": 0, "1": 1, "X": 2}),
        (lines(",").replace(".", ""), {"": 0, "1": 1, "X": 2}),
        (lines(",").replace("X", '"X,Y"'), {".": 0, "1": 1, "X,Y": 2}),
        (lines(" ").replace("X", "255").replace("1", "001").replace(".", "-1"), {-1: 0, 1: 1, 255: 2}),
        (lines(";").replace("X", "7.0"), {".": 0, "1": 1, "7": 2}),
        (lines(" ").replace("X", "Ü"), {".": 0, "1": 1, "Ü": 2}),
    ],
)
def test_grids_as_tools_write_them(tmp_path: Path, text: str, bins: dict[Any, int]) -> None:
    assert np.array_equal(read_wafer(write(tmp_path / "w.txt", text), bins=bins).dies, GRID)


def test_utf16_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = write(tmp_path / "w.txt", lines("\t").encode("utf-16"))
    assert np.array_equal(read_wafer(path, bins=BINS).dies, GRID)


def test_several_codes_may_mean_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "w.csv", "0,1,2\n3,4,5\n1,1,1\n")
    wafer = read_wafer(path, bins={"0": 0, "1": 1, "2": 2, "3": 2, "4": 2, "5": 2})
    assert wafer.dies.tolist() == [[0, 1, 2], [2, 2, 2], [1, 1, 1]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("# lot\n1,1,1\n1,Z,1\n1,1,1\n", r"the code 'Z'.*--bins \.=0,P=1,F=2"),
        ("# lot\n1,1,1\n1,Z,1\n1,1,1\n", r"row 2, column 2 \(counted from 1; line 3 of the file\)"),
        ("1,1,1\n1,,1\n1,1,1\n", "an empty cell"),
        ("1,1,1,\n1,1,1,\n1,1,1,\n", "row 1, column 4 .*'' \\(an empty cell\\)"),
        ("111\n1Q1\n111\n", "'Q'"),
        ("111\n1.51\n111\n", "in line 2 and 3 in the lines before"),
        ("1 1 1\n1 1.5 1\n1 1 1\n", "'1.5'"),
        ("1 1 1\n1 nan 1\n1 1 1\n", "'nan'"),
        ("1 1 1\n1 1e999 1\n1 1 1\n", "'1e999'"),
        ("1 1 1\n1 3 1\n1 1 1\n", "'3'"),
        ("1,1,1\n1,1\n1,1,1\n", "2 codes in line 2 and 3"),
        ("", "is empty"),
        ("\n \n", "holds no rows"),
        ("# only a comment\n", "holds no rows"),
        (b"\x80\x81\x82", "not UTF-8"),
        (b"\xff\xfe1", "not UTF-8"),
        ("1" * 5000 + "\n", "more than 4096"),
        ("111\n" * 4097, "more than 4096"),
        ('1,"1,1\n1,1,1\n', "the code '1,1"),
    ],
)
def test_text_that_is_no_grid(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_wafer(path)
    assert str(path) in str(caught.value)


def test_a_grid_without_dies_or_too_small_is_no_wafer(tmp_path: Path) -> None:
    for text in ("000\n000\n000\n", "11\n12\n"):
        with pytest.raises(WaferMapError, match="w9"):
            read_wafer(write(tmp_path / "w9.txt", text))


@pytest.mark.parametrize(
    "bins", [{}, [], "01", {"X": 3}, {"X": "2"}, {"X": True}, {"X": None}, {1.5: 1}, {True: 1}, {None: 0}]
)
def test_bins_that_cannot_be_meant(tmp_path: Path, bins: Any) -> None:
    np.save(tmp_path / "w.npy", GRID)
    for path in (write(tmp_path / "w.csv", lines(",")), tmp_path / "w.npy"):
        with pytest.raises(UsageError, match="bins"):
            read_wafer(path, bins=bins)


def test_a_written_number_is_looked_up_as_it_is_first() -> None:
    table = Bins({"1": 1, "01": 2})
    assert (table["1"], table["01"], table["001"], table["1.0"], table["+1e0"]) == (1, 2, 1, 1, 1)
    for code in ("1_0", "١", "0x1", "", "1.", " 1", "inf"):
        if code == "1.":
            assert table[code] == 1
        else:
            with pytest.raises(KeyError):
                table[code]


@pytest.mark.parametrize(
    "array",
    [GRID, GRID.astype(">i8"), np.asfortranarray(GRID), GRID.astype(np.float32), GRID.astype(">f8"), GRID.T],
)
def test_arrays_are_read(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", anything=array)
    np.savez_compressed(tmp_path / "c.npz", other=np.arange(3), dies=array)
    for name in ("a.npy", "b.npz", "c.npz"):
        wafer = read_wafer(tmp_path / name)
        assert np.array_equal(wafer.dies, array)
        assert wafer.id == name[0]


@pytest.mark.parametrize("dtype", [np.int16, np.float64, np.uint8])
def test_bin_codes_in_arrays_are_mapped(tmp_path: Path, dtype: Any) -> None:
    np.save(tmp_path / "a.npy", np.array([9, 1, 17])[GRID].astype(dtype))
    assert np.array_equal(read_wafer(tmp_path / "a.npy", bins={"9": 0, "1": 1, "17": 2}).dies, GRID)
    with pytest.raises(FileFormatError, match="row 0, column 0, has the code '9'"):
        read_wafer(tmp_path / "a.npy", bins={"1": 1, "17": 2})
    with pytest.raises(WaferMapError, match="the value 9(.0)? at row 0, column 0"):
        read_wafer(tmp_path / "a.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5])
def test_numbers_that_are_no_code(tmp_path: Path, value: float) -> None:
    np.save(tmp_path / "a.npy", np.where(GRID == 2, value, GRID))
    with pytest.raises(FileFormatError, match=f"row 1, column 1, has the code '{value}'"):
        read_wafer(tmp_path / "a.npy", bins={"0": 0, "1": 1})


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_nothing_is_ever_unpickled(tmp_path: Path, name: str) -> None:
    trap = np.empty((3, 3), object)
    trap[:] = Trap(tmp_path / "sprung")
    save = np.save if name == "a.npy" else np.savez
    save(tmp_path / name, trap)
    with pytest.raises(FileFormatError, match="Python objects"):
        read_wafer(tmp_path / name)
    write(tmp_path / name, pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(FileFormatError, match="neither"):
        read_wafer(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert (tmp_path / "sprung").exists()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_npz_with_the_wrong_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", maps=GRID, labels=GRID)
    with pytest.raises(FileFormatError, match=r"several arrays \(labels, maps\).*key 'dies'"):
        read_wafer(tmp_path / "many.npz")
    np.savez(tmp_path / "none.npz")
    with pytest.raises(FileFormatError, match="neither|no array"):
        read_wafer(tmp_path / "none.npz")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(FileFormatError, match="no array"):
        read_wafer(tmp_path / "other.npz")


@pytest.mark.parametrize(
    "array, error, message",
    [
        (np.ones((3, 4, 5), np.uint8), FileFormatError, "shape \\(3, 4, 5\\)"),
        (np.ones((4097, 1), np.uint8), FileFormatError, "at most 4096x4096"),
        (np.full((3, 3), "x" * 50), FileFormatError, "at most 4096x4096 numbers"),
        (np.ones((3, 3), "datetime64[s]"), WaferMapError, "dtype datetime64"),
        (np.ones((3, 3), bool), WaferMapError, "boolean"),
        (np.ones((1, 1), np.uint8), WaferMapError, "1x1 dies"),
        (np.ones((0, 5), np.uint8), WaferMapError, "0x5 dies"),
    ],
)
def test_arrays_that_are_no_grid(tmp_path: Path, array: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_wafer(write(tmp_path / "a.npy", npy(array)))


def test_a_header_that_asks_for_terabytes(tmp_path: Path) -> None:
    data = npy(np.ones((3, 3), np.uint8)).replace(b"(3, 3)", b"(9**9,9", 1)
    with pytest.raises(FileFormatError):
        read_wafer(write(tmp_path / "a.npy", data))
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    header = header.ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with pytest.raises(FileFormatError, match="1000000"):
        read_wafer(write(tmp_path / "b.npy", data))
    # A zip member that claims more than it has, and one that inflates to more than a wafer needs.
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dies.npy", data + bytes(50_000_000))
    with pytest.raises(FileFormatError, match="1000000"):
        read_wafer(tmp_path / "c.npz")


@pytest.mark.parametrize("keep", [1, 5, 7, 20, 100, 130, -1])
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_truncated_arrays(tmp_path: Path, name: str, keep: int) -> None:
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, GRID)
    path = write(tmp_path / name, (tmp_path / name).read_bytes()[:keep])
    with pytest.raises(FileFormatError, match="neither|not a readable"):
        read_wafer(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    spec = RenderSpec(32, 32)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileFormatError, match="is not a file"):
        read_wafer(tmp_path / "folder.csv")
    for read in (read_wafer, lambda path: read_file(path, spec)):
        with pytest.raises(FileFormatError, match="No such file"):
            read(tmp_path / "nothing.npy")
        with pytest.raises(FileFormatError, match="known are .npy, .npz, .csv"):
            read(tmp_path / "wafer.xlsx")
        with pytest.raises(FileFormatError, match="cannot read"):
            read("nul\0.csv")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.csv")
        with pytest.raises(FileFormatError, match="is not a file"):
            read_wafer(tmp_path / "pipe.csv")
    with (tmp_path / "big.csv").open("wb") as file:
        file.truncate(1 << 28)  # a sparse file
    with pytest.raises(FileFormatError, match="larger than"):
        read_wafer(tmp_path / "big.csv")


def test_read_file_knows_images_by_their_bytes(tmp_path: Path) -> None:
    spec = RenderSpec(32, 32)
    Image.fromarray(render(GRID, spec)).save(tmp_path / "w.png")
    (tmp_path / "w").write_bytes((tmp_path / "w.png").read_bytes())
    for name in ("w.png", "w"):
        wafer = read_file(tmp_path / name, spec)
        assert isinstance(wafer, WaferMap)
        assert np.array_equal(render(wafer, spec), render(GRID, spec))
    (tmp_path / "w.csv").write_text("BM1\n1B1\nM1B\n")
    wafer = read_file(tmp_path / "w.csv", spec, bins={"B": 1, "M": 2, "1": 0})
    assert isinstance(wafer, WaferMap)
    assert wafer.fail_count == 2
    (tmp_path / "w.csv").write_bytes((tmp_path / "w.png").read_bytes())
    with pytest.raises(FileFormatError, match="not UTF-8 text"):
        read_file(tmp_path / "w.csv", spec)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["npy", "npz", "csv"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    cut=st.floats(0.5, 1.2),
)
def test_damaged_files_end_in_a_wafer_or_an_error(
    tmp_path: Path, kind: str, changes: list[tuple[float, int]], cut: float
) -> None:
    path = tmp_path / f"damaged.{kind}"
    if kind == "csv":
        path.write_text(lines(","))
    else:
        (np.save if kind == "npy" else np.savez_compressed)(path, GRID)
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    path.write_bytes(data[: int(cut * len(data))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile and numpy warn of some damage
        try:
            end: object = read_wafer(path, bins=BINS if kind == "csv" else None)
        except WaferVLMError as error:
            end = str(error)
    assert isinstance(end, WaferMap) or (
        isinstance(end, str) and "damaged" in end.replace("test_damaged", "")
    )
