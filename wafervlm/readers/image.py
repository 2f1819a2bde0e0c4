"""PNG and BMP pictures of a wafer, read back to its dies. What they are is decided by their bytes."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from wafervlm.errors import ImageError
from wafervlm.readers.files import decoding, read_bytes, read_head
from wafervlm.render import RenderSpec, RgbImage, read_back
from wafervlm.wafermap import MAX_SIDE, WaferMap

_PNG, _BMP = b"\x89PNG\r\n\x1a\n", b"BM"
_OTHERS = {
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WebP",
    b"%PDF": "PDF",
}
_OS2_HEADER = 12  # its width and height have two bytes each, all later headers' four


def is_image(path: Path) -> bool:
    """Whether the first bytes of the file are those of an image format, be it accepted or not."""
    try:
        return path.is_file() and read_head(path, 8).startswith((_PNG, _BMP, *_OTHERS))
    except (OSError, ValueError):
        return False  # the reader says what is wrong with it


def read_image(path: str | Path, spec: RenderSpec, *, foreign: bool = False) -> WaferMap | RgbImage:
    """Return the wafer that a PNG or BMP file shows in exactly the colours of ``spec``.

    With ``foreign`` any other picture is returned as it is, (spec.height, spec.width, 3) uint8 RGB,
    resized by nearest neighbour: an answer for it is outside the lock. Size and format are checked in
    the header before anything is decoded. Raises ImageError.
    """
    path = Path(path)
    data = read_bytes(path, ImageError)
    kind, width, height = _header(data, path)
    if not 0 < min(width, height) <= max(width, height) <= MAX_SIDE:
        raise ImageError(f"{path} is {width}x{height} pixels; an image may have 1 to {MAX_SIDE} on each side")
    with decoding(path, f"{kind} image", ImageError):
        picture = _decode(data, kind, path)
    try:
        return WaferMap(read_back(np.asarray(picture), spec), id=path.stem)
    except ImageError as error:
        if not foreign:
            raise ImageError(f"{path} is not a wafer map of this task: {error}") from None
    return np.array(picture.resize((spec.width, spec.height), Image.Resampling.NEAREST))


def _header(data: bytes, path: Path) -> tuple[str, int, int]:
    """Format, width and height in pixels, before any decoder sees a byte."""
    try:
        if data.startswith(_PNG):
            first, width, height, depth = struct.unpack_from(">4sIIB", data, 12)
            if first != b"IHDR":
                raise ImageError(f"{path} is a damaged PNG image: its header is not there")
            if depth > 8:
                raise ImageError(f"{path} has {depth} bits per channel; save it with 8")
            return "PNG", width, height
        if data.startswith(_BMP):
            old = struct.unpack_from("<I", data, 14)[0] == _OS2_HEADER
            width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
            return "BMP", width, abs(height)  # a negative height says that the rows begin at the top
    except struct.error:
        raise ImageError(f"{path} ends within its header; it is truncated") from None
    for mark, name in _OTHERS.items():
        if data.startswith(mark):
            raise ImageError(f"{path} is a {name} file, whatever its name; save the wafer map as PNG or BMP")
    raise ImageError(f"{path} is neither a PNG nor a BMP image")


def _decode(data: bytes, kind: str, path: Path) -> Image.Image:
    """Return the picture in mode RGB. Raises what Pillow raises on damaged bytes."""
    with Image.open(io.BytesIO(data), formats=(kind,)) as picture:
        # Pillow skips a PNG's checksums when it decodes, and damaged pixels would pass.
        picture.verify()
    with Image.open(io.BytesIO(data), formats=(kind,)) as picture:
        if getattr(picture, "is_animated", False):
            raise ImageError(f"{path} is animated; save the one frame that shows the wafer")
        picture.load()
        if "transparency" not in picture.info and picture.mode not in ("RGBA", "LA", "PA"):
            rgb: Image.Image = picture.convert("RGB")
            return rgb
        clear = picture.convert("RGBA")
    if clear.getchannel("A").getextrema() != (255, 255):
        raise ImageError(
            f"{path} is transparent in places, which have no colour; save it without transparency"
        )
    opaque: Image.Image = clear.convert("RGB")
    return opaque
