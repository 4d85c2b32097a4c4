"""One run of a job: its state with the lease, the runtime of its transfers, and the outcomes of its chunks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from ferry.core import Damaged, FerryError, Reason, Stopped, UserError
from ferry.http import Auth
from ferry.job import Job
from ferry.processes import PlannerProcess, PlanRequest
from ferry.ratelimit import LimitsFollower, Share
from ferry.reconcile import PruneResult
from ferry.state import (
    ChunkRef,
    Holder,
    Lease,
    Planned,
    Seen,
    State,
    hold_lease,
    last_run_no,
    patient,
    read_plan,
    read_predicted,
)
from ferry.storage import Access, ends_too_early, run_preflight
from ferry.transfer import Runtime
from tasks import secrets, state_location
from tasks.own_files import refuse_own_files
from tasks.reporting import log_format
from tasks.reporting.run_view import RunView
from tasks.reporting.text import ChunkProblem
from tasks.workers.pool import LimitsSource, WorkerPool, processes_of
from tasks.workers.shared_limits import SharedLimits
from tasks.workers.tuning import for_many_objects, limit_malloc_arenas, raise_file_limit
from tasks.workers.worker import Setup

_current: Run | None = None
replaced_holder: Holder | None = None  # whose lease `ferry run --replan` took over, before Prefect was loaded
started_planner: PlannerProcess | None = None  # started by `ferry run` before it loads Prefect
# the names of Ferry's own files in the spool
SPOOLED = re.compile(
    r"(body-|duckdb-|ferry-(proof|public)-|(list|ledger\.parquet|gone\.csv|readings\.csv|same-bytes\.csv)\Z"
    r"|manifest\.parquet(\.|\Z))"
)
KEEP_CHILD_ROWS = 20_000  # in longer runs, freeing the child's 100 MB is worth starting another one later


class Sides(NamedTuple):
    """What a process needs to talk to both ends: credentials, headers, the credential for web servers."""

    source: Access
    destination: Access
    headers: dict[str, str]
    auth: Auth | None


@dataclass(slots=True)
class Run:
    """The state of a run, which the flow's tasks share. Made by :func:`open_run`."""

    job: Job
    state: State
    lease: Lease | Seen
    runtime: Runtime
    run_no: int
    source: Access
    destination: Access
    planner: PlannerProcess | None  # None in a shard, which does not plan
    pool: WorkerPool
    auth: Auth | None  # the job's credential for web servers
    planned: Planned | None = None  # the run's first plan
    at_random: bool = False  # whether it takes a random sample
    returned: list[str] = field(default_factory=list)  # digests of chunks whose task returned in this run
    cached: int = 0
    places: dict[str, str] = field(default_factory=dict)  # chunk -> its place in the run, such as `3-of-12`
    task_runs: dict[str, str] = field(default_factory=dict)  # chunk -> Prefect's ID of its last task run
    chunk_problems: deque[ChunkProblem] = field(default_factory=deque)  # chunks that the run's page does not show yet
    needs_repair: bool = False  # a chunk came back Cached, but the ledger lacks some of its rows
    incomplete: dict[str, str] = field(default_factory=dict)  # chunk -> why rows are pending
    hopeless: list[str] = field(default_factory=list)  # chunks with pending rows of hosts that never answered
    errors: list[FerryError] = field(default_factory=list)
    planning: bool = False
    shared: SharedLimits = field(default_factory=SharedLimits)  # of a shard: none, since the run divides its limits
    pruned: PruneResult | None = None  # the result of deleting removed copies, if the job asks for it

    def child(self, work: str, **ask: Any) -> str:
        """Have the planner process do some work, such as `plan` or `finish`, and return its answer."""
        assert self.planner is not None
        access = self.source, self.destination
        return self.planner.ask(
            PlanRequest(self.job, self.state.uri, str(state_location.cache_root()), *access, work, ask, auth=self.auth)
        )

    def view(self) -> RunView:
        """Returns a view of this run for progress reports."""
        return RunView(
            self.job.name, self.job.mode, self.runtime.progress, lambda: self.planned, self.chunk_problems,
            self.runtime.all_hosts, lambda: self.pool.all_processes,
        )  # fmt: skip

    def file(self, name: str) -> str:
        """Returns the full address of a file in the state."""
        return f"{self.state.uri.rstrip('/')}/{name}"

    def number_chunks(self, refs: Sequence[ChunkRef], first: int | None = None, total: int | None = None) -> None:
        """Give chunks that have none yet their places, such as `3-of-12`, after the chunks that have one."""
        new = [ref for ref in refs if ref.digest not in self.places]
        first = len(self.places) + 1 if first is None else first
        total = len(self.places) + len(new) if total is None else total
        self.places.update((ref.digest, f"{number}-of-{total}") for number, ref in enumerate(new, first))

    def note_problem(self, ref: ChunkRef, task_run: str, problem: str) -> None:
        """Have the run's page show a problem with a chunk."""
        self.chunk_problems.append(ChunkProblem(ref.digest, task_run, problem, self.file(ref.uri)))

    def stop(self, reason: str) -> None:
        """Start no more objects, and let those in flight finish. Safe in a signal handler: it does not wait."""
        self.runtime.request_stop(reason)
        if self.planning and self.planner is not None:
            self.planner.stop(reason)

    def _until_stopped(self, work: str, **ask: Any) -> str:
        """Do :meth:`child`, but abort the work and raise Stopped if the run is stopped meanwhile."""
        self.planning = True
        try:
            if self.runtime.stopping:
                raise Stopped(self.runtime.stop_reason)
            return self.child(work, run_no=self.run_no, token=self.lease.token, **ask)
        finally:
            self.planning = False
            if self.planner is not None:
                self.planner.resume()

    def prune(self) -> None:
        """Delete the copies whose rows were removed from the manifest. Raises Stopped, and what the deletion raises."""
        self.pruned = PruneResult(**json.loads(self._until_stopped("prune")))

    def plan(
        self, mode: str, *, classes: Sequence[str] = (), limit: int | None = None, at_random: bool = False
    ) -> Planned:
        """Plan, and return the plan. Raises Stopped if the run is stopped meanwhile, and what planning raises."""
        answer = self._until_stopped(
            "plan", mode=mode, classes=list(classes), limit=limit, at_random=at_random, returned=self.returned
        )
        planned = Planned.decode(answer)
        self.planned = self.planned or planned
        self.at_random = self.at_random or at_random
        rows = sum(chunk.rows - chunk.done for chunk in planned.chunks)
        if rows > KEEP_CHILD_ROWS and self.planner is not None:
            self.planner.close()
        again = planned.todo.get(Reason.RETRY, 0) if mode == "pass" else 0
        self.runtime.progress.requeue(again)
        self.runtime.progress.start(rows - again)
        return planned


def current() -> Run:
    """Returns this process's run, for tasks that Prefect calls. Raises FerryError without one."""
    if _current is None:
        raise FerryError("transfer_chunk runs only inside the flow `migrate`")
    return _current


@contextlib.contextmanager
def open_run(
    job: Job,
    name: str,
    limit: int | None = None,
    flow_run: str = "",
    warn: Callable[[str], None] = lambda _: None,
    *,
    wait: bool = False,
) -> Iterator[Run]:
    """Check the destination, take the lease and start the runtime, until the block ends.

    ``flow_run`` is Prefect's ID, which the lease records for later runs. ``warn`` gets a message about a wait.
    Raises UserError for unusable settings, and LeaseHeld if another run holds the lease and ``wait`` is false.
    """
    state_location.refuse_lost_state(str(job.state))
    refuse_own_files(job)
    source, destination = secrets.accesses(job)
    secrets.refuse_unusable(job, source)
    headers, auth = secrets.headers(job), secrets.auth(job)
    state = state_location.state_of(job, destination)
    with contextlib.suppress(Damaged):  # planning handles a damaged plan
        read_plan(state)  # refuses a state of a newer version first
    run_preflight(job.destination.uri, destination, attributes=job.destination.attribute_rules().set)
    predicted = read_predicted(state)
    until = datetime.now(UTC) + timedelta(seconds=predicted.high_s if predicted else 0.0)
    for side, access in (("source", source), ("destination", destination)):
        if too_early := ends_too_early(access, f"{side}.credentials", until):
            raise UserError(too_early)
    with contextlib.ExitStack() as stack:
        planner = stack.enter_context(_planner())
        runtimes: list[Runtime] = []

        def lease_lost() -> None:
            for started in runtimes:
                started.request_stop("another run has taken the lease on the state")

        lease = stack.enter_context(hold_lease(state, name, lease_lost, flow_run=flow_run, wait=wait, tell=warn))
        clean_spool(state)
        state = patient(state, lambda _: lease.held)
        run_no = last_run_no(state) + 1
        shared = SharedLimits(job.limits.shared, flow_run, warn)
        stack.callback(shared.leave)
        follower = stack.enter_context(LimitsFollower(state, job.limits, members=lambda: shared.members))
        sides = Sides(source, destination, headers, auth)
        run = stack.enter_context(_engine(job, state, lease, run_no, sides, follower, limit, planner))
        run.shared = shared
        runtimes.append(run.runtime)
        yield run


@contextlib.contextmanager
def open_shard(job: Job, state: State, seen: Seen, run_no: int, limits: LimitsSource) -> Iterator[Run]:
    """Start the runtime of a shard, which another process's run has planned, until the block ends.

    Credentials and headers are resolved here, on this machine. Raises UserError for unusable ones.
    """
    source, destination = secrets.accesses(job)
    sides = Sides(source, destination, secrets.headers(job), secrets.auth(job))
    patient_state = patient(state, lambda _: seen.may_be_held)
    with _engine(job, patient_state, seen, run_no, sides, limits, None, None) as run:
        yield run


@contextlib.contextmanager
def _engine(
    job: Job,
    state: State,
    lease: Lease | Seen,
    run_no: int,
    sides: Sides,
    limits: LimitsSource,
    limit: int | None,
    planner: PlannerProcess | None,
) -> Iterator[Run]:
    """Start the runtime and its processes, and make the run :func:`current`, until the block ends."""
    global _current
    log_format.run_fields["run_no"] = run_no
    raise_file_limit()
    limit_malloc_arenas()
    count, most = processes_of(job, limit, limits.limits)
    limited = job.model_copy(update={"limits": limits.limits})
    share = Share(count + limits.elsewhere(), count)
    with contextlib.ExitStack() as stack:
        runtime = Runtime(
            limited, state, lease, run_no,
            source_access=sides.source, destination_access=sides.destination, headers=sides.headers, auth=sides.auth,
            limit=limit, share=share,
        )  # fmt: skip
        stack.callback(runtime.close)
        setup = Setup(
            limited, state.uri, str(state_location.cache_root()), sides.source, sides.destination, sides.headers,
            run_no, share, log_format.run_fields, auth=sides.auth,
        )  # fmt: skip
        pool = WorkerPool(runtime, lease, setup, most, limits)
        stack.callback(pool.close)
        stack.enter_context(for_many_objects())
        _current = Run(job, state, lease, runtime, run_no, sides.source, sides.destination, planner, pool, sides.auth)
        try:
            yield _current
        finally:
            _current = None


def _planner() -> PlannerProcess:
    global started_planner
    child, started_planner = started_planner or PlannerProcess(), None
    return child


def clean_spool(state: State) -> None:
    """Delete what a killed run, proof or check left in the spool: bodies, and the manifest with its complete URLs.

    The lease ensures that no other run uses the spool. A check of public addresses has no lease, and locks its folder.
    Files with other names are the user's, as with `state: .`.
    """
    for path in state.spool_dir.glob("*"):
        if not SPOOLED.match(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            if not (path.name.startswith("ferry-public-") and _locked(path)):
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _locked(folder: Path) -> bool:
    """Returns whether another process has locked the folder, or the file system has no locks to ask for."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(opened)
    return False
