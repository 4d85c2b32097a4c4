"""The walk over AVIF, HEIC and HEIF, which are nested boxes (ISO/IEC 14496-12).

Boxes have lengths but no end marker: the walk requires that the boxes which a picture needs are there and complete. A
last box of length 0 extends to the end of the file. That it is truncated shows only if a single picture gives the
length of its data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ferry.images.slices import steps
from ferry.images.web import Data, corrupt, truncated

MAX_BOXES = 100_000
_BOX = struct.Struct(">I4s")
_SEQUENCES = frozenset({b"avis", b"msf1", b"hevc", b"hevx"})
_AVIF = frozenset({b"avif", b"avis"})
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_HEIF = frozenset({b"mif1", b"msf1", b"mif2", b"miaf", b"jpeg", b"j2ki", b"avci"})


def brands(data: Data) -> tuple[bytes, frozenset[bytes]]:
    """Returns the major brand of a file that begins with `ftyp`, and all its brands."""
    end = min(int.from_bytes(data[:4], "big"), 4096)
    every = data[16:end]
    return data[8:12], frozenset({data[8:12], *(every[at : at + 4] for at in range(0, len(every) - 3, 4))})


def heif_name(data: Data) -> str | None:
    """Returns AVIF, HEIC or HEIF by the brands after `ftyp`; None for films and all other files."""
    major, every = brands(data)
    if major not in _AVIF | _HEIC | _HEIF:
        return None
    if major in _AVIF or (major in _HEIF and every & _AVIF):
        return "AVIF"
    return "HEIC" if major in _HEIC or every & _HEIC else "HEIF"


def heif(data: Data) -> None:
    """Checks that `meta`, or `moov` for a sequence, and the media data are in the file (ISO/IEC 23008-12)."""
    name = heif_name(data) or "HEIF"
    top = _non_empty_boxes(data, name, 0, len(data))
    inside: dict[bytes, tuple[int, int]] = {}
    if b"meta" in top and brands(data)[0] not in _SEQUENCES:
        body, end = top[b"meta"]
        inside = _non_empty_boxes(data, name, body + 4, end)
        if b"iloc" not in inside:
            raise corrupt(name, "it has no box with the location of its picture (iloc)")
        if _items_end(data, *inside[b"iloc"]) > len(data):
            raise truncated(name, "the end of its picture")
    elif b"moov" not in top:
        raise truncated(name, "the box that describes its picture")
    if b"mdat" not in top and b"idat" not in inside:
        raise truncated(name, "its image data")


def _non_empty_boxes(data: Data, name: str, pos: int, size: int) -> dict[bytes, tuple[int, int]]:
    """Returns start and end of the content of each box that is not empty."""
    return {tag: (body, end) for tag, body, end in _boxes(data, name, pos, size) if body < end}


def _boxes(data: Data, name: str, pos: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (type, start of the content, end) of each box from ``pos`` to ``size``, or to bytes that are not a box.

    Raises ObjectError, ``truncated`` for a box that extends past ``size``.
    """
    for _ in steps(MAX_BOXES):
        if size - pos < 8:
            return
        length, tag = _BOX.unpack_from(data, pos)
        if min(tag) < 0x20 or max(tag) > 0x7E:
            return
        body = pos + 8
        if length == 1:
            length = int.from_bytes(data[body : body + 8], "big")
            body += 8
        elif length == 0:
            length = size - pos
        if length < body - pos:
            raise corrupt(name, "a box has an impossible length")
        if pos + length > size:
            raise truncated(name, "the end of a box")
        yield tag, body, pos + length
        pos += length
    raise corrupt(name, f"more than {MAX_BOXES:,} boxes")


def _items_end(data: Data, at: int, box_end: int) -> int:
    """Returns the end of the last item that is in this file (`iloc`, ISO/IEC 14496-12 section 8.11.3)."""
    version = data[at]
    offset_size, length_size = divmod(data[at + 4], 16)
    base_size, index_size = divmod(data[at + 5], 16)
    index_size = index_size if version else 0
    at += 6

    def number(size: int) -> int:
        nonlocal at
        if at + size > box_end:
            raise IndexError  # the box is too short for its items
        at += size
        return int.from_bytes(data[at - size : at], "big")

    last = 0
    for _ in steps(number(4 if version == 2 else 2)):
        number(4 if version == 2 else 2)  # the item's ID
        method = number(2) & 15 if version else 0
        other_file = number(2)
        base, extents = number(base_size), number(2)
        if not index_size + offset_size + length_size:
            continue  # the complete file
        for _ in steps(extents):
            number(index_size)
            end = base + number(offset_size) + number(length_size)
            if method == 0 and not other_file:
                last = max(last, end)
    return last
