"""The memory for bodies is never used up by rows that wait for more of it, or by slow rows."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Fault, Origin, Trouble
from ferry.core.errors import ChunkIncomplete
from ferry.core.memory_budget import SMALL_BYTES
from ferry.core.records import Status
from ferry.job.model import Job
from ferry.storage.access import Access, S3Access
from ferry.transfer.chunk import run_chunk
from tests.servers.odd_s3 import OddS3
from tests.support import helpers

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(240)]

WITHIN_S = 60.0  # what took no second is given a minute
CHUNKED = Fault(Trouble.CHUNKED)


def body_of(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(1000) + bytes(size - 1000)


def serve(origin: Origin, count: int, size: int, fault: Fault | None = None) -> list[list[str]]:
    return [[origin.add(f"/{n}.bin", body_of(n, size), "application/octet-stream", fault=fault)] for n in range(count)]


@contextlib.contextmanager
def kms() -> Iterator[tuple[OddS3, Access]]:
    """A store whose ETags look like MD5s and are not, so that each object is read back."""
    with OddS3(etags="kms") as server:
        server.make_bucket("bucket")
        yield server, S3Access(server.endpoint_url, server.region, keys=(server.access_key, server.secret_key, None))


def job_of(tmp_path: Path, rows: list[list[str]], **given: Any) -> Job:
    """Returns a job with as many concurrent rows as the memory allows."""
    manifest = helpers.write_list(tmp_path / "list.csv", rows)
    return helpers.make_job(manifest=str(manifest), checks="length", concurrency=64, **given)


def settled(job: Job, tmp_path: Path, access: Access, share: int = 1) -> Counter[Status]:
    """Returns the counts of a run, which is stopped after a minute."""
    state = helpers.directory_state(tmp_path)
    (ref,) = helpers.plan(job, state, server=access).chunks
    with helpers.engine(job, state, access, share=share) as runtime:
        ends = threading.Timer(WITHIN_S, runtime.request_stop, ["it stands still"])
        ends.start()
        with contextlib.suppress(ChunkIncomplete):
            run_chunk(runtime, ref)
        ends.cancel()
    return Counter(outcome.status for outcome in helpers.latest(state).values())


@pytest.mark.parametrize(
    ("count", "size", "fault", "timeouts"),
    [
        (40, 77_000, CHUNKED, {}),
        (30, 7_900_000, CHUNKED, {}),
        (30, 6_000_000, None, {"total_s": 15, "read_s": 10}),
        (24, 9_000_000, None, {}),
    ],
)
def test_what_is_read_back(
    count: int, size: int, fault: Fault | None, timeouts: dict[str, Any], origin: Origin, tmp_path: Path
) -> None:
    """All rows are copied although bodies that fill the memory are read back."""
    with kms() as (server, access):
        job = job_of(
            tmp_path, serve(origin, count, size, fault), timeouts=timeouts,
            destination={"uri": "s3://bucket/p/", "endpoint_url": server.endpoint_url},
        )  # fmt: skip
        assert settled(job, tmp_path, access) == {Status.COPIED: count}
        assert server.stored("bucket") == {f"p/{n}.bin": body_of(n, size) for n in range(count)}


@pytest.mark.parametrize("fault", [CHUNKED, None])
def test_what_a_directory_has_already(fault: Fault | None, origin: Origin, tmp_path: Path) -> None:
    """All bodies are compared with existing files, however many are in memory."""
    count, size = (40, 77_000) if fault else (30, 7_000_000)
    (tmp_path / "out").mkdir()
    for n in range(count):
        (tmp_path / "out" / f"{n}.bin").write_bytes(body_of(n, size))
    job = job_of(tmp_path, serve(origin, count, size, fault), destination=f"file://{tmp_path}/out/")
    assert settled(job, tmp_path, Access()) == {Status.UNCHANGED: count}


def test_a_directory_into_one_that_has_it_already(tmp_path: Path) -> None:
    """All large files are compared with existing files while they are in the spool."""
    count, size = 30, 12_000_000
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        for n in range(count):
            (tmp_path / folder / f"{n}.bin").write_bytes(body_of(n, size))
    job = helpers.make_job(
        manifest=f"file://{tmp_path}/old/", source={}, destination=f"file://{tmp_path}/new/", checks="length",
        concurrency=64,
    )  # fmt: skip
    assert settled(job, tmp_path, Access()) == {Status.UNCHANGED: count}


@pytest.mark.parametrize("processes", [10, 64])
def test_one_of_many_processes(processes: int, origin: Origin, tmp_path: Path) -> None:
    """A body larger than the process's share of the memory is transferred and read back."""
    with kms() as (server, access):
        job = job_of(
            tmp_path, serve(origin, 3, 16 * 1024 * 1024),
            destination={"uri": "s3://bucket/p/", "endpoint_url": server.endpoint_url},
        )  # fmt: skip
        assert settled(job, tmp_path, access, share=processes) == {Status.COPIED: 3}


@pytest.mark.slow
def test_a_slow_body_takes_memory_as_it_comes(origin: Origin, tmp_path: Path) -> None:
    """A slow body uses memory as it is received, whatever its announced length."""
    count, size = 32, 7_900_000
    rows = serve(origin, count, size, Fault(Trouble.SLOW, seconds=600))
    job = job_of(tmp_path, rows, destination=f"file://{tmp_path}/out/")
    (tmp_path / "out").mkdir()
    state = helpers.directory_state(tmp_path)
    (ref,) = helpers.plan(job, state).chunks
    with helpers.engine(job, state, Access()) as runtime:
        seen: list[tuple[int, int]] = []

        def look() -> None:
            memory = runtime._budget.memory
            for _ in range(int(WITHIN_S * 10)):
                time.sleep(0.1)
                if len(memory._held) == 1 and memory.waiting == 0 and len(origin.requests) == count:
                    break
            seen.append((memory.waiting, sum(memory._held.values())))
            runtime.request_stop("enough")

        looking = threading.Thread(target=look)
        looking.start()
        with contextlib.suppress(ChunkIncomplete):
            run_chunk(runtime, ref)
        looking.join()
    ((waiting, held),) = seen
    assert waiting == 0
    assert 0 < held <= count * SMALL_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [True, False])
def test_slow_hosts_beside_a_healthy_one(chunked: bool, origin: Origin, tmp_path: Path) -> None:
    """Eight slow hosts do not delay the rows of a fast one."""
    fast, slow = 200, 8
    with contextlib.ExitStack() as stack, OddS3() as server:
        server.make_bucket("bucket")
        access = S3Access(server.endpoint_url, server.region, keys=(server.access_key, server.secret_key, None))
        rows = []
        for host in range(8):
            other = stack.enter_context(Origin())
            fault = Fault(Trouble.SLOW, seconds=600, chunked=chunked)
            rows += [[other.add(f"/slow-{host}-{n}.bin", body_of(n, 1_000_000), fault=fault)] for n in range(slow)]
        job = helpers.make_job(
            manifest=str(helpers.write_list(tmp_path / "list.csv", rows + serve(origin, fast, 77_000, CHUNKED))),
            checks="length", destination={"uri": "s3://bucket/p/", "endpoint_url": server.endpoint_url},
        )  # fmt: skip
        state = helpers.directory_state(tmp_path)
        (ref,) = helpers.plan(job, state, server=access).chunks
        with helpers.engine(job, state, access) as runtime:
            ended = threading.Event()

            def all_fast() -> None:
                for _ in range(int(WITHIN_S * 10)):
                    if len(server.stored("bucket")) >= fast or ended.wait(0.1):
                        break
                runtime.request_stop("enough")

            watching = threading.Thread(target=all_fast)
            watching.start()
            with contextlib.suppress(ChunkIncomplete):
                run_chunk(runtime, ref)
            ended.set()
            watching.join()
        assert set(server.stored("bucket")) == {f"p/{n}.bin" for n in range(fast)}


class Watched:
    """The most bytes that the spool's files had at once, seen every few milliseconds."""

    def __init__(self, folder: Path) -> None:
        self.most = 0
        self._folder = folder
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.003):
            sizes = []
            for file in self._folder.glob("body-*"):
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(file.stat().st_size)
            self.most = max(self.most, sum(sizes))

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.mark.parametrize("fault", [None, CHUNKED])
def test_the_spool_is_no_larger_than_spool_bytes(fault: Fault | None, origin: Origin, tmp_path: Path) -> None:
    """Bodies wait for their space, one that needs all of it included.

    One that needs more is sent in parts while it comes. Without a length it fails, and says what to do.
    """
    sizes = [9_000_000, 10_000_000, 30_000_000, 9_000_000, 30_000_000, 9_000_000, 30_000_001]
    rows = [[origin.add(f"/{n}.bin", body_of(n, size), fault=fault)] for n, size in enumerate(sizes)]
    with OddS3(delay_s=0.05) as server:
        server.make_bucket("bucket")
        job = job_of(tmp_path, rows, spool_bytes=30_000_000)
        with Watched(tmp_path / "state" / "spool") as spool:
            counts = settled(job, tmp_path, helpers.access(server))
        stored = sizes if fault is None else sizes[:6]
        assert counts[Status.COPIED] == len(stored)
        assert server.stored("bucket") == {f"p/{n}.bin": body_of(n, size) for n, size in enumerate(stored)}
    assert 25_000_000 < spool.most <= 30_000_000
    if fault is None:
        return
    failed = helpers.by_key(helpers.directory_state(tmp_path))["6.bin"]
    assert failed.error_class == "too_large"
    assert "`spool_bytes` (30,000,000 bytes for each process)" in (failed.message or "")
