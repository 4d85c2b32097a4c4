"""A run's pool of engine processes: this one, and workers where one core is not enough (docs/decisions/0011)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from ferry.job import UNLIMITED_BYTES, Job, Limits
from ferry.processes import Autoscaler, cores, idle_s
from ferry.ratelimit import Share, is_bounded, most_processes
from ferry.state import ChunkRef, Lease, Seen
from ferry.transfer import (
    CHECK_S,
    SILENT_WARN_S,
    Action,
    ChunkResult,
    Moment,
    Runtime,
    Watchdog,
    describe_silence,
    describe_stall,
    duration,
    is_excused,
    run_chunk,
)
from tasks.workers.handle import WorkerHandle
from tasks.workers.messages import Orders, heed, seconds_left
from tasks.workers.peer import Peer
from tasks.workers.worker import Setup

MOST = 16  # processes; more were not measured


def processes_of(job: Job, limit: int | None, limits: Limits) -> tuple[int, int]:
    """Returns the number of engine processes at the start, and the largest number. With --limit both are 1.

    ``limits`` are those in force at the start.

    | `processes` | limits | at the start | at most |
    |---|---|---|---|
    | auto | none in the job | 1 | the number of cores, at most 16 |
    | auto | some in the job, or `spool_bytes` | 1 | 1: the limit decides the rate, not a core |
    | N | none | N | N |
    | N | some in force | N, but no more than the smallest limit of concurrency | the same |
    """
    concurrency = None if job.concurrency == "auto" else job.concurrency
    if limit is not None:
        return 1, 1
    if job.processes == "auto":
        bounded = is_bounded(concurrency, job.limits) or job.spool_bytes < UNLIMITED_BYTES
        return 1, 1 if bounded else min(cores(), MOST)
    most = most_processes(job.processes, concurrency, limits)
    return most, most


class LimitsSource(Protocol):
    """The limits in force: ferry.ratelimit.LimitsFollower, or on another machine what the run ordered."""

    @property
    def limits(self) -> Limits: ...
    def update(self) -> list[str]: ...
    def elsewhere(self) -> int:
        """Returns the number of processes on other machines at the start of this one."""
        ...


class WorkerPool:
    """Assigns chunks to engine processes, and starts more of these. Created in the run's main thread."""

    def __init__(
        self,
        runtime: Runtime,
        lease: Lease | Seen,
        setup: Setup,
        most: int,
        follower: LimitsSource,
    ) -> None:
        """Start with ``setup.share.machine`` processes, including this one; grow to at most ``most``."""
        self._follower = follower
        self._runtime = runtime
        self._lease = lease
        self._setup = setup
        self._most = most
        self._autoscaler = Autoscaler()
        self._assigned: dict[str, WorkerHandle | None] = {}  # chunk -> its process; None: this one
        self.workers: list[WorkerHandle] = []
        self.machines: list[Peer] = []  # processes of this run on other machines, which send beats to this one
        self.elsewhere: Callable[[], int] = lambda: sum(peer.processes for peer in self.machines)
        runtime.other_processes = lambda: [peer.hosts for peer in self.peers]
        for _ in range(setup.share.machine - 1):
            self.workers.append(WorkerHandle(setup, runtime))
        self.limit_changes: list[str] = []  # in this run
        self.transferring = False  # false while the run plans or reconciles
        self._closing = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="ferry-watchdog", daemon=True)
        self._watchdog.start()

    @property
    def peers(self) -> list[Peer]:
        """All other processes of the run whose beats come to this one."""
        return [*self.workers, *self.machines]

    def _watch(self) -> None:
        """Run the watchdog in its own thread, which neither the event loop nor a full pipe can block."""
        watchdog = Watchdog(time.monotonic())
        while not self._closing.wait(CHECK_S):
            now = time.monotonic()
            for worker in list(self.workers):
                worker.check_silence(now)
            self._check(watchdog, now)

    def _check(self, watchdog: Watchdog, now: float) -> None:
        runtime, workers, peers = self._runtime, list(self.workers), self.peers
        waits = [*runtime.waits(), *(wait for peer in peers for wait in peer.waits)]
        moment = Moment(
            runtime.progress.recorded, runtime.object_transfer.waits.pieces + sum(peer.pieces for peer in peers),
            self.transferring and not runtime.stopping and runtime.progress.pending > 0,
            is_excused(runtime.paused, waits),
        )  # fmt: skip
        action = watchdog.check(now, moment)
        silent_s = max((worker.silent_s for worker in workers), default=0.0)
        words = ""
        if action is not Action.NOTHING:
            words = describe_stall(watchdog.still_s, waits)
        elif silent_s >= SILENT_WARN_S:
            words = f"an engine process has been silent for {duration(silent_s)}"
        runtime.progress.still = words
        silent = runtime.dispatcher.silent
        for peer in peers:
            silent |= peer.silent
        runtime.progress.silent = describe_silence(silent) if self.transferring else ""
        if action is Action.END:
            runtime.request_stop(f"{words}. The run was stopped; the next run processes the pending rows")

    @property
    def processes(self) -> int:
        """The number of live engine processes of this machine, including this one."""
        return 1 + sum(not worker.has_died for worker in self.workers)

    @property
    def all_processes(self) -> int:
        """The number of live engine processes of the run, on all machines."""
        return self.processes + self.elsewhere()

    def assign(self, ref: ChunkRef, *, wanted: bool) -> bool:
        """Assign a chunk to the process with the fewest rows. Returns False if all have enough rows.

        With ``wanted``, this process takes the chunk if no other does. Retries of a chunk stay with its process, which
        knows the rows that are done.
        """
        own = self._runtime
        able: list[tuple[int, WorkerHandle | None]] = [
            (worker.rows_ahead, worker) for worker in self.workers if worker.wants_rows
        ]
        if own.wants_chunk or (wanted and not able):
            able.append((own.rows_ahead, None))
        if not able:
            return False
        worker = self._assigned[ref.digest] = min(able, key=lambda entry: entry[0])[1]
        rows = ref.rows - ref.done
        if worker is None:
            own.expect(ref.digest, rows)
        else:
            worker.unacknowledged[ref.digest] = rows
        return True

    def run_chunk(self, ref: ChunkRef) -> ChunkResult:
        """Run a chunk in its process, as ferry.transfer.run_chunk does. Called in the thread of its task."""
        worker = self._assigned[ref.digest]
        return run_chunk(self._runtime, ref) if worker is None else worker.run(ref)

    def forget(self, digest: str) -> None:
        """Forget a chunk that will not run again: it is done, Cached, or has no retries left."""
        self._runtime.over(digest)
        if worker := self._assigned.pop(digest, None):
            worker.unacknowledged.pop(digest, None)

    def adjust(self) -> bool:
        """Exchange messages with the workers, a few times a second. Returns True if it started another worker."""
        self._share(self._setup.job.limits)
        self._exchange()
        stopped_or_paused = self._runtime.stopping or self._runtime.paused
        if any(worker.has_died and not worker.retired for worker in self.workers):
            return False  # after a worker has died, perhaps for lack of memory, start none
        if self.processes >= self._most or stopped_or_paused or is_bounded(None, self._setup.job.limits):
            return False
        idle = idle_s()
        if idle is None:
            return False
        used = [self._runtime.loop_cpu_s(), *(worker.cpu_s for worker in self.workers if not worker.retired)]
        now = time.monotonic()
        grow = self._autoscaler.should_add(now, used, idle, lambda: self._runtime.progress.snapshot().left_s)
        return grow and not self._is_rate_limited and self._start_worker()

    @property
    def _is_rate_limited(self) -> bool:
        """Whether a host limits the requests per second, so that another process would not help."""
        return any(host.requests_per_s is not None for host in self._runtime.hosts()[0])

    def _start_worker(self) -> bool:
        setup = replace(self._setup, share=Share(self.all_processes + 1, self.processes + 1))
        try:
            self.workers.append(WorkerHandle(setup, self._runtime))
        except OSError:  # no memory, or too many processes of this user: continue with fewer
            self._most = self.processes
            return False
        self._share(self._setup.job.limits)
        return True

    def follow_limits(self) -> list[str]:
        """Apply the limits in force, and return a sentence for each that has changed.

        Each process needs a permit, so a limit on requests in flight below the number of processes ends some of them.
        """
        changes = self._follower.update()
        self.limit_changes += [f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {change}" for change in changes]
        limits = self._follower.limits
        if limits != self._setup.job.limits:
            live = self._live
            most = most_processes(1 + len(live) + self.elsewhere(), None, limits) - self.elsewhere()
            for worker in live[max(1, most) - 1 :]:
                worker.retire()
            self._share(limits)
        return changes

    @property
    def _live(self) -> list[WorkerHandle]:
        return [worker for worker in self.workers if not worker.has_died and not worker.retired]

    def _share(self, limits: Limits) -> None:
        """Have all processes use ``limits``, divided among those that live now."""
        here = 1 + len(self._live)
        share = Share(here + self.elsewhere(), here)
        if (limits, share) == (self._setup.job.limits, self._setup.share):
            return
        self._setup = replace(self._setup, job=self._setup.job.model_copy(update={"limits": limits}), share=share)
        self._runtime.set_limits(limits, share)
        self._exchange()

    def orders(self) -> Orders:
        """Returns the orders for other processes."""
        pauses = seconds_left(self._runtime.limiter.pauses())
        limits, share = self._setup.job.limits.model_dump(mode="json"), self._setup.share
        return Orders(
            share.run, self._runtime.stop_reason, self._runtime.paused, limits, pauses, share.machine, self._lease.until
        )

    def _exchange(self) -> None:
        """Heed the pauses of the other processes, and send the workers their orders."""
        for peer in self.peers:
            heed(self._runtime, peer.pauses)
        for worker in self.workers:
            if worker.answers:
                worker.send(self.orders())

    def close(self) -> None:
        """Stop the watchdog and the workers."""
        self._closing.set()
        self._watchdog.join()
        for worker in self.workers:
            worker.close()
