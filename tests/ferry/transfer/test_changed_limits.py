"""A runtime whose limits change while a chunk runs, with a real origin that counts its requests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo.origin import Origin
from demo.s3 import S3Server
from ferry.job.limits import Limits
from ferry.ratelimit import Share
from ferry.transfer.chunk import ChunkResult
from ferry.transfer.runtime import Runtime
from tests.ferry.transfer.test_chunk import healthy, in_thread, job_for, wait_for, write_chunk
from tests.support.helpers import access, directory_state, engine

ROWS = 200
WINDOW_S = 1.0


def set_limits(runtime: Runtime, limits: Limits) -> None:
    """Set the limits, and wait until the event loop has them."""
    runtime.set_limits(limits, Share())
    runtime.wait(asyncio.sleep(0))


@contextlib.contextmanager
def a_chunk(origin: Origin, s3: S3Server, bucket: str, folder: Path, **limits: Any) -> Iterator[Runtime]:
    """A runtime with a chunk on its way. At the end of the block its limits are removed, and all rows are copied."""
    state = directory_state(folder)
    ref = write_chunk(state, healthy(origin, ROWS))
    origin.latency_s = 0.1
    with engine(job_for(bucket, **limits), state, access(s3)) as runtime:
        thread, ends = in_thread(runtime, ref)
        yield runtime
        set_limits(runtime, Limits())
        thread.join()
    (result,) = ends
    assert isinstance(result, ChunkResult)
    assert result.counts == {"copied": ROWS}
    assert origin.total == ROWS


def test_a_rate_that_changes(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """After the change no more requests arrive than the rate allows; when it is removed, the chunk ends."""
    with a_chunk(origin, s3, bucket, tmp_path, concurrency=8) as runtime:
        wait_for(lambda: origin.total >= 20)
        set_limits(runtime, Limits(requests_per_s=20))
        since = time.monotonic()
        time.sleep(WINDOW_S)
        arrived = sum(at > since for at in list(origin.times))
        assert arrived <= 20 * (time.monotonic() - since) + 2 + 8  # 8 had begun, and may have been on their way


def test_a_limit_of_the_job_that_comes_later(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Requests in flight count, and finish: from then on no more than the limit are at the origin."""
    with a_chunk(origin, s3, bucket, tmp_path) as runtime:
        wait_for(lambda: origin.at_once > 16)
        set_limits(runtime, Limits(concurrency=3))
        wait_for(lambda: origin.at_once <= 3)
        origin.most_at_once, before = 0, origin.total
        wait_for(lambda: origin.total > before + 20)
        assert origin.most_at_once <= 3
