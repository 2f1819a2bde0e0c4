"""Files that a station has, read to WaferMap."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wafervlm.errors import FileFormatError
from wafervlm.render import RenderSpec, RgbImage
from wafervlm.wafermap import WaferMap

ARRAY_SUFFIXES = (".npy", ".npz")
GRID_SUFFIXES = (".csv", ".tsv", ".txt", ".asc")
IMAGE_SUFFIXES = (".png", ".bmp")


def read_wafer(path: str | Path, *, bins: Mapping[str, int] | None = None) -> WaferMap:
    """Read the wafer map of one .npy, .npz, .csv, .tsv, .txt or .asc file; its id is the file's name.

    ``bins`` maps the file's codes to 0 no die, 1 pass and 2 fail, as in {'.': 0, '1': 1, 'X': 2}; without
    it the codes are 0, 1 and 2 themselves. Raises FileFormatError, WaferMapError, and UsageError for bins.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        from wafervlm.readers.arrays import read_array

        return WaferMap(read_array(path, bins), id=path.stem)
    if suffix in GRID_SUFFIXES:
        from wafervlm.readers.grids import read_grid

        return WaferMap(read_grid(path, bins), id=path.stem)
    known = ", ".join((*ARRAY_SUFFIXES, *GRID_SUFFIXES))
    raise FileFormatError(
        f"{path} is not named as a wafer map file; known are {known}, and for images .png, .bmp"
    )


def read_file(
    path: str | Path, spec: RenderSpec, *, bins: Mapping[str, int] | None = None, foreign: bool = False
) -> WaferMap | RgbImage:
    """Read any file that a station may give: ``read_wafer`` for the names that it knows, ``read_image``
    for names of images and for what is an image by its first bytes. Raises what they raise."""
    from wafervlm.readers.image import is_image, read_image

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*ARRAY_SUFFIXES, *GRID_SUFFIXES) and (suffix in IMAGE_SUFFIXES or is_image(path)):
        return read_image(path, spec, foreign=foreign)
    return read_wafer(path, bins=bins)
