"""What a process's chunks share: one event loop in a thread, one HTTP client, stores, limiter, circuits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import resource
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import uvloop

from ferry.core import Budget, ChunkIncomplete, Fatal, FerryError, Progress
from ferry.http import AddressFilter, Origin
from ferry.job import Checks, Job, Retries
from ferry.ratelimit import (
    COPIES_START,
    DESTINATION,
    Hosts,
    HostSnapshot,
    Limiter,
    busiest,
    host_of,
    keep_written,
    limits_of,
    together,
)
from ferry.state import Borrowed, Lease, State, Uploads, mark_of
from ferry.storage import Access, open_store
from ferry.transfer.dispatcher import Dispatcher
from ferry.transfer.object import ObjectTransfer, TransferOptions, answer_of
from ferry.transfer.stall import TURN, Wait

T = TypeVar("T")
MOST_IN_FLIGHT = 512  # at one host, if file descriptors allow it
CLOSE_S = 12.0  # longer than a chunk's grace
FILES_KEPT = 256  # file descriptors that are not for connections to objects
BODIES_BYTES = 160 * 1024 * 1024  # of bodies in memory at once


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
        lease: Lease | Borrowed,
        run_no: int,
        *,
        source_access: Access,
        destination_access: Access,
        headers: Mapping[str, str],
        limit: int | None = None,
        share: int = 1,
    ) -> None:
        """``share`` is how many processes divide the hosts' limits. With a borrowed lease this is not the first one."""
        self.state = state
        self.run_no = run_no
        self.settings_digest = job.settings_digest()
        self.retries: Retries = job.retries
        self.rng = random.Random()
        self.progress = Progress()
        self.settled: dict[str, Settled] = {}
        self.fatal: FerryError | None = None
        self.stop_reason = ""
        self.paused = False
        fixed = None if job.concurrency == "auto" else max(1, job.concurrency // share)
        patience_s = job.retries.max_backoff_s
        self._ceiling = most_in_flight(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        ceiling = max(1, self._ceiling // share)
        # All origins together use half of the connections, the destination the other half.
        limits = limits_of(job.limits, share)
        limits = limits.model_copy(update={"concurrency": limits.concurrency or ceiling})
        self._lease = lease
        self._permits = limit
        self._sleeping: set[str] = set()
        self._coming: dict[str, int] = {}  # chunks that have not begun yet, and their rows
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="ferry-digests")
        # threads of their own: a body that takes long to check holds up no other one's digest
        self._checkers = ThreadPoolExecutor(2, thread_name_prefix="ferry-pixels")
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ferry-loop", daemon=True)
        self._thread.start()
        self.stop: asyncio.Event = asyncio.Event()
        self._waited_for: set[Future[Any]] = set()
        self._wake = threading.Event()  # set by the loop's thread alone: a signal's handler must wait for no lock
        self._budget = Budget(BODIES_BYTES // share)
        shared: dict[str, Any] = {"budget": self._budget, "pool": self._pool}
        times = {"timeout_s": job.timeouts.total_s, "read_s": job.timeouts.read_s}
        stores: dict[str, Any] = {**shared, **times, "direct_http": True}
        mark = mark_of(state) if job.destination.uri.startswith("file:") else "ferry"
        destination = open_store(
            job.destination.uri,
            destination_access,
            state.spool_dir,
            create=True,
            mark=mark,
            upload_log=Uploads(state),
            **stores,
        )
        roots = [(root, open_store(root, source_access, state.spool_dir, **stores)) for root in job.roots()]
        self._stores = [destination, *(store for _, store in roots)]
        copied = [root for root, store in roots if job.checks is Checks.NONE and destination.can_copy_from(store)]
        starts = dict.fromkeys((DESTINATION, *map(host_of, copied)), COPIES_START) if copied else {}
        self.limiter = Limiter(fixed, ceiling, time.monotonic, limits=limits, max_pause_s=patience_s, starts=starts)
        self.dispatcher = Dispatcher(self.limiter, time.monotonic, self.permit, patience_s)
        attributes = {"Cache-Control": job.destination.cache_control or "", **job.destination.metadata}
        rules = TransferOptions(job.checks, job.on_existing, job.max_bytes, attributes)

        async def build() -> tuple[Origin, ObjectTransfer]:
            filtered = AddressFilter(job.source.allow_private_addresses)
            origin = Origin(job.origin_options(headers), filtered, state.spool_dir, **shared)
            if isinstance(lease, Lease):  # the first process of the only run of this job
                await destination.clean()
            return origin, ObjectTransfer(
                origin, roots, destination, self.limiter, rules, self._checkers, self._hold_lease
            )

        self._origin, self.mover = self.wait(build())
        self.others: Callable[[], list[tuple[list[HostSnapshot], int]]] = list  # hosts at other processes of the run
        self._hosts: Future[None] | None = None
        if isinstance(lease, Lease):
            self._hosts = asyncio.run_coroutine_threadsafe(
                keep_written(state, self._moment, lambda: lease.held), self._loop
            )

    def hosts(self) -> tuple[list[HostSnapshot], int]:
        """What this process does at each host, and how many connections it opened. From any thread."""
        opened = self._origin.connections_opened + sum(store.connections_opened for store in self._stores)
        return list(self.limiter.snapshot().values()), opened

    def all_hosts(self) -> tuple[list[HostSnapshot], int]:
        """As :meth:`hosts`, of all processes of the run."""
        every = [self.hosts(), *self.others()]
        return together([snapshots for snapshots, _ in every]), sum(opened for _, opened in every)

    def _moment(self) -> Hosts:
        snapshots, opened = self.all_hosts()
        known = busiest(self.run_no, snapshots, time.time())
        return replace(known, connections_opened=opened, paused=self.paused, still=self.progress.still)

    def waits(self) -> list[Wait]:
        """What the rows of this process wait for. From any thread."""
        steps = self.mover.waits.rows()
        for what, quota in (("memory", self._budget.memory), ("room in the spool", self._budget.files)):
            for host, rows in quota.waiting_of().items():
                steps[answer_of(host)] -= rows
                steps[what] += rows
        sleeping = Wait("the next attempt at their chunk (chunks)", self.asleep(), True)
        under_way = [Wait(what, rows, what == TURN) for what, rows in steps.most_common() if rows > 0]
        return [*under_way, *self.dispatcher.waits(), sleeping]

    def divide(self, share: int) -> None:
        """So many processes work from now on: each has its part of connections and memory. From any thread."""
        self._loop.call_soon_threadsafe(self.limiter.bound, max(1, self._ceiling // share))
        self._loop.call_soon_threadsafe(self._budget.resize, BODIES_BYTES // share)

    def heed(self, pauses: Mapping[str, tuple[float, str]]) -> None:
        """Hosts that another process was asked to leave alone: until when (monotonic), and why. From any thread."""

        def apply() -> None:
            for name, (until, why) in pauses.items():
                self.limiter.host(name).pause_until(until, why)
                self.dispatcher.look(name)

        self._loop.call_soon_threadsafe(apply)

    def loop_cpu_s(self) -> float:
        """Seconds of processor that the event loop's thread has used."""
        if not hasattr(time, "pthread_getcpuclockid") or self._thread.ident is None:
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop and waits for it, from another thread."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._waited_for.add(future)
        try:
            return future.result()
        finally:
            self._waited_for.discard(future)

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
        """Raises Fatal once another run may hold the state. It may wait for the disk: not for the loop's thread."""
        if not self._lease.held and not self._lease.regain():
            raise Fatal("this run lost its lease on the state to another run; it writes nothing more")

    async def _hold_lease(self) -> None:
        """As :meth:`check_lease`, for the loop's thread."""
        if not self._lease.held:
            await asyncio.to_thread(self.check_lease)

    def request_stop(self, reason: str) -> None:
        """No new rows; those in flight may end. From any thread, also from a signal handler's."""
        self.stop_reason = self.stop_reason or reason
        self._loop.call_soon_threadsafe(self._stop)

    def pause(self, paused: bool) -> None:
        """No new rows, until it is called with False; those in flight may end, and tries that fall due wait. The lease
        is kept. From any thread."""
        if paused is not self.paused:
            self.paused = paused
            self._loop.call_soon_threadsafe(self._pause, paused, self.progress.pause(paused))

    def _pause(self, paused: bool, seconds: float) -> None:
        self.limiter.rested(seconds)
        self.dispatcher.pause(paused)

    def _stop(self) -> None:
        self.dispatcher.stop()
        self.stop.set()
        self._wake.set()

    def sleep(self, seconds: float) -> None:
        """Less once the run is to stop."""
        self._wake.wait(seconds)

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

    def expect(self, digest: str, rows: int) -> None:
        """A chunk will begin; until :meth:`begun` or :meth:`over` its rows count as ahead."""
        self._coming[digest] = rows

    def begun(self, digest: str) -> None:
        """The dispatcher has its rows now."""
        self._coming.pop(digest, None)

    @property
    def rows_ahead(self) -> int:
        """Rows that could begin, of chunks at work and of those that come. From any thread."""
        return self.dispatcher.rows_ahead + sum(list(self._coming.values()))

    @property
    def hungry(self) -> bool:
        """It is time for another chunk."""
        return self.rows_ahead < self.dispatcher.room

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
        self._coming.pop(digest, None)
        with self._lock:
            self._sleeping.discard(digest)

    def asleep(self) -> int:
        """How many chunks sleep."""
        with self._lock:
            return len(self._sleeping)

    def close(self) -> None:
        """Closes the connections and ends the loop's thread. Chunks that are still at work, because something ended the
        run from outside, end first as after a stop: their threads wait, and would do so for ever."""
        at_work = list(self._waited_for)
        if at_work:
            self.request_stop("the run has ended")
            concurrent.futures.wait(at_work, CLOSE_S)
            for future in at_work:
                future.cancel()
        if self._hosts is not None:
            self._hosts.cancel()
        self.wait(self._origin.close())
        for store in self._stores:
            self.wait(store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for pool in (self._pool, self._checkers):
            pool.shutdown(wait=False, cancel_futures=True)


def most_in_flight(files: int) -> int:
    """Connections that each side may have with ``files`` file descriptors: a half each of what is left."""
    return max(8, min(MOST_IN_FLIGHT, (files - FILES_KEPT) // 2))
