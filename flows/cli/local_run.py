"""Runs the flow in this process, on the Prefect server that PREFECT_API_URL names or on a local one."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferry.core import FerryError, UserError
from ferry.job import Job
from flows.running import signals
from flows.server import working_directory
from flows.server.api_address import given_url
from flows.server.local import prefect_server
from tasks.own_files import refuse_own_files
from tasks.workers.tuning import limit_malloc_arenas

if TYPE_CHECKING:
    from tasks.reporting.text import Report

RECORDED_S = 30.0
MANY_CHUNKS = 50
lost = False  # the server went away for good: what Prefect would still send at the process's end has nowhere to go


def prefect_home(folder: Path) -> Path:
    """The local server's home: PREFECT_HOME where it is set, else `.ferry/prefect` beside the job file."""
    given = os.environ.get("PREFECT_HOME")
    return Path(given) if given else folder / ".ferry" / "prefect"


def has_many_chunks(job: Job) -> bool:
    """A rerun of a large job: its chunks come back from the cache faster than a server records them one by one.

    Of a state in a bucket nothing is known yet: to ask there would be the first request of the run.
    """
    from ferry.state import read_plan
    from tasks.run import state_of

    try:
        plan = None if str(job.state).startswith("s3://") else read_plan(state_of(job))
    except (FerryError, OSError):
        return False  # the run will say so
    return plan is not None and len(plan.chunks) >= MANY_CHUNKS


def load_flows() -> None:
    """Imports Prefect, a second's work; its settings must be in the environment by now."""
    with signals.ended_by_the_system():
        import flows.migrate  # noqa: F401


@dataclass(frozen=True, slots=True)
class Api:
    """The Prefect API that a command works against."""

    url: str
    ends_with_us: bool  # a local server, started for this command

    def settle(self, state: Any) -> None:
        """Waits until the tasks of a run are recorded, where the server would not be there to do it later.

        Task runs reach a server by events. At the process's end Prefect sends those that are left.
        """
        if self.ends_with_us:
            wait_until_recorded(state)


@contextlib.contextmanager
def prefect_for(folder: Path, *, quiet: bool, job: Job | None = None) -> Iterator[Api]:
    """A Prefect API to run against. With ``quiet`` Prefect's log goes to the API only, not to the console.

    A local server is made ready for many tasks where ``job`` has them.
    """
    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    local = not given_url()
    many_tasks = local and job is not None and has_many_chunks(job)
    with prefect_server(prefect_home(folder), load_flows, many_tasks=many_tasks) as url:
        yield Api(url, local)
        if local:
            flush_logs()


@contextlib.contextmanager
def blocks_for(job: Job, folder: Path) -> Iterator[None]:
    """For commands that are no runs: where the job names blocks, the server that its runs would ask for them."""
    from tasks.secrets import names_blocks

    if not names_blocks(job) or given_url():
        working_directory.leave()
        yield
        return
    with prefect_server(prefect_home(folder), lambda: None):
        yield


def prepare(job: Job, job_file: Path, *, replan: bool, wait: bool) -> None:
    """What goes before the flow: a check of the destination, a child that loads its libraries meanwhile, and
    `--replan`, which no flow has."""
    from ferry.processes import PlannerProcess
    from ferry.state import hold_lease, put_ledger_aside, set_plan_aside
    from flows.cli import terminal
    from tasks import run as runs

    refuse_own_files(job, job_file)
    limit_malloc_arenas()
    runs.warm = PlannerProcess()  # loads DuckDB while this process loads Prefect
    if replan:
        with blocks_for(job, job_file.absolute().parent):
            state = runs.state_of(job)
        with hold_lease(state, f"{job.name} (replan)", wait=wait) as held:
            runs.died = held.took_over
            set_plan_aside(state)
            for name in put_ledger_aside(state):
                terminal.warning(f"{name} was damaged or gone: put aside, rows that it alone had are looked at again")


@contextlib.contextmanager
def as_recorded() -> Iterator[None]:
    """How the server knows a run of this process: tagged, as prefect.yaml tags those of the deployment, and without
    heartbeats. Their thread sleeps in whole seconds, and a flow waits for its end; the lease says who is alive."""
    from prefect import tags
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with tags("ferry"), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def migrate_here(
    api: Api, job: Job, retry_failed: bool | list[str] = False, limit: int | None = None, wait: bool = False
) -> tuple[int, Report | str]:
    """Runs the flow; returns the exit code (SEMANTICS: results of a run), and the report, or a message without one."""
    global lost
    load_flows()
    from flows import migrate as flow
    from flows.cli import terminal
    from tasks.prefect_api import API_ERRORS

    with signals.listening(), as_recorded():
        try:
            state = end_of(flow.migrate, job, retry_failed, limit, wait)
        except API_ERRORS:
            if flow.ended is None:
                raise UserError(f"the Prefect server at {api.url} does not answer; nothing has moved") from None
            state, lost = flow.ended, True
            terminal.warning(
                f"the Prefect server at {api.url} does not answer: it shows this run as Running. The state has all "
                "that the run did, and what follows is true"
            )
        with contextlib.suppress(*API_ERRORS):
            api.settle(state)
    return exit_code(state, flow.report)


def end_of(flow: Any, *parameters: Any) -> Any:
    """Runs a flow in this process; its final state. One that was cancelled at Prefect before it began has none."""
    from prefect.exceptions import Abort
    from prefect.states import Cancelled

    try:
        return flow(*parameters, return_state=True)
    except Abort:
        return Cancelled(message="cancelled at Prefect before it began; nothing was done")


def exit_code(state: Any, report: Report | None = None) -> tuple[int, Any]:
    """0, 1, 2, 3, 130 or 143 for a flow's final state, with its report, or its message where there is none."""
    if state.is_cancelled():
        return signals.exit_code(), report or state.message
    if report is not None:
        return report.exit_code, report
    return exit_code_of(state.is_completed(), state.message or "")


def exit_code_of(completed: bool, message: str) -> tuple[int, str]:
    """The exit code and the sentence of a run that was not cancelled, from its state's message (migrate.failure)."""
    name, _, text = message.partition(": ")
    if name in ("UserError", "LeaseHeld"):
        return (2 if name == "UserError" else 3), text
    return (0 if completed else 1), text if name in ("Fatal", "FerryError") else message


def wait_until_recorded(state: Any, deadline_s: float = RECORDED_S) -> None:
    """Until the server has all task runs of a flow run in a final state, or somebody presses Ctrl-C."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import TERMINAL_STATES

    from tasks import task_count

    if state.state_details.flow_run_id is None:
        return
    ended = {
        "flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}},
        "task_runs": {"state": {"type": {"any_": sorted(kind.value for kind in TERMINAL_STATES)}}},
    }
    deadline = time.monotonic() + deadline_s
    heard = signals.last_signal
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline and signals.last_signal is heard:
            if client.request("POST", "/task_runs/count", json=ended).json() >= task_count.made():
                return
            time.sleep(0.05)


def flush_logs() -> None:
    """Sends what is still queued before the local server goes down."""
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()


def demo_tour() -> Callable[..., int]:
    """The tour of the demo. Raises UserError in an installed package: no generic name `demo` is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "demo" / "tour.py").is_file() or not (root / "prefect.yaml").is_file():
        raise UserError(
            "the demo needs a checkout of Ferry, and this is an installed package: clone Ferry's repository, and run "
            "`make demo` there"
        )
    sys.path.append(str(root))
    from demo.tour import tour

    return tour
