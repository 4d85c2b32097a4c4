"""PNGs with more pixels than their compressed data can contain are truncated, although their chunks are complete."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass
from ferry.images.check import check_image
from ferry.images.web import unfiltered_bytes
from tests.faults.bombs import PNG_START, png, png_chunk, png_of_nothing

pytestmark = pytest.mark.matrix


def made(mode: str, size: tuple[int, int]) -> bytes:
    """Returns a PNG of one colour, which compresses best."""
    out = io.BytesIO()
    Image.new(mode, size, 0).save(out, "PNG", optimize=size[0] < 10_000)
    return out.getvalue()


def with_pixels(width: int, height: int, *, depth: int, colour: int, interlace: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return PNG_START + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "bits", "interlaced", "size"),
    [
        (1, 1, 8, False, 2),
        (1, 1, 1, False, 2),
        (9, 2, 1, False, 2 * (1 + 2)),
        (33, 21, 24, False, 21 * (1 + 99)),
        (1, 1, 8, True, 2),  # the other six passes have no pixels and no rows
        (8, 8, 8, True, 2 + 2 + (1 + 2) + 2 * (1 + 2) + 2 * (1 + 4) + 4 * (1 + 4) + 4 * (1 + 8)),
        (1, 5, 1, True, 2 + 2 + 2 + 2 * 2),
    ],
)
def test_bytes_before_compression(width: int, height: int, bits: int, interlaced: bool, size: int) -> None:
    """The table of PNG (third edition) sections 7.2 and 8: a filter byte for each row, rows padded to whole bytes."""
    assert unfiltered_bytes(width, height, bits, interlaced=interlaced) == size


@pytest.mark.parametrize(
    ("mode", "size"),
    [("RGB", (1, 1)), ("1", (16_384, 16_384)), ("L", (4_000, 4_000)), ("RGBA", (3_000, 3_000)), ("P", (5_000, 3))],
)
def test_pictures_of_one_colour_pass(mode: str, size: tuple[int, int]) -> None:
    """A picture of one colour, which compresses best, passes."""
    assert check_image(made(mode, size)).name == "PNG"


@pytest.mark.parametrize(("depth", "colour", "bits"), [(1, 0, 1), (8, 0, 8), (8, 6, 32), (16, 2, 48)])
@pytest.mark.parametrize("interlace", [0, 1])
def test_the_best_that_deflate_can_do_passes(depth: int, colour: int, bits: int, interlace: int) -> None:
    """Zeros at zlib's best level, within 3% of the limit, pass, interlaced or not."""
    raw = unfiltered_bytes(6_000, 6_000, bits, interlaced=bool(interlace))
    pack = zlib.compressobj(9)
    pixels = b"".join([*(pack.compress(bytes(min(1 << 20, raw - at))) for at in range(0, raw, 1 << 20)), pack.flush()])
    assert raw / len(pixels) > 1_000
    whole = with_pixels(6_000, 6_000, depth=depth, colour=colour, interlace=interlace, pixels=pixels)
    assert check_image(whole).name == "PNG"


@pytest.mark.parametrize(
    "data",
    [
        png_of_nothing(60_000, 60_000),
        png(200, 200)[:16] + struct.pack(">II", 200, 2_000_000) + png(200, 200)[24:29] + b"CRC!" + png(200, 200)[33:],
        with_pixels(50_000, 50_000, depth=1, colour=0, interlace=1, pixels=zlib.compress(b"\0")),
    ],
    ids=["nothing", "more rows", "interlaced"],
)
def test_pixels_that_cannot_be_there(data: bytes) -> None:
    """A header with more pixels than deflate can contain makes the body truncated at `checks: image`."""
    data = data.replace(b"CRC!", struct.pack(">I", zlib.crc32(data[12:29])))
    with pytest.raises(ObjectError, match="pixels cannot be in") as caught:
        check_image(data)
    assert caught.value.error_class is ErrorClass.TRUNCATED


def test_the_bound_is_deflate_s_own() -> None:
    """The limit is 1,032 bytes per byte of a deflate stream: so many rows pass, one more is refused."""
    pixels = bytes(100)  # not a valid stream: level `image` decompresses nothing
    assert check_image(with_pixels(1031, 100, depth=8, colour=0, interlace=0, pixels=pixels))
    with pytest.raises(ObjectError, match="cannot be in 100 bytes"):
        check_image(with_pixels(1031, 101, depth=8, colour=0, interlace=0, pixels=pixels))
