"""Decoding to the last pixel, bounded: rasters by Pillow, SVG by an XML parser that expands nothing.

Pillow opens a body only as the format that its signature says (never as EPS, which would start
Ghostscript). Of PSD and PSB the merged picture is decoded, of CUR and ICNS the largest one, of the rest every frame.
Formats that Pillow cannot read here are refused, since a check that did not take place is not a check.
What decoders forgive passes: libjpeg shows a JPEG with damaged coded data as it can, and Pillow leaves rows
empty that a PNG's well-ended compressed stream does not hold.
"""

from __future__ import annotations

import io
import mmap
import struct
import zlib
from typing import TYPE_CHECKING
from xml.parsers import expat

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

from tasks.engine.errors import ObjectError
from tasks.engine.formats import Data, Kind, cut, wrong
from tasks.engine.formats_text import gunzip
from tasks.engine.objects import ErrorClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import WriteableBuffer

MAX_FRAME_PIXELS = 250_000_000
MAX_TOTAL_PIXELS = 2_000_000_000
MAX_FRAMES = 10_000
MAX_SIDE_PIXELS = 500_000  # Pillow's time to unpack a row grows with the square of its length
MAX_SLOW_PIXELS = 20_000_000  # decoders written in Python (QOI, RLE bitmaps) take 1 µs a pixel and hold the GIL
MAX_SVG_BYTES = 64 * 1024 * 1024

# One constant for the whole process. With Pillow's own default an image of 90 to 179 megapixels warns,
# and fails where warnings are errors; so does one over our limit now, which is refused in any case.
Image.MAX_IMAGE_PIXELS = MAX_FRAME_PIXELS

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
    """Every pixel of every frame. Raises ObjectError: ``truncated``, ``not_image`` or ``too_large``."""
    if kind.name == "SVG":
        _parse_svg(data)
    elif kind.name == "SVGZ":
        _parse_svg(gunzip(data))
    elif kind.name in _PLUGINS:
        _decode_raster(data, kind.name)
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


def _decode_raster(data: Data, name: str) -> None:
    file = io.BytesIO(data) if isinstance(data, bytes) else io.BufferedReader(_Mapped(data))
    try:
        with Image.open(file, formats=[_PLUGINS[name]]) as image:
            total = 0
            for number, (width, height) in enumerate(_frames(image), 1):
                total += width * height
                if width * height > MAX_FRAME_PIXELS or total > MAX_TOTAL_PIXELS or number > MAX_FRAMES:
                    raise _too_many_pixels(name)
                if max(width, height) > MAX_SIDE_PIXELS or total > MAX_SLOW_PIXELS and _is_slow(image):
                    raise ObjectError(
                        ErrorClass.TOO_LARGE,
                        f"the {name} would take too long to decode ({width:,} × {height:,} pixels); "
                        "`checks: image` accepts it by its structure",
                    )
                image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(name) from None
    except MemoryError:
        raise ObjectError(ErrorClass.TOO_LARGE, f"the {name} needs more memory to decode than there is") from None
    except _PILLOW_ERRORS as exc:
        raise _decode_error(exc, name) from None


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
        return cut(name, "its last pixel")
    if isinstance(exc, UnidentifiedImageError):
        return wrong(name, "Pillow cannot read its header")
    return wrong(name, "its pixels do not decode")


def _parse_svg(data: Data) -> None:
    """Well-formed, the root is `svg`, and no entity is declared (a few of them can expand to gigabytes)."""
    if len(data) > MAX_SVG_BYTES:
        raise ObjectError(ErrorClass.TOO_LARGE, "an SVG over 64 MB is not parsed; `checks: image` accepts it")
    parser = expat.ParserCreate(namespace_separator=" ")
    started = False

    def start(tag: str, _attributes: dict[str, str]) -> None:
        nonlocal started
        if not started and tag.rpartition(" ")[2] != "svg":
            raise wrong("SVG", "its root element is not svg")
        started = True

    def entity(*_declaration: object) -> None:
        raise wrong("SVG", "it declares entities, which are not expanded; `checks: image` accepts it")

    parser.StartElementHandler = start
    parser.EntityDeclHandler = entity
    try:
        # In one piece: before expat 2.6 a long attribute (an embedded image) was scanned anew with each piece
        parser.Parse(data, True)
    except expat.ExpatError as exc:
        if exc.code in _UNFINISHED:
            raise cut("SVG", "its XML is complete") from None
        raise wrong("SVG", f"its XML is not well-formed in line {exc.lineno} ({expat.ErrorString(exc.code)})") from None
    except (LookupError, ValueError):  # raised for an encoding that Python does not know or cannot map
        raise wrong("SVG", "it declares an unknown encoding") from None


_UNFINISHED = frozenset(
    expat.errors.codes[text]
    for text in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
    )
)
