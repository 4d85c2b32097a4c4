"""Formats that Pillow writes and few shops serve: TGA, PCX, SGI, XBM, BLP, DIB, IM, MSP and SPIDER.

Same rules as in web.py. Their signatures are weak, so that a header counts as one only where all of it makes
sense; what cannot be told from its header (TGA without a footer, Palm bitmaps) is not accepted.
"""

from __future__ import annotations

import re
import struct

from ferry.core import ErrorClass, ObjectError
from ferry.images.slices import numbers, rfind
from ferry.images.web import Data, corrupt, truncated

_TGA_FOOTER = b"TRUEVISION-XFILE.\0"
_TGA = struct.Struct("<BBBHHBHHHHBB")
_DIB = struct.Struct("<IiiHHI")
_XBM = re.compile(
    rb"\s*+#define[ \t]++[\w.-]{1,200}_width[ \t]++\d++\s++#define[ \t]++[\w.-]{1,200}_height[ \t]++\d++\s"
)
# `#` begins a comment in many languages: nothing may stand before, between or behind, not even a C comment
_XBM_ARRAY = re.compile(
    rb"\s*+(?:#define[ \t]++[\w.-]{1,200}_[xy]_hot[ \t]++-?\d++\s++){0,2}+"
    rb"static\s++(?:const\s++)?(?:unsigned\s++)?(?:char|short)\s++[\w.-]{1,200}_bits\s*+\[\d*+\]\s*+=\s*+\{"
)
_XBM_BITS = re.compile(rb"(?:\s*+0[xX][0-9a-fA-F]{1,4}\s*+,?)*+\s*+")
_XBM_END = re.compile(rb"\}\s*+;?\s*+\Z")
_IM_SIZE = re.compile(rb"Image size \(x\*y\): (\d{1,7})\*(\d{1,7})")
_IM_BITS = {
    b"0 1 image": 1, b"RGB image": 24, b"RGBA image": 32, b"CMYK image": 32, b"YCC image": 24,
    b"L 16 image": 16, b"L 32S image": 32, b"L 32F image": 32,
}  # fmt: skip
_XBM_BYTES = 2 << 20  # an expression over its whole array holds up all threads
_SGI_ROWS = 1_000_000  # of all planes; the numbers of each take 72 bytes. A height has 16 bits
_PCX_PLAIN_BYTES = 4 << 20  # of longer ones only the header is looked at: a walk takes 0.2 s for each of these


def rare_name(head: Data) -> str | None:
    """The format that the first 512 bytes begin as, or None."""
    start = bytes(head[:512])
    if start[:2] == b"\x01\xda" and len(start) >= 12 and start[2] < 2 and start[3] in (1, 2):
        return "SGI" if 1 <= int.from_bytes(start[4:6], "big") <= 3 else None
    if start[:4] in (b"BLP1", b"BLP2"):
        return "BLP"
    if start[:4] in (b"DanM", b"LinS") and len(start) >= 32:
        return "MSP"
    if start.startswith(b"Image type: ") and b"\r\n" in start[:100]:
        return "IM"
    if start[:1] == b"\n" and len(start) >= 128 and start[1] in (0, 2, 3, 4, 5) and start[2] < 2:
        left, top, right, bottom = struct.unpack_from("<4H", start, 4)
        planes, row = start[65], int.from_bytes(start[66:68], "little")
        if start[3] in (1, 2, 4, 8) and left <= right and top <= bottom and 1 <= planes <= 4 and row:
            return "PCX"
    if start[:4] == b"(\0\0\0" and len(start) >= 40:
        _, width, height, planes, bits, packed = _DIB.unpack_from(start)
        if 0 < width < 1 << 20 and height and planes == 1 and bits in (1, 4, 8, 16, 24, 32) and packed in (0, 3):
            return "DIB"
    if _XBM.match(start):
        return "XBM"
    if _spider(start) is not None:
        return "SPIDER"
    return "TGA" if _is_tga(start) else None


def _is_tga(start: bytes) -> bool:
    if len(start) < 18:
        return False
    _, mapped, kind, _, colours, entry, _, _, width, height, depth, flags = _TGA.unpack_from(start)
    sane = kind in (1, 2, 3, 9, 10, 11) and depth in (1, 8, 15, 16, 24, 32) and not flags & 0xC0
    palette = (mapped == 1 and colours and entry in (15, 16, 24, 32)) or (mapped == 0 and not colours)
    return bool(sane and palette and width and height and (mapped or kind not in (1, 9)))


def _spider(start: bytes) -> tuple[str, int] | None:
    """Byte order, and how long the file is, or None: floats that agree with each other (wadsworth.org, SPIDER)."""
    if len(start) < 108:
        return None
    for order in "<>":
        h = struct.unpack_from(f"{order}27f", start)
        rows, kind, columns, records, header, record = h[1], h[4], h[11], h[12], h[21], h[22]
        whole = all(0 < value < 1e9 and value == int(value) for value in (rows, columns, records, header, record))
        if h[0] == kind == 1 and whole and record == 4 * columns and records * record == header:
            return order, int(header) + 4 * int(rows) * int(columns)
    return None


def rare(data: Data, name: str) -> None:
    """The walk of one of them: to its end where the header tells where that is."""
    end = _WALKS[name](data)
    if end > len(data):
        raise truncated(name, "its last row")


def _tga(data: Data) -> int:
    """Truevision TGA 2.0: the footer ends the file; its offsets are not needed to show the picture."""
    if rfind(data, _TGA_FOOTER) < 18:
        raise truncated("TGA", "its footer")
    return len(data)


def _pcx(data: Data) -> int:
    """ZSoft PCX technical reference: runs (or plain bytes) of all rows, and a palette of 769 bytes for 256 colours."""
    left, top, right, bottom = struct.unpack_from("<4H", data, 4)
    planes, row = data[65], int.from_bytes(data[66:68], "little")
    if row * 8 < (right - left + 1) * data[3]:
        raise corrupt("PCX", "its rows are shorter than the picture is wide")
    wanted = planes * row * (bottom - top + 1)
    if data[2] == 0:
        return 128 + int(wanted)
    if len(data) > _PCX_PLAIN_BYTES:
        return 128
    at, got, size = 128, 0, len(data)
    while got < wanted:
        if at >= size:
            raise truncated("PCX", "its last row")
        if data[at] >= 0xC0:
            got, at = got + (data[at] & 0x3F), at + 2
        else:
            got, at = got + 1, at + 1
    return at + 769 if planes == 1 and data[3] == 8 and data[1] == 5 and data[-769:-768] == b"\x0c" else at


def _sgi(data: Data) -> int:
    """SGI image file format 1.0: plain planes, or a table of where each packed row lies."""
    packed, width = data[2], data[3]
    dimensions, x, y, z = struct.unpack_from(">4H", data, 4)
    rows, planes = (y if dimensions > 1 else 1), (z if dimensions > 2 else 1)
    if not x or not rows or not planes:
        raise corrupt("SGI", "it has no pixels")
    if not packed:
        return 512 + int(x * rows * planes * width)
    count = rows * planes
    if count > _SGI_ROWS:
        raise corrupt("SGI", f"more than {_SGI_ROWS:,} rows")
    starts, lengths = (numbers(data, ">", "I", count, at) for at in (512, 512 + 4 * count))
    return max(start + length for start, length in zip(starts, lengths, strict=True))


def _xbm(data: Data) -> int:
    """X11 bitmap: the C source that bitmap programs write, and nothing else, to the end of its array."""
    if len(data) > _XBM_BYTES:
        raise ObjectError(ErrorClass.TOO_LARGE, f"an XBM over {_XBM_BYTES >> 20} MB is not looked through")
    sizes = _XBM.match(data)
    start = sizes and _XBM_ARRAY.match(data, sizes.end())
    if start is None:
        raise corrupt("XBM", "no array of bits follows its sizes")
    bits = _XBM_BITS.match(data, start.end())
    assert bits is not None  # it matches nothing at least
    if _XBM_END.match(data, bits.end()) is None:
        rest = bytes(data[bits.end() : bits.end() + 8])
        if rest in (b"", b"0", b"0x", b"0X"):
            raise truncated("XBM", "the end of its array")
        raise corrupt("XBM", "its array is not a list of hexadecimal numbers")
    return len(data)


def _blp(data: Data) -> int:
    """Blizzard's textures: every picture of the table lies inside the file."""
    table = 20 if data[:4] == b"BLP2" else 28
    starts, lengths = struct.unpack_from("<16I", data, table), struct.unpack_from("<16I", data, table + 64)
    if not starts[0] or not lengths[0]:
        raise corrupt("BLP", "it has no picture")
    return int(max(start + length for start, length in zip(starts, lengths, strict=True) if start))


def _dib(data: Data) -> int:
    """A BMP without its file header: BITMAPINFOHEADER, palette, rows padded to four bytes."""
    _, width, height, _, bits, packed = _DIB.unpack_from(data)
    colours = int.from_bytes(data[32:36], "little") or (1 << bits if bits <= 8 else 0)
    if colours > 256:
        raise corrupt("DIB", "its palette is too large")
    return int(40 + (12 if packed == 3 else 4 * colours) + (width * bits + 31) // 32 * 4 * abs(height))


def _im(data: Data) -> int:
    """LabEye's IM: a text header of 512 bytes that ends with 1A, then at least a bit for each pixel."""
    header = bytes(data[:512])
    found = _IM_SIZE.search(header)
    if found is None or b"\x1a" not in header:
        raise corrupt("IM", "its header has no size or no end")
    width, height = int(found[1]), int(found[2])
    kind = header[12 : header.index(b"\r\n")]
    bits = _IM_BITS.get(kind, 8)
    return 512 + (width * bits + 7) // 8 * height


def _msp(data: Data) -> int:
    """Microsoft Paint 1 and 2: plain rows, or packed rows whose lengths stand before them."""
    width, height = struct.unpack_from("<HH", data, 4)
    if not width or not height:
        raise corrupt("MSP", "it has no pixels")
    if data[:4] == b"DanM":
        return int(32 + (width + 7) // 8 * height)
    return int(32 + 2 * height + sum(numbers(data, "<", "H", height, 32)))


def _spider_end(data: Data) -> int:
    found = _spider(bytes(data[:512]))
    assert found is not None
    return found[1]


_WALKS = {
    "TGA": _tga, "PCX": _pcx, "SGI": _sgi, "XBM": _xbm, "BLP": _blp, "DIB": _dib, "IM": _im, "MSP": _msp,
    "SPIDER": _spider_end,
}  # fmt: skip
