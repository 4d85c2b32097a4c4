"""How large the pictures in an icon file are: its directory has a byte for each side, and may say anything."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice

from ferry.core import ErrorClass, ObjectError
from ferry.images.slices import find
from ferry.images.web import Data

MAX_ICON_PIXELS = 16_000_000  # of one picture
MAX_ICON_PICTURES = 1000
J2K = b"\xff\x4f\xff\x51"
_PNG = b"\x89PNG\r\n\x1a\n"
_SIZES = ((_PNG, 16), (J2K, 8))  # signatures, and where behind them width and height stand


def largest_picture(data: Data, name: str) -> int:
    """Pixels of the largest one in an ICO, CUR or ICNS. Raises ObjectError where that is too much; struct.error."""
    largest = found = 0
    for pixels in islice(_pictures(data, name), MAX_ICON_PICTURES + 1):
        found += 1
        largest = max(largest, pixels)
    if found > MAX_ICON_PICTURES:
        raise _too_much(f"the {name} has more than {MAX_ICON_PICTURES:,} pictures, which no icon has")
    if largest > MAX_ICON_PIXELS:
        raise _too_much(f"the {name} has a picture of {largest:,} pixels, which no icon has")
    return largest


def _pictures(data: Data, name: str) -> Iterator[int]:
    if name != "ICNS":
        for entry in range(int.from_bytes(data[4:6], "little")):
            yield _bitmap(data, struct.unpack_from("<I", data, 18 + 16 * entry)[0])
    for signature, behind in _SIZES:  # wherever one stands
        at = find(data, signature)
        while at >= 0:
            header = data[at + behind : at + behind + 8]
            yield int.from_bytes(header[:4], "big") * int.from_bytes(header[4:], "big")
            at = find(data, signature, at + 1)


def _bitmap(data: Data, at: int) -> int:
    """A DIB's height counts the picture and its mask; a PNG is looked for by its signature."""
    if data[at : at + 8] == _PNG:
        return 0
    header, width, height = struct.unpack_from("<Iii", data, at)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, at + 4)
    return int(abs(width * height)) // 2


def _too_much(what: str) -> ObjectError:
    return ObjectError(ErrorClass.TOO_LARGE, f"{what}; `checks: image` accepts it by its structure")
