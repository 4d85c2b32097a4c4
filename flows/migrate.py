"""The migration: plan, map transfers over the chunks, reconcile, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.signals import stop_on_signals
from flows.watch import showing
from tasks import policies
from tasks.accounts import Report
from tasks.engine.errors import Fatal, FerryError, LeaseHeld, UserError
from tasks.engine.job import Job
from tasks.logs import tidy_logs
from tasks.plan import plan_chunks, plan_pass
from tasks.reconcile import reconcile
from tasks.references import anchored
from tasks.report import publish
from tasks.results import kept_in
from tasks.run import Run, open_run
from tasks.transfer import transfer_all


def run_name() -> str:
    """`product-images`, or `product-images (retry failed)`: what the UI lists."""
    parameters = flow_run.parameters
    job: Any = parameters.get("job")
    name = job.name if isinstance(job, Job) else job["name"]
    return f"{name} (retry failed)" if parameters.get("retry_failed") else name


@flow(
    name="migrate",
    flow_run_name=run_name,
    description="Moves every object of a list to the destination, and says what became of each.",
    # The window bounds how many chunks are at work; those that sleep until a retry hold a thread each.
    task_runner=cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=1000)),
    persist_result=False,
)
def migrate(job: Job, retry_failed: bool | list[str] = False, limit: int | None = None) -> State[Any]:
    """Runs a job: what is new, pending or worth another try.

    Args:
        job: What to move, from where, to where and how. Every key: docs/job.md.
        retry_failed: Take failed rows alone: all of them, or those of some error classes or status codes.
        limit: Move this many rows at most.
    """
    tidy_logs()
    job = anchored(job, Path.cwd())
    try:
        with (
            open_run(job, flow_run.name or job.name, limit, str(flow_run.id or ""), get_run_logger().warning) as run,
            stop_on_signals(run.runtime),
            showing(run.runtime.progress, lambda: run.planned),
            policies.untagged(),
            kept_in(run.state),
        ):
            planned = plan_chunks(run, retry_failed, limit)
            transfer_all(run, planned.chunks)
            transfer_again(run, job.retries.passes)
            report = reconcile(run)
            publish(run, report)
    except FerryError as error:
        return Failed(message=failure(error))
    return final_state(report)


def transfer_again(run: Run, passes: int) -> None:
    """Further passes over the retryable failures, while there are any."""
    for number in range(max(passes, 1)):
        retry = number < passes
        if run.runtime.stopping or not (run.doubtful or (retry and run.runtime.progress.retryable)):
            return
        run.doubtful = False
        transfer_all(run, plan_pass(run, retry=retry).chunks)


def failure(error: FerryError) -> str:
    """A Failed state's message; the kind of error in front decides the exit code of `ferry`."""
    kinds = (UserError, LeaseHeld, Fatal, FerryError)
    name = next(kind.__name__ for kind in kinds if isinstance(error, kind))
    return f"{name}: {error}"


def final_state(report: Report) -> State[Any]:
    """Completed, Failed or Cancelled, with the counts in its message."""
    if report.stopped.startswith("interrupted"):
        return Cancelled(message=report.message, data=report)
    return (
        Completed(message=report.message, data=report)
        if report.exit_code == 0
        else Failed(message=report.message, data=report)
    )
