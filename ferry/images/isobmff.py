"""The walk over AVIF, HEIC and HEIF, which are nested boxes (ISO/IEC 14496-12).

Boxes have lengths but no end marker: the walk asks that the boxes without which there is no picture are there and
complete. A last box of length 0 runs to the end of the file; a cut in it shows only where a single picture says how
long its data is.
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
    """Returns AVIF, HEIC or HEIF when the brands after `ftyp` say so; None for films and everything else."""
    major, every = brands(data)
    if major not in _AVIF | _HEIC | _HEIF:
        return None
    if major in _AVIF or (major in _HEIF and every & _AVIF):
        return "AVIF"
    return "HEIC" if major in _HEIC or every & _HEIC else "HEIF"


def heif(data: Data) -> None:
    """ISO/IEC 23008-12: `meta` and the media data, for a sequence `moov`, all within the file."""
    name = heif_name(data) or "HEIF"
    top = _filled(data, name, 0, len(data))
    inside: dict[bytes, tuple[int, int]] = {}
    if b"meta" in top and brands(data)[0] not in _SEQUENCES:
        body, end = top[b"meta"]
        inside = _filled(data, name, body + 4, end)
        if b"iloc" not in inside:
            raise corrupt(name, "no box says where its picture lies (iloc)")
        if _items_end(data, *inside[b"iloc"]) > len(data):
            raise truncated(name, "the end of its picture")
    elif b"moov" not in top:
        raise truncated(name, "the box that describes its picture")
    if b"mdat" not in top and b"idat" not in inside:
        raise truncated(name, "its image data")


def _filled(data: Data, name: str, pos: int, size: int) -> dict[bytes, tuple[int, int]]:
    """Returns start and end of the content of the boxes that have any."""
    return {tag: (body, end) for tag, body, end in _boxes(data, name, pos, size) if body < end}


def _boxes(data: Data, name: str, pos: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (type, start of the content, end) of each box from ``pos`` to ``size``, or to what is not a box.

    Raises ObjectError, ``truncated`` for a box that runs past ``size``.
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
    """Returns where the last byte of the items lies that are in this file (`iloc`, ISO/IEC 14496-12 section 8.11.3)."""
    version = data[at]
    of_offset, of_length = divmod(data[at + 4], 16)  # how many bytes each number has
    of_base, of_index = divmod(data[at + 5], 16)
    of_index = of_index if version else 0
    at += 6

    def number(width: int) -> int:
        nonlocal at
        if at + width > box_end:
            raise IndexError  # the box is shorter than what it says
        at += width
        return int.from_bytes(data[at - width : at], "big")

    last = 0
    for _ in steps(number(4 if version == 2 else 2)):
        number(4 if version == 2 else 2)  # its identifier
        method = number(2) & 15 if version else 0
        elsewhere = number(2)
        base, extents = number(of_base), number(2)
        if not of_index + of_offset + of_length:
            continue  # the whole file
        for _ in steps(extents):
            number(of_index)
            end = base + number(of_offset) + number(of_length)
            if method == 0 and not elsewhere:
                last = max(last, end)
    return last
