"""What a JPEG 2000 code stream has its decoder keep, and do, beside the pixels.

OpenJPEG makes a table of the components for each tile as soon as it reads the header, keeps half a kilobyte for each
code-block of the tile that it decodes, and looks at each packet: layers times precincts. None of that needs a byte in
the file, so that 90 bytes can ask for gigabytes, or for minutes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ferry.images.web import Data

MAX_COMPONENTS = 4  # as many as Pillow shows
MAX_STEPS = 10_000_000  # code-blocks and packets in all tiles; real pictures of 250 megapixels have some 100,000
_MAX_SEGMENTS = 100_000
_TILE_BYTES, _COMPONENT_BYTES, _BLOCK_BYTES, _PACKET_BYTES = 8500, 1200, 600, 4  # measured, OpenJPEG 2.5

_SIZE = struct.Struct(">8IH")
_COD, _COC, _SOT, _SOD = 0xFF52, 0xFF53, 0xFF90, 0xFF93
# Markers of the main header that OpenJPEG knows. Of any other it does not believe the length either: it looks at each
# two bytes that follow.
_KNOWN = frozenset({
    0xFF50, 0xFF51, _COD, _COC, 0xFF55, 0xFF57, 0xFF58, 0xFF59, 0xFF5C, 0xFF5D, 0xFF5E, 0xFF5F, 0xFF60, 0xFF61, 0xFF63,
    0xFF64, 0xFF74, 0xFF75, 0xFF77, 0xFF78, _SOT,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Burden:
    """What is kept at once, in bytes, and how many small steps there are in all."""

    held: int
    steps: int


@dataclass(frozen=True, slots=True)
class _Style:
    """One COD or COC segment: how a tile's components are cut."""

    layers: int
    block: tuple[int, int]  # width and height, as powers of two
    precincts: list[tuple[int, int]]  # likewise, of each resolution


def burden(data: Data, start: int = 0) -> Burden:
    """Of the code stream at ``start`` (ISO/IEC 15444-1 annex A). Raises struct.error, IndexError where it is cut."""
    x, y, x0, y0, tile_x, tile_y, tile_x0, tile_y0, components = _SIZE.unpack_from(data, start + 8)
    tiles = _parts(max(0, x - tile_x0), max(1, tile_x)) * _parts(max(0, y - tile_y0), max(1, tile_y))
    size = min(tile_x, max(0, x - x0)), min(tile_y, max(0, y - y0))
    blocks = precincts = layers = 0
    for style in _styles(data, start + 2, wide=components > 256):
        its_blocks, its_precincts = _count(style, *size)
        blocks, precincts = max(blocks, its_blocks), max(precincts, its_precincts)
        layers = max(layers, style.layers)
    packets = precincts * layers * components
    held = tiles * (_TILE_BYTES + components * _COMPONENT_BYTES)
    held += blocks * components * _BLOCK_BYTES + packets * _PACKET_BYTES
    # the component tables count as well: they are copied one by one
    return Burden(held, tiles * max(blocks * components, packets, components))


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _count(style: _Style, width: int, height: int) -> tuple[int, int]:
    """Code-blocks and precincts of one component of a tile (ISO/IEC 15444-1 annex B.6, B.7)."""
    blocks = precincts = 0
    levels = len(style.precincts) - 1
    for level, sides in enumerate(style.precincts):
        of_level = [_parts(side, 1 << (levels - level)) for side in (width, height)]
        precincts += _parts(of_level[0], 1 << sides[0]) * _parts(of_level[1], 1 << sides[1])
        bands, halved = (3, 1) if level else (1, 0)
        across, down = (
            _parts(_parts(of_level[axis], 1 << halved), 1 << min(style.block[axis], max(0, sides[axis] - halved)))
            for axis in (0, 1)
        )
        blocks += bands * across * down
    return blocks, precincts


def _styles(data: Data, pos: int, *, wide: bool) -> Iterator[_Style]:
    """Of the main header and of each tile-part's."""
    in_tile, tile_at = False, 0
    for _ in range(_MAX_SEGMENTS):
        if pos + 4 > len(data):
            return
        marker, length = struct.unpack_from(">HH", data, pos)
        if marker == _SOT:
            if pos + 12 > len(data):
                return
            in_tile, tile_at = True, pos
        elif in_tile and marker == _SOD:
            part = int.from_bytes(data[tile_at + 6 : tile_at + 10], "big")
            if part < 14 or data[tile_at + part : tile_at + part + 2] != b"\xff\x90":
                return  # the last one
            pos, in_tile = tile_at + part, False
            continue
        elif marker == _COD:
            layers = int.from_bytes(data[pos + 6 : pos + 8], "big")
            yield _style(data, pos + 9, layers, with_precincts=data[pos + 4] & 1)
        elif marker == _COC:
            at = pos + 6 if wide else pos + 5
            yield _style(data, at + 1, 0, with_precincts=data[at] & 1)
        pos += 2 + length if in_tile or marker in _KNOWN else 2
    yield _Style(1 << 16, (0, 0), [(0, 0)] * 2)  # nobody makes as many segments: too much for any tile


def _style(data: Data, at: int, layers: int, *, with_precincts: int) -> _Style:
    levels = min(data[at], 32)
    block = (data[at + 1] & 15) + 2, (data[at + 2] & 15) + 2
    if not with_precincts:
        return _Style(layers, block, [(15, 15)] * (levels + 1))
    sides = data[at + 5 : at + 6 + levels]
    return _Style(layers, block, [(side & 15, side >> 4) for side in sides] or [(0, 0)])
