"""Decoding to the last pixel, bounded: rasters by Pillow, SVG by an XML parser that expands nothing.

Pillow opens a body only as the format that its signature says (never as EPS, which would start
Ghostscript). Of PSD and PSB the merged picture is decoded, of CUR and ICNS the largest one, of the rest every frame.
Formats that Pillow cannot read here are refused, since a check that did not take place is not a check.
What decoders forgive passes: libjpeg shows a JPEG with damaged coded data as it can, and Pillow leaves rows
empty that a PNG's well-ended compressed stream does not hold.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import struct
import warnings
import zlib
from typing import TYPE_CHECKING

from PIL import (  # each import registers its format, so that no thread has to
    AvifImagePlugin,
    BmpImagePlugin,
    CurImagePlugin,
    DdsImagePlugin,
    GifImagePlugin,
    IcnsImagePlugin,
    IcoImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PcxImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    PsdImagePlugin,
    QoiImagePlugin,
    SgiImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from ferry.core import ErrorClass, ObjectError
from ferry.images import decode_process
from ferry.images.decode_memory import DecodeMemory, bytes_a_pixel, bytes_of_a_body
from ferry.images.icons import J2K, largest_picture
from ferry.images.isobmff import code_stream
from ferry.images.jpeg2000 import MAX_COMPONENTS, MAX_STEPS, burden
from ferry.images.jpeg_scans import scans
from ferry.images.raster import largest_tile
from ferry.images.slices import count
from ferry.images.svg import decode_svg, gunzip
from ferry.images.web import Data, Kind, corrupt, truncated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import WriteableBuffer

MAX_FRAME_PIXELS = 250_000_000
MAX_TOTAL_PIXELS = 2_000_000_000
MAX_FRAMES = 10_000
MAX_SIDE_PIXELS = 500_000  # Pillow's time to unpack a row grows with the square of its length
MAX_SCANS = 100  # of a JPEG: each is a pass over all of it, and need not have a byte; encoders make ten
MAX_TILE_PIXELS = 64_000_000  # of a TIFF, whose picture may be smaller
MAX_COMMENTS = 1_000  # of a plain PNM: Pillow copies a MiB for each, and holds the GIL
_READ_WHOLE = ("WebP", "AVIF")  # opening one copies the body and lays it out
MAX_SLOW_PIXELS = 20_000_000  # decoders written in Python (QOI, RLE bitmaps) take 1 µs a pixel and hold the GIL

# One constant for the whole process. With Pillow's own default an image of 90 to 179 megapixels warns,
# and fails where warnings are errors; so does one over our limit now, which is refused in any case.
Image.MAX_IMAGE_PIXELS = MAX_FRAME_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the row says it

_PLUGINS: dict[str, str] = {
    "JPEG": JpegImagePlugin.JpegImageFile.format,
    "PNG": PngImagePlugin.PngImageFile.format,
    "GIF": GifImagePlugin.GifImageFile.format,
    "WebP": WebPImagePlugin.WebPImageFile.format,
    "AVIF": AvifImagePlugin.AvifImageFile.format,
    "TIFF": TiffImagePlugin.TiffImageFile.format,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile.format,
    "JPEG 2000 code stream": Jpeg2KImagePlugin.Jpeg2KImageFile.format,
    "BMP": BmpImagePlugin.BmpImageFile.format,
    "ICO": IcoImagePlugin.IcoImageFile.format,
    "CUR": CurImagePlugin.CurImageFile.format,
    "ICNS": IcnsImagePlugin.IcnsImageFile.format,
    "PSD": PsdImagePlugin.PsdImageFile.format,
    "DDS": DdsImagePlugin.DdsImageFile.format,
    "TGA": TgaImagePlugin.TgaImageFile.format,
    "PCX": PcxImagePlugin.PcxImageFile.format,
    "SGI": SgiImagePlugin.SgiImageFile.format,
    "QOI": QoiImagePlugin.QoiImageFile.format,
} | dict.fromkeys(("PBM", "PGM", "PPM", "PFM"), PpmImagePlugin.PpmImageFile.format)
assert MpoImagePlugin  # JPEG hands files with several pictures to it

# What Pillow, its decoders and its parsers raise on a damaged file; the fuzz test fails on any other
_PILLOW_ERRORS = (
    OSError,  # UnidentifiedImageError too
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ArithmeticError,  # OverflowError, and ZeroDivisionError for an AVIF whose clock stands still
    RuntimeError,
    struct.error,
    zlib.error,
)


def decode(data: Data, kind: Kind) -> None:
    """Every pixel of every frame; what is not small in a process of its own. Blocks.

    Raises ObjectError: ``truncated``, ``not_image`` or ``too_large``.
    """
    if kind.name == "SVG":
        decode_svg(data)
    elif kind.name == "SVGZ":
        decode_svg(gunzip(data))
    elif kind.name in _PLUGINS:
        _decode_raster(data, kind.name, _memory, here=False)
    else:
        raise ObjectError(
            ErrorClass.NOT_IMAGE, f"no decoder for {kind.name} is at hand; `checks: image` accepts it by its structure"
        )


class _Mapped(io.RawIOBase):
    """A mapped file as a file of its own: each reader has its own position."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._pos = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        with memoryview(buffer) as target:
            piece = self._data[self._pos : self._pos + len(target)]
            target[: len(piece)] = piece
        self._pos += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._pos, len(self._data))[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._pos = base + offset
        return self._pos


_memory = DecodeMemory()


def decode_here(data: Data, name: str, memory: int) -> None:
    """As :func:`decode`, of a raster, in this process, with so much memory."""
    _decode_raster(data, name, DecodeMemory(memory), here=True)


def _decode_raster(data: Data, name: str, memory: DecodeMemory, *, here: bool) -> None:
    if data[:2] in (b"P1", b"P2", b"P3") and count(data, b"#", MAX_COMMENTS) > MAX_COMMENTS:
        raise _too_much(f"the {name} has more than {MAX_COMMENTS:,} comments")
    try:
        inside = _nested_pixels(data, name)
        beside = _beside_the_pixels(data, name) + bytes_of_a_body(name, len(data))
        partial = _keeps_coefficients(data, name)
    except (struct.error, IndexError, OverflowError):  # a BigTIFF's places have 64 bits
        raise corrupt(name, "its structure makes no sense") from None
    file = io.BytesIO(data) if isinstance(data, bytes) else io.BufferedReader(_Mapped(data))
    try:
        with contextlib.ExitStack() as opened:
            loan = opened.enter_context(memory.borrowed())
            if not loan.need(beside):
                raise _too_much(f"the {name} takes too much memory to open ({len(data):,} bytes)")
            if not here and name in _READ_WHOLE and decode_process.is_for_a_process(name, len(data)):
                loan.need(memory.total)
                return decode_process.decode(data, name, memory.total)
            image = opened.enter_context(Image.open(file, formats=[_PLUGINS[name]]))
            total = 0
            animated = getattr(image, "n_frames", 1) > 1
            several = animated or name in ("ICO", "CUR", "ICNS")
            progressive = partial or bool(image.info.get("progressive"))
            for number, (width, height) in enumerate(_frames(image), 1):
                pixels = max(width * height, inside if name == "ICO" else 0)  # its sizes may share one picture
                total += pixels
                if pixels > MAX_FRAME_PIXELS or total > MAX_TOTAL_PIXELS or number > MAX_FRAMES:
                    raise _too_many_pixels(name)
                if max(width, height) > MAX_SIDE_PIXELS or total > MAX_SLOW_PIXELS and _is_slow(image):
                    raise _too_much(f"the {name} would take too long to decode ({width:,} × {height:,} pixels)")
                a_pixel = bytes_a_pixel(name, image.mode, animated=animated, progressive=progressive)
                needed = pixels * a_pixel + inside * 8 + beside
                if not loan.need(needed):
                    raise _too_much(f"the {name} takes too much memory to decode ({width:,} × {height:,} pixels)")
                if not here and decode_process.is_for_a_process(name, len(data), max(pixels, inside)):
                    most = memory.total if several else needed
                    loan.need(most)
                    return decode_process.decode(data, name, most)
                image.load()
        return None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(name) from None
    except MemoryError:
        raise ObjectError(ErrorClass.TOO_LARGE, f"the {name} needs more memory to decode than there is") from None
    except _PILLOW_ERRORS as exc:
        raise _decode_error(exc, name) from None


def _keeps_coefficients(data: Data, name: str) -> bool:
    """Of a JPEG, until its last scan. Raises ObjectError where it has many."""
    if name != "JPEG":
        return False
    most, partial = scans(data, MAX_SCANS)
    if most > MAX_SCANS:
        raise _too_much(f"the JPEG has more than {MAX_SCANS} scans, each of which is a pass over all of it")
    return partial


def _nested_pixels(data: Data, name: str) -> int:
    """The largest tile of a TIFF, the largest picture in an icon: what the size that Pillow shows does not say.

    Raises ObjectError where that is too much.
    """
    largest = 0
    if name == "TIFF":
        largest = largest_tile(data, name, MAX_FRAMES)
        if largest > MAX_TILE_PIXELS:
            raise _too_much(f"the TIFF has tiles of {largest:,} pixels, which are unpacked as a whole")
    elif name in ("ICO", "CUR", "ICNS"):
        largest = largest_picture(data, name)
    return largest


def _beside_the_pixels(data: Data, name: str) -> int:
    """Bytes for the tables of a JPEG 2000 (in ICNS too); its size says nothing of them. Raises ObjectError."""
    at = -1
    if name.startswith("JPEG 2000"):
        at = code_stream(data, name)
    elif name == "ICNS":
        at = data.find(J2K)
    most = 0
    while at >= 0:
        if int.from_bytes(data[at + 40 : at + 42], "big") > MAX_COMPONENTS:
            raise corrupt(name, f"it has more than {MAX_COMPONENTS} components")
        found = burden(data, at)
        if found.steps > MAX_STEPS:
            raise _too_much(f"the {name} is cut into {found.steps:,} parts, which would take too long to decode")
        most = max(most, found.held)
        at = data.find(J2K, at + 1) if name == "ICNS" else -1
    return most


def _too_much(what: str) -> ObjectError:
    return ObjectError(ErrorClass.TOO_LARGE, f"{what}; `checks: image` accepts it by its structure")


def _frames(image: Image.Image) -> Iterator[tuple[int, int]]:
    """Moves the image to each of its pictures in turn and gives that one's width and height."""
    if isinstance(image, IcoImagePlugin.IcoImageFile):
        for size in sorted(image.info["sizes"]):
            image.size = size
            yield size
        return
    frames = 1 if isinstance(image, PsdImagePlugin.PsdImageFile) else getattr(image, "n_frames", 1)
    for number in range(frames):
        if number:
            image.seek(number)
        yield image.size


def _is_slow(image: Image.Image) -> bool:
    """Whether a decoder written in Python is about to run: Pillow registers those by name."""
    return isinstance(image, ImageFile.ImageFile) and any(tile.codec_name in Image.DECODERS for tile in image.tile)


def _too_many_pixels(name: str) -> ObjectError:
    return ObjectError(
        ErrorClass.TOO_LARGE,
        f"the {name} has more pixels than are decoded ({MAX_FRAME_PIXELS // 10**6} megapixels a picture, "
        f"{MAX_TOTAL_PIXELS // 10**9} gigapixels in all, {MAX_FRAMES:,} pictures)",
    )


def _decode_error(exc: BaseException, name: str) -> ObjectError:
    text = str(exc).lower()
    if isinstance(exc, EOFError) or "truncated" in text:
        return truncated(name, "its last pixel")
    if isinstance(exc, UnidentifiedImageError):
        return corrupt(name, "Pillow cannot read its header")
    return corrupt(name, "its pixels do not decode")
