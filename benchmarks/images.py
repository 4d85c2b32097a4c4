"""Thousands of different JPEGs, made once and kept: crops of photograph-like pictures, each encoded separately.

Sizes are log-normal with a mean of about 40 KB. With the same Pillow, a seed always gives the same bytes. The table of
digests is made from the files on disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import math
import multiprocessing
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageChops

VERSION = 1  # of these images: another version has another folder
A_FOLDER = 250  # files per directory
_BASES, _BASE_SIZE = 12, (1600, 1200)
_MEAN_PIXELS, _SPREAD = 372_000, 0.6  # gives the 40 KB
_BATCH = 50

Entry = tuple[str, str, int]  # path below the folder, md5, bytes


def name(number: int) -> str:
    return f"{number // A_FOLDER:03d}/{number:06d}.jpg"


def images(folder: Path, count: int) -> tuple[Path, list[Entry]]:
    """Returns the folder with at least ``count`` images, and the table of the first ``count``. Makes missing ones."""
    pool = folder / f"images-{VERSION}"
    pool.mkdir(parents=True, exist_ok=True)
    table = pool / "md5.tsv"
    with (pool / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another bench may be making images
        have = _read(table)
        if len(have) < count:
            with table.open("a") as out:
                for entry in _make(pool, len(have), count):
                    out.write("\t".join(map(str, entry)) + "\n")
            have = _read(table)
    return pool, have[:count]


def _read(table: Path) -> list[Entry]:
    if not table.exists():
        return []
    rows = (line.split("\t") for line in table.read_text().splitlines())
    return [(path, md5, int(size)) for path, md5, size in rows]


def _make(pool: Path, first: int, count: int) -> Iterator[Entry]:
    batches = [(pool, start, min(start + _BATCH, count)) for start in range(first, count, _BATCH)]
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        for batch in workers.imap(_make_batch, batches):
            yield from batch


_bases: list[Image.Image] = []


def _make_batch(work: tuple[Path, int, int]) -> list[Entry]:
    pool, start, end = work
    if not _bases:
        _bases.extend(_photograph(random.Random(f"base:{number}")) for number in range(_BASES))
    made: list[Entry] = []
    for number in range(start, end):
        body = _encode(random.Random(f"image:{number}"))
        path = pool / name(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
        made.append((name(number), hashlib.md5(body).hexdigest(), len(body)))
    return made


def _encode(rng: random.Random) -> bytes:
    base = rng.choice(_bases)
    pixels = min(max(rng.lognormvariate(math.log(_MEAN_PIXELS) - _SPREAD**2 / 2, _SPREAD), 6_000), 1_900_000)
    ratio = rng.choice((4 / 3, 3 / 2, 1.0, 3 / 4))
    width = min(int(math.sqrt(pixels * ratio)), _BASE_SIZE[0])
    height = min(int(pixels / width), _BASE_SIZE[1])
    left, top = rng.randrange(_BASE_SIZE[0] - width + 1), rng.randrange(_BASE_SIZE[1] - height + 1)
    out = io.BytesIO()
    base.crop((left, top, left + width, top + height)).save(out, "JPEG", quality=rng.randrange(76, 90))
    return out.getvalue()


def _photograph(rng: random.Random) -> Image.Image:
    """Returns a picture with detail at every scale, weaker where it is finer, as in a photograph."""
    picture = Image.new("RGB", _BASE_SIZE, (128, 128, 128))
    width = 4
    while width <= _BASE_SIZE[0]:
        size = (width, max(1, width * 3 // 4))
        noise = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
        layer = noise.resize(_BASE_SIZE, Image.Resampling.BICUBIC)
        weight = 0.5 * (4 / width) ** 0.55
        flat = Image.new("RGB", _BASE_SIZE, (128, 128, 128))
        picture = ImageChops.add(picture, Image.blend(flat, layer, weight), 1, -128)
        width *= 2
    return picture
