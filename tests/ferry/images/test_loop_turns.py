"""Whatever a body holds, the event loop has its turns while it is checked: a hostile one slows no other row down."""

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
from ferry.storage.credentials import Access
from ferry.transfer.source import Fetch
from tests.faults import bombs
from tests.ferry.images.test_check import body
from tests.support.helpers import directory_state, engine, make_body, make_job, make_row

pytestmark = pytest.mark.matrix

MIB = 1024 * 1024
TURN_S = 0.1  # a turn is due twice as often; a busy machine has half of them left
HELD_S = 0.05  # processor time: the longest that anything may keep the loop from a turn
OWN_WAITS = Path("/proc/thread-self/schedstat")  # nanoseconds on a core, and waiting for one (sched-stats, Linux)

# A few hundred bytes on the wire unpack to each (Content-Encoding: gzip).
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
    """Returns 241 KB that have a million entries: each directory begins twelve bytes into the one before."""
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

    Between two turns of the loop it grows by what held Python's lock, also on a busy machine. What another thread does
    without the lock, while the loop's thread waits for a core, is in both numbers and so in neither. ``waits`` is the
    open OWN_WAITS: each system call gives the lock away and waits for it again, so there is only one.
    """
    waited_s = int(os.pread(waits, 100, 0).split()[1]) / 1e9 if waits >= 0 else 0.0
    return time.process_time() - waited_s


async def turns_while(work: Any) -> tuple[int, float, float, ObjectError | None]:
    """Returns the loop's turns during the work, the seconds that this took, the most processor time that kept the loop
    from a turn, and the error that ended the work."""
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
    """Checks and writes a body that has come, as a run does with each."""
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
    """Asserts that the loop has its turns while the body is checked; returns the error that ended the check.

    What holds the loop does so each time; what a busy machine adds does not. So it is measured up to three times.
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
    """A body is checked in another thread, in slices. A check in the loop's thread, or one long search, holds it."""
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
    """The table of is_quick: small, and of a format whose walk moves on with each step, or that has no walk."""
    data = body(name)
    assert image.is_quick(data) is quick
    assert not image.is_quick(data + bytes(image.QUICK_BYTES))
    assert image.is_quick(b"<html>")
    assert image.is_quick(b"")


def test_a_check_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its processor time the body is too large to check, whichever walk it is in, and the sentence says so."""
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
    """Counted in work, not in seconds: a look at the clock for each slice of the body at least."""
    data, checks = BODIES[name](), 0

    def count() -> None:
        nonlocal checks
        checks += 1

    for module in (slices, web, raster, svg):
        monkeypatch.setattr(module, "check_time", count)
    check_image(data)
    assert checks >= len(data) // slices.SLICE_BYTES // 2


def test_an_svg_over_64_mb_is_not_looked_through() -> None:
    """As for `checks: decode`, and for a compressed one: `too_large`, with what copies it."""
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
    """Returns a JPEG 2000 as expensive as one can be for its size."""
    file = io.BytesIO()
    Image.effect_noise((side, side), 100).save(file, "JPEG2000")
    return file.getvalue()


# In memory and in the spool; decoders of C that hold Python's lock, one in Python, and the XML parser.
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
    """Decoders and the XML parser may hold Python's lock for as long as they like: they run in another process."""
    landed(tmp_path / "first", saved("PNG", 8), "decode")  # a child that starts is not part of the measure
    assert holds_nothing(tmp_path, PICTURES[name](), "decode") is None
