"""How many scans a JPEG has. Each is a pass of the decoder over the whole picture, and may be a few bytes long."""

from __future__ import annotations

import re

from tasks.engine.formats import Data

_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # ITU-T T.81 annex B; FF 00 and the restarts are coded data
_ALONE = frozenset({0x01, 0xD8})
_SCAN, _END = 0xDA, 0xD9


def most_scans(data: Data, enough: int) -> int:
    """The scans of that picture in the file that has most of them (MPO has several); stops counting past ``enough``."""
    most, pos = 0, data.find(b"\xff\xd8\xff")
    while pos >= 0 and most <= enough:
        scans, pos = _scans(data, pos, enough)
        most = max(most, scans)
        pos = data.find(b"\xff\xd8\xff", pos)
    return most


def _scans(data: Data, pos: int, enough: int) -> tuple[int, int]:
    """Of the picture at ``pos``, and where it ends."""
    scans = 0
    while scans <= enough and (found := _MARKER.search(data, pos)):
        marker, pos = found[1][0], found.end()
        if marker == _END:
            return scans, pos
        if marker in _ALONE:
            continue
        scans += marker == _SCAN
        pos += max(2, int.from_bytes(data[pos : pos + 2], "big"))
    return scans, len(data)
