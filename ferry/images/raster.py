"""The walks over TIFF, BMP and icons, whose headers give the length of each part. The rules are those of web.py."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice

from ferry.images.slices import check_time, numbers
from ferry.images.web import PNG_SIGNATURE, Data, corrupt, png, truncated

MAX_IFDS = 65_536
MAX_TIFF_ENTRIES = 1_000_000  # over all directories
MAX_TIFF_STRIPS = 8_000_000  # over all directories
_TIFF_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_SUB_IFDS = 330
_TIFF_EXTENTS = ((273, 279), (324, 325), (513, 514))  # offsets, byte counts: strips, tiles, the JPEG of TIFF 6.0
_TIFF_WANTED = frozenset(tag for pair in _TIFF_EXTENTS for tag in pair) | {_SUB_IFDS}


class _Tiff:
    """A file's byte order, the sizes of its numbers, and how many of them may still be read."""

    def __init__(self, data: Data) -> None:
        self.data, self.size = data, len(data)
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = struct.unpack_from(self.order + "H", data, 2)[0] == 43
        self.entry = struct.Struct(self.order + ("HHQ" if self.big else "HHI"))
        self.count = struct.Struct(self.order + "HQ"[self.big])
        self.pointer = struct.Struct(self.order + "IQ"[self.big])
        self.entries, self.strips = MAX_TIFF_ENTRIES, MAX_TIFF_STRIPS

    def first(self) -> int:
        if self.big and self.data[4:8] != (b"\x08\0\0\0" if self.order == "<" else b"\0\x08\0\0"):
            raise corrupt("TIFF", "its header is invalid")
        return int(self.pointer.unpack_from(self.data, 8 if self.big else 4)[0])

    def values(self, field: tuple[int, int, int] | None) -> Iterator[int]:
        """Returns a field's numbers, and counts them against MAX_TIFF_STRIPS."""
        if field is None:
            return iter(())
        kind, count, _ = field
        self.strips -= count
        if self.strips < 0:
            raise corrupt("TIFF", f"more than {MAX_TIFF_STRIPS:,} strips or tiles")
        if kind not in _TIFF_CODES:
            raise corrupt("TIFF", "its strips are given in an impossible type")
        return self.unpacked(field)

    def unpacked(self, field: tuple[int, int, int]) -> Iterator[int]:
        kind, count, offset = field
        return numbers(self.data, self.order, _TIFF_CODES[kind], count, offset)

    def directory(self, start: int) -> tuple[dict[int, tuple[int, int, int]], int]:
        """Returns the wanted fields (type, count, offset) of the directory at ``start``, and the next one's offset."""
        inline = self.pointer.size
        entries = self.count.unpack_from(self.data, start)[0]
        at = start + self.count.size
        self.entries -= entries
        if entries == 0 or entries > 0xFFFF or self.entries < 0:
            raise corrupt("TIFF", "a directory has an impossible number of entries")
        if at + entries * (self.entry.size + inline) + inline > self.size:
            raise truncated("TIFF", "the end of a directory")
        fields = {}
        for _ in range(entries):
            tag, kind, count = self.entry.unpack_from(self.data, at)
            at += self.entry.size
            size = _TIFF_WIDTHS.get(kind, 0) * count
            offset = at if size <= inline else self.pointer.unpack_from(self.data, at)[0]
            at += inline
            if offset + size > self.size:
                raise truncated("TIFF", "the values of a directory")
            if tag in _TIFF_WANTED:
                fields[tag] = (kind, count, offset)
        return fields, self.pointer.unpack_from(self.data, at)[0]


def tiff(data: Data) -> None:
    """Checks every directory, and that all strips or tiles are inside the file (TIFF 6.0, BigTIFF)."""
    file = _Tiff(data)
    pending, pixels = [file.first()], False
    seen: set[int] = set()
    while pending:
        start = pending.pop()
        if start in seen:
            raise corrupt("TIFF", "its directories form a loop")
        if len(seen) >= MAX_IFDS:
            raise corrupt("TIFF", f"more than {MAX_IFDS:,} directories")
        seen.add(start)
        check_time()
        if start + 2 > file.size:
            raise truncated("TIFF", "a directory")
        if start < 8:
            raise corrupt("TIFF", "a directory is inside its header")
        fields, following = file.directory(start)
        if following:
            pending.append(following)
        pending.extend(islice(file.values(fields.get(_SUB_IFDS)), MAX_IFDS + 1))
        for at, length in _TIFF_EXTENTS:
            if at not in fields or not fields[at][1]:
                continue
            counted = length in fields and fields[length][1] > 0
            if counted and fields[length][1] < fields[at][1]:
                raise corrupt("TIFF", "some of its strips or tiles have no length")
            offsets, counts = file.values(fields[at]), file.values(fields.get(length))
            ends = map(sum, zip(offsets, counts, strict=False)) if counted else offsets
            if max(ends, default=0) > file.size:
                raise truncated("TIFF", "the end of its image data")
            pixels = pixels or not counted or any(file.unpacked(fields[length]))
    if not pixels:
        raise corrupt("TIFF", "it has no image data")


BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})


def bmp(data: Data) -> None:
    """Checks the length of a Windows or OS/2 bitmap: by its rows, or by the size in the header of a compressed one."""
    file_size, offset, header = struct.unpack_from("<I4xII", data, 2)
    compression = image_size = 0
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
        if header > 16:
            compression, image_size = struct.unpack_from("<II", data, 30)
    if width <= 0 or height == 0 or bits not in (0, 1, 2, 4, 8, 16, 24, 32, 64) or compression > 13:
        raise corrupt("BMP", "its header is invalid")
    offset = offset or 14 + header
    if compression in (0, 3, 6):
        image_size = (width * bits + 31) // 32 * 4 * abs(height)
    elif not image_size:
        image_size = file_size - offset
    if image_size <= 0:
        raise corrupt("BMP", "its header does not give the size of its picture")
    if offset + image_size > len(data):
        raise truncated("BMP", "its last row")


def ico(data: Data) -> None:
    """Checks that each entry of an icon or cursor is inside the file, as a complete PNG or with a bitmap's header."""
    kind, entries = struct.unpack_from("<HH", data, 2)
    name = "ICO" if kind == 1 else "CUR"
    pictures = 6 + 16 * entries
    for at in range(6, pictures, 16):
        check_time()
        size, offset = struct.unpack_from("<II", data, at + 8)
        if offset < pictures or size < 16:
            raise corrupt(name, "its directory is invalid")
        if offset + size > len(data):
            raise truncated(name, "the end of a picture")
        if data[offset : offset + 8] == PNG_SIGNATURE:
            png(data[offset : offset + size])
        elif int.from_bytes(data[offset : offset + 4], "little") not in BMP_HEADERS:
            raise corrupt(name, "a picture is neither a PNG nor a bitmap")
