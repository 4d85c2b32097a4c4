"""Shared resources of a process's chunks: one event loop in a thread, HTTP client, stores, limiter and dispatcher."""

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

from ferry.core import Budget, ChunkIncomplete, Fatal, FerryError, MachineFatal, Progress
from ferry.http import AddressFilter, Auth, Origin
from ferry.job import Checks, Job, Limits, Retries
from ferry.ratelimit import (
    COPIES_START,
    DESTINATION,
    Hosts,
    HostSnapshot,
    Limiter,
    Pause,
    Share,
    busiest,
    host_of,
    keep_written,
    limits_of,
    together,
)
from ferry.state import Borrowed, Lease, Seen, State, Uploads, mark_of
from ferry.storage import Access, open_store
from ferry.transfer.attributes import Carrier
from ferry.transfer.dispatcher import Dispatcher
from ferry.transfer.object import ObjectTransfer, TransferOptions, response_of
from ferry.transfer.stall import TURN, Wait

T = TypeVar("T")
MAX_IN_FLIGHT = 512  # at one host, if there are enough file descriptors
CLOSE_S = 12.0  # longer than chunk.GRACE_S
RESERVED_FILES = 256  # file descriptors that are not used for connections to sources and destination
SPOOL = "space in the spool (spool_bytes)"
BODIES_BYTES = 160 * 1024 * 1024  # of bodies in memory at once


@dataclass(slots=True)
class ChunkProgress:
    """What this process has recorded of a chunk; kept across Prefect's retries of the chunk."""

    rows: set[str] = field(default_factory=set)  # IDs of rows that are done
    counts: dict[str, int] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)  # names of outcomes files
    next_part: int = 0
    bytes: int = 0


class Runtime:
    """The resources of one process, made before its first chunk. Threads pass coroutines to :meth:`wait`."""

    def __init__(
        self,
        job: Job,
        state: State,
        lease: Lease | Borrowed | Seen,
        run_no: int,
        *,
        source_access: Access,
        destination_access: Access,
        headers: Mapping[str, str],
        auth: Auth | None = None,
        limit: int | None = None,
        share: Share = Share(),
        scheme: str | None = None,
    ) -> None:
        """``scheme``: of the destination whose attributes objects are to have. Default: that of the job.

        ``share`` is the number of processes that divide the job's limits; all but the first have a Borrowed lease, or
        a Seen one on another machine.

        ``limit`` is the number of rows that may begin (`--limit`).
        """
        self.state = state
        self.run_no = run_no
        self.settings_digest = job.settings_digest()
        self.retries: Retries = job.retries
        self.dedupe = job.dedupe
        self.rng = random.Random()
        self.progress = Progress()
        self.chunk_progress: dict[str, ChunkProgress] = {}
        self.fatal: FerryError | None = None
        self.stop_reason = ""
        self.paused = False
        self.on_machines = job.machines > 1  # then other processes may have begun a chunk in this run
        self._concurrency = None if job.concurrency == "auto" else job.concurrency
        max_pause_s = job.retries.max_backoff_s
        self._ceiling = max_in_flight(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        limits, ceiling = self._part(job.limits, share)
        self._lease = lease
        self._rows_left = limit
        self._waiting_chunks: set[str] = set()  # chunks that wait for Prefect's retry
        self._incomplete_chunks: set[str] = set()  # chunks whose last attempt left rows pending
        self._expected: dict[str, int] = {}  # chunk that has not begun yet -> its rows
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="ferry-digests")
        # separate threads, so that a body that is slow to check does not delay other bodies' digests
        self._checkers = ThreadPoolExecutor(2, thread_name_prefix="ferry-pixels")
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ferry-loop", daemon=True)
        self._thread.start()
        self.stop: asyncio.Event = asyncio.Event()
        self._waited_for: set[Future[Any]] = set()
        self._wake = threading.Event()  # set by the loop's thread only, since a signal handler must not wait for a lock
        self._budget = Budget(BODIES_BYTES // share.machine, max(1, job.spool_bytes // share.machine), job.max_bytes)
        shared: dict[str, Any] = {"budget": self._budget, "pool": self._pool}
        times = {"timeout_s": job.timeouts.total_s, "read_s": job.timeouts.read_s}
        stores: dict[str, Any] = {**shared, **times}
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
        self.limiter = Limiter(
            self._concurrency, ceiling, time.monotonic, limits=limits, max_pause_s=max_pause_s, starts=starts
        )
        self.dispatcher = Dispatcher(self.limiter, time.monotonic, self.may_start_row, max_pause_s)
        rules, fail = job.destination.attribute_rules(), job.on_lost_attribute == "fail"
        scheme = scheme or job.destination.uri.partition(":")[0]
        carrier = Carrier(rules, scheme, destination, fail=fail, listed=job.is_listed())
        options = TransferOptions(job.checks, job.on_existing, job.max_bytes, carrier, job.dedupe, self.settings_digest)

        async def build() -> tuple[Origin, ObjectTransfer]:
            filtered = AddressFilter(job.source.allow_private_addresses)
            origin = Origin(
                job.origin_options(headers, auth, source_access.network), filtered, state.spool_dir, **shared
            )
            await destination.uploads.find()
            if isinstance(lease, Lease):  # this is the first process of the only run of this job
                await destination.clean()
            return origin, ObjectTransfer(
                origin, roots, destination, self.limiter, options, self._checkers, self._check_lease_in_loop
            )

        self._origin, self.object_transfer = self.wait(build())
        # hosts and opened connections of the run's other processes
        self.other_processes: Callable[[], list[tuple[list[HostSnapshot], int]]] = list
        self._hosts_writer: Future[None] | None = None
        if isinstance(lease, Lease):
            self._hosts_writer = asyncio.run_coroutine_threadsafe(
                keep_written(state, self._hosts_status, lambda: lease.held), self._loop
            )

    def hosts(self) -> tuple[list[HostSnapshot], int]:
        """Returns this process's state of each host, and the number of connections that it opened. From any thread."""
        opened = self._origin.connections_opened + sum(store.connections_opened for store in self._stores)
        return list(self.limiter.snapshot().values()), opened

    def all_hosts(self) -> tuple[list[HostSnapshot], int]:
        """Returns what :meth:`hosts` does, for all processes of the run."""
        every = [self.hosts(), *self.other_processes()]
        return together([snapshots for snapshots, _ in every]), sum(opened for _, opened in every)

    def _hosts_status(self) -> Hosts:
        snapshots, opened = self.all_hosts()
        known = busiest(self.run_no, snapshots, time.time())
        s = self.progress.snapshot()
        progress = {
            "started_at": time.time() - s.elapsed_s, "todo": s.todo, "done": s.done, "failed": s.failed,
            "bytes": s.bytes, "rate": s.rate, "bytes_rate": s.bytes_rate, "left_s": s.left_s,
        }  # fmt: skip
        still = self.progress.still or self.progress.silent
        return replace(known, connections_opened=opened, paused=self.paused, still=still, progress=progress)

    def waits(self) -> list[Wait]:
        """Returns what the rows of this process wait for. From any thread."""
        steps = self.object_transfer.waits.rows()
        for what, quota in (
            ("memory", self._budget.memory),
            ("space in the spool", self._budget.files),
            (SPOOL, self._budget.spool),
        ):
            for host, rows in quota.waiting_of().items():
                steps[response_of(host)] -= rows
                steps[what] += rows
        waiting = Wait("the next attempt at their chunk (chunks)", self.chunks_waiting(), True)
        in_progress = [Wait(what, rows, what == TURN) for what, rows in steps.most_common() if rows > 0]
        return [*in_progress, *self.dispatcher.waits(), waiting]

    def set_limits(self, limits: Limits, share: Share) -> None:
        """Divides the run's limits, connections and memory among ``share`` processes from now on. From any thread."""
        self._loop.call_soon_threadsafe(self.limiter.change, *self._part(limits, share))
        self._loop.call_soon_threadsafe(self._budget.resize, BODIES_BYTES // share.machine)

    def _part(self, limits: Limits, share: Share) -> tuple[Limits, int]:
        """Returns this process's part of the limits, and its maximum of requests in flight at each host.

        All sources together use half of the connections, and the destination the other half.
        """
        ceiling = max(1, self._ceiling // share.machine)
        part = limits_of(limits, share.run)
        of_host = ceiling if self._concurrency is None else min(ceiling, max(1, self._concurrency // share.run))
        return part.model_copy(update={"concurrency": part.concurrency or ceiling}), of_host

    def heed(self, pauses: Mapping[str, Pause]) -> None:
        """Pauses the hosts that another process has paused. From any thread."""

        def apply() -> None:
            for name, pause in pauses.items():
                self.limiter.host(name).heed(pause)
                self.dispatcher.check_pause(name)

        self._loop.call_soon_threadsafe(apply)

    def loop_cpu_s(self) -> float:
        """Returns the processor seconds that the event loop's thread has used."""
        if not hasattr(time, "pthread_getcpuclockid") or self._thread.ident is None:
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop and returns its result. From another thread than the loop's."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._waited_for.add(future)
        try:
            return future.result()
        finally:
            self._waited_for.discard(future)

    def may_start_row(self) -> bool:
        """Returns whether one more row may begin, and counts it against the run's `--limit`."""
        if self._rows_left is None:
            return True
        if self._rows_left <= 0:
            return False
        self._rows_left -= 1
        return True

    @property
    def limit_reached(self) -> bool:
        return self._rows_left is not None and self._rows_left <= 0

    def check_lease(self) -> None:
        """Raises Fatal once another run may hold the state. It may block, so the loop's thread must not call it."""
        if not self._lease.held and not self._lease.regain():
            raise MachineFatal(
                "this run lost its lease on the state to another run and writes nothing more. Run the job again later"
            )

    async def _check_lease_in_loop(self) -> None:
        """Checks the lease as :meth:`check_lease` does, without blocking the loop's thread."""
        if not self._lease.held:
            await asyncio.to_thread(self.check_lease)

    def request_stop(self, reason: str) -> None:
        """Starts no more rows; rows in progress may finish. From any thread, also in a signal handler."""
        self.stop_reason = self.stop_reason or reason
        self._loop.call_soon_threadsafe(self._stop)

    def pause(self, paused: bool) -> None:
        """Starts no more rows until it is called with False; rows in progress may finish, and the lease is kept.

        From any thread.
        """
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
        """Sleeps, but returns early once the run is to stop."""
        self._wake.wait(seconds)

    def abort(self, error: BaseException) -> None:
        """Ends the run after a Fatal error or a bug; the remaining rows stay pending."""
        if self.fatal is None:
            self.fatal = (
                error
                if isinstance(error, FerryError)
                else Fatal(f"unexpected {type(error).__name__}: {error}. Please report this")
            )
        self.request_stop(str(error))

    @property
    def stopping(self) -> bool:
        return bool(self.stop_reason)

    def expect(self, digest: str, rows: int) -> None:
        """Announces a chunk; until :meth:`begun` or :meth:`over` its rows count as ahead."""
        self._expected[digest] = rows

    def begun(self, digest: str) -> None:
        """Records that the dispatcher has the chunk's rows now."""
        self._expected.pop(digest, None)

    @property
    def rows_ahead(self) -> int:
        """Rows that could begin, of running chunks and of announced ones. From any thread."""
        return self.dispatcher.rows_ahead + sum(list(self._expected.values()))

    @property
    def wants_chunk(self) -> bool:
        """Whether another chunk should be started. From any thread."""
        return self.rows_ahead < self.dispatcher.rows_wanted

    @contextlib.contextmanager
    def attempting(self, digest: str) -> Iterator[None]:
        """Counts a chunk that leaves rows pending in the block as waiting, until Prefect retries it."""
        with self._lock:
            self._waiting_chunks.discard(digest)
            self._incomplete_chunks.discard(digest)
        try:
            yield
        except ChunkIncomplete:
            with self._lock:
                self._waiting_chunks.add(digest)
                self._incomplete_chunks.add(digest)
            raise

    def over(self, digest: str) -> None:
        """Records that a chunk will not be attempted again."""
        self._expected.pop(digest, None)
        with self._lock:
            self._waiting_chunks.discard(digest)

    def chunks_waiting(self) -> int:
        """Returns how many chunks wait for Prefect's retry."""
        with self._lock:
            return len(self._waiting_chunks)

    def abandon_uploads(self) -> None:
        """Aborts the uploads that are left: of rows that left the plan, or failed. No row may be pending."""
        if isinstance(self._lease, Lease) and self._lease.held and not (self.stopping or self._incomplete_chunks):
            with contextlib.suppress(Exception):  # the next run tries again
                self.wait(self._stores[0].uploads.abandon())

    def close(self) -> None:
        """Closes the connections and ends the loop's thread.

        If the run was ended from outside, running chunks are stopped first: their threads would wait for ever.
        """
        running = list(self._waited_for)
        if running:
            self.request_stop("the run has ended")
            concurrent.futures.wait(running, CLOSE_S)
            for future in running:
                future.cancel()
        if self._hosts_writer is not None:
            self._hosts_writer.cancel()
        self.wait(self._origin.close())
        for store in self._stores:
            self.wait(store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for pool in (self._pool, self._checkers):
            pool.shutdown(wait=False, cancel_futures=True)


def max_in_flight(files: int) -> int:
    """Returns how many connections each side may have: half of the ``files`` descriptors that are not reserved."""
    return max(8, min(MAX_IN_FLIGHT, (files - RESERVED_FILES) // 2))
