from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from wafervlm.errors import ImageError, TaskError, WaferMapError
from wafervlm.render import RECIPE_PALETTE, RenderSpec, read_back, render
from wafervlm.wafermap import WaferMap

PALETTE = np.array(RECIPE_PALETTE, dtype=np.uint8)


@st.composite
def grids(draw: Any, most: int = 60) -> np.ndarray:
    rows, columns = draw(st.integers(3, most)), draw(st.integers(3, most))
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grid = noise.choice(
        3, size=(rows, columns), p=draw(st.sampled_from([(0.2, 0.6, 0.2), (0.5, 0.49, 0.01)]))
    )
    grid[noise.integers(rows), noise.integers(columns)] = 2
    return grid.astype(np.uint8)


specs = st.builds(RenderSpec, st.integers(16, 80), st.integers(16, 80))


def values(image: np.ndarray) -> np.ndarray:
    """The die value of each pixel, which must have a palette colour."""
    found = (image[:, :, None, :] == PALETTE).all(axis=3)
    assert found.any(axis=2).all()
    return found.argmax(axis=2).astype(np.uint8)


def slow_axis(rows: int, size: int) -> list[list[int]]:
    """For each pixel its dies, by the rule in words: counted one die and one pixel at a time."""
    if rows <= size:
        return [[((2 * pixel + 1) * rows) // (2 * size)] for pixel in range(size)]
    chosen: list[list[int]] = [[] for _ in range(size)]
    for die in range(rows):
        whole, rest = divmod((2 * die + 1) * size, 2 * rows)
        chosen[whole].append(die)
        if rest == 0:
            chosen[whole - 1].append(die)
    return chosen


def slow_render(grid: np.ndarray, spec: RenderSpec) -> np.ndarray:
    rows, columns = slow_axis(grid.shape[0], spec.height), slow_axis(grid.shape[1], spec.width)
    drawn = [[max(grid[r, c] for r in over for c in across) for across in columns] for over in rows]
    return PALETTE[np.array(drawn)]


@settings(max_examples=60, deadline=None)
@given(grids(), specs)
def test_render_is_what_the_words_say(grid: np.ndarray, spec: RenderSpec) -> None:
    image = render(WaferMap(grid), spec)
    assert image.shape == (spec.height, spec.width, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.array_equal(image, slow_render(grid, spec))
    assert np.array_equal(image, render(grid, spec))


@given(grids(16))
def test_enlarging_is_pillow_nearest(grid: np.ndarray) -> None:
    picture = Image.fromarray(grid).resize((96, 64), Image.Resampling.NEAREST)
    assert np.array_equal(values(render(grid, RenderSpec(64, 96))), np.asarray(picture))


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 300), st.integers(3, 300), st.data())
def test_no_failing_die_vanishes_and_none_grows(rows: int, columns: int, data: Any) -> None:
    """A single failing die of any grid is seen, at its place, and is no larger than one die or pixel."""
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    spec = RenderSpec(data.draw(st.integers(16, 128)), data.draw(st.integers(16, 128)))
    grid = np.ones((rows, columns), np.uint8)
    grid[row, column] = 2
    failing = np.argwhere(values(render(grid, spec)) == 2)
    assert len(failing) > 0
    for axis, (die, count, size) in enumerate([(row, rows, spec.height), (column, columns, spec.width)]):
        centre = (die + 0.5) * size / count
        span = failing[:, axis]
        assert span.min() <= centre <= span.max() + 1
        assert span.max() - span.min() + 1 <= max(2, -(-size // count))


@pytest.mark.parametrize("shape", [(4096, 4096), (4096, 3), (3, 4096), (4095, 257), (212, 204)])
def test_no_failing_die_vanishes_from_the_largest_grids(shape: tuple[int, int]) -> None:
    spec = RenderSpec(128, 256)
    noise = np.random.default_rng(5)
    for _ in range(3):
        row, column = noise.integers(shape[0]), noise.integers(shape[1])
        grid = np.zeros(shape, np.uint8)
        grid[row, column] = 2
        failing = np.argwhere(values(render(grid, spec)) == 2)
        assert len(failing) >= 1
        for axis, die in enumerate((row, column)):
            size = (spec.height, spec.width)[axis]
            assert abs(failing[:, axis].mean() + 0.5 - (die + 0.5) * size / shape[axis]) <= 1


def test_failing_dies_count_in_a_reduced_wafer_is_not_inflated() -> None:
    grid = np.ones((200, 200), np.uint8)
    grid[np.random.default_rng(1).random((200, 200)) < 0.01] = 2
    drawn = (values(render(grid, RenderSpec(128, 128))) == 2).sum()
    # Only dies between two pixels count twice; under the rule of any overlap it would be 2.5 times as many.
    assert 0.9 * (grid == 2).sum() <= drawn <= 1.1 * (grid == 2).sum()


def test_holes_stay_and_colours_are_the_palette() -> None:
    grid = np.ones((9, 9), np.uint8)
    grid[4, 4], grid[2, 7] = 0, 2
    image = render(grid, RenderSpec(90, 45))
    assert (image[40:50, 20:25] == (68, 1, 84)).all()
    assert (image[20:30, 35:40] == (253, 231, 36)).all()
    assert (image[0, 0] == (32, 144, 140)).all()
    assert (values(image) == 0).sum() == 50
    assert (values(image) == 2).sum() == 50


@settings(deadline=None)
@given(grids(90), st.integers(0, 7), st.sampled_from([16, 32, 64]))
def test_a_turned_wafer_gives_the_turned_image(grid: np.ndarray, symmetry: int, size: int) -> None:
    spec = RenderSpec(size, size)
    wafer = WaferMap(grid)
    image = render(wafer, spec)
    image = image[:, ::-1] if symmetry >= 4 else image
    assert np.array_equal(render(wafer.transformed(symmetry), spec), np.rot90(image, symmetry % 4))


def test_render_checks_a_bare_grid() -> None:
    with pytest.raises(WaferMapError, match="value 3"):
        render(np.full((4, 4), 3, np.uint8), RenderSpec(16, 16))


@settings(max_examples=150, deadline=None)
@given(grids(), specs)
def test_reading_back_renders_the_same(grid: np.ndarray, spec: RenderSpec) -> None:
    image = render(grid, spec)
    before = image.copy()
    back = read_back(image, spec)
    assert np.array_equal(render(WaferMap(back), spec), image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_real_maps_are_read_back(real_wafers: list[tuple[WaferMap, str]], size: int) -> None:
    spec = RenderSpec(size, size)
    exact = enlarged = 0
    for wafer, _ in real_wafers:
        image = render(wafer, spec)
        back = read_back(image, spec)
        assert np.array_equal(render(back, spec), image)
        if max(wafer.shape) <= size // 2:
            enlarged += 1
            exact += np.array_equal(back, wafer.dies)
    assert enlarged > 10
    assert exact >= 0.99 * enlarged


def test_a_uniform_image_is_the_smallest_wafer_map() -> None:
    spec = RenderSpec(32, 32)
    image = render(np.ones((7, 7), np.uint8), spec)
    assert np.array_equal(read_back(image, spec), np.ones((3, 3), np.uint8))


def test_reading_back_is_quick(real_wafers: list[tuple[WaferMap, str]]) -> None:
    spec = RenderSpec(256, 256)
    images = [render(wafer, spec) for wafer, _ in real_wafers[:20]]
    # One change at the last row makes every size be tried: the worst case.
    worst = np.ones((256, 256), np.uint8)
    worst[-1, -1] = 2
    start = time.process_time()
    for image in (*images, PALETTE[worst]):
        read_back(image, spec)
    assert (time.process_time() - start) / 21 < 0.02


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_an_image_of_another_size_is_read_back_to_its_dies(scale: int) -> None:
    grid = np.random.default_rng(2).integers(0, 3, (21, 30)).astype(np.uint8)
    image = PALETTE[grid.repeat(scale, axis=0).repeat(scale, axis=1)]
    assert np.array_equal(read_back(image, RenderSpec(256, 256)), grid)


def test_refused_images() -> None:
    spec = RenderSpec(16, 16)
    image = render(np.eye(5, dtype=np.uint8) + 1, spec)
    wrong = image.copy()
    wrong[3, 4] = (253, 231, 37)
    with pytest.raises(ImageError, match=r"colour \(253, 231, 37\) at pixel row 3, column 4"):
        read_back(wrong, spec)
    with pytest.raises(ImageError, match="no die"):
        read_back(np.broadcast_to(PALETTE[0], (16, 16, 3)), spec)
    for bad in (image.astype(np.float32), image[..., 0], image[..., :2], image.tolist(), image[None]):
        with pytest.raises(ImageError, match="uint8 array of shape"):
            read_back(bad, spec)  # type: ignore[arg-type]
    for size in ((0, 5), (2, 9), (5000, 3)):
        with pytest.raises(ImageError, match="3 to 4096"):
            read_back(np.zeros((*size, 3), np.uint8), spec)


@pytest.mark.parametrize(
    "settings",
    [
        {"height": 15},
        {"width": 4097},
        {"height": "256"},
        {"height": 256.0},
        {"height": True},
        {"width": None},
        {"palette": RECIPE_PALETTE[:2]},
        {"palette": ((0, 0, 0), (0, 0, 0), (1, 1, 1))},
        {"palette": ((0, 0, 0), (0, 0, 256), (1, 1, 1))},
        {"palette": ((0, 0, 0), (0, 0, 1.5), (1, 1, 1))},
        {"palette": ((0, 0, 0), (0, 0), (1, 1, 1))},
        {"palette": "abc"},
        {"palette": 5},
    ],
)
def test_specs_that_cannot_be_meant(settings: dict[str, Any]) -> None:
    with pytest.raises(TaskError):
        RenderSpec(**settings)


def test_a_spec_is_a_value() -> None:
    lists: Any = [list(colour) for colour in RECIPE_PALETTE]
    assert RenderSpec(256, 256, lists) == RenderSpec()
    assert hash(RenderSpec(palette=lists)) == hash(RenderSpec())
