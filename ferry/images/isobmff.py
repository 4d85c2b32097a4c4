"""Formats made of nested boxes (ISO/IEC 14496-12): AVIF, HEIF, JPEG XL, JPEG 2000.

Boxes have lengths but no end marker: the walk asks that the boxes without which there is no picture
are there and whole. A last box of length 0 runs to the end of the file, and no cut in it can be told,
except in JPEG 2000, whose code stream has its own end marker.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ferry.images.slices import rfind, steps
from ferry.images.web import Data, corrupt, truncated

MAX_BOXES = 100_000
_BOX = struct.Struct(">I4s")
_SEQUENCES = frozenset({b"avis", b"msf1", b"hevc", b"hevx"})
_AVIF = frozenset({b"avif", b"avis"})
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_HEIF = frozenset({b"mif1", b"msf1", b"mif2", b"miaf", b"jpeg", b"j2ki", b"avci"})


def brands(data: Data) -> tuple[bytes, frozenset[bytes]]:
    """The major brand of a file that begins with `ftyp`, and all its brands."""
    end = min(int.from_bytes(data[:4], "big"), 4096)
    every = data[16:end]
    return data[8:12], frozenset({data[8:12], *(every[at : at + 4] for at in range(0, len(every) - 3, 4))})


def heif_name(data: Data) -> str | None:
    """AVIF, HEIC or HEIF when the brands after `ftyp` say so; None for films and everything else."""
    major, every = brands(data)
    if major not in _AVIF | _HEIC | _HEIF:
        return None
    if major in _AVIF or (major in _HEIF and every & _AVIF):
        return "AVIF"
    return "HEIC" if major in _HEIC or every & _HEIC else "HEIF"


def _boxes(data: Data, name: str, needed: str, pos: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """(type, start of the content, end) of each top-level box, until what follows is no box at all.

    The consumer stops when it has all it needs. A box that runs past the end raises ``truncated``.
    """
    size = len(data)
    for _ in steps(MAX_BOXES):
        if size - pos < 8:
            return
        length, tag = _BOX.unpack_from(data, pos)
        if any(byte < 0x20 or byte > 0x7E for byte in tag):
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
            raise truncated(name, needed)
        yield tag, body, pos + length
        pos += length
    raise corrupt(name, f"more than {MAX_BOXES:,} boxes")


def heif(data: Data, name: str) -> None:
    """ISO/IEC 23008-12: `meta`, the media data, and for a sequence `moov`, all within the file."""
    found = set()
    for tag, body, end in _boxes(data, name, "the end of a box"):
        found.add(tag)
        if tag == b"meta" and data.find(b"idat", body, min(end, body + 65536)) >= 0:
            found.add(b"idat")
    sequence = brands(data)[0] in _SEQUENCES
    if not found & {b"meta", b"moov"} or sequence and b"moov" not in found:
        raise truncated(name, "the box that describes its picture")
    if not found & {b"mdat", b"idat"}:
        raise truncated(name, "its image data")


def jxl(data: Data, name: str) -> None:
    """ISO/IEC 18181-2: a code stream box (`jxlc`), or parts (`jxlp`) up to the one marked as last.

    A bare code stream (FF 0A) has neither lengths nor an end marker that can be found without
    decoding: only its signature is checked.
    """
    if data[:2] == b"\xff\x0a":
        if len(data) < 4:
            raise truncated(name, "its image data")
        return
    for tag, body, end in _boxes(data, name, "its image data is complete"):
        if tag == b"jxlc" and end > body or tag == b"jxlp" and data[body] & 0x80:
            return
    raise truncated(name, "its image data is complete")


def jp2(data: Data, name: str) -> None:
    """ISO/IEC 15444-1 annex I: the `jp2c` box, then the code stream in it."""
    for tag, body, end in _boxes(data, name, "its image data is complete"):
        if tag == b"jp2c":
            j2k(data, name, body, end)
            return
    raise truncated(name, "its image data")


def code_stream(data: Data, name: str) -> int:
    """Where the code stream of a JPEG 2000 begins, in its box or bare. Raises ObjectError where there is none."""
    if data[:2] == b"\xff\x4f":
        return 0
    for tag, body, _ in _boxes(data, name, "its image data"):
        if tag == b"jp2c":
            return body
    raise truncated(name, "its image data")


def j2k(data: Data, name: str, pos: int = 0, end: int | None = None) -> None:
    """ISO/IEC 15444-1 annex A: main header segments, tile-parts by their lengths, end marker FF D9."""
    size = len(data) if end is None else end
    if data[pos : pos + 4] != b"\xff\x4f\xff\x51":
        raise corrupt(name, "its code stream has no header")
    pos += 2
    for _ in steps(MAX_BOXES):
        marker = data[pos : pos + 2]
        if len(marker) < 2 or pos + 2 > size:
            raise truncated(name, "its end marker")
        if marker == b"\xff\xd9":
            return
        if marker[0] != 0xFF:
            raise corrupt(name, "its code stream has no marker where one must be")
        if marker == b"\xff\x90":
            if pos + 12 > size:
                raise truncated(name, "its end marker")
            part = int.from_bytes(data[pos + 6 : pos + 10], "big")
            if part == 0:  # the last tile-part, of unknown length; FF D9 cannot occur in coded data
                if rfind(data, b"\xff\xd9", pos + 12, size) < 0:
                    raise truncated(name, "its end marker")
                return
            if part < 14:
                raise corrupt(name, "a tile has an impossible length")
            pos += part
        else:
            pos += 2 + (data[pos + 2] << 8 | data[pos + 3])
    raise corrupt(name, f"more than {MAX_BOXES:,} segments")
