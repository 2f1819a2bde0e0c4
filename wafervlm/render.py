"""The one renderer: die grid to image and back. Training, calibration and prediction all use it.

Each die becomes a block of pixels of one palette colour, by nearest neighbour: no colour is mixed.
The grid is stretched to the image, so a round wafer of non-square dies is round again.

Where a grid has more dies than pixels along an axis, each die goes to the pixel that its centre falls
on (to both when it falls between two) and a pixel shows the gravest of its dies, fail over pass over
no die: no failing die vanishes and none grows. A hole narrower than a pixel may close.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.errors import ImageError, TaskError
from wafervlm.wafermap import FAIL, MAX_SIDE, MIN_SIDE, PASS, DieGrid, WaferMap, check_dies

RgbImage = NDArray[np.uint8]
Colour = tuple[int, int, int]

RECIPE_PALETTE: tuple[Colour, Colour, Colour] = ((68, 1, 84), (32, 144, 140), (253, 231, 36))
RENDERER_VERSION = 1  # part of every task's digest: raise it when the same spec draws other pixels
MIN_PIXELS, MAX_PIXELS = 16, 4096


@dataclass(frozen=True, slots=True)
class RenderSpec:
    """How dies become pixels: image ``height`` and ``width`` in pixels, and the RGB colours of
    no die, pass and fail (the default is viridis at 0, 1 and 2, as in the Cosmos recipe).
    Raises TaskError."""

    height: int = 256
    width: int = 256
    palette: tuple[Colour, Colour, Colour] = RECIPE_PALETTE

    def __post_init__(self) -> None:
        for side, pixels in (("height", self.height), ("width", self.width)):
            if not _is_int(pixels) or not MIN_PIXELS <= pixels <= MAX_PIXELS:
                limits = f"a whole number of pixels, {MIN_PIXELS} to {MAX_PIXELS}"
                raise TaskError(f"render {side} is {pixels!r}; it must be {limits}")
        object.__setattr__(self, "palette", _check_palette(self.palette))


def render(wafer: WaferMap | DieGrid, spec: RenderSpec) -> RgbImage:
    """Return the image of ``wafer``: (spec.height, spec.width, 3) uint8 RGB, contiguous.

    A bare grid is checked as WaferMap checks it; raises WaferMapError.
    """
    dies = wafer.dies if isinstance(wafer, WaferMap) else check_dies(wafer)
    grid = _resize_rows(_resize_rows(dies, spec.height).T, spec.width).T
    image: RgbImage = np.take(np.asarray(spec.palette, dtype=np.uint8), grid, axis=0)
    return image


def read_back(image: RgbImage, spec: RenderSpec) -> DieGrid:
    """Return the smallest die grid, 3x3 or more, whose nearest-neighbour stretch is ``image``.

    ``image`` is (H, W, 3) uint8 of any size from 3x3 to 4096x4096, each pixel exactly a palette
    colour; where it has the size that ``spec`` draws, rendering the result gives the same image.
    Runs of equal rows and columns are one die only where the image is an even stretch of the smaller
    grid. Raises ImageError.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(f"an image must be a uint8 array of shape (H, W, 3), not {what}")
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_SIDE:
        raise ImageError(f"the image is {height}x{width} pixels; each side must be {MIN_SIDE} to {MAX_SIDE}")
    values = _palette_index(image, spec)
    return np.ascontiguousarray(_shrink_rows(_shrink_rows(values).T).T)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_palette(palette: Any) -> tuple[Colour, Colour, Colour]:
    if not _is_triple(palette) or not all(map(_is_colour, palette)):
        should = "three RGB colours (no die, pass, fail) of whole numbers, 0 to 255"
        raise TaskError(f"palette is {palette!r}; it must be {should}")
    none, passing, failing = ((int(c[0]), int(c[1]), int(c[2])) for c in palette)
    if len({none, passing, failing}) != 3:
        raise TaskError(f"palette {palette!r} uses one colour twice; dies could not be told apart")
    return none, passing, failing


def _is_triple(values: object) -> bool:
    return isinstance(values, (tuple, list)) and len(values) == 3


def _is_colour(values: Any) -> bool:
    return _is_triple(values) and all(_is_int(value) and 0 <= value <= 255 for value in values)


def _sources(rows: int, size: int) -> NDArray[np.intp]:
    """For each of ``size`` pixels the row of the grid under its centre; ``rows <= size``."""
    return (np.arange(size) * 2 + 1) * rows // (2 * size)


def _resize_rows(grid: DieGrid, size: int) -> DieGrid:
    rows = grid.shape[0]
    if rows <= size:
        return grid[_sources(rows, size)]
    # Pixel i takes the dies j whose centres lie within it: i <= (2 j + 1) size / (2 rows) <= i + 1.
    edges = 2 * rows * np.arange(size + 1) - size
    first = -(-edges[:-1] // (2 * size))
    last = edges[1:] // (2 * size)
    # A die between two pixels belongs to both, so blocks overlap by at most their last row.
    gravest: DieGrid = np.maximum(np.maximum.reduceat(grid, first, axis=0), grid[last])
    return gravest


def _palette_index(image: RgbImage, spec: RenderSpec) -> DieGrid:
    keys = _packed(image)
    none, passing, failing = (keys == (red << 16 | green << 8 | blue) for red, green, blue in spec.palette)
    known = none | passing | failing
    if not known.all():
        row, column = np.unravel_index(int(known.argmin()), known.shape)
        raise ImageError(
            f"the image has colour {tuple(image[row, column].tolist())} at pixel row {row}, column {column}, "
            f"which is none of the task's {', '.join(map(str, spec.palette))}; "
            "--foreign takes it as it is (in Python foreign=True)"
        )
    if none.all():
        raise ImageError("the image shows no die: every pixel has the colour of no die")
    values: DieGrid = PASS * passing.view(np.uint8) + FAIL * failing.view(np.uint8)
    return values


def _packed(image: RgbImage) -> NDArray[np.uint32]:
    keys = image[..., 0].astype(np.uint32)
    for channel in (1, 2):
        keys <<= 8
        keys |= image[..., channel]
    return keys


def _shrink_rows(values: DieGrid) -> DieGrid:
    """The shortest grid, of MIN_SIDE rows or more, whose stretch over as many rows is ``values``."""
    rows = values.shape[0]
    changes = np.flatnonzero((values[1:] != values[:-1]).any(axis=1)) + 1
    for size in range(max(len(changes) + 1, MIN_SIDE), rows):
        source = _sources(size, rows)
        # Every change of the image must fall between two source rows.
        if (source[changes] != source[changes - 1]).all():
            return values[np.searchsorted(source, np.arange(size))]
    return values
