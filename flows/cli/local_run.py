"""Flow runs in this process, on the Prefect server of PREFECT_API_URL or on a local one."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferry.core import UserError, in_bucket
from flows.running import signals
from tasks.own_files import refuse_own_files
from tasks.retry_selection import RetrySelection
from tasks.workers.tuning import limit_malloc_arenas

if TYPE_CHECKING:
    from ferry.job import Job
    from tasks.reporting.text import Report

server_unreachable = (
    False  # whether the server stayed unreachable: Prefect's exit handlers could not send their records
)


def prefect_home(folder: Path) -> Path:
    """Returns the local server's home: PREFECT_HOME if it is set, else `.ferry/prefect` beside the job file."""
    given = os.environ.get("PREFECT_HOME")
    return Path(given) if given else folder / ".ferry" / "prefect"


def load_flows() -> None:
    """Import the flows and Prefect, which takes a second. Prefect's settings must be in the environment by now."""
    with signals.ended_by_the_system():
        import flows.migrate  # noqa: F401


@contextlib.contextmanager
def prefect_for(folder: Path, *, quiet: bool) -> Iterator[str]:
    """Provide the address of a Prefect API. With ``quiet``, Prefect's log goes to the API only, not to the console."""
    from flows.server.shared import prefect_server

    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    with prefect_server(prefect_home(folder), load_flows) as url:
        yield url


@contextlib.contextmanager
def blocks_for(job: Job, folder: Path) -> Iterator[None]:
    """Provide the Prefect server of the job's blocks, if it names any, to a command that starts no run."""
    from flows.server import working_directory
    from flows.server.api_address import given_url
    from flows.server.shared import prefect_server
    from tasks.secrets import names_blocks

    if not names_blocks(job) or given_url():
        working_directory.leave()
        yield
        return
    with prefect_server(prefect_home(folder), lambda: None):
        yield


def state_to_read(job: Job, job_file: Path) -> Any:
    """Returns the job's state, for reading."""
    from tasks.state_location import state_of

    if not in_bucket(str(job.state)):
        return state_of(job)
    with blocks_for(job, job_file.absolute().parent):
        return state_of(job)


def say_start(job: Job, folder: Path) -> None:
    """Print a first line on standard error, since a Prefect server takes seconds; none among JSON log lines."""
    from flows.cli import terminal
    from flows.server.api_address import given_url
    from flows.server.local import Running
    from flows.server.shared import is_running
    from tasks.reporting import log_format

    if log_format.as_json():
        return
    home = prefect_home(folder)
    if url := given_url():
        where = f"connecting to the Prefect server at {url}"
    elif (found := Running.read(home)) and is_running(home):
        where = f"connecting to the local Prefect server at {found.url}"
    else:
        where = "starting a local Prefect server"
    terminal.err.print(f"[dim]{terminal.shown(job.name)}: {terminal.shown(where)}[/dim]")


def refuse_unreachable_server(job: Job) -> None:
    """Raises UserError for a job on several machines with the local Prefect server, which only this one reaches."""
    from flows.server.api_address import given_url

    if job.machines > 1 and not given_url():
        raise UserError(
            f"machines: {job.machines} needs a Prefect server that the other machines reach, and the local one answers "
            "only this machine. Set PREFECT_API_URL, run the job with `--on migrate/NAME`, or with `--set machines=1`"
        )


def refuse_second_run(job: Job) -> None:
    """Raises LeaseHeld if another run of the job is running, before this one waits for a Prefect server."""
    from ferry.state import refuse_held
    from tasks.secrets import names_blocks
    from tasks.state_location import state_of

    if not names_blocks(job):  # a block would need the server first
        refuse_held(state_of(job))


def prepare(job: Job, job_file: Path, *, replan: bool, wait: bool) -> None:
    """Prepare a run before Prefect is loaded: refuse unsafe destinations and a second run, start the planner process,
    do `--replan`.

    The planner process loads its libraries while this process loads Prefect. The flow has no parameter for `--replan`.
    """
    from ferry.processes import PlannerProcess
    from ferry.state import hold_lease, put_ledger_aside, set_plan_aside
    from flows.cli import terminal
    from tasks import run as runs
    from tasks.state_location import state_of

    refuse_own_files(job, job_file)
    if not wait:
        refuse_second_run(job)
    limit_malloc_arenas()
    runs.started_planner = PlannerProcess()  # loads DuckDB meanwhile
    if replan:
        with blocks_for(job, job_file.absolute().parent):
            state = state_of(job)
        with hold_lease(state, f"{job.name} (replan)", wait=wait) as held:
            runs.replaced_holder = held.took_over
            set_plan_aside(state)
            for name in put_ledger_aside(state):
                terminal.warning(f"{name} is damaged or missing; set aside. Rows recorded only there are checked again")


@contextlib.contextmanager
def tagged() -> Iterator[None]:
    """Run the flow in the block with the tag `ferry`, as prefect.yaml tags deployments, and without heartbeats.

    The heartbeat thread sleeps in whole seconds, and the flow would wait for it at its end. The lease shows whether the
    process is alive.
    """
    from prefect import tags
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with tags("ferry"), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def migrate_here(
    api_url: str,
    interrupts: signals.Interrupts,
    job: Job,
    selection: RetrySelection,
    limit: int | None = None,
    wait: bool = False,
    sample: int | None = None,
) -> tuple[int, Report | str]:
    """Run the flow `migrate`. Returns the exit code, and the report or, without one, a message."""
    global server_unreachable
    load_flows()
    from flows import migrate as flow
    from flows.cli import terminal
    from tasks.prefect_api import API_ERRORS

    with interrupts.listening(), tagged():
        try:
            state = run_flow(flow.migrate, job, selection.parameter, limit, wait, sample)
        except API_ERRORS:
            if flow.ended is None:
                raise UserError(f"the Prefect server at {api_url} does not answer; nothing was copied") from None
            state, server_unreachable = flow.ended, True
            terminal.warning(
                f"the Prefect server at {api_url} does not answer, and still shows this run as Running. The state has "
                "all outcomes of the run; the following report is correct"
            )
    return exit_code(interrupts, state, flow.report)


def run_flow(flow: Any, *parameters: Any, **named: Any) -> Any:
    """Run a flow in this process and return its final state, also if it was cancelled before its start."""
    from prefect.exceptions import Abort
    from prefect.states import Cancelled

    try:
        return flow(*parameters, **named, return_state=True)
    except Abort:
        return Cancelled(message="cancelled at Prefect before its start; nothing was done")


def exit_code(interrupts: signals.Interrupts, state: Any, report: Report | None = None) -> tuple[int, Any]:
    """Returns the exit code for a flow's final state (0, 1, 2, 3, 130 or 143), and the report, or else the message."""
    if state.is_cancelled():
        return interrupts.exit_code, report or state.message
    if report is not None:
        return report.exit_code, report
    from tasks.reporting.text import exit_code_of

    return exit_code_of(state.is_completed(), state.message or "")


def demo_tour() -> Callable[..., int]:
    """Returns the demo's tour. Raises UserError in an installed package, which has no top-level `demo`."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "demo" / "tour.py").is_file() or not (root / "prefect.yaml").is_file():
        raise UserError(
            "the demo needs a checkout of Ferry, and this is an installed package. Clone Ferry's repository and run "
            "`make demo` there"
        )
    sys.path.append(str(root))
    from demo.tour import tour

    return tour
