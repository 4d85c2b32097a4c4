"""Formats of files rather than of the web, whose headers say how long everything in them is.

TIFF, JPEG XR, BMP, ICO, CUR, ICNS, PSD, DDS, QOI and the PNM family. Same rules as in web.py.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice

from ferry.core import ErrorClass, ObjectError
from ferry.images.slices import numbers, rfind, turn
from ferry.images.web import Data, corrupt, truncated

MAX_IFDS = 65_536
MAX_TIFF_ENTRIES = 1_000_000  # over all directories
MAX_TIFF_STRIPS = 8_000_000  # over all directories
_TIFF_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_SUB_IFDS = 330
# offsets, byte counts: strips, tiles, the JPEG of TIFF 6.0, the image and alpha planes of JPEG XR
_TIFF_EXTENTS = ((273, 279), (324, 325), (513, 514), (0xBCC0, 0xBCC1), (0xBCC2, 0xBCC3))
_TIFF_WANTED = frozenset(tag for pair in _TIFF_EXTENTS for tag in pair) | {_SUB_IFDS}


class _Tiff:
    """One file's reading position: byte order, sizes of its pointers, and what may still be read."""

    def __init__(self, data: Data, name: str) -> None:
        self.data, self.name, self.size = data, name, len(data)
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = struct.unpack_from(self.order + "H", data, 2)[0] == 43
        self.entry = struct.Struct(self.order + ("HHQ" if self.big else "HHI"))
        self.count = struct.Struct(self.order + "HQ"[self.big])
        self.pointer = struct.Struct(self.order + "IQ"[self.big])
        self.entries, self.strips = MAX_TIFF_ENTRIES, MAX_TIFF_STRIPS

    def first(self) -> int:
        if self.big and self.data[4:8] != (b"\x08\0\0\0" if self.order == "<" else b"\0\x08\0\0"):
            raise corrupt(self.name, "its header makes no sense")
        return int(self.pointer.unpack_from(self.data, 8 if self.big else 4)[0])

    def values(self, field: tuple[int, int, int] | None) -> Iterator[int]:
        """A field's numbers, counted against what may be read of the file."""
        kind, many, _ = field = field or (1, 0, 0)
        self.strips -= many
        if self.strips < 0:
            raise corrupt(self.name, f"more than {MAX_TIFF_STRIPS:,} strips or tiles")
        if kind not in _TIFF_CODES:
            raise corrupt(self.name, "its strips are given in an impossible type")
        return self.unpacked(field)

    def unpacked(self, field: tuple[int, int, int]) -> Iterator[int]:
        kind, many, where = field
        return numbers(self.data, self.order, _TIFF_CODES[kind], many, where)

    def directory(self, start: int) -> tuple[dict[int, tuple[int, int, int]], int]:
        """The wanted fields (type, count, where) of the directory at ``start``, and the next one's offset."""
        inline = self.pointer.size
        many = self.count.unpack_from(self.data, start)[0]
        at = start + self.count.size
        self.entries -= many
        if many == 0 or many > 0xFFFF or self.entries < 0:
            raise corrupt(self.name, "a directory has an impossible number of entries")
        if at + many * (self.entry.size + inline) + inline > self.size:
            raise truncated(self.name, "the end of a directory")
        fields = {}
        for _ in range(many):
            tag, kind, length = self.entry.unpack_from(self.data, at)
            at += self.entry.size
            width = _TIFF_WIDTHS.get(kind, 0) * length
            where = at if width <= inline else self.pointer.unpack_from(self.data, at)[0]
            at += inline
            if where + width > self.size:
                raise truncated(self.name, "the values of a directory")
            if tag in _TIFF_WANTED:
                fields[tag] = (kind, length, where)
        return fields, self.pointer.unpack_from(self.data, at)[0]


_TILE_SIDES = (322, 323)


def largest_tile(data: Data, name: str, most: int) -> int:
    """The pixels of the largest tile that a TIFF's directories declare: a decoder unpacks a tile as a whole.

    Of fields that stand twice the larger counts: readers do not agree on which is meant. Raises ObjectError (where
    there are more than ``most`` directories: Pillow compares each with all before it), struct.error as :func:`tiff`.
    """
    file = _Tiff(data, name)
    sides, start = [0, 0], file.first()
    for _ in range(most):
        many, at = file.count.unpack_from(data, start)[0], start + file.count.size
        file.entries -= many
        if file.entries < 0:
            break
        for _ in range(many):
            tag, kind, _ = file.entry.unpack_from(data, at)
            if tag in _TILE_SIDES and kind in _TIFF_CODES:
                value = struct.unpack_from(file.order + _TIFF_CODES[kind], data, at + file.entry.size)[0]
                sides[tag - 322] = max(sides[tag - 322], value)
            at += file.entry.size + file.pointer.size
        start = file.pointer.unpack_from(data, at)[0]
        if not start:
            return sides[0] * sides[1]
    else:
        raise ObjectError(ErrorClass.TOO_LARGE, f"the {name} has more than {most:,} pictures")
    return sides[0] * sides[1]


def tiff(data: Data, name: str) -> None:
    """TIFF 6.0, BigTIFF and JPEG XR (T.832 annex A): every directory, and that all strips or tiles lie inside."""
    file = _Tiff(data, name)
    pending, pixels = [file.first()], False
    seen: set[int] = set()
    while pending:
        start = pending.pop()
        if start in seen:
            raise corrupt(name, "its directories form a loop")
        if len(seen) >= MAX_IFDS:
            raise corrupt(name, f"more than {MAX_IFDS:,} directories")
        seen.add(start)
        turn()
        if start + 2 > file.size:
            raise truncated(name, "a directory")
        if start < 8:
            raise corrupt(name, "a directory lies in its header")
        fields, following = file.directory(start)
        if following:
            pending.append(following)
        pending.extend(islice(file.values(fields.get(_SUB_IFDS)), MAX_IFDS + 1))
        for at, length in _TIFF_EXTENTS:
            if at not in fields or not fields[at][1]:
                continue
            counted = length in fields and fields[length][1] > 0
            offsets, counts = file.values(fields[at]), file.values(fields.get(length))
            ends = map(sum, zip(offsets, counts, strict=False)) if counted else offsets
            if max(ends, default=0) > file.size:
                raise truncated(name, "the end of its image data")
            pixels = pixels or not counted or any(file.unpacked(fields[length]))
    if not pixels:
        raise corrupt(name, "it has no image data")


BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})


def bmp(data: Data) -> None:
    """Windows and OS/2 bitmaps: rows times their width from the header; compressed ones by the size given.

    A compressed bitmap that gives no size cannot be told from a cut one.
    """
    declared, offset, header = struct.unpack_from("<I4xII", data, 2)
    compression = image_size = 0
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
        if header > 16:
            compression, image_size = struct.unpack_from("<II", data, 30)
    if width <= 0 or height == 0 or bits not in (0, 1, 2, 4, 8, 16, 24, 32, 64) or compression > 13:
        raise corrupt("BMP", "its header makes no sense")
    offset = offset or 14 + header
    if compression in (0, 3, 6):
        image_size = (width * bits + 31) // 32 * 4 * abs(height)
        if not bits:
            raise corrupt("BMP", "its header makes no sense")
    elif not image_size and declared > offset:
        image_size = declared - offset
    if offset + max(image_size, 1) > len(data):
        raise truncated("BMP", "its last row")


def ico(data: Data, name: str) -> None:
    """Icons and cursors: each entry of the directory lies inside the file and begins as a PNG or a bitmap."""
    many = struct.unpack_from("<H", data, 4)[0]
    for at in range(6, 6 + 16 * many, 16):
        size, offset = struct.unpack_from("<II", data, at + 8)
        if offset < 6 + 16 * many or size < 16:
            raise corrupt(name, "its directory makes no sense")
        if offset + size > len(data):
            raise truncated(name, "the end of a picture")
        if data[offset : offset + 8] != b"\x89PNG\r\n\x1a\n" and data[offset + 1 : offset + 4] != b"\0\0\0":
            raise corrupt(name, "a picture is neither a PNG nor a bitmap")


def icns(data: Data) -> None:
    """Apple icons: the blocks fill the length that the header gives."""
    end = int.from_bytes(data[4:8], "big")
    if end > len(data):
        raise truncated("ICNS", "the length that its header gives")
    pos, blocks = 8, 0
    while pos < end:
        length = struct.unpack_from(">I", data, pos + 4)[0]
        blocks += 1
        if length < 8 or pos + length > end or blocks > 1000:
            raise corrupt("ICNS", "a block has an impossible length")
        pos += length
    if not blocks:
        raise corrupt("ICNS", "it has no picture")


def psd(data: Data) -> None:
    """Photoshop (PSD, PSB): the three sections' lengths, then the merged picture to its last row."""
    version, channels, height, width, depth = struct.unpack_from(">H6xHIIH", data, 4)
    if version not in (1, 2) or not 1 <= channels <= 56 or not width or not height or depth not in (1, 8, 16, 32):
        raise corrupt("PSD", "its header makes no sense")
    pos = 26
    for wide in (False, False, version == 2):
        pos += (8 if wide else 4) + struct.unpack_from(">Q" if wide else ">I", data, pos)[0]
    method = struct.unpack_from(">H", data, pos)[0]
    pos += 2
    rows = channels * height
    if method == 0:
        pos += rows * ((width * depth + 7) // 8)
    elif method == 1:
        many = rows * version * 2  # bytes of the table: 2 a row, 4 in PSB
        if pos + many > len(data):
            raise truncated("PSD", "its last row")
        code = "H" if version == 1 else "I"
        pos += many + sum(numbers(data, ">", code, rows, pos))
    elif method in (2, 3):
        pos += 1
    else:
        raise corrupt("PSD", "its picture has an unknown compression")
    if pos > len(data):
        raise truncated("PSD", "its last row")


_DDS_BLOCKS = {b"DXT1": 8, b"ATI1": 8, b"BC4U": 8, b"BC4S": 8, b"DXT2": 16, b"DXT3": 16, b"DXT4": 16, b"DXT5": 16}
_DDS_BLOCKS |= {b"ATI2": 16, b"BC5U": 16, b"BC5S": 16}


def dds(data: Data) -> None:
    """DirectDraw surfaces: the first surface lies inside the file (its size is not known for DX10 formats)."""
    header, _, height, width = struct.unpack_from("<IIII", data, 4)
    pixel_header, flags, code, bits = struct.unpack_from("<II4sI", data, 76)
    if header != 124 or pixel_header != 32 or not width or not height:
        raise corrupt("DDS", "its header makes no sense")
    size = 1
    if flags & 4:
        size = _DDS_BLOCKS.get(code, 0) * ((width + 3) // 4) * ((height + 3) // 4) or 1
    elif bits <= 128:
        size = height * ((width * bits + 7) // 8)
    if 128 + (20 if code == b"DX10" and flags & 4 else 0) + size > len(data):
        raise truncated("DDS", "its last row")


def qoi(data: Data) -> None:
    """qoiformat.org specification: the header, and the end marker of seven 00 and one 01."""
    width, height, channels, space = struct.unpack_from(">IIBB", data, 4)
    if not width or not height or channels not in (3, 4) or space > 1:
        raise corrupt("QOI", "its header makes no sense")
    if rfind(data, b"\0\0\0\0\0\0\0\x01", 14) <= 14:
        raise truncated("QOI", "its end marker")


_PNM_HEADER_BYTES = 65_536  # comments and all
_GAP = rb"(?:\s|#[^\r\n]*+[\r\n])++"
_PNM = re.compile(rb"P[1-6]" + (_GAP + rb"(\d{1,9})") * 2)
_PNM_MAX = re.compile(_GAP + rb"(\d{1,5})")
_PAM_FIELD = re.compile(rb"\s*+(?:#[^\n]*+\n\s*+)*+(WIDTH|HEIGHT|DEPTH|MAXVAL|TUPLTYPE|ENDHDR)[ \t]*+([^\n]{0,99})\n")
_PFM = re.compile(rb"P[Ff]\s+(\d{1,9})\s+(\d{1,9})\s+(-?[0-9.]{1,20})\s")


def pnm(data: Data, name: str) -> None:
    """Netpbm formats P1 to P7 and PFM: raw ones to the last sample.

    Plain ones (P1, P2, P3) are text without an end: only that there are enough bytes for the samples.
    """
    width, height, row, at = _pnm_header(data, name)
    if not width or not height:
        raise corrupt(name, "its header makes no sense")
    if at + row * height > len(data):
        raise truncated(name, "its last row")


def _pnm_header(data: Data, name: str) -> tuple[int, int, int, int]:
    """Width, height, the least bytes in a row, and where the rows begin."""
    number = data[1:2]
    if number == b"7":
        return _pam_header(data, name)
    if number in b"fF":
        if (m := _PFM.match(data, 0, _PNM_HEADER_BYTES)) is None:
            raise corrupt(name, "its header makes no sense")
        return int(m[1]), int(m[2]), int(m[1]) * (12 if number == b"F" else 4), m.end()
    if (m := _PNM.match(data, 0, _PNM_HEADER_BYTES)) is None:
        raise corrupt(name, "its header makes no sense")
    width, height, at, most = int(m[1]), int(m[2]), m.end(), 1
    if number not in b"14":
        if (limit := _PNM_MAX.match(data, at, _PNM_HEADER_BYTES)) is None:
            raise corrupt(name, "its header makes no sense")
        most, at = int(limit[1]), limit.end()
    behind = data[at : at + 1]
    if not behind:
        raise truncated(name, "its first row")
    if not 0 < most < 65536 or not behind.isspace():  # a comment here would be read byte by byte by Pillow
        raise corrupt(name, "its header makes no sense")
    samples = width * (3 if number in b"36" else 1)
    row = {b"4": (width + 7) // 8, b"5": samples, b"6": samples}.get(number, samples)
    if number in b"56" and most > 255:
        row *= 2
    # between the samples of a plain P2 or P3 stands at least one space; the very last needs none
    return width, height, row * 2 if number in b"23" else row, at if number in b"23" else at + 1


def _pam_header(data: Data, name: str) -> tuple[int, int, int, int]:
    fields: dict[bytes, int] = {}
    at = 2
    for _ in range(100):
        if (m := _PAM_FIELD.match(data, at, _PNM_HEADER_BYTES)) is None:
            break
        at = m.end()
        if m[1] == b"ENDHDR":
            width, height, depth, most = (fields.get(key, 0) for key in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
            if not depth or not 0 < most < 65536:
                break
            return width, height, width * depth * (2 if most > 255 else 1), at
        if m[1] != b"TUPLTYPE" and m[2].strip().isdigit() and len(m[2]) < 10:
            fields[m[1]] = int(m[2])
    raise corrupt(name, "its header makes no sense")
