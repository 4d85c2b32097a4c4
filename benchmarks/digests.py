"""The cost of digests, in the loop and in threads: `python -m benchmarks.digests` (docs/explanation/performance.md)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import uvloop

from benchmarks.turns import AT_ONCE, ROUNDS, at_once
from ferry.core.body import small_body

SIZES = (40_000, 250_000, 1_000_000, 4_000_000)
BYTES, THREADS = 400_000_000, 2

DIGESTS: dict[str, Callable[[bytes], object]] = {
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).digest(),
    "SHA-256": lambda data: hashlib.sha256(data).digest(),
    "SHA-1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    "BLAKE2b": lambda data: hashlib.blake2b(data).digest(),
    "CRC-32": zlib.crc32,
}


def megabytes_per_s(digest: Callable[[bytes], object], data: bytes) -> float:
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(20):
            digest(data)
        rounds.append(20 * len(data) / (time.perf_counter() - began) / 1e6)
    return statistics.median(rounds)


async def hash_many(data: bytes, pool: ThreadPoolExecutor | None) -> float:
    """Returns the microseconds per object, with AT_ONCE objects at once."""
    loop, count = asyncio.get_running_loop(), BYTES // len(data)

    async def one() -> None:
        if pool is None:
            small_body(data)
            await asyncio.sleep(0)
        else:
            await loop.run_in_executor(pool, small_body, data)

    wall, _ = await at_once(one() for _ in range(count))
    return wall / count * 1e6


def main() -> None:
    data = os.urandom(1_000_000)
    for name, digest in DIGESTS.items():
        print(f"| {name} | {megabytes_per_s(digest, data):,.0f} MB/s |")
    print(f"MD5 and SHA-256 of a body, {AT_ONCE} at once, microseconds of the clock for each:")
    with ThreadPoolExecutor(THREADS) as pool:
        for size in SIZES:
            body = os.urandom(size)
            for name, where in (("in the loop", None), (f"in {THREADS} threads", pool)):
                wall = statistics.median(uvloop.run(hash_many(body, where)) for _ in range(ROUNDS))
                print(f"| {size:,} bytes | {name} | {wall:,.0f} |")


if __name__ == "__main__":
    main()
