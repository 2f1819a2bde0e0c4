from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from wafervlm.errors import ImageError, InputError, WaferVLMError
from wafervlm.readers.image import read_image
from wafervlm.render import RenderSpec, render
from wafervlm.wafermap import WaferMap

SPEC = RenderSpec(64, 64)
WAFER = WaferMap(np.pad(np.random.default_rng(4).integers(1, 3, (17, 19)), 2))
PICTURE = Image.fromarray(render(WAFER, SPEC))


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_wafers_are_read_from_every_mode(tmp_path: Path, kind: str, mode: str) -> None:
    picture = PICTURE.convert(mode) if mode != "P" else PICTURE.quantize(3, dither=Image.Dither.NONE)
    path = write(tmp_path / "lot1-w2.png", encoded(picture, kind))
    wafer = read_image(path, SPEC)
    assert isinstance(wafer, WaferMap)
    assert np.array_equal(wafer.dies, WAFER.dies)
    assert wafer.id == "lot1-w2"
    assert read_image(str(path), SPEC, foreign=True) == wafer


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_wafers_are_read_where_the_palette_is_grey(tmp_path: Path, mode: str) -> None:
    middle = 255 if mode == "1" else 128
    spec = RenderSpec(64, 64, ((0, 0, 0), (middle,) * 3, (255, 255, 254 if mode == "1" else 255)))
    dies = WAFER.dies if mode != "1" else np.minimum(WAFER.dies, 1)
    picture = Image.fromarray(render(dies, spec)).convert("L").convert(mode)
    wafer = read_image(write(tmp_path / "w.png", encoded(picture)), spec)
    assert isinstance(wafer, WaferMap)
    assert np.array_equal(render(wafer, spec), render(dies, spec))
    with pytest.raises(ImageError, match="is not a wafer map of this task"):
        read_image(tmp_path / "w.png", SPEC)


def test_an_image_of_another_size_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "w.bmp", encoded(Image.fromarray(render(WAFER, RenderSpec(300, 500))), "BMP"))
    wafer = read_image(path, SPEC)
    assert isinstance(wafer, WaferMap)
    assert np.array_equal(wafer.dies, WAFER.dies)


def test_a_bmp_that_begins_at_the_top_or_has_the_old_header(tmp_path: Path) -> None:
    data = bytearray(encoded(PICTURE, "BMP"))
    struct.pack_into("<i", data, 22, -64)
    turned = read_image(write(tmp_path / "a.bmp", bytes(data)), SPEC)
    assert isinstance(turned, WaferMap)
    assert np.array_equal(turned.dies, WAFER.dies[::-1])
    pixels = data[54:]
    old = b"BM" + struct.pack("<IHHIIHHHH", 26 + len(pixels), 0, 0, 26, 12, 64, 64, 1, 24) + bytes(pixels)
    wafer = read_image(write(tmp_path / "b.bmp", old), SPEC)
    assert isinstance(wafer, WaferMap)
    assert np.array_equal(wafer.dies, WAFER.dies)


def test_real_wafers_as_the_recipe_writes_them(
    tmp_path: Path, real_wafers: list[tuple[WaferMap, str]]
) -> None:
    spec = RenderSpec(256, 256)
    for wafer, _ in real_wafers[::9]:
        picture = Image.fromarray(render(wafer, spec)).convert("RGBA")
        read = read_image(write(tmp_path / "w.png", encoded(picture)), spec)
        assert isinstance(read, WaferMap)
        assert np.array_equal(render(read, spec), render(wafer, spec))


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("foreign", [False, True])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, kind: str, foreign: bool) -> None:
    path = write(tmp_path / "wafer.png", encoded(PICTURE, kind))
    with pytest.raises(ImageError, match=f"(?i)is a {kind} file, whatever its name; save .* PNG or BMP"):
        read_image(path, SPEC, foreign=foreign)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "is empty"),
        (b"hello wafer", "neither"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged PNG image"),
        (b"BM", "truncated"),
    ],
)
def test_what_is_no_image_at_all(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_image(write(tmp_path / "w.png", data), SPEC, foreign=True)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "none.png", SPEC)
    with pytest.raises(ImageError, match="not a file"):
        read_image(tmp_path, SPEC)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_truncated_images(tmp_path: Path, kind: str) -> None:
    data = encoded(PICTURE, kind)
    for keep in (9, 20, 25, 33, 60, len(data) // 2, len(data) - 13):
        with pytest.raises(ImageError, match=r"w\.png"):
            read_image(write(tmp_path / "w.png", data[:keep]), SPEC, foreign=True)


def test_a_damaged_pixel_stream_is_refused(tmp_path: Path) -> None:
    """Pillow alone decodes it to other pixels without a word."""
    raw = bytearray(b"".join(b"\0" + row.tobytes() for row in np.asarray(PICTURE)))
    whole = png(64, 64, 8, 2, zlib.compress(raw, 0))
    raw[200] ^= 255
    data = whole[:41] + zlib.compress(raw, 0) + whole[-16:]
    assert len(data) == len(whole)
    assert data != whole
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
    with pytest.raises(ImageError, match="not a readable PNG image"):
        read_image(write(tmp_path / "w.png", bytes(data)), SPEC, foreign=True)


@pytest.mark.parametrize("side", [4097, 13_000, 60_000, 2**31 - 1])
def test_an_enormous_image_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    bomb = png(side, side, 1, 0, zlib.compress(bytes(100_000)))
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIIIII", 62, 0, 0, 62, 40, side, -side, 1, 1, 0, 0, 0, 0, 0, 0)
    for data in (bomb, bmp):
        path = write(tmp_path / "w.png", data)
        tracemalloc.start()
        with pytest.raises(ImageError, match=f"{side}x{side} pixels"):
            read_image(path, SPEC, foreign=True)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        tracemalloc.stop()


def test_an_image_without_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="0x5 pixels"):
        read_image(write(tmp_path / "w.png", png(0, 5, 8, 2, b"")), SPEC)


def test_a_file_too_long_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "w.png").open("wb") as file:
        file.write(encoded(PICTURE))
        file.truncate(1 << 28)
    with pytest.raises(ImageError, match="larger than"):
        read_image(tmp_path / "w.png", SPEC)


def test_the_largest_image_is_taken(tmp_path: Path) -> None:
    dies = np.ones((4096, 4096), np.uint8)
    dies[5, 7] = 2
    picture = Image.fromarray(render(dies, RenderSpec(4096, 4096)))
    wafer = read_image(write(tmp_path / "w.png", encoded(picture, compress_level=1)), SPEC)
    assert isinstance(wafer, WaferMap)
    assert np.array_equal(render(wafer, RenderSpec(4096, 4096)), picture)


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((64, 64), 40_000, np.uint16))
    with pytest.raises(ImageError, match="16 bits per channel"):
        read_image(write(tmp_path / "w.png", encoded(grey)), SPEC, foreign=True)


def test_animations_are_refused(tmp_path: Path) -> None:
    data = encoded(PICTURE, save_all=True, append_images=[PICTURE.rotate(90)])
    with pytest.raises(ImageError, match="animated"):
        read_image(write(tmp_path / "w.png", data), SPEC, foreign=True)


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB"])
@pytest.mark.parametrize("foreign", [False, True])
def test_transparency_is_refused(tmp_path: Path, mode: str, foreign: bool) -> None:
    options: dict[str, Any] = {}
    picture = PICTURE.convert("RGBA")
    if mode == "RGBA":
        picture.putpixel((3, 3), (68, 1, 84, 254))
    elif mode == "P":
        picture, options = PICTURE.quantize(3), {"transparency": 1}
    else:
        picture, options = PICTURE, {"transparency": (68, 1, 84)}
    with pytest.raises(ImageError, match="transparent in places"):
        read_image(write(tmp_path / "w.png", encoded(picture, **options)), SPEC, foreign=foreign)


def test_a_picture_that_is_no_wafer_comes_back_only_when_asked_for(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    path = write(tmp_path / "cat.png", encoded(Image.fromarray(noise)))
    with pytest.raises(ImageError, match="cat.png is not a wafer map of this task.*foreign=True") as caught:
        read_image(path, SPEC)
    assert isinstance(caught.value, InputError)
    image = read_image(path, SPEC, foreign=True)
    assert isinstance(image, np.ndarray)
    assert image.flags.writeable
    expected = Image.fromarray(noise).resize((64, 64), Image.Resampling.NEAREST)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.asarray(expected))
    tiny = read_image(write(tmp_path / "dot.png", encoded(PICTURE.crop((0, 0, 1, 1)))), SPEC, foreign=True)
    assert isinstance(tiny, np.ndarray)
    assert tiny.shape == (64, 64, 3)


def test_a_blurred_or_empty_wafer_is_refused(tmp_path: Path) -> None:
    blurred = PICTURE.resize((100, 100), Image.Resampling.BILINEAR)
    with pytest.raises(ImageError, match="which is none of the task's"):
        read_image(write(tmp_path / "w.png", encoded(blurred)), SPEC)
    empty = Image.new("RGB", (64, 64), SPEC.palette[0])
    with pytest.raises(ImageError, match="no die"):
        read_image(write(tmp_path / "w.png", encoded(empty)), SPEC)


PNGS = [
    encoded(PICTURE),
    encoded(PICTURE.quantize(3)),
    encoded(PICTURE.convert("RGBA")),
    encoded(PICTURE, save_all=True, append_images=[PICTURE.rotate(90)]),
    encoded(PICTURE, "BMP"),
    encoded(PICTURE.quantize(3), "BMP"),
]


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.sampled_from(PNGS),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.one_of(st.none(), st.integers(1, 4000)),
    repair=st.booleans(),
    foreign=st.booleans(),
)
def test_damaged_images_end_in_a_wafer_or_an_error(
    tmp_path: Path, data: bytes, changes: list[tuple[int, int]], cut: int | None, repair: bool, foreign: bool
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        # Most bytes near the beginning, where the headers are.
        damaged[place % (len(damaged) if place % 3 else 64)] = value
    damaged = (repaired(damaged) if repair else damaged)[:cut]
    path = write(tmp_path / "damaged.png", bytes(damaged))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of some damage
        try:
            end: object = read_image(path, SPEC, foreign=foreign)
        except WaferVLMError as error:
            end = str(error)
    picture = foreign and isinstance(end, np.ndarray) and end.shape == (64, 64, 3)
    assert (
        picture
        or isinstance(end, WaferMap)
        or (isinstance(end, str) and "damaged" in end.replace("test_damaged", ""))
    )


def repaired(data: bytearray) -> bytearray:
    """``data`` with the checksum of every PNG chunk made right again, so that the decoder sees the damage."""
    place = 8
    while place + 12 <= len(data) and data[1:4] == b"PNG":
        (length,) = struct.unpack_from(">I", data, place)
        if place + 12 + length > len(data):
            break
        struct.pack_into(">I", data, place + 8 + length, zlib.crc32(data[place + 4 : place + 8 + length]))
        place += 12 + length
    return data
