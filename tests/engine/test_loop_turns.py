"""Whatever a body holds, the event loop has its turns while it is checked: a hostile one slows nothing else down."""

from __future__ import annotations

import asyncio
import gzip
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.engine import formats, formats_files, formats_text, image, image_svg, slices
from tasks.engine.access import Access
from tasks.engine.errors import ObjectError
from tasks.engine.fetch import Fetch
from tasks.engine.image import check
from tasks.engine.job import OnExisting
from tasks.engine.objects import ErrorClass
from tasks.engine.place import Place
from tests.engine.helpers import directory_state, engine, make_body, make_job, make_row
from tests.engine.test_image import body
from tests.faults import bombs

MIB = 1024 * 1024
ZEROS = bytes(68 * MIB)
TURN_S = 0.1  # a turn is due twice as often; a machine that is busy has half of them left

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


async def turns_while(work: Any) -> tuple[int, float, ObjectError | None]:
    """How often the loop came round while the work was under way, the seconds that took, and how it ended."""
    turns, over = 0, asyncio.Event()

    async def tick() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            await asyncio.sleep(0.001)

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
    return turns, seconds, ended


def landed(folder: Path, data: bytes, checks: str) -> tuple[int, float, ObjectError | None]:
    """Checks and writes a body that has come, as the engine does with each."""
    job = make_job(destination=f"file://{folder}/out/", checks=checks)
    with engine(job, directory_state(folder), Access()) as runtime:
        limit = runtime.limiter.host("img.example")
        body = make_body(data, folder)
        fetch = Fetch(body, None, None, None, 1)
        row = make_row(1)

        async def land() -> None:
            assert limit.take()
            place = Place(limit)
            try:
                await runtime.mover._land(row, fetch, None, OnExisting.OVERWRITE, place)
            finally:
                place.free()
                body.discard()

        return runtime.wait(turns_while(land()))


@pytest.mark.parametrize("name", BODIES)
def test_the_loop_has_its_turns(name: str, tmp_path: Path) -> None:
    """A body is checked beside the loop, in slices; a check in the loop's thread, or one long expression, takes all."""
    turns, seconds, ended = landed(tmp_path, BODIES[name](), "image")
    assert turns >= seconds / TURN_S, (turns, seconds, ended)


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
            check(BODIES[name]())
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

    for module in (slices, formats, formats_files, formats_text):
        monkeypatch.setattr(module, "turn", turn)
    check(data)
    assert turns >= len(data) // slices.SLICE_BYTES // 2


def test_an_svg_over_64_mb_is_not_looked_through() -> None:
    """As for `checks: decode`, and for a compressed one: `too_large`, with what copies it."""
    for data in (b"<svg>" + bytes(64 * MIB), gzip.compress(b"<svg>" + bytes(64 * MIB), 1, mtime=0)):
        with pytest.raises(ObjectError, match="64 MB") as caught:
            check(data)
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
    turns, seconds, ended = landed(tmp_path, data, "decode")
    assert refusal in str(ended)
    assert turns >= seconds / TURN_S, (turns, seconds, ended)


def test_a_drawing_that_takes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that parses it is ended by its bounds, and the row says so; what it says itself is passed on."""
    large = b"<svg>" + b" " * image_svg.SMALL_BYTES
    image_svg.decode_svg(large + b"</svg>")
    with pytest.raises(ObjectError, match="mismatched tag") as caught:
        image_svg.decode_svg(large + b"</sgv>")
    assert caught.value.error_class is ErrorClass.NOT_IMAGE
    with pytest.raises(ObjectError, match="ends before its XML is complete"):
        image_svg.decode_svg(large)
    code = "import resource, sys; from tasks.engine import image_svg as i; i.PARSE_S = 1; i.{} = {}; i.main()"
    for name, value in (("PARSE_S", 1), ("PARSE_BYTES", 200 * MIB)):
        monkeypatch.setattr(image_svg, "COMMAND", [sys.executable, "-c", code.format(name, value)])
        with pytest.raises(ObjectError, match="too long, or too much memory, to parse") as caught:
            image_svg.decode_svg(b"<svg " + b" ".join(b"a%d=''" % n for n in range(1_900_000)) + b"/>")
        assert caught.value.error_class is ErrorClass.TOO_LARGE
