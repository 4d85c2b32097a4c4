"""What a process's chunks share: one event loop in a thread, one HTTP client, stores, limiter, circuits."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from tasks.engine.address import AddressFilter
from tasks.engine.circuit import Circuit
from tasks.engine.errors import ChunkIncomplete, Fatal, FerryError
from tasks.engine.job import Job, Retries
from tasks.engine.lease import Lease
from tasks.engine.limiter import Limiter
from tasks.engine.origin import Origin
from tasks.engine.progress import Progress
from tasks.engine.state import State
from tasks.engine.store import Access, Store, open_store
from tasks.engine.transfer import Mover, Rules

T = TypeVar("T")
CEILING = 256
AUTO_WIDTH = 64  # workers of one chunk; the limiter decides how many of them are at work
USER_AGENT = "ferry/0.1 (moves image libraries; the job's owner can name a contact with source.user_agent)"


@dataclass(slots=True)
class Settled:
    """What of a chunk is done by this process; kept over Prefect's retries of the chunk."""

    rows: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    next_part: int = 0
    bytes: int = 0


class Runtime:
    """Made once per run, before its first chunk. Threads hand it coroutines with :meth:`wait`."""

    def __init__(
        self,
        job: Job,
        state: State,
        lease: Lease,
        run_no: int,
        *,
        source_access: Access,
        destination_access: Access,
        headers: Mapping[str, str],
        limit: int | None = None,
    ) -> None:
        self.state = state
        self.run_no = run_no
        self.how = job.how_digest()
        self.retries: Retries = job.retries
        self.rng = random.Random()
        self.progress = Progress()
        self.settled: dict[str, Settled] = {}
        self.fatal: FerryError | None = None
        self.stop_reason = ""
        fixed = None if job.concurrency == "auto" else job.concurrency
        self.width = AUTO_WIDTH if fixed is None else min(AUTO_WIDTH, fixed)
        self.limiter = Limiter(fixed, CEILING, time.monotonic, patience_s=job.retries.max_backoff_s)
        self._lease = lease
        self._circuits: dict[str, Circuit] = {}
        self._permits = limit
        self._sleeping: set[str] = set()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="ferry-pixels")
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ferry-loop", daemon=True)
        self._thread.start()
        self.stop: asyncio.Event = asyncio.Event()
        destination = open_store(
            job.destination.uri, destination_access, state.spool_dir, timeout_s=job.timeouts.total_s, create=True
        )
        roots = open_roots(job, source_access, state.spool_dir)
        attributes = {"Cache-Control": job.destination.cache_control or "", **job.destination.metadata}
        rules = Rules(job.checks, job.on_existing, job.max_bytes, attributes)

        async def build() -> tuple[Origin, Mover]:
            origin = open_origin(job, headers, state.spool_dir)
            return origin, Mover(origin, roots, destination, self.limiter, rules, self._pool)

        self._origin, self.mover = self.wait(build())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop and waits for it, from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def circuit(self, host: str) -> Circuit:
        found = self._circuits.get(host)
        if found is None:
            found = self._circuits[host] = Circuit(host, time.monotonic)
        return found

    def permit(self) -> bool:
        """May one more row begin? Counts down the run's --limit."""
        if self._permits is None:
            return True
        if self._permits <= 0:
            return False
        self._permits -= 1
        return True

    @property
    def limit_reached(self) -> bool:
        return self._permits is not None and self._permits <= 0

    def check_lease(self) -> None:
        """Raises Fatal once another run may hold the state."""
        if not self._lease.held:
            raise Fatal("this run lost its lease on the state to another run; it writes nothing more")

    def request_stop(self, reason: str) -> None:
        """No new rows; those in flight may end. From any thread, also from a signal handler's."""
        self.stop_reason = self.stop_reason or reason
        self._loop.call_soon_threadsafe(self.stop.set)

    def give_up(self, error: BaseException) -> None:
        """A Fatal error, or a bug, ends the run: rows stay pending."""
        if self.fatal is None:
            self.fatal = (
                error if isinstance(error, FerryError) else Fatal(f"unexpected {type(error).__name__}: {error}")
            )
        self.request_stop(str(error))

    @property
    def stopping(self) -> bool:
        return bool(self.stop_reason)

    @contextlib.contextmanager
    def awake(self, digest: str) -> Iterator[None]:
        """A chunk that leaves rows pending sleeps until Prefect retries it: it holds no place in the window."""
        with self._lock:
            self._sleeping.discard(digest)
        try:
            yield
        except ChunkIncomplete:
            with self._lock:
                self._sleeping.add(digest)
            raise

    def over(self, digest: str) -> None:
        """This chunk will not come again: it settled, or Prefect gave up on it."""
        with self._lock:
            self._sleeping.discard(digest)

    def asleep(self) -> int:
        """How many chunks sleep."""
        with self._lock:
            return len(self._sleeping)

    def close(self) -> None:
        """Closes the connections and ends the loop's thread."""
        self.wait(self._origin.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def open_origin(job: Job, headers: Mapping[str, str], spool_dir: Path) -> Origin:
    """The job's HTTP client; inside the running loop."""
    return Origin(
        headers=headers,
        user_agent=job.source.user_agent or USER_AGENT,
        address_filter=AddressFilter(job.source.allow_private_addresses),
        timeouts=job.timeouts,
        max_bytes=job.max_bytes,
        spool_dir=spool_dir,
    )


def open_roots(job: Job, access: Access, spool_dir: Path) -> list[tuple[str, Store]]:
    return [(root, open_store(root, access, spool_dir)) for root in job.roots()]
