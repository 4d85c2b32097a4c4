"""Whatever a body holds, the event loop has its turns while it is checked: a hostile one slows nothing else down."""

from __future__ import annotations

import asyncio
import functools
import gzip
import io
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, features

from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass
from ferry.images import check as image
from ferry.images import decode_process, raster, slices, svg, web
from ferry.images.check import check_image
from ferry.job.model import OnExisting
from ferry.ratelimit.permit import Permit
from ferry.storage.credentials import Access
from ferry.transfer.source import Fetch
from tests.faults import bombs
from tests.ferry.images.test_check import body
from tests.support.helpers import directory_state, engine, make_body, make_job, make_row

pytestmark = pytest.mark.matrix

MIB = 1024 * 1024
ZEROS = bytes(68 * MIB)
TURN_S = 0.1  # a turn is due twice as often; a machine that is busy has half of them left
HELD_S = 0.05  # of processor: the longest that anything may keep the loop from a turn
OWN_WAITS = Path("/proc/thread-self/schedstat")  # nanoseconds on a core, and in wait of one (sched-stats, Linux)

# Each is what a few hundred bytes on the wire unpack to (Content-Encoding: gzip).
BODIES: dict[str, Callable[[], bytes]] = {
    "svgz of 63 MiB": lambda: gzip.compress(b"<svg>" + b"<a/>" * (63 * MIB // 4) + b"</svg>", 1, mtime=0),
    "svg of 63 MiB": lambda: b"<svg>" + b"<a/>" * (63 * MIB // 4) + b"</svg>",
    "svgz of comments": lambda: gzip.compress(b"<svg>" + b"<!---->" * 499_990 + b"</svg>", 1, mtime=0),
    "svg of drawings": lambda: b"<svg>" + b"<svg/>" * 499_000 + b"</svg>",
    "svg of one tag": lambda: b"<svg " + b"a='' " * (12 * MIB) + b"/>",
    "svg of one value": lambda: b"<svg a='" + b"x" * (60 * MIB) + b"'/>",
    "svg of UTF-16": lambda: ("<svg>" + "<a/>" * (7 * MIB) + "</svg>").encode("utf-16"),
    "svg and comments": lambda: b"<svg/>" + b"<!---->" * 499_990,
    "svg and a long comment": lambda: b"<svg/><!--" + b"- " * (30 * MIB),
    "tiff of strips": lambda: bombs.tiff_of_strips(7_900_000 // 2),
    "tiff of directories that overlap": lambda: overlapping(),
    "gif of short blocks": lambda: b"GIF89a\1\0\1\0\0\0\0\x21\xfe" + b"\1\1" * 999_000 + b"\0\x3b",
    "psd of rows": lambda: b"8BPS" + struct.pack(">H6xHIIHH", 2, 56, 300_000, 1, 8, 3) + bytes(16) + b"\0\1" + ZEROS,
    "pgm, a comment of 40 MiB": lambda: b"P5\n" + b"#\n" * (20 * MIB),
    "jpeg without an end": lambda: bombs.jpeg_of_exif(10_000)[:-2] + bytes(60 * MIB),
}  # fmt: skip


def overlapping() -> bytes:
    """241 KB, and a million entries: each directory begins twelve bytes behind the one before, and lies in it."""
    entries, directories = 20_000, 49
    data = bytearray(8 + 12 * directories + 2 + 12 * entries + 4)
    data[:8] = b"II*\0\x08\0\0\0"
    for number in range(directories):
        at = 8 + 12 * number
        struct.pack_into("<H", data, at, entries)
        following = at + 12 if number < directories - 1 else 0
        struct.pack_into("<I", data, at + 2 + 12 * entries, following)
    return bytes(data)


def used(waits: int) -> float:
    """Seconds of processor that this process has had, less those for which the calling thread waited for a core.

    Between two turns of the loop it grows by what kept the lock, on a busy machine too: what another thread does
    without the lock, while the loop's thread waits for a core, counts in both and so in neither. ``waits`` is the open
    OWN_WAITS: each call of the system gives Python's lock away and waits for it again, so there must be one alone.
    """
    waited_s = int(os.pread(waits, 100, 0).split()[1]) / 1e9 if waits >= 0 else 0.0
    return time.process_time() - waited_s


async def turns_while(work: Any) -> tuple[int, float, float, ObjectError | None]:
    """How often the loop came round while the work was under way, the seconds that took, the longest that kept the
    loop from a turn (of processor), and how the work ended."""
    turns, longest_s, over = 0, 0.0, asyncio.Event()
    waits = os.open(OWN_WAITS, os.O_RDONLY) if OWN_WAITS.exists() else -1

    async def tick() -> None:
        nonlocal turns, longest_s
        before = used(waits)
        while not over.is_set():
            turns += 1
            await asyncio.sleep(0.001)
            now = used(waits)
            longest_s, before = max(longest_s, now - before), now

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    started = time.monotonic()
    ended: ObjectError | None = None
    try:
        await work
    except ObjectError as error:
        ended = error
    seconds = time.monotonic() - started
    over.set()
    await ticker
    if waits >= 0:
        os.close(waits)
    return turns, seconds, longest_s, ended


def landed(folder: Path, data: bytes, checks: str) -> tuple[int, float, float, ObjectError | None]:
    """Checks and writes a body that has come, as the engine does with each."""
    job = make_job(destination=f"file://{folder}/out/", checks=checks)
    with engine(job, directory_state(folder), Access()) as runtime:
        limit = runtime.limiter.host("img.example")
        body = make_body(data, folder)
        fetch = Fetch(body, None, None, None, 1)
        row = make_row(1)

        async def land() -> None:
            assert limit.take()
            permit = Permit(limit)
            try:
                await runtime.object_transfer._store(row, fetch, None, OnExisting.OVERWRITE, permit)
            finally:
                permit.release()
                body.discard()

        return runtime.wait(turns_while(land()))


def holds_nothing(folder: Path, data: bytes, checks: str) -> ObjectError | None:
    """Asserts that the loop has its turns while the body is checked; answers how that ended.

    What holds the loop does so each time. What a busy machine adds (a cold cache, a neighbour) does not: it is measured
    up to three times.
    """
    for last in (False, False, True):
        turns, seconds, longest_s, ended = landed(folder, data, checks)
        if last or (turns >= seconds / TURN_S and longest_s < HELD_S):
            break
    assert turns >= seconds / TURN_S, (turns, seconds, ended)
    assert longest_s < HELD_S, (longest_s, ended)
    return ended


@pytest.mark.parametrize("name", BODIES)
def test_the_loop_has_its_turns(name: str, tmp_path: Path) -> None:
    """A body is checked beside the loop, in slices; a check in the loop's thread, or one long expression, takes all."""
    holds_nothing(tmp_path, BODIES[name](), "image")


@pytest.mark.parametrize(
    ("name", "quick"),
    [
        ("jpeg", True),
        ("png", True),
        ("webp", True),
        ("avif", True),
        ("gif", False),
        ("svg", False),
        ("svgz", False),
        ("tiff", False),
        ("pgm", False),
        ("xbm", False),
    ],
)
def test_what_is_checked_in_the_loop(name: str, quick: bool) -> None:
    """The table of is_quick: small, and of a format whose walk moves on with each step."""
    data = body(name)
    assert image.is_quick(data) is quick
    assert not image.is_quick(data + bytes(image.QUICK_BYTES))
    assert image.is_quick(b"<html>")
    assert image.is_quick(b"")


def test_a_check_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its processor time the body is too large to check, whichever walk it is in, and the sentence says so."""
    monkeypatch.setattr(slices, "CHECK_S", 0.001)
    for name in ("svg of 63 MiB", "svg of one tag", "tiff of strips", "tiff of directories that overlap",
                 "gif of short blocks", "psd of rows", "svg and comments"):  # fmt: skip
        with pytest.raises(ObjectError, match=r"takes too long to check \(more than 0.001 s\)") as caught:
            check_image(BODIES[name]())
        assert caught.value.error_class is ErrorClass.TOO_LARGE


@pytest.mark.parametrize(
    "name", ["svg of 63 MiB", "svg of one tag", "svg of one value", "tiff of strips", "psd of rows"]
)
def test_no_step_takes_more_than_a_slice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in work, not in seconds: a look at the clock for each slice of the body at least."""
    data, turns = BODIES[name](), 0

    def turn() -> None:
        nonlocal turns
        turns += 1

    for module in (slices, web, raster, svg):
        monkeypatch.setattr(module, "turn", turn)
    check_image(data)
    assert turns >= len(data) // slices.SLICE_BYTES // 2


def test_an_svg_over_64_mb_is_not_looked_through() -> None:
    """As for `checks: decode`, and for a compressed one: `too_large`, with what copies it."""
    for data in (b"<svg>" + bytes(64 * MIB), gzip.compress(b"<svg>" + bytes(64 * MIB), 1, mtime=0)):
        with pytest.raises(ObjectError, match="64 MB") as caught:
            check_image(data)
        assert caught.value.error_class is ErrorClass.TOO_LARGE


DRAWINGS: dict[str, tuple[bytes, str]] = {
    "1.9 million attributes": (b"<svg " + b" ".join(b"a%d=''" % n for n in range(1_900_000)) + b"/>", ""),
    "1.9 million tags": (b"<svg>" + b"<a/>" * 1_900_000 + b"</svg>", ""),
    "a comment of 100 KB in a plain pgm's samples": (b"P2 1 1 255\n" + b"#\n" * 50_000 + b"7\n", "1,000 comments"),
    "a comment of 40 MiB in a pgm's header": (b"P5\n1 1\n255#" + b"#" * (40 * MIB) + b"\n7", "makes no sense"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_loop_has_its_turns_while_pixels_are_decoded(name: str, tmp_path: Path) -> None:
    """A parser that holds Python's lock for all of a tag is in another process; what Pillow reads byte by byte is
    bounded."""
    data, refusal = DRAWINGS[name]
    assert refusal in str(holds_nothing(tmp_path, data, "decode"))


def saved(kind: str, side: int, mode: str = "RGB", frames: int = 1, **options: Any) -> bytes:
    gradient, file = Image.linear_gradient("L").resize((side, side)), io.BytesIO()
    image = Image.merge(
        "RGB", (gradient, gradient.rotate(90), gradient.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    ).convert(mode)
    more = {"save_all": True, "append_images": [image.rotate(90 * n) for n in range(1, frames)]} if frames > 1 else {}
    image.save(file, kind, **options, **more)
    return file.getvalue()


def noise(side: int) -> bytes:
    """A JPEG 2000 as expensive as one can be for its size."""
    file = io.BytesIO()
    Image.effect_noise((side, side), 100).save(file, "JPEG2000")
    return file.getvalue()


def packed_sgi(side: int) -> bytes:
    """All of its rows lie in one place: 126 KB for 25 megapixels."""
    pieces = [min(127, side - at) for at in range(0, side, 127)]
    row = b"".join(bytes([0x80 | piece, *range(piece)]) for piece in pieces) + b"\0"
    rows = 3 * side
    header = struct.pack(">HBBHHHH", 474, 1, 1, 3, side, side, 3).ljust(512, b"\0")
    at = len(header) + 8 * rows
    return header + struct.pack(">I", at) * rows + struct.pack(">I", len(row)) * rows + row


# Each is larger than what is decoded in the thread, or needs no process at any size.
PICTURES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved("JPEG", 5_600),
    "jpeg, progressive": lambda: saved("JPEG", 5_200, progressive=True),
    "png": lambda: saved("PNG", 5_600, compress_level=1),
    "png, animated": lambda: saved("PNG", 3_000, "RGBA", frames=3, compress_level=1),
    "webp": lambda: saved("WEBP", 4_000, method=0),
    "webp, lossless and animated": lambda: saved("WEBP", 3_600, "RGBA", 2, lossless=True, quality=0, method=0),
    "gif": lambda: saved("GIF", 5_600, "P"),
    "gif, animated": lambda: saved("GIF", 3_000, "P", 3),
    "jpeg 2000": lambda: saved("JPEG2000", 3_000),
    "jpeg 2000, a code stream": lambda: saved("JPEG2000", 3_000, no_jp2=True, irreversible=True),
    "jpeg 2000, noise": lambda: noise(1_000),
    "jpeg 2000, noise that is decoded here": lambda: noise(350),
    "icns": lambda: saved("ICNS", 1_024),
    "avif": lambda: saved("AVIF", 4_000, speed=10),
    "sgi": lambda: saved("SGI", 5_600),
    "sgi, packed": lambda: packed_sgi(5_000),
    "bmp": lambda: saved("BMP", 5_600),
    "qoi": lambda: saved("QOI", 1_500),
    "tiff, raw": lambda: saved("TIFF", 6_000),
    "tiff, group4": lambda: saved("TIFF", 6_000, "1", compression="group4"),
    "tiff, group3": lambda: saved("TIFF", 6_000, "1", compression="group3"),
    **{
        f"tiff, {name}": functools.partial(saved, "TIFF", 5_200, compression=name)
        for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_the_loop_has_its_turns_while_a_picture_is_decoded(name: str, tmp_path: Path) -> None:
    """Of each format that Pillow reads here: what would hold Python's lock for long is in another process."""
    if name == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    landed(tmp_path / "first", saved("PNG", 8), "decode")  # what is loaded once is not part of the measure
    assert holds_nothing(tmp_path, PICTURES[name](), "decode") is None


@pytest.mark.parametrize(("checks", "loaded"), [("decode", True), ("image", False)])
def test_decoders_are_loaded_before_rows_move(checks: str, loaded: bool) -> None:
    """Loading Pillow holds Python's lock; who decodes nothing does not pay for it."""
    code = (
        "import sys; from typing import Any; from ferry.job.model import Checks, OnExisting; "
        "from ferry.transfer.object import ObjectTransfer, TransferOptions as Options; nothing: Any = None; "
        "options = Options(Checks(sys.argv[1]), OnExisting.FAIL, 1, {}); "
        "ObjectTransfer(nothing, [], nothing, nothing, options, nothing, nothing); "
        "print('PIL.Image' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code, checks], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == str(loaded)


def test_a_picture_has_one_verdict_wherever_it_is_decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whole, cut, damaged, spooled to a file or not: the process says what the thread would have said."""
    whole = saved("JPEG2000", 600)
    flat = saved("TIFF", 600)
    bodies = [whole, flat, body("tiff"), body("gif animated"), body("ico"), body("png")]
    damaged = bytearray(saved("PNG", 600))
    damaged[300:400] = bytes(100)
    bodies += [bytes(damaged), flat[:8] + bytes(len(flat) - 8 - 200) + flat[-200:]]

    def verdict(data: Any) -> str:
        try:
            image.decode_image(data, image.check_image(data))
        except ObjectError as error:
            return str(error)
        return "taken"

    here = [verdict(data) for data in bodies]
    assert "taken" in here
    assert set(here) != {"taken"}
    monkeypatch.setattr(decode_process, "is_for_a_process", lambda *_: True)
    assert [verdict(data) for data in bodies] == here
    for data, wanted in zip(bodies, here, strict=True):
        spooled = make_body(data, tmp_path)
        spooled.path, spooled.data = tmp_path / "spooled", None
        spooled.path.write_bytes(data)
        with spooled.buffer() as mapped:
            assert verdict(mapped) == wanted


def test_a_picture_is_bounded_where_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is ended by its processor time; a picture larger than the first one's share has the whole of it."""
    code = "import sys; from ferry.images import decode_child as c, decode_process as d; "
    code += "d.RASTER_S = 1; c.decode_input(sys.argv[1], 1 << 30)"
    monkeypatch.setattr(decode_process, "COMMAND", [sys.executable, "-c", code])
    monkeypatch.setattr(decode_process, "RASTER_S", 1)
    slow = noise(4_000)  # three seconds
    with pytest.raises(ObjectError, match="takes too long, or too much memory, to decode") as caught:
        image.decode_image(slow, image.check_image(slow))
    assert caught.value.error_class is ErrorClass.TOO_LARGE
    monkeypatch.undo()
    monkeypatch.setattr(decode_process, "PIXELS", 100)
    pages = io.BytesIO()
    Image.new("L", (20, 20)).save(pages, "TIFF", save_all=True, append_images=[Image.new("L", (2_000, 2_000))])
    image.decode_image(pages.getvalue(), image.check_image(pages.getvalue()))


@pytest.mark.parametrize(
    ("name", "size", "pixels", "apart"),
    [
        ("SVG", 256 * 1024, 0, False),
        ("SVG", 256 * 1024 + 1, 0, True),
        ("JPEG 2000", 128 * 1024, 250_000, False),
        ("JPEG 2000", 128 * 1024 + 1, 1, True),
        ("JPEG 2000 code stream", 1, 250_001, True),
        ("ICNS", 1, 1024 * 1024, True),
        ("WebP", 32 * MIB, 12_000_000, False),
        ("WebP", 1, 12_000_001, True),
        ("AVIF", 1, 12_000_001, True),
        ("SGI", 32 * MIB, 5_000_000, False),
        ("SGI", 1, 5_000_001, True),
        ("AVIF", 32 * MIB + 1, 1, True),
        ("JPEG", 32 * MIB, 25_000_000, False),
        ("JPEG", 1, 25_000_001, True),
        ("TIFF", 32 * MIB + 1, 1, True),
    ],
)
def test_what_is_decoded_in_a_process(name: str, size: int, pixels: int, apart: bool) -> None:
    """The table of is_for_a_process."""
    assert decode_process.is_for_a_process(name, size, pixels) is apart


def test_a_drawing_that_takes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that parses it is ended by its bounds, and the row says so; what it says itself is passed on."""

    def decode(data: bytes) -> None:
        image.decode_image(data, next(kind for kind in image.KINDS if kind.name == "SVG"))

    large = b"<svg>" + b" " * 256 * 1024
    decode(large + b"</svg>")
    with pytest.raises(ObjectError, match="mismatched tag") as caught:
        decode(large + b"</sgv>")
    assert caught.value.error_class is ErrorClass.NOT_IMAGE
    with pytest.raises(ObjectError, match="ends before its XML is complete"):
        decode(large)
    code = (
        "import sys; from ferry.images import decode_child as c, decode_process as d; "
        "d.SVG_S = {}; c.decode_input('SVG', {})"
    )
    for seconds, memory in ((1, 1024 * MIB), (10, 200 * MIB)):
        monkeypatch.setattr(decode_process, "COMMAND", [sys.executable, "-c", code.format(seconds, memory)])
        with pytest.raises(ObjectError, match="too long, or too much memory, to decode") as caught:
            decode(b"<svg " + b" ".join(b"a%d=''" % n for n in range(1_900_000)) + b"/>")
        assert caught.value.error_class is ErrorClass.TOO_LARGE
