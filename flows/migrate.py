"""The migration: plan, map transfers over the chunks, reconcile, report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from ferry.core import Fatal, FerryError, LeaseHeld, Stopped, UserError
from ferry.job import Job
from flows.running import concurrency_slot, prefect_state, signals
from flows.running.reporter import showing
from tasks import prefect_api, prefect_patches
from tasks.dead_runs import mark_dead_runs, mark_predecessor
from tasks.plan import plan_chunks, plan_pass
from tasks.reconcile import delete_removed, reconcile
from tasks.report import keep, publish
from tasks.reporting.prefect_logs import tidy_logs
from tasks.reporting.text import Report
from tasks.result_store import kept_in
from tasks.run import Run, open_run
from tasks.secrets import anchored
from tasks.transfer import transfer_all

INTERRUPTED_S = 5.0  # a server that is away is not waited for longer after a Ctrl-C
ended: State[Any] | None = None  # how the last run of this process ended, whether Prefect could record it or not
report: Report | None = None  # what it came to; Prefect would take a Failed state's data for its exception
prefect_patches.hold_slots_with(concurrency_slot.held)
tidy_logs()  # before the first line of a run, which Prefect says before the flow begins


def run_name() -> str:
    """What the UI lists: `products`, `products (retry failed)`, `products (night 2026-11-26)`, `products (verify)`."""
    parameters = flow_run.parameters
    job: Any = parameters.get("job")
    name, mode = (job.name, job.mode) if isinstance(job, Job) else (job["name"], job.get("mode"))
    if flow_run.flow_name == "verify":
        return f"{name} (verify)"
    if parameters.get("retry_failed"):
        return f"{name} (retry failed)"
    return f"{name} (night {datetime.now(UTC):%Y-%m-%d})" if mode == "delta" else name


@flow(
    name="migrate",
    flow_run_name=run_name,
    description="Moves every object of a list to the destination, and says what became of each.",
    # The window bounds how many chunks are at work; those that sleep until a retry hold a thread each.
    task_runner=cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=1000)),
    persist_result=False,
)
def migrate(
    job: Job, retry_failed: bool | list[str] = False, limit: int | None = None, wait: bool = False
) -> State[Any]:
    """Runs a job: what is new, pending or worth another try.

    Args:
        job: What to move, from where, to where and how. Every key: docs/reference/job.md.
        retry_failed: Take failed rows alone: all of them, or those of some error classes or status codes.
        limit: Move this many rows at most.
        wait: While another run of the job is on, wait for its end; else this one fails at once and names it.
    """
    global ended, report
    tidy_logs()
    signals.listen()
    report = None
    try:
        report = run_job(anchored(job, Path.cwd()), retry_failed, limit, wait)
        ended = final_state(report)
    except (signals.Interrupted, Stopped) as interrupt:
        ended = Cancelled(message=f"nothing has moved: {interrupt}")
    except FerryError as error:
        ended = Failed(message=failure(error))
    if await_server():
        ended = prefect_state.last_word(UUID(flow_run.id), flow_run.run_count, ended, get_run_logger().warning)
        if report is not None:
            with prefect_patches.without_tags():
                publish(job.name, report)
    return ended


def run_job(job: Job, retry_failed: bool | list[str], limit: int | None, wait: bool) -> Report:
    """The run, from its lease to its accounts. Raises FerryError, and Interrupted before anything moves."""
    tell, own = get_run_logger().warning, UUID(flow_run.id)
    prefect_state.begins(flow_run.run_count, tell)
    mark_dead_runs(own, flow_run.run_count, tell)
    with (
        prefect_state.polling_state(own, flow_run.run_count, tell) as orders,
        open_run(job, flow_run.name or job.name, limit, str(own), tell, wait=wait or flow_run.run_count > 1) as run,
        signals.telling(run.stop),
        showing(run.view()),
        prefect_patches.without_tags(),
        kept_in(run.state),
    ):
        orders.pauses(run.runtime.pause)
        mark_predecessor(run.lease, own, tell)
        planned = plan_chunks(run, retry_failed, limit)
        transfer_all(run, planned.chunks)
        transfer_again(run, job.retries.passes)
        partly = retry_failed or limit is not None or run.runtime.stopping
        if job.mode == "delta" and job.delta.delete_removed and not partly:
            delete_removed(run)
        report = reconcile(run)
        keep(run, report)
        return report


def await_server() -> bool:
    """Prefect's server is to hear how the run ended, now or when it is back. False: it will not."""
    patience_s = prefect_api.PATIENCE_S if signals.last_signal is None else INTERRUPTED_S
    heard = signals.last_signal
    there = prefect_api.wait(get_run_logger().warning, lambda: signals.last_signal is not heard, patience_s)
    if not there:
        prefect_api.stop_retrying()
    return there


def transfer_again(run: Run, passes: int) -> None:
    """Further passes over the retryable failures, while there are any."""
    for number in range(max(passes, 1)):
        retry = number < passes
        if run.runtime.stopping or not (run.doubtful or (retry and run.runtime.progress.retryable)):
            return
        run.doubtful = False
        try:
            transfer_all(run, plan_pass(run, retry=retry).chunks)
        except Stopped:
            return


def failure(error: FerryError) -> str:
    """A Failed state's message; the kind of error in front decides the exit code of `ferry`."""
    kinds = (UserError, LeaseHeld, Fatal, FerryError)
    name = next(kind.__name__ for kind in kinds if isinstance(error, kind))
    return f"{name}: {error}"


def final_state(report: Report) -> State[Any]:
    """Completed, Failed or Cancelled, with the counts in its message."""
    if report.stopped.startswith("interrupted"):
        return Cancelled(message=report.message)
    return Completed(message=report.message) if report.exit_code == 0 else Failed(message=report.message)
