"""A store that accepts requests and does not respond: each request ends after `read_s`, and then the run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Origin
from ferry.core.body import small_body
from ferry.core.errors import ChunkIncomplete, Fatal, ObjectError
from ferry.core.records import ErrorClass, Status
from ferry.storage.factory import open_store
from ferry.storage.store import Store
from ferry.transfer import destination_outage
from ferry.transfer.chunk import run_chunk
from tests.servers.odd_s3 import Fault, OddS3
from tests.support import helpers

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(180)]

WITHIN_S = 60.0  # far below the total time that a request may take, far above `read_s`
TOTAL_S = 600.0
DATA = b"x" * 100_000


async def listed(store: Store) -> None:
    await asyncio.to_thread(lambda: list(store.list()))


WORK: dict[str, tuple[str, Callable[[Store, str], Awaitable[Any]]]] = {
    "put": ("PutObject", lambda store, key: store.put(key, small_body(DATA), {})),
    "get": ("GetObject", lambda store, key: store.get(key, max_bytes=1 << 30)),
    "digest": ("GetObject", lambda store, key: store.digest(key, max_bytes=1 << 30)),
    "head": ("HeadObject", lambda store, key: store.head(key)),
    "delete": ("DeleteObject|DeleteObjects", lambda store, key: store.delete(key)),
    "list": ("ListObjectsV2", lambda store, _: listed(store)),
}


@pytest.mark.parametrize("name", WORK)
def test_silence_ends_after_read_s(name: str, tmp_path: Path) -> None:
    """Each kind of request ends after `timeouts.read_s`."""
    operation, work = WORK[name]

    async def go(server: OddS3, key: str) -> None:
        store = open_store("s3://bucket/p", helpers.access(server), tmp_path, timeout_s=TOTAL_S, read_s=0.5)
        began = time.monotonic()
        try:
            with pytest.raises(ObjectError) as caught:
                await work(store, key)
        finally:
            await store.close()
        assert time.monotonic() - began < WITHIN_S
        assert caught.value.error_class in (ErrorClass.TIMEOUT, ErrorClass.STORE_ERROR)
        assert destination_outage.is_silence(caught.value)

    with OddS3(faults=[Fault("silence", tuple(operation.split("|")))]) as server:
        server.put("bucket", "p/grün 1.jpg", DATA)
        asyncio.run(go(server, "grün 1.jpg"))


def test_a_slow_answer_is_no_silence(tmp_path: Path) -> None:
    """A store that responds within `read_s` is waited for."""

    async def go(server: OddS3) -> None:
        store = open_store("s3://bucket/p", helpers.access(server), tmp_path, timeout_s=TOTAL_S, read_s=20)
        await store.put("grün 1.jpg", small_body(DATA), {})
        assert (await store.digest("grün 1.jpg", max_bytes=1 << 30))[0] == small_body(DATA).sha256
        await store.close()

    with OddS3(delay_s=1.0) as server:
        server.make_bucket("bucket")
        asyncio.run(go(server))


@pytest.mark.slow
def test_a_store_that_answers_heads_and_no_puts(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends although HEADs are answered, no row fails, and most stay pending."""
    monkeypatch.setattr(destination_outage, "ENDS_S", 3.0)
    rows = [[origin.add(f"/{n}.jpg", helpers.IMAGE), f"{n}.jpg"] for n in range(60)]
    with OddS3(faults=[Fault("silence", ("PutObject",))]) as server:
        server.make_bucket("bucket")
        job = helpers.make_job(
            manifest=str(helpers.write_list(tmp_path / "list.csv", rows, ("url", "name"))), key="{name}-{sha256}.jpg",
            retries={"attempts": 3, "backoff_s": 0.1, "max_backoff_s": 5}, timeouts={"read_s": 0.5, "total_s": TOTAL_S},
            concurrency=16, destination={"uri": "s3://bucket/p/", "endpoint_url": server.endpoint_url},
        )  # fmt: skip
        state = helpers.directory_state(tmp_path)
        (ref,) = helpers.plan(job, state, server=helpers.access(server)).chunks
        began = time.monotonic()
        with (
            helpers.engine(job, state, helpers.access(server)) as runtime,
            pytest.raises(Fatal, match=r"the destination has not responded to any write request for"),
            contextlib.suppress(ChunkIncomplete),
        ):
            run_chunk(runtime, ref)
        assert time.monotonic() - began < WITHIN_S
        assert server.requests["HeadObject"] > 0
        outcomes = helpers.latest(state).values()
        assert all(outcome.retryable for outcome in outcomes)
        assert Status.COPIED not in {outcome.status for outcome in outcomes}
