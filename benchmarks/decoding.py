"""The cost of level `decode`: `python -m benchmarks.decoding`. See docs/decisions/0038-decoding-in-a-child.md."""

from __future__ import annotations

import io
import os
import random
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from ferry.core import ObjectError
from ferry.images import check_image, decode_image

COUNT, DISTINCT, THREADS = 1_000, 20, 2  # a run decodes in two threads


def photograph(seed: int) -> bytes:
    """Returns a JPEG of 40 KB: 640 × 480 pixels, smooth with some grain."""
    rng = random.Random(seed)
    smooth = Image.frombytes("RGB", (40, 30), rng.randbytes(3_600)).resize((640, 480), Image.Resampling.BICUBIC)
    grain = Image.frombytes("RGB", (160, 120), rng.randbytes(57_600)).resize((640, 480), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    Image.blend(smooth, grain, 0.15).save(out, "JPEG", quality=70)
    return out.getvalue()


def png_of_zeros(width: int, height: int) -> bytes:
    """Returns an RGBA picture that decompresses to a thousand times its size."""

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    pack, row = zlib.compressobj(9), bytes(1 + 4 * width)
    pixels = b"".join([*(pack.compress(row) for _ in range(height)), pack.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def processes(first: int) -> Iterator[int]:
    """Yields a process and its descendants."""
    yield first
    for task in Path(f"/proc/{first}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from processes(int(child))


class Measured:
    """Measures wall-clock time, processor time and peak memory of all processes in the block."""

    def __enter__(self) -> Measured:
        self._over, self.peak = threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._began, self._used = time.perf_counter(), self._processor()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.processor = time.perf_counter() - self._began, self._processor() - self._used
        self._over.set()
        self._thread.join()

    def _processor(self) -> float:
        ticks = 0
        for process in processes(os.getpid()):
            ticks += sum(map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            try:
                resident = [Path(f"/proc/{process}/statm").read_text().split()[1] for process in processes(os.getpid())]
            except OSError:  # a child ended meanwhile
                continue
            self.peak = max(self.peak, sum(map(int, resident)) * os.sysconf("SC_PAGE_SIZE"))

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self.processor:.2f} s of processor, peak {self.peak / 2**20:,.0f} MiB"


def verdict(data: bytes) -> str:
    try:
        decode_image(data, check_image(data))
    except ObjectError as error:
        return f"{error.error_class}: {error.message}"
    return "decoded"


def main() -> None:
    pictures = [photograph(seed) for seed in range(DISTINCT)]
    size = sum(map(len, pictures)) // DISTINCT
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(verdict, pictures))  # loads and starts everything before the measurement
        with Measured() as measured:
            ends = set(threads.map(verdict, (pictures[at % DISTINCT] for at in range(COUNT))))
        print(f"{COUNT:,} JPEGs of {size:,} bytes: {measured}, {COUNT / measured.seconds:,.0f} a second, {ends}")
        for width, height in ((15_000, 10_000), (16_000, 15_000), (60_000, 15_000)):
            data = png_of_zeros(width, height)
            with Measured() as measured:
                end = threads.submit(verdict, data).result()
            print(f"a PNG of {len(data):,} bytes, {width * height / 1e6:,.0f} megapixels: {measured}, {end}")


if __name__ == "__main__":
    main()
