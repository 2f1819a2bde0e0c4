from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from wafervlm.errors import InputError, WaferMapError
from wafervlm.wafermap import WaferMap, canonical_digest, grid_digest

GRID = np.array([[0, 1, 0, 0], [1, 2, 1, 0], [0, 1, 2, 1]])
GRIDS = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=40), elements=st.integers(0, 2)
)


def swapped(dtype: str) -> np.ndarray:
    return GRID.astype(np.dtype(dtype).newbyteorder(">"))


@pytest.mark.parametrize(
    "dies",
    [
        GRID.tolist(),
        swapped("i4"),
        swapped("u2"),
        swapped("f8"),
        np.asfortranarray(GRID.astype(np.uint8)),
        GRID.astype(np.float32),
        GRID.astype(np.float16),
        GRID.astype(np.int64),
        np.repeat(np.repeat(GRID, 2, axis=0), 3, axis=1)[::2, ::3],
        GRID[::-1][::-1],
    ],
)
def test_every_dtype_and_layout_gives_the_same_dies(dies: Any) -> None:
    before = copy.deepcopy(dies)
    wafer = WaferMap(dies)
    assert wafer.dies.tolist() == GRID.tolist()
    assert wafer.dies.dtype == np.uint8
    assert wafer.dies.flags.c_contiguous
    assert np.array_equal(before, dies)
    assert (wafer.shape, wafer.die_count, wafer.fail_count) == ((3, 4), 7, 2)
    assert wafer.fail_share == pytest.approx(2 / 7)


def test_the_array_is_copied_and_the_copy_is_read_only() -> None:
    dies = GRID.astype(np.uint8)
    dies.flags.writeable = False
    WaferMap(dies)
    assert not dies.flags.writeable
    dies = GRID.astype(np.uint8)
    wafer = WaferMap(dies)
    assert dies.flags.writeable
    dies[0, 1] = 2
    assert wafer.dies[0, 1] == 1
    with pytest.raises(ValueError, match="read-only"):
        wafer.dies[0, 1] = 2


@pytest.mark.parametrize(
    "dies, message",
    [
        (np.empty((0, 5), np.uint8), "0x5 dies; each side must be 3 to 4096"),
        ([], "shape \\(0,\\)"),
        (np.ones((1, 1), np.uint8), "1x1 dies"),
        (np.ones((2, 9), np.uint8), "2x9 dies"),
        (np.broadcast_to(np.uint8(1), (4097, 3)), "4097x3 dies"),
        (np.broadcast_to(np.uint8(1), (10**6, 10**6)), "1000000x1000000 dies"),
        (np.ones((3, 4, 3), np.uint8), "shape \\(3, 4, 3\\)"),
        (np.ones(9, np.uint8), "shape \\(9,\\)"),
        (np.uint8(1), "shape \\(\\)"),
        (GRID + 0.5, "value 0.5 at row 0, column 0"),
        (np.where(GRID == 2, np.nan, GRID), "value nan at row 1, column 1"),
        (np.where(GRID == 2, np.inf, GRID), "value inf at row 1, column 1"),
        (-GRID, "value -1 at row 0, column 1"),
        (np.where(GRID == 2, 3, GRID), "value 3 at row 1, column 1"),
        (np.where(GRID == 2, 258, GRID), "value 258"),
        (GRID > 1, "boolean"),
        (np.zeros((5, 5), np.uint8), "no die"),
        (GRID.astype(complex), "dtype complex128"),
        (GRID.astype(str), "dtype <U21"),
        (GRID.astype(object), "dtype object"),
        (None, "dtype object"),
        ("a path", "dtype <U6"),
        ([[0, 1, 2], [0, 1]], "cannot be read as a die grid"),
        (np.ma.masked_array(GRID, GRID == 0), "masked"),
    ],
)
def test_what_is_no_die_grid_is_refused(dies: Any, message: str) -> None:
    with pytest.raises(WaferMapError, match=message) as caught:
        WaferMap(dies, id="lot1-w3")
    assert "lot1-w3" in str(caught.value)
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, ValueError)


def test_the_refused_array_is_left_as_it_was() -> None:
    dies = np.where(GRID == 2, np.nan, GRID)
    before = dies.tobytes()
    with pytest.raises(WaferMapError):
        WaferMap(dies)
    assert dies.tobytes() == before
    assert dies.flags.writeable


def test_the_largest_grid_is_taken() -> None:
    dies = np.ones((4096, 4096), np.uint8)
    dies[17, 4095] = 2
    assert WaferMap(dies).fail_count == 1


@pytest.mark.parametrize("fields", [{"orientation": "north"}, {"orientation": 0}, {"id": 7}, {"lot": None}])
def test_wrong_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(WaferMapError):
        WaferMap(GRID, **fields)


def test_digests_are_those_of_the_real_data(wm811k: Path) -> None:
    with np.load(wm811k / "val.npz") as file:
        arrays = {key: file[key] for key in file.files}
    for i in range(len(arrays["labels"])):
        flat = arrays["maps"][arrays["offsets"][i] : arrays["offsets"][i + 1]]
        wafer = WaferMap(flat.reshape(arrays["heights"][i], arrays["widths"][i]))
        assert wafer.digest == arrays["map_sha256_24"][i]
        assert wafer.canonical_digest == arrays["canon_sha256_24"][i]


def test_a_digest_never_changes() -> None:
    assert WaferMap(GRID).digest == "4fd91ceaf4ee02e82b94ce57"
    assert grid_digest(np.asfortranarray(GRID.astype(np.uint8))) == WaferMap(GRID).digest


@given(GRIDS, st.integers(0, 7))
def test_canonical_digest_is_that_of_all_eight(grid: np.ndarray, symmetry: int) -> None:
    grid[0, 0] = 2
    wafer = WaferMap(grid)
    assert wafer.transformed(symmetry).canonical_digest == wafer.canonical_digest == canonical_digest(grid)


@given(GRIDS, st.integers(0, 7), st.sampled_from(["top", "right", "bottom", "left"]))
def test_orientation_follows_the_dies(grid: np.ndarray, symmetry: int, side: str) -> None:
    """The side marked by failing dies is still the marked side after any rotation and mirror."""
    marked = np.ones_like(grid)
    edges = {"top": marked[0], "right": marked[:, -1], "bottom": marked[-1], "left": marked[:, 0]}
    edges[side][1:-1] = 2
    turned = WaferMap(marked, orientation=side).transformed(symmetry)  # type: ignore[arg-type]
    dies = turned.dies
    now = {"top": dies[0], "right": dies[:, -1], "bottom": dies[-1], "left": dies[:, 0]}
    assert turned.orientation is not None
    assert (now[turned.orientation][1:-1] == 2).all()
    assert turned.fail_count == len(edges[side]) - 2


def test_the_eight_transforms_differ_and_keep_the_rest() -> None:
    wafer = WaferMap(np.arange(9).reshape(3, 3) % 8 % 3, id="a", lot="b")
    eight = [wafer.transformed(symmetry) for symmetry in range(8)]
    assert len({grid_digest(other.dies) for other in eight}) == 8
    assert eight[0] == wafer
    assert {(other.id, other.lot, other.orientation) for other in eight} == {("a", "b", None)}
    for symmetry in (-1, 8, None):
        with pytest.raises(WaferMapError, match="0 to 7"):
            wafer.transformed(symmetry)  # type: ignore[arg-type]


def test_equality_hash_repr_and_copies() -> None:
    wafer = WaferMap(GRID, id="w1", lot="L", orientation="left")
    same = WaferMap(GRID.astype(float), id="w1", lot="L", orientation="left")
    assert wafer == same
    assert hash(wafer) == hash(same)
    assert wafer != GRID.tolist()
    assert wafer != dataclasses.replace(wafer, lot="M")
    assert wafer != WaferMap(np.where(GRID == 2, 1, GRID), id="w1", lot="L", orientation="left")
    assert repr(wafer) == "<WaferMap 'w1' 3x4, 2 of 7 dies fail>"
    for copied in (pickle.loads(pickle.dumps(wafer)), copy.deepcopy(wafer), copy.copy(wafer)):
        assert copied == wafer
        assert not copied.dies.flags.writeable
    with pytest.raises(dataclasses.FrozenInstanceError):
        wafer.id = "w2"  # type: ignore[misc]


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(st.one_of(hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.boolean_dtypes()), (3, 4)))
def test_any_numbers_give_those_dies_or_an_error(array: np.ndarray) -> None:
    try:
        wafer = WaferMap(array)
    except WaferMapError:
        assert array.dtype == bool or not array.any() or not np.isin(array, (0, 1, 2)).all()
    else:
        assert np.array_equal(wafer.dies, array)
