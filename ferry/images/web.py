"""The class Kind, and the walks over JPEG, PNG, GIF and WebP, the formats of nearly all images on the web.

A walk reads the structure of a complete body up to its end marker, and decodes no pixel. It raises ObjectError,
``truncated`` or ``not_image``. Reading past the end (IndexError, struct.error) may escape a walk:
:func:`ferry.images.check.check_image` reports that as ``truncated``. Work is linear in the body, in slices (slices.py),
and every loop in Python has a limit far above what real files need.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ferry.core import ErrorClass, ObjectError
from ferry.images.slices import Data, check_time, find, rfind, steps

__all__ = ["PNG_SIGNATURE", "Data", "Kind", "corrupt", "gif", "jpeg", "png", "truncated", "unfiltered_bytes", "webp"]

MAX_JPEG_SEGMENTS = 10_000  # before the first scan; 100 MB of XMP in 64 KB pieces are 1,600
MAX_CHUNKS = 500_000
MAX_GIF_BLOCKS = 1_000_000  # of those shorter than 255 bytes


@dataclass(frozen=True, slots=True)
class Kind:
    """A format of images."""

    name: str  # for messages
    ext: str  # the usual file extension, without a dot
    mime: str
    decoder: str = ""  # the format's name in Pillow, `SVG`, `SVGZ`, or "" if it has no decoder


def truncated(name: str, before: str) -> ObjectError:
    """Returns the error for a body that ends early."""
    return ObjectError(ErrorClass.TRUNCATED, f"the {name} ends before {before}")


def corrupt(name: str, what: str) -> ObjectError:
    """Returns the error for a body whose structure is invalid for its signature."""
    return ObjectError(ErrorClass.NOT_IMAGE, f"the {name} is damaged: {what}")


# C4, C8 and CC are tables and an extension; F7 is the frame of JPEG-LS
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1})  # with Huffman codes: a block of 8 × 8 samples takes two bits or more
_JPEG_BARE = frozenset(range(0xD0, 0xD8)) | {0x00, 0x01}  # no length follows


def jpeg(data: Data) -> None:
    """Checks the segments up to the first scan, then finds an end marker, EOI (ITU-T T.81 annex B).

    An EOI inside a segment (the thumbnail in EXIF) is skipped. FF D9 cannot occur in the coded data of a scan, so the
    search runs from the end, where it costs nothing. Like libjpeg, the walk skips fill bytes and junk between segments.
    A picture with more blocks than its coded data has bits is truncated.
    """
    pos, frame, blocks = 2, False, 0
    for _ in range(MAX_JPEG_SEGMENTS):
        if data[pos] != 0xFF:
            pos = find(data, b"\xff", pos)
            if pos < 0:
                raise truncated("JPEG", "its end marker")
        marker = data[pos + 1]
        if marker == 0xFF:
            pos += 1
            continue
        if marker in _JPEG_BARE:
            pos += 2
            continue
        if marker in (0xD8, 0xD9):
            raise corrupt("JPEG", "it has no image data")
        length = struct.unpack_from(">H", data, pos + 2)[0]
        if length < 2:
            raise corrupt("JPEG", "a segment has an impossible length")
        if marker == 0xDA:
            break
        if marker in _JPEG_FRAMES:
            components = data[pos + 9]
            height, width = struct.unpack_from(">HH", data, pos + 5)  # a height of 0 is legal: a DNL segment gives it
            if components == 0 or width == 0 or length != 8 + 3 * components:
                raise corrupt("JPEG", "its frame header is invalid")
            frame = True
            if marker in _JPEG_SEQUENTIAL:
                blocks = (width + 7) // 8 * ((height + 7) // 8)
        pos += 2 + length
    else:
        raise corrupt("JPEG", f"more than {MAX_JPEG_SEGMENTS:,} segments before its image data")
    if not frame:
        raise corrupt("JPEG", "it has no frame header")
    scan = pos + 2 + length
    if length != 6 + 2 * data[pos + 4]:
        raise corrupt("JPEG", "its scan header is invalid")
    end = rfind(data, b"\xff\xd9", scan)
    if end < 0:
        raise truncated("JPEG", "its end marker")
    if end == scan:
        raise corrupt("JPEG", "it has no image data")
    if blocks > 8 * (end - scan):
        raise truncated("JPEG", f"its last row: {width:,} × {height:,} pixels cannot be in {end - scan:,} bytes")


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_HEADER = struct.Struct(">IIBBBBB")
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_DEFLATE_MAX_RATIO = 1032  # decompressed bytes per byte: 258 for two bits (RFC 1951, section 3.2.5)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def unfiltered_bytes(width: int, height: int, bits: int, *, interlaced: bool) -> int:
    """Returns the decompressed size of a PNG's image data: per row of each pass a filter byte, then whole bytes."""
    size = 0
    for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = (width - x + dx - 1) // dx, (height - y + dy - 1) // dy
        if columns > 0 and rows > 0:
            size += rows * (1 + (columns * bits + 7) // 8)
    return size


def png(data: Data) -> None:
    """Checks the chunks from IHDR to IEND, also of APNG (PNG, third edition, sections 5 and 11).

    A picture with more bytes than its image data can decompress to is truncated. The checksums of all chunks with the
    picture are verified: at 0.2 µs per KB this finds each flipped bit. Like libpng, the walk ignores a wrong checksum
    in other chunks (text, times).
    """
    size, pos, pixels, compressed, palette = len(data), 8, False, 0, False
    length, tag = _PNG_CHUNK.unpack_from(data, pos)
    if tag != b"IHDR" or length != 13:
        raise corrupt("PNG", "it does not begin with its header chunk (IHDR)")
    width, height, depth, colour, compression, filtering, interlace = _PNG_HEADER.unpack_from(data, 16)
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31 and depth in _PNG_DEPTHS.get(colour, ())):
        raise corrupt("PNG", "its header is invalid")
    if compression or filtering or interlace > 1:
        raise corrupt("PNG", "its header has an unknown method")
    with memoryview(data) as view:
        for _ in steps(MAX_CHUNKS):
            length, tag = _PNG_CHUNK.unpack_from(data, pos)
            if not tag.isalpha():
                raise corrupt("PNG", "a chunk has an invalid name")
            end = pos + 12 + length
            if end > size:
                raise truncated("PNG", "its end chunk (IEND)")
            critical = not tag[0] & 0x20  # an upper-case first letter: the picture cannot be shown without this chunk
            if critical or tag == b"fdAT":
                checksum = int.from_bytes(data[end - 4 : end], "big")
                if zlib.crc32(view[pos + 4 : end - 4]) != checksum:
                    raise corrupt("PNG", f"the checksum of a chunk ({tag.decode()}) is wrong")
            pos = end
            if tag == b"IDAT":
                pixels, compressed = True, compressed + length
            elif tag == b"PLTE":
                palette = True
            elif tag == b"IEND":
                break
        else:
            raise corrupt("PNG", f"more than {MAX_CHUNKS:,} chunks")
    if not pixels:
        raise corrupt("PNG", "it has no image data (IDAT)")
    bits = depth * _PNG_SAMPLES[colour]
    if unfiltered_bytes(width, height, bits, interlaced=bool(interlace)) > _DEFLATE_MAX_RATIO * compressed:
        raise truncated(
            "PNG", f"its last row: {width:,} × {height:,} pixels cannot be in {compressed:,} bytes of image data"
        )
    if colour == 3 and not palette:
        raise corrupt("PNG", "it has no palette (PLTE)")


def gif(data: Data) -> None:
    """Checks the blocks up to the trailer, 3B (GIF89a). Zero bytes between blocks are accepted."""
    pos, frames, short = 13 + _gif_palette(data[10]), 0, 0
    while True:
        introducer = data[pos]
        if introducer == 0x3B:
            break
        if introducer == 0x2C:
            pos += 10 + _gif_palette(data[pos + 9])
            if not 1 <= data[pos] <= 11:
                raise corrupt("GIF", "a picture has an impossible code size")
            pos += 1
            frames += data[pos] > 0  # the length of its first sub-block
        elif introducer == 0x21:
            pos += 2
        elif introducer:
            raise corrupt("GIF", "a block of an unknown kind")
        # Nearly all sub-blocks are full, so many length bytes, 256 apart, are compared at once.
        # Padding between blocks is an empty sequence of sub-blocks.
        while True:
            lengths = data[pos : pos + 65536 : 256]
            full = len(lengths) - len(lengths.lstrip(b"\xff"))
            pos += 256 * full
            if full and full == len(lengths):
                continue
            step = data[pos]
            pos += 1 + step
            short += 1
            if not step:
                break
            if short > MAX_GIF_BLOCKS:
                raise corrupt("GIF", f"more than {MAX_GIF_BLOCKS:,} short blocks")
            if not short % 4096:
                check_time()
        if short > MAX_GIF_BLOCKS:
            raise corrupt("GIF", f"more than {MAX_GIF_BLOCKS:,} short blocks")
    if not frames:
        raise corrupt("GIF", "it has no picture")


def _gif_palette(packed: int) -> int:
    """Returns the bytes of the colour table, by the packed fields of a descriptor."""
    return 3 * 2 ** ((packed & 7) + 1) if packed & 0x80 else 0


_RIFF_CHUNK = struct.Struct("<4sI")


def webp(data: Data) -> None:
    """Checks the RIFF size, the chunks inside it, and the headers of VP8, VP8L and each frame, ANMF (RFC 9649)."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise truncated("WebP", "the size that its header gives")
    pos, pictures, chunks = 12, 0, 0
    frame_end = 0  # the end of the current ANMF chunk, or 0
    extended = data[12:16] == b"VP8X"
    animated = extended and bool(data[20] & 2)
    while pos + 8 <= end:
        chunks += 1
        if not chunks % 4096:
            check_time()
        if chunks > MAX_CHUNKS:
            raise corrupt("WebP", f"more than {MAX_CHUNKS:,} chunks")
        if frame_end and pos + 8 > frame_end:
            pos, frame_end = frame_end, 0
            continue
        tag, length = _RIFF_CHUNK.unpack_from(data, pos)
        body = pos + 8
        if min(tag) < 0x20 or max(tag) > 0x7E:  # the rest of the file was never written
            raise corrupt("WebP", "a chunk has an invalid name")
        if body + length > (frame_end or end):
            raise corrupt("WebP", "a chunk is longer than what contains it")
        if tag == b"ANMF" and not frame_end:
            frame_end = body + length + (length & 1)
            pos = body + 16
            continue
        if tag == b"VP8 ":
            if data[body] & 1 or data[body + 3 : body + 6] != b"\x9d\x01\x2a":
                raise corrupt("WebP", "its picture (VP8) does not begin with a key frame")
            first = int.from_bytes(data[body : body + 3], "little") >> 5
            if first + 10 > length:
                raise corrupt("WebP", "its picture (VP8) is shorter than its first partition")
            pictures += 1
        elif tag == b"VP8L":
            if length < 5 or data[body] != 0x2F:
                raise corrupt("WebP", "its picture (VP8L) has no signature")
            pictures += 1
        pos = body + length + (length & 1)
        if pictures and not extended:
            break  # a simple file is one chunk
    if not pictures:
        raise corrupt("WebP", "an animation without frames" if animated else "it has no picture")
