"""Die grids saved by numpy: .npy and .npz. Nothing in them is ever unpickled."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from wafervlm.errors import FileFormatError
from wafervlm.readers.bins import map_bins
from wafervlm.readers.files import decoding, read_bytes
from wafervlm.wafermap import MAX_SIDE

_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_KEY = "dies"
_LARGEST_ITEM = 16  # bytes of a long double


def read_array(path: Path, bins: Mapping[str, int] | None = None) -> NDArray[Any]:
    """Return the (H, W) array of a .npy file, or of the .npz file's array ``dies`` or only array.

    With ``bins`` its numbers are mapped to 0, 1 and 2. Raises FileFormatError.
    """
    data = read_bytes(path)
    if data.startswith(_NPY):
        with decoding(path, ".npy file"):
            array = _read(io.BytesIO(data), str(path))
    elif data.startswith(_ZIP):
        with decoding(path, ".npz file"), zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = _member(archive, path)
            with archive.open(name) as stream:
                array = _read(stream, f"{name[:-4]} in {path}")
    else:
        raise FileFormatError(f"{path} is neither a .npy nor a .npz file; write it with numpy.save")
    return array if bins is None else map_bins(array, bins, str(path))


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    keys = sorted({name[:-4] for name in archive.namelist() if name.endswith(".npy")})
    if _KEY in keys:
        return f"{_KEY}.npy"
    if len(keys) != 1:
        found = f"several arrays ({', '.join(keys[:12])})" if keys else "no array"
        raise FileFormatError(f"{path} holds {found}; save the die grid of one wafer under the key {_KEY!r}")
    return f"{keys[0]}.npy"


def _read(stream: IO[bytes], where: str) -> NDArray[Any]:
    """Read one .npy stream, after checking in its header that it asks for no more than a wafer needs."""
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise FileFormatError(
            f"{where} has .npy version {version[0]}.{version[1]}, which holds no plain numbers"
        )
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise FileFormatError(
            f"{where} holds Python objects, and unpickling them could run anything; "
            "save the die grid with dtype uint8"
        )
    if len(shape) != 2 or not all(0 <= side <= MAX_SIDE for side in shape) or dtype.itemsize > _LARGEST_ITEM:
        raise FileFormatError(
            f"{where} is an array {dtype} of shape {shape}; it must be the die grid (H, W) of one wafer, "
            f"at most {MAX_SIDE}x{MAX_SIDE} numbers"
        )
    stream.seek(0)
    array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return array
