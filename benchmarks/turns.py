"""Wall-clock and processor time of alternatives that run in turn in this process."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence

AT_ONCE, ROUNDS = 32, 3

Took = tuple[float, float]  # wall-clock seconds, and processor seconds of this process


async def at_once(work: Iterator[Awaitable[object]], workers: int = AT_ONCE) -> Took:
    """Runs the work, as many at once as there are workers, and returns its times."""

    async def worker() -> None:
        for one in work:
            await one

    began, used = time.monotonic(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(workers)))
    return time.monotonic() - began, time.process_time() - used


def show(took: Mapping[str, Sequence[Took]], objects: int) -> None:
    """Prints the medians as the lines of a Markdown table."""
    print(f"{objects:,} objects, {AT_ONCE} at once, {ROUNDS} rounds in turn, medians:")
    for name, times in took.items():
        rate = objects / statistics.median(wall for wall, _ in times)
        used_ms = statistics.median(cpu for _, cpu in times) / objects * 1000
        print(f"| {name} | {rate:,.0f} objects/s | {used_ms:.2f} ms |")
