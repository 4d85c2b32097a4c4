"""The event for a run that was far slower than the last ten, for which Prefect has no trigger of its own."""

from __future__ import annotations

from dataclasses import asdict

from prefect import get_run_logger
from prefect.events import emit_event
from prefect.runtime import flow_run

from ferry.core import FerryError, Status
from ferry.reconcile import Rate, Slow, keep_rates, read_rates, slow
from tasks.reporting.text import Report, duration
from tasks.run import Run

EVENT = "ferry.run.slow"


def record_rate(run: Run, report: Report) -> None:
    """Record the run's rate in the state's reports/rates.json. If it was far below the usual one, emit an event.

    Runs that ended early do not count. This never fails a run: an error of the state is logged as a warning, and the
    event is lost if the server is unreachable, like Prefect's own. Prefect adds the flow and the deployment to it.
    """
    rate = rate_of(run)
    if rate is None or report.stopped:
        return
    warn = get_run_logger().warning
    try:
        earlier = read_rates(run.state)
        keep_rates(run.state, [*earlier, rate])
    except FerryError as error:
        warn("the run's rate is not recorded: %s", error)
        return
    if (found := slow(rate, earlier)) is None:
        return
    message = words(found)
    warn("far slower than usual: %s", message)
    emit_event(
        EVENT,
        resource={"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.name": flow_run.name},
        payload={**asdict(rate), "rows_per_s": rate.rows_per_s, "usual_rows_per_s": found.usual, "message": message},
    )


def rate_of(run: Run) -> Rate | None:
    """Returns the run's rate, or None if no row was processed or all outcomes came at one moment."""
    progress = run.runtime.progress
    done = progress.snapshot()
    if not done.done or progress.steady_s <= 0:
        return None
    copied = done.statuses.get(Status.COPIED, 0)
    return Rate(run.run_no, run.job.mode, done.done, copied, done.bytes, progress.steady_s)


def words(found: Slow) -> str:
    """Returns the message of the event: the run's rate, and the usual one."""
    rate, usual = found.rate, figure(found.usual)
    return (
        f"{rate.rows:,} rows in {duration(rate.seconds)}, {figure(rate.rows_per_s)} rows/s. The median of the last "
        f"{found.runs} similar runs is {usual} rows/s, which would take {duration(rate.rows / found.usual)}"
    )


def figure(rows_per_s: float) -> str:
    """Returns a rate as `1,234`, or below 10 as `0.8`."""
    return f"{rows_per_s:,.0f}" if rows_per_s >= 10 else f"{rows_per_s:.1f}"
