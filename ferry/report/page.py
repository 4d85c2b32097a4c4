"""The report of a job: one HTML page, from the state alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferry import __version__
from ferry.core import redact
from ferry.job import Job
from ferry.pages import render
from ferry.report import figures
from ferry.report.plots import drawing
from ferry.report.runs import RunLine, read_runs
from ferry.report.verdict import judge
from ferry.state import (
    Counts,
    State,
    count,
    folded_ledger,
    last_run_no,
    lease_holder,
    lost_run,
    outcome_table,
    read_end,
)

if TYPE_CHECKING:
    import duckdb

DRAWN_ROWS = (
    1_000  # from so many rows on, the report of a run has graphs: those of fewer rows take longer than they say
)
REPORT = "reports/report.html"  # that of `ferry report`


def report_name(run_no: int) -> str:
    """Returns the name, in the state, of the report that a run writes."""
    return f"reports/run-{run_no:06d}/report.html"


def write_report(job: Job, state: State, run_no: int) -> str:
    """Writes the report of a run that has just ended, and returns its name in the state."""
    name = report_name(run_no)
    state.write(name, make_report(job, state, ended_run=run_no, draws_from=DRAWN_ROWS).encode())
    return name


def make_report(job: Job, state: State, *, ended_run: int | None = None, draws_from: int = 1) -> str:
    """Returns the page. ``ended_run`` still holds the lease; a list of fewer than ``draws_from`` rows gets no graphs.

    Raises UserError when nothing is planned yet, and what :func:`ferry.state.folded_ledger` raises.
    """
    run_no = ended_run or last_run_no(state)
    holder = lease_holder(state) if ended_run is None else None
    lost = None if holder or ended_run is not None else lost_run(state)  # now: a run may start while this one reads
    runs, all_runs = read_runs(state)
    end = read_end(state)
    with folded_ledger(state, state.spool_dir if ended_run is not None else None) as con:
        counts = count(con)
        values = _tables(con, job, counts)
    budget = job.budget(counts.planned - counts.duplicates)
    last = runs[-1] if runs else None
    return render(
        "ferry.report",
        "report.html",
        job=job.name,
        destination=job.destination.uri,
        public_url=job.public_url or "",
        manifest=_list_name(job.manifest_address),
        verdict=judge(counts, budget, live=holder.run if holder else "", lost_run=lost, end=end),
        end=None if holder or lost else end,  # that of an earlier run
        run_no=run_no,
        runs=runs,
        other_runs=all_runs - len(runs),
        last=last if last is not None and last.run_no == run_no else None,
        counts=counts,
        budget=budget,
        lost=lost,
        stored=counts.copied + counts.unchanged,
        made_at=datetime.now(UTC),
        version=__version__,
        graphs=_graphs(values, runs) if counts.planned >= draws_from else {},
        **values,
    )


def _tables(con: duckdb.DuckDBPyConnection, job: Job, counts: Counts) -> dict[str, Any]:
    figures.create_rows(con)
    hosts, other_hosts, others = figures.by_host(con)
    return {
        "outcomes": outcome_table(counts.as_dict()), "proofs": figures.proofs(con), "hosts": hosts,
        "other_hosts": other_hosts, "others": others, "failing": figures.failing_hosts(con),
        "sizes": figures.sizes(con), "formats": figures.formats(con), "failures": figures.failures(con),
        "samples": figures.samples(con, job), "sums": figures.sums(con),
        "not_transferred": figures.not_transferred(con),
        "lines_of_runs": [figures.timeline(con, run_no) for run_no in figures.plotted_runs(con)],
    }  # fmt: skip


def _graphs(values: dict[str, Any], runs: list[RunLine]) -> dict[str, str]:
    """Returns SVG elements by name, those of which there is something to draw."""
    deltas = [(run.run_no, run.delta) for run in runs if run.delta is not None]
    found = {}
    with drawing() as plots:
        for line in values["lines_of_runs"]:
            if len(line.rows) > 1:
                found[f"rows-{line.run_no}"] = plots.rows_over_time(line)
                found[f"bytes-{line.run_no}"] = plots.bytes_over_time(line)
        if any(host.median_s is not None for host in values["hosts"]):
            found["seconds"] = plots.seconds_by_host(values["hosts"])
        if values["failing"]:
            found["failed"] = plots.failed_by_host(values["failing"])
        if values["sizes"]:
            found["sizes"] = plots.sizes(values["sizes"])
        if len(deltas) > 1:
            found["deltas"] = plots.delta_runs(deltas)
    return found


def _list_name(address: str) -> str:
    """Returns what the page calls the list: its address without secrets; of a local file its name alone.

    The page is for others, to whom a path of this machine says nothing.
    """
    return redact(address) if "://" in address else Path(address).name
