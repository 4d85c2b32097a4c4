"""How many scans a JPEG has. Each is a pass of the decoder over the whole picture, and may be a few bytes long."""

from __future__ import annotations

import re

from ferry.images.slices import find, search
from ferry.images.web import Data, corrupt

MAX_MARKERS = 100_000  # in all; a picture with 100 MB of metadata in pieces has 1,600
MAX_EXIF_BYTES = 16 << 20  # Pillow joins the segments one by one, each with all before it; a camera writes one
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # ITU-T T.81 annex B; FF 00 and the restarts are coded data
_ALONE = frozenset({0x01, 0xD8})
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def scans(data: Data, enough: int) -> tuple[int, bool]:
    """The scans of that picture in the file that has most of them (MPO has several), and whether one of them has fewer
    components than its picture: a decoder then keeps the coefficients of all, as of a progressive one.

    Stops counting past ``enough``. Raises ObjectError where there are more markers than are looked at, or more EXIF.
    """
    most = in_this = components = exif = 0
    partial = False
    pos = find(data, b"\xff\xd8\xff")
    for _ in range(MAX_MARKERS):
        found = search(_MARKER, data, pos, 2) if pos >= 0 and most <= enough else None
        if found is None:
            return most, partial
        marker, pos = found[1][0], found.end()
        if marker == _END:
            in_this, pos = 0, find(data, b"\xff\xd8\xff", pos)
        elif marker not in _ALONE:
            if marker == _APP1 and data[pos + 2 : pos + 6] == b"Exif":
                exif += int.from_bytes(data[pos : pos + 2], "big")
                if exif > MAX_EXIF_BYTES:
                    raise corrupt("JPEG", f"it has more than {MAX_EXIF_BYTES >> 20} MiB of EXIF")
            elif marker in _FRAMES:
                components = int.from_bytes(data[pos + 7 : pos + 8], "big")
            elif marker == _SCAN:
                in_this += 1
                most = max(most, in_this)
                partial = partial or int.from_bytes(data[pos + 2 : pos + 3], "big") < components
            pos += max(2, int.from_bytes(data[pos : pos + 2], "big"))
    raise corrupt("JPEG", f"it has more than {MAX_MARKERS:,} markers")
