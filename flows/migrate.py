"""The flow `migrate`: plan, transfer the chunks, reconcile, report."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from ferry.core import Fatal, FerryError, LeaseHeld, Stopped, UserError, limit_arrow_memory

limit_arrow_memory(with_numpy=True)  # before the imports that load Arrow

from ferry.job import Job
from flows.running import concurrency_slot, ending, prefect_state, signals
from flows.running.reporter import reporting
from tasks import prefect_api, prefect_patches
from tasks.dead_runs import mark_dead_runs, mark_predecessor
from tasks.job_file import with_absolute_paths
from tasks.plan import plan_chunks, plan_pass
from tasks.reconcile import delete_removed, reconcile
from tasks.report import publish, write_page, write_summary
from tasks.reporting.last_run import record_end
from tasks.reporting.prefect_logs import configure_logging
from tasks.reporting.run_end import end_of, of_report
from tasks.reporting.text import Report
from tasks.result_store import storing_results_in
from tasks.retry_selection import RetrySelection
from tasks.run import Run, open_run
from tasks.shards.prefect_runs import deployment_for, end_orphans
from tasks.shards.window import sharing_out
from tasks.transfer import transfer_all

INTERRUPTED_S = 5.0  # after a Ctrl-C, wait at most this long for an unreachable Prefect server
ended: State[Any] | None = None  # of this process's last run, also where Prefect could not record it
report: Report | None = None  # of the same run; Prefect takes the data of a Failed state for its exception
prefect_patches.hold_slots_with(concurrency_slot.held)
configure_logging()  # before a run's first line, which Prefect logs before the flow begins


def run_name() -> str:
    """Returns the name for the UI, by mode and parameters.

    Examples: `products`, `products (retry failed)`, `products (delta 2026-11-26)`, `products (verify)`.
    """
    parameters = flow_run.parameters
    job: Any = parameters.get("job")
    name, mode = (job.name, job.mode) if isinstance(job, Job) else (job["name"], job.get("mode"))
    if flow_run.flow_name == "verify":
        return f"{name} (verify)"
    if parameters.get("retry_failed"):
        return f"{name} (retry failed)"
    return f"{name} (delta {datetime.now(UTC):%Y-%m-%d})" if mode == "delta" else name


class Amount(NamedTuple):
    """How many rows a run copies at most, None for all; and whether these are drawn at random."""

    limit: int | None
    at_random: bool


@flow(
    name="migrate",
    flow_run_name=run_name,
    description="Copies every object of a manifest to the destination and records the outcome of each row.",
    # A window limits the active chunks. Each chunk that sleeps until its retry holds one more thread.
    task_runner=cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=1000)),
    persist_result=False,
)
def migrate(
    job: Job,
    retry_failed: bool | list[str] = False,
    limit: int | None = None,
    wait: bool = False,
    sample: int | None = None,
) -> State[Any]:
    """Run a job: copy the new rows, the pending rows and the retryable failures.

    Args:
        job: What to copy, from where, to where and how. docs/reference/job.md lists every key.
        retry_failed: Take only failed rows: all of them, or those with the given error classes or status codes.
        limit: Copy at most this many rows.
        wait: Wait while another run of the job holds the lease. Without it, this run fails and names the other run.
        sample: As `limit`, but with rows drawn at random from the whole manifest.
    """
    global ended, report
    configure_logging()
    interrupts = signals.current()
    interrupts.listen()
    report = None
    try:
        selection = RetrySelection.from_parameter(retry_failed)
        if limit is not None and sample is not None:
            raise UserError("limit and sample are both given; leave one of them out")
        amount = Amount(limit if sample is None else sample, at_random=sample is not None)
        report = run_job(with_absolute_paths(job, Path.cwd()), selection, amount, wait, interrupts)
        ended = final_state(report)
    except (signals.Interrupted, Stopped) as interrupt:
        ended = Cancelled(message=f"nothing was copied: {interrupt}")
    except FerryError as error:
        ended = Failed(message=failure_message(error))
    record_end(job.name, job.mode, ended, get_run_logger())
    if wait_for_server(interrupts):
        warn = get_run_logger().warning
        ended = prefect_state.state_to_record(UUID(flow_run.id), flow_run.run_count, ended, warn, interrupts)
        counts, this_run = (of_report(report), report.this_run) if report else ({}, {})
        run_no = report.run_no if report else None
        ending.record(end_of(job.name, "migrate", ended, run_no, counts, this_run), ended)
        if report is not None:
            with prefect_patches.without_tags():
                publish(job.name, report)
    return ended


def run_job(job: Job, selection: RetrySelection, amount: Amount, wait: bool, interrupts: signals.Interrupts) -> Report:
    """Run the job under its lease and return the report. Raises FerryError, and Interrupted before the transfer."""
    log, own, limit = get_run_logger(), UUID(flow_run.id), amount.limit
    warn = log.warning
    prefect_state.check_start(flow_run.run_count, warn)
    mark_dead_runs(own, flow_run.run_count, warn)
    is_whole = limit is None and not selection.only_failed
    deployment = deployment_for(job.name, own) if job.machines > 1 and is_whole else None
    with (
        prefect_state.polling_state(own, flow_run.run_count, warn, interrupts) as follower,
        open_run(job, flow_run.name or job.name, limit, str(own), warn, wait=wait or flow_run.run_count > 1) as run,
        interrupts.stopping_by(run.stop),
        reporting(run.view()),
        prefect_patches.without_tags(),
        storing_results_in(run.state),
    ):
        number_run(own, run.run_no)
        follower.pause_by(run.runtime.pause)
        mark_predecessor(run.lease, own, warn)
        end_orphans(own, flow_run.run_count, run.lease.took_over, run.state, warn)
        planned = plan_chunks(run, selection, limit, at_random=amount.at_random)
        with sharing_out(run, planned.chunks, deployment, log) as (chunks, shards):
            transfer_all(run, chunks, shards)
        retry_passes(run, job.retries.passes)
        run.shared.leave()
        if job.mode == "delta" and job.delta.delete_removed and is_whole and not run.runtime.stopping:
            delete_removed(run)
        report = reconcile(run)
        if report.is_interrupted:
            cancel_chunks(run, report.stopped)
        write_summary(run, report)
        return replace(report, page=write_page(run))


def cancel_chunks(run: Run, why: str) -> None:
    """Have Prefect show the chunks of an interrupted run as Cancelled: their tasks ended with an error."""
    ids = [UUID(run.task_runs[digest]) for digest in run.incomplete if digest in run.task_runs]
    with prefect_api.best_effort(get_run_logger().debug, "cancelled chunks") as client:
        prefect_api.end_tasks(client, ids, Cancelled(message=f"{why}; the job's next run resumes"))


def number_run(own: UUID, run_no: int) -> None:
    """Add the run's number, which `ferry status` and the reports have, to its name at Prefect: `products #12`."""
    name = f"{re.sub(r' #[0-9]+$', '', flow_run.name or '')} #{run_no}"
    with prefect_api.best_effort(get_run_logger().debug, "the run's number") as client:
        client.update_flow_run(own, name=name)


def wait_for_server(interrupts: signals.Interrupts) -> bool:
    """Wait until Prefect's server can record the end of the run. Returns False if it stays unreachable."""
    before = interrupts.first
    max_pause_s = prefect_api.PATIENCE_S if before is None else INTERRUPTED_S
    there = prefect_api.wait(get_run_logger().warning, lambda: interrupts.first is not before, max_pause_s)
    if not there:
        prefect_api.stop_retrying()
    return there


def retry_passes(run: Run, passes: int) -> None:
    """Run up to ``passes`` more passes over retryable failures, and repair rows that chunks left without an outcome."""
    for number in range(max(passes, 1)):
        retry = number < passes
        if run.runtime.stopping or not (run.needs_repair or (retry and run.runtime.progress.retryable)):
            return
        run.needs_repair = False
        try:
            transfer_all(run, plan_pass(run, retry=retry).chunks)
        except Stopped:
            return


def failure_message(error: FerryError) -> str:
    """Returns a Failed state's message. Its first word, the error's class, decides the exit code of `ferry`."""
    kinds = (UserError, LeaseHeld, Fatal, FerryError)
    name = next(kind.__name__ for kind in kinds if isinstance(error, kind))
    return f"{name}: {error}"


def final_state(report: Report) -> State[Any]:
    """Returns Completed, Failed or Cancelled, with the counts in its message."""
    if report.is_interrupted:
        return Cancelled(message=report.message)
    return Completed(message=report.message) if report.exit_code == 0 else Failed(message=report.message)
