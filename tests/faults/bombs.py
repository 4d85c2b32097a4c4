"""Small bodies that need much memory or time, and a program that measures them.

`python -m tests.faults.bombs SECONDS NAME...` checks and decodes each body with a limit on processor time. It prints a
line of JSON: the size, the verdicts, and the peak memory of the process and of its children.
"""

from __future__ import annotations

import gzip
import io
import json
import resource
import struct
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ferry.core.body import Body
from ferry.core.errors import ObjectError
from ferry.images import check_image, decode, decode_image
from tests.support.memory import forget_peak, peak_bytes

IN_MEMORY_BYTES = 8 * 1024 * 1024  # larger bodies are in the spool
PNG_START = b"\x89PNG\r\n\x1a\n"


def png_chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def png(width: int, height: int, colour: int = 6, depth: int = 8, before: bytes = b"") -> bytes:
    """Returns a complete PNG of zeros, compressed row by row."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = bytes(1 + (width * samples * depth + 7) // 8)
    pack = zlib.compressobj(1)
    pixels = [pack.compress(row) for _ in range(height)]
    pixels.append(pack.flush())
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", b"".join(pixels)) + png_chunk(b"IEND", b"")
    return PNG_START + body


def png_of_nothing(width: int, height: int) -> bytes:
    """Returns a PNG with a large size in its header and almost no data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0"))
    return PNG_START + png_chunk(b"IHDR", header) + pixels + png_chunk(b"IEND", b"")


def saved(format_: str, size: tuple[int, int], mode: str = "RGB", **given: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 0).save(out, format_, **given)
    return out.getvalue()


def animation(format_: str, side: int) -> bytes:
    """Returns an animation of three frames."""
    pictures = [Image.new("RGB", (side, side), (shade, 0, 0)) for shade in (0, 100, 200)]
    out = io.BytesIO()
    pictures[0].save(out, format_, save_all=True, append_images=pictures[1:], duration=10, disposal=2)
    return out.getvalue()


def webp_of_nothing(width: int, height: int) -> bytes:
    """Returns a lossless WebP of one colour: a header and five empty codes (RFC 9649, section 3.7.2)."""
    bits = width - 1 | height - 1 << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes.fromhex("0788888808") + bytes(8)
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def gif_of_nothing(width: int, height: int) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0"
    return b"GIF89a" + screen + picture + b"\x3b"


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """Returns a progressive JPEG with its last scan repeated."""
    whole = saved("JPEG", (width, height), progressive=True)
    at = whole.rfind(b"\xff\xda")
    return whole[:-2] + whole[at:-2] * scans + whole[-2:]


def jpeg_of_nothing(width: int, height: int) -> bytes:
    """Returns a JPEG with the fewest bytes that the blocks of a picture of this size can have."""
    whole = saved("JPEG", (16, 16))
    at = whole.find(b"\xff\xc0")
    return whole[: at + 5] + struct.pack(">HH", height, width) + whole[at + 9 : -2] + coded(width, height) + whole[-2:]


def coded(width: int, height: int) -> bytes:
    return bytes(width * height // 500)


def gif_of_comment(size: int) -> bytes:
    whole = many_frames(1)
    return whole[:19] + b"\x21\xfe" + (b"\xff" + bytes(255)) * (size // 256) + b"\0" + whole[19:]


def jpeg_of_exif(size: int) -> bytes:
    whole = saved("JPEG", (16, 16))
    return whole[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * (size // 65_537) + whole[2:]


def jpeg_of_components(width: int, height: int) -> bytes:
    """Returns a baseline JPEG with a scan per component, for which libjpeg keeps all coefficients in memory."""
    whole = saved("JPEG", (16, 16), subsampling=0)
    at, scan = whole.find(b"\xff\xc0"), whole.find(b"\xff\xda")
    parts = [whole[: at + 5] + struct.pack(">HH", height, width) + whole[at + 9 : scan]]
    parts += [
        b"\xff\xda\0\x08\1" + bytes([number, table, 0, 63, 0]) + coded(width, height)
        for number, table in ((1, 0), (2, 17), (3, 17))
    ]
    return b"".join(parts) + b"\xff\xd9"


def jp2_of_nothing(width: int, height: int) -> bytes:
    """Returns a JPEG 2000 with one tile of the picture's size."""
    whole = saved("JPEG2000", (16, 16))
    at = whole.find(b"\xff\x4f\xff\x51") + 8
    size = struct.pack(">II", width, height)
    sized = whole[:at] + size + whole[at + 8 : at + 16] + size + whole[at + 24 :]
    return sized.replace(b"ihdr" + struct.pack(">II", 16, 16), b"ihdr" + struct.pack(">II", height, width))


def j2k(
    width: int,
    height: int,
    *,
    tile: int,
    components: int = 1,
    layers: int = 1,
    precinct: int = 15,
    hidden: bool = False,
) -> bytes:
    """Returns a code stream with one empty tile-part. ``precinct`` is the power of two of a precinct's sides.

    With ``hidden``, the style is inside a segment with an unknown marker, where OpenJPEG finds it.
    """
    sizes = struct.pack(">H8IH", 0, width, height, 0, 0, tile, tile, 0, 0, components) + b"\x07\x01\x01" * components
    style = struct.pack(">BBHBBBBBB", precinct < 15, 0, layers, 0, 1, 4, 4, 0, 1)
    style += bytes([precinct | precinct << 4] * 2) if precinct < 15 else b""
    segments = ((0xFF51, sizes), (0xFF52, style), (0xFF5C, b"\x40" * 5))
    size, cut, quantized = (struct.pack(">HH", marker, 2 + len(body)) + body for marker, body in segments)
    around = struct.pack(">HH", 0xFF30, 2 + len(cut)) if hidden else b""
    tile_part = struct.pack(">HHHIBBH", 0xFF90, 10, 0, 15, 0, 1, 0xFF93) + b"\0"
    return b"\xff\x4f" + size + around + cut + quantized + tile_part + b"\xff\xd9"


def jp2_around(stream: bytes, width: int, height: int) -> bytes:
    """Returns a JP2 of three components in its header. Pillow reads no further than the empty box."""

    def box(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", 8 + len(body)) + tag + body

    header = box(b"ihdr", struct.pack(">IIHBBBB", height, width, 3, 7, 7, 0, 0)) + box(b"colr", b"\1\0\0\0\0\0\x10")
    kind = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return kind + box(b"jp2h", header) + box(b"free", b"") + box(b"jp2c", stream)


def ico_with(picture: bytes, bits: int = 32) -> bytes:
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, bits, len(picture), 22)
    return b"\0\0\x01\0\x01\0" + entry + picture


def bitmap_for_ico(side: int) -> bytes:
    """Returns a bitmap of one bit per pixel with its mask. Pillow needs more than four bytes for each pixel."""
    row = (side + 31) // 32 * 4
    return struct.pack("<IiiHHIIiiII", 40, side, 2 * side, 1, 1, 0, 0, 0, 0, 2, 0) + bytes(8) + bytes(2 * row * side)


def ico_of_one_picture(entries: int, picture: bytes) -> bytes:
    """Returns an icon with entries of different sizes that all refer to the same picture."""
    start = 6 + 16 * entries
    directory = b"".join(
        struct.pack("<BBBBHHII", at >> 8, at & 255, 0, 0, 1, 32, len(picture), start) for at in range(entries)
    )
    return b"\0\0\x01\0" + struct.pack("<H", entries) + directory + picture


def tiff_of_directories(count: int) -> bytes:
    """Returns a TIFF whose directories have one pixel, which they share."""
    fields = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1))
    directory = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in fields)
    size = len(directory) + 4
    places = [struct.pack("<I", 8 + size * at) for at in range(1, count)] + [bytes(4)]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(directory + place for place in places)


def tiff_of_strips(count: int) -> bytes:
    """Returns a TIFF with offsets and lengths of strips, which are the same numbers."""
    fields = ((273, count), (279, count))
    directory = struct.pack("<H", 2) + b"".join(struct.pack("<HHII", tag, 3, n, 8) for tag, n in fields) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + 2 * count) + b"\1\2" * count + directory


def jpeg_of_markers(marker: bytes, count: int) -> bytes:
    """Returns a JPEG with markers between its scan and its end."""
    whole = saved("JPEG", (16, 16))
    return whole[:-2] + marker * count + whole[-2:]


def tiff_with_a_large_tile(side: int) -> bytes:
    """Returns a TIFF of 16 by 16 pixels in one tile of ``side`` by ``side``, which decompresses to that size."""
    pack = zlib.compressobj(1)
    row = bytes(side)
    tile = b"".join([*(pack.compress(row) for _ in range(side)), pack.flush()])
    fields = [
        (256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1), (322, 4, side), (323, 4, side),
        (324, 4, 8), (325, 4, len(tile)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(fields))
    for tag, kind, value in fields:
        directory += struct.pack("<HHI", tag, kind, 1) + (
            struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value)
        )
    return b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile + directory + bytes(4)


def many_frames(count: int) -> bytes:
    """Returns an animated GIF with frames of one byte each."""
    start = b"GIF89a" + struct.pack("<HHBBB", 1000, 1000, 0x80, 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return start + frame * count + b"\x3b"


LAUGHS = b'<!DOCTYPE svg [<!ENTITY a0 "ha">' + b"".join(
    b'<!ENTITY a%d "%b">' % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 12)
)  # fmt: skip
MB = 1024 * 1024
HUNDRED_MB = b"a\0\0" + zlib.compress(bytes(100 * MB), 1)  # a name and compressed data

# Refused for their memory, structure or content.
REFUSED: dict[str, Callable[[], bytes]] = {
    "png, 3.6 gigapixels": lambda: png_of_nothing(60_000, 60_000),
    "png, 2 thousand million a side": lambda: png_of_nothing(2**31 - 1, 2**31 - 1),
    "png, 300 megapixels of four bytes that are there": lambda: png(20_000, 15_000),
    "png, a text of 100 MB": lambda: png(8, 8, before=png_chunk(b"zTXt", HUNDRED_MB)),
    "png, a profile of 100 MB": lambda: png(8, 8, before=png_chunk(b"iCCP", HUNDRED_MB)),
    "webp, 268 megapixels": lambda: webp_of_nothing(16_383, 16_383),
    "gif, 4.3 gigapixels": lambda: gif_of_nothing(65_535, 65_535),
    "jpeg, 4.3 gigapixels": lambda: jpeg_of_nothing(65_500, 65_500),
    "jpeg, 225 megapixels in three scans": lambda: jpeg_of_components(15_000, 15_000),
    "jp2, 10 gigapixels": lambda: jp2_of_nothing(100_000, 100_000),
    "jp2, 100 megapixels": lambda: jp2_of_nothing(10_000, 10_000),
    "j2k, precincts of two by two": lambda: j2k(11_000, 11_000, tile=11_000, precinct=1),
    "j2k, 205 million packets": lambda: j2k(100, 100, tile=100, layers=65_535, precinct=1),
    "j2k, precincts behind an unknown marker": lambda: j2k(2_000, 2_000, tile=2_000, precinct=1, hidden=True),
    "jp2, 65,000 tiles of 16,000 components": lambda: jp2_around(j2k(255, 255, tile=1, components=16_000), 255, 255),
    "ico, a png of 400 megapixels": lambda: ico_with(png_of_nothing(20_000, 20_000)),
    "ico, a bitmap of 225 megapixels": lambda: ico_with(bitmap_for_ico(15_000), 1),
    "jpeg, 5 million empty pictures": lambda: jpeg_of_markers(b"\xff\xd8\xff\xd9", 5_000_000),
    "tiff, 4 million strips": lambda: tiff_of_strips(4_000_000),
    "tiff, a tile of 900 megapixels": lambda: tiff_with_a_large_tile(30_000),
    "svg, entities": lambda: LAUGHS + b"]><svg>&a11;</svg>",
    "svg, one long entity": lambda: (
        b'<!DOCTYPE svg [<!ENTITY a "' + b"x" * MB + b'">]><svg>' + b"&a;" * 99_999 + b"</svg>"
    ),
    "svgz, 1,000 to 1": lambda: gzip.compress(b"<svg>" + b" " * (200 * MB) + b"</svg>", 9, mtime=0),
}  # fmt: skip

# Refused for their time: millions of small pieces, or pictures that overlap.
SLOW: dict[str, Callable[[], bytes]] = {
    "gif, 10,001 frames": lambda: many_frames(10_001),
    "jpeg, EXIF of 60 MB": lambda: jpeg_of_exif(60 * MB),
    "jpeg, 5,000 scans": lambda: jpeg_of_scans(2000, 2000, 5000),
    "ico, 65,000 sizes of one png": lambda: ico_of_one_picture(65_000, png(4_000, 4_000, 0, 8)),
    "tiff, 65,000 directories": lambda: tiff_of_directories(65_000),
    "svg, 5 million names": lambda: b"<svg>" + b"".join(b"<a%d/>" % n for n in range(5_000_000)) + b"</svg>",
}

# Accepted, each up to its own limit.
TAKEN: dict[str, Callable[[], bytes]] = {
    "png, 300 megapixels that are there": lambda: png(20_000, 15_000, 0, 1),
    "ico, a png of 100 megapixels that are there": lambda: ico_with(png(10_000, 10_000, 0, 1)),
    "jpeg, 5 million markers": lambda: jpeg_of_markers(b"\xff\x01", 5_000_000),
    "svg, 1 million attributes": lambda: b"<svg " + b" ".join(b"a%d=''" % n for n in range(1_000_000)) + b"/>",
    "svg, 1 million names": lambda: b"<svg>" + b"".join(b"<a%d/>" % n for n in range(1_000_000)) + b"</svg>",
    "svg, 900,000 deep": lambda: b"<svg>" + b"<a>" * 900_000 + b"</a>" * 900_000 + b"</svg>",
    "svg, 1,000 declared attributes": lambda: (
        b"<!DOCTYPE svg [" + b"".join(b"<!ATTLIST svg a%d CDATA 'x'>" % n for n in range(1000)) + b"]><svg/>"
    ),
    "svg, an attribute that its DTD gives to 1 million elements": lambda: (
        b"<!DOCTYPE svg [<!ATTLIST a b CDATA '" + b"x" * 60_000 + b"'>]><svg>" + b"<a/>" * 1_000_000 + b"</svg>"
    ),
    "svg, a namespace of 1 MB in 400,000 names": lambda: (
        b"<svg xmlns:n='" + b"x" * MB + b"'>" + b"<n:a n:b=''/>" * 400_000 + b"</svg>"
    ),
}  # fmt: skip


def children() -> list[Path]:
    """Returns the directories in /proc of the decoder processes of all threads."""
    while True:
        try:
            tasks = Path("/proc/self/task").iterdir()
            found = [Path(f"/proc/{pid}") for task in tasks for pid in (task / "children").read_text().split()]
            # not a copy of this process before its exec
            return [pid for pid in found if b"decode_child" in (pid / "cmdline").read_bytes()]
        except (FileNotFoundError, ProcessLookupError):  # a thread or a child has ended meanwhile
            continue


class PeakMemory:
    """Measures the peak of the memory of all decoder processes together in the block."""

    def __enter__(self) -> PeakMemory:
        self._over, self.peak_bytes = threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            try:
                pages = sum(int((child / "statm").read_text().split()[1]) for child in children())
            except OSError:  # a child has ended meanwhile
                continue
            self.peak_bytes = max(self.peak_bytes, pages * resource.getpagesize())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def measure(bodies: list[bytes]) -> dict[str, Any]:
    """Checks and decodes all bodies at once, in a thread each."""
    ends: list[str] = []

    def work(body: Body) -> None:
        try:
            with body.buffer() as data:
                decode_image(data, check_image(data))
            ends.append("taken")
        except ObjectError as error:
            ends.append(f"{error.error_class}: {error.message}")

    before = forget_peak()
    with tempfile.NamedTemporaryFile() as file, PeakMemory() as memory:
        threads = []
        for data in bodies:  # in memory or in the spool
            body = Body(len(data), "", "", data)
            if len(data) > IN_MEMORY_BYTES:
                Path(file.name).write_bytes(data)
                body = Body(len(data), "", "", path=Path(file.name))
            threads.append(threading.Thread(target=work, args=(body,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {
        "size": sum(map(len, bodies)), "ends": ends, "peak": peak_bytes() - before, "children": memory.peak_bytes,
    }  # fmt: skip


def main(seconds: int, names: list[str]) -> None:
    decode.DECODE_S = seconds
    for name in names:
        made = {**REFUSED, **SLOW, **TAKEN, **LARGE}[name]
        print(json.dumps({"name": name, **measure([made()] if name not in LARGE else [made()] * 2)}), flush=True)


# The largest bodies that are decoded, two at once.
LARGE: dict[str, Callable[[], bytes]] = {
    "png, 160 megapixels": lambda: png(16_000, 10_000),
    "jpeg, progressive": lambda: saved("JPEG", (9_000, 9_000), progressive=True),
    "gif, a comment of 300 MB": lambda: gif_of_comment(300 * MB),
    "jpeg, a scan for each component": lambda: jpeg_of_components(9_000, 9_000),
    "webp": lambda: saved("WEBP", (6_500, 6_500), "RGBA", lossless=True, method=0),
    "gif": lambda: saved("GIF", (8_000, 8_000), "P"),
    "gif, animated": lambda: animation("GIF", 7_000),
    "png, animated": lambda: animation("PNG", 7_000),
    "tiff": lambda: saved("TIFF", (9_000, 9_000), compression="tiff_adobe_deflate"),
    "jp2": lambda: saved("JPEG2000", (5_000, 5_000)),
    "avif": lambda: saved("AVIF", (8_000, 8_000), speed=10),
}

if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
