"""A run that was far slower than its last ten: Prefect has no trigger for that, so Ferry emits an event of its own."""

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


def note_rate(run: Run, report: Report) -> None:
    """Remembers how fast the run was, in the state's reports/rates.json; says so where that was far from usual.

    Runs that ended early are neither judged nor remembered. No run fails for it: where the state takes no more, that is
    a warning, and the event goes the way of Prefect's own, to be lost where the server is away. Its flow and its
    deployment Prefect adds by itself.
    """
    rate = rate_of(run)
    if rate is None or report.stopped:
        return
    tell = get_run_logger().warning
    try:
        earlier = read_rates(run.state)
        keep_rates(run.state, [*earlier, rate])
    except FerryError as error:
        tell("how fast the run was is not remembered: %s", error)
        return
    if (found := slow(rate, earlier)) is None:
        return
    message = words(found)
    tell("far slower than usual: %s", message)
    emit_event(
        EVENT,
        resource={"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.name": flow_run.name},
        payload={**asdict(rate), "rows_per_s": rate.rows_per_s, "usual_rows_per_s": found.usual, "message": message},
    )


def rate_of(run: Run) -> Rate | None:
    """None where nothing moved, or a moment was all that it took."""
    progress = run.runtime.progress
    done = progress.snapshot()
    if not done.done or progress.steady_s <= 0:
        return None
    copied = done.statuses.get(Status.COPIED, 0)
    return Rate(run.run_no, run.job.mode, done.done, copied, done.bytes, progress.steady_s)


def words(found: Slow) -> str:
    rate, usual = found.rate, figure(found.usual)
    return (
        f"{rate.rows:,} rows in {duration(rate.seconds)}, {figure(rate.rows_per_s)} a second. The last {found.runs} "
        f"runs of this kind made {usual} (the median), which is {duration(rate.rows / found.usual)}"
    )


def figure(rows_per_s: float) -> str:
    """`1,234`, or `0.8` where whole numbers say nothing."""
    return f"{rows_per_s:,.0f}" if rows_per_s >= 10 else f"{rows_per_s:.1f}"
