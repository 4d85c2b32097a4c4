"""One execution of a job: its state under lease, the engine's runtime, and what became of its chunks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ferry.core import Damaged, FerryError, Reason, Stopped, UserError
from ferry.job import Job
from ferry.processes import PlannerProcess, PlanRequest
from ferry.reconcile import PruneResult
from ferry.state import ChunkRef, Holder, Lease, Planned, State, hold_lease, last_run_no, open_state, read_plan
from ferry.storage import Access, run_preflight
from ferry.transfer import Runtime
from tasks import secrets, state_location
from tasks.own_files import refuse_own_files
from tasks.reporting import log_format
from tasks.reporting.run_view import RunView
from tasks.reporting.text import Troubled
from tasks.workers.pool import WorkerPool, processes_of
from tasks.workers.tuning import for_many_objects, limit_malloc_arenas, raise_file_limit
from tasks.workers.worker import Setup

_current: Run | None = None
died: Holder | None = None  # whose lease `ferry run --replan` took over, before Prefect could be told
warm: PlannerProcess | None = None  # `ferry run` starts it before it loads Prefect
# what Ferry names so there
SPOOLED = re.compile(
    r"(body-|duckdb-|(list|ledger\.parquet|pruned\.csv|gone\.csv|same-bytes\.csv)\Z|manifest\.parquet(\.|\Z))"
)
KEEP_CHILD_ROWS = 20_000  # a run of more is long: the child's 100 MB are worth more than the start of another


@dataclass(slots=True)
class Run:
    """Made by :func:`open_run`; the tasks of the flow work on it."""

    job: Job
    state: State
    lease: Lease
    runtime: Runtime
    run_no: int
    source: Access
    destination: Access
    planner: PlannerProcess
    crew: WorkerPool
    planned: Planned | None = None  # the run's first plan
    returned: list[str] = field(default_factory=list)  # digests of chunks that settled in this run
    cached: int = 0
    task_runs: dict[str, str] = field(default_factory=dict)  # chunk -> Prefect's ID of the task run that had it
    troubled: deque[Troubled] = field(default_factory=deque)  # chunks that the run's page has not heard of yet
    doubtful: bool = False  # a chunk came back Cached whose rows the ledger does not have
    incomplete: dict[str, str] = field(default_factory=dict)  # chunk -> why rows are pending
    errors: list[FerryError] = field(default_factory=list)
    planning: bool = False
    pruned: PruneResult | None = None  # of the copies whose rows were removed from the manifest, if the run prunes

    def child(self, work: str, **ask: Any) -> str:
        """Has the child process plan or finish; see :mod:`ferry.processes.planner_process`."""
        return self.planner.ask(
            PlanRequest(self.job, self.state.uri, str(cache_root()), self.source, self.destination, work, ask)
        )

    def view(self) -> RunView:
        """What there is to see of this run while it is on."""
        return RunView(
            self.job.name, self.job.mode, self.runtime.progress, lambda: self.planned, self.troubled,
            self.runtime.all_hosts, lambda: self.crew.processes,
        )  # fmt: skip

    def file(self, name: str) -> str:
        """Where a file of the state lies, for people."""
        return f"{self.state.uri.rstrip('/')}/{name}"

    def trouble(self, ref: ChunkRef, task_run: str, words: str) -> None:
        """The run's page is to say so of a chunk."""
        self.troubled.append(Troubled(ref.digest, task_run, words, self.file(ref.uri)))

    def stop(self, reason: str) -> None:
        """Nothing new begins; what is in flight may end. From a signal's handler: it waits for nothing."""
        self.runtime.request_stop(reason)
        if self.planning:
            self.planner.stop(reason)

    def _until_stopped(self, work: str, **ask: Any) -> str:
        """As :meth:`child`; the work is broken off, and Stopped raised, when the run is to stop meanwhile."""
        self.planning = True
        try:
            if self.runtime.stopping:
                raise Stopped(self.runtime.stop_reason)
            return self.child(work, run_no=self.run_no, token=self.lease.token, **ask)
        finally:
            self.planning = False
            self.planner.go_on()

    def prune(self) -> None:
        """Deletes copies whose rows were removed from the manifest. Raises Stopped, and what prune_removed raises."""
        self.pruned = PruneResult(**json.loads(self._until_stopped("prune")))

    def plan(self, mode: str, *, classes: Sequence[str] = (), limit: int | None = None) -> Planned:
        """Raises Stopped when the run is to stop meanwhile, besides what planning raises."""
        answer = self._until_stopped("plan", mode=mode, classes=list(classes), limit=limit, returned=self.returned)
        planned = Planned.decode(answer)
        self.planned = self.planned or planned
        rows = sum(chunk.rows - chunk.done for chunk in planned.chunks)
        if rows > KEEP_CHILD_ROWS:
            self.planner.close()
        again = planned.todo.get(Reason.RETRY, 0) if mode == "pass" else 0
        self.runtime.progress.again(again)
        self.runtime.progress.start(rows - again)
        return planned


def cache_root() -> Path:
    """Where copies of state in a bucket are kept, for this user alone; nothing there is needed again.

    Raises UserError when somebody else has made the directory, or may write into it.
    """
    root = Path(tempfile.gettempdir()) / f"ferry-state-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(f"{root} is not a directory of yours alone: delete it, or set TMPDIR to another directory")
    return root


def state_of(job: Job) -> State:
    """The job's state; relative paths must have been made absolute (secrets.anchored)."""
    assert job.state is not None
    access = secrets.destination_access(job) if job.state.startswith("s3://") else Access()
    return open_state(job.state, access, cache_root())


def current() -> Run:
    """The run of this process, for the tasks that Prefect calls."""
    if _current is None:
        raise FerryError("transfer_chunk runs only inside the flow `migrate`")
    return _current


@contextlib.contextmanager
def open_run(
    job: Job,
    name: str,
    limit: int | None = None,
    flow_run: str = "",
    tell: Callable[[str], None] = lambda _: None,
    *,
    wait: bool = False,
) -> Iterator[Run]:
    """Checks the destination, takes the lease and starts the engine; gives all of it back at the end.

    ``flow_run``: Prefect's ID, for whoever finds the lease of a run that died; ``tell`` hears what it waits for.
    Raises UserError for settings, LeaseHeld when another run is on and this one is not to ``wait`` for its end.
    """
    global _current
    state_location.refuse_lost_state(str(job.state))
    refuse_own_files(job)
    source, destination = secrets.source_access(job), secrets.destination_access(job)
    headers = secrets.headers(job)
    state = state_of(job)
    with contextlib.suppress(Damaged):  # of which planning makes what it can
        read_plan(state)  # a state of a newer version is refused before anything else happens
    run_preflight(job.destination.uri, destination)
    with contextlib.ExitStack() as stack:
        planner = stack.enter_context(_planner())
        runtimes: list[Runtime] = []

        def lease_lost() -> None:
            for lost in runtimes:
                lost.request_stop("the lease on the state was lost to another run")

        lease = stack.enter_context(hold_lease(state, name, lease_lost, flow_run=flow_run, wait=wait, tell=tell))
        clean_spool(state)
        run_no = log_format.about["run_no"] = last_run_no(state) + 1
        raise_file_limit()
        limit_malloc_arenas()
        share, most = processes_of(job, limit)
        runtime = Runtime(
            job, state, lease, run_no,
            source_access=source, destination_access=destination, headers=headers, limit=limit, share=share,
        )  # fmt: skip
        runtimes.append(runtime)
        stack.callback(runtime.close)
        setup = Setup(job, state.uri, str(cache_root()), source, destination, headers, run_no, share, log_format.about)
        crew = WorkerPool(runtime, lease, setup, most)
        stack.callback(crew.close)
        stack.enter_context(for_many_objects())
        _current = Run(job, state, lease, runtime, run_no, source, destination, planner, crew)
        try:
            yield _current
        finally:
            _current = None


def _planner() -> PlannerProcess:
    global warm
    child, warm = warm or PlannerProcess(), None
    return child


def clean_spool(state: State) -> None:
    """What a killed run left in the spool: bodies, and the list with its addresses as they are. Under the lease
    no other run uses it; what has none of Ferry's names was there before somebody said `state: .`."""
    for path in state.spool_dir.glob("*"):
        if not SPOOLED.match(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
