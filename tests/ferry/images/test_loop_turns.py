"""The event loop gets its turns while any body is checked, so that a hostile one slows down no other row."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass
from ferry.images import check as image
from ferry.images import raster, slices, svg, web
from ferry.images.check import check_image
from ferry.job.model import OnExisting
from ferry.ratelimit.permit import Permit
from ferry.storage.access import Access
from ferry.transfer.source import Fetch
from tests.faults import bombs
from tests.ferry.images.test_check import body
from tests.support.helpers import directory_state, engine, make_body, make_job, make_row

pytestmark = pytest.mark.matrix

MIB = 1024 * 1024
TURN_S = 0.1  # expected are two turns in this time; a busy machine may lose half of them
HELD_S = 0.05  # processor time: the longest allowed gap between two turns
OWN_WAITS = Path("/proc/thread-self/schedstat")  # nanoseconds on a core, and waiting for one (sched-stats, Linux)

# With Content-Encoding: gzip, a few hundred bytes decompress to each.
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
    "pgm, a comment of 40 MiB": lambda: b"P5\n" + b"#\n" * (20 * MIB),
    "ico of one large png": lambda: bombs.ico_of_one_picture(65_000, bombs.png(4_000, 4_000, 0, 8)),
    "jpeg without an end": lambda: bombs.jpeg_of_exif(10_000)[:-2] + bytes(60 * MIB),
}  # fmt: skip


def overlapping() -> bytes:
    """Returns 241 KB with a million entries: each directory begins twelve bytes into the previous one."""
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
    """Returns the processor time of this process, less the seconds that the calling thread waited for a core.

    Between two turns of the loop it grows by the time that code held the GIL, also on a busy machine. Work of another
    thread without the GIL, while the loop's thread waits for a core, is in both numbers and cancels out. ``waits`` is
    the open OWN_WAITS: each system call releases the GIL and waits for it again, so there is only one.
    """
    waited_s = int(os.pread(waits, 100, 0).split()[1]) / 1e9 if waits >= 0 else 0.0
    return time.process_time() - waited_s


async def turns_while(work: Any) -> tuple[int, float, float, ObjectError | None]:
    """Returns the loop's turns during the work, its seconds, the longest gap, and the error that ended the work.

    The gap is the most processor time between two turns.
    """
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
    """Checks and stores a body, as a run does."""
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
    """Asserts that the loop gets its turns while the body is checked. Returns the error that ended the check.

    Code that blocks the loop does so each time, a busy machine does not. So up to three measurements are made.
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
    """A body is checked in another thread, in slices. One in the loop's thread, or one long search, would block it."""
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
        ("ico", False),
        ("pgm", True),
        ("jxl container", True),
    ],
)
def test_what_is_checked_in_the_loop(name: str, quick: bool) -> None:
    """The table of is_quick: small, and of a format whose walk advances with each step, or that has no walk."""
    data = body(name)
    assert image.is_quick(data) is quick
    assert not image.is_quick(data + bytes(image.QUICK_BYTES))
    assert image.is_quick(b"<html>")
    assert image.is_quick(b"")


def test_a_check_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its processor time the body is `too_large`, in every walk, and the message says so."""
    monkeypatch.setattr(slices, "CHECK_S", 0.001)
    for name in ("svg of 63 MiB", "svg of one tag", "tiff of strips", "tiff of directories that overlap",
                 "gif of short blocks", "ico of one large png", "svg and comments"):  # fmt: skip
        with pytest.raises(ObjectError, match=r"takes too long to check \(more than 0.001 s\)") as caught:
            check_image(BODIES[name]())
        assert caught.value.error_class is ErrorClass.TOO_LARGE


@pytest.mark.parametrize(
    "name", ["svg of 63 MiB", "svg of one tag", "svg of one value", "tiff of strips", "ico of one large png"]
)
def test_no_step_takes_more_than_a_slice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit is checked at least once for every two slices of the body."""
    data, checks = BODIES[name](), 0

    def count() -> None:
        nonlocal checks
        checks += 1

    for module in (slices, web, raster, svg):
        monkeypatch.setattr(module, "check_time", count)
    check_image(data)
    assert checks >= len(data) // slices.SLICE_BYTES // 2


def test_an_svg_over_64_mb_is_not_looked_through() -> None:
    """An SVG and a decompressed SVGZ over 64 MB are `too_large`."""
    for data in (b"<svg>" + bytes(64 * MIB), gzip.compress(b"<svg>" + bytes(64 * MIB), 1, mtime=0)):
        with pytest.raises(ObjectError, match="64 MB") as caught:
            check_image(data)
        assert caught.value.error_class is ErrorClass.TOO_LARGE


def saved(kind: str, side: int, **options: Any) -> bytes:
    gradient, file = Image.linear_gradient("L").resize((side, side)), io.BytesIO()
    turned = (gradient, gradient.rotate(90), gradient.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    Image.merge("RGB", turned).save(file, kind, **options)
    return file.getvalue()


def noise(side: int) -> bytes:
    """Returns a JPEG 2000 that takes the most time for its size."""
    file = io.BytesIO()
    Image.effect_noise((side, side), 100).save(file, "JPEG2000")
    return file.getvalue()


# In memory and in the spool; decoders in C that hold the GIL, one in Python, and the XML parser.
PICTURES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved("JPEG", 5_600),
    "jpeg 2000": lambda: noise(1_000),
    "webp": lambda: saved("WEBP", 4_000, method=0),
    "tiff in the spool": lambda: saved("TIFF", 6_000),
    "png in the spool": lambda: saved("PNG", 5_600, compress_level=0),
    "qoi": lambda: saved("QOI", 1_500),
    "svg in the spool": lambda: b"<svg " + b" ".join(b"a%d=''" % n for n in range(1_900_000)) + b"/>",
    "svg": lambda: b"<svg>" + b"<a/>" * 1_900_000 + b"</svg>",
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_loop_has_its_turns_while_a_picture_is_decoded(name: str, tmp_path: Path) -> None:
    """Decoders and the XML parser may hold the GIL for any time, because they run in another process."""
    landed(tmp_path / "first", saved("PNG", 8), "decode")  # starts the child, which is not measured
    assert holds_nothing(tmp_path, PICTURES[name](), "decode") is None
