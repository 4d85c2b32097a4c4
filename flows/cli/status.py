"""`ferry status`: the rows by outcome, the live run, and how the last one ended."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ferry.core import UserError, limit_arrow_memory

limit_arrow_memory()  # before the imports that load Arrow: NumPy would take a sixth of the command's time

from ferry.ratelimit import Hosts, read_hosts
from ferry.state import Counts, RunEnd, count, folded_ledger, lease_holder, lost_run, read_end, read_plan
from flows.cli import local_run, terminal
from flows.cli.output import JsonFlag, print_json
from tasks.job_file import load_job
from tasks.reporting.text import progress_words

WATCH_S = 2.0


def status(
    job_file: Path,
    *,
    watch: Annotated[bool, Parameter(negative="", help="Show it again every two seconds until the run ends.")] = False,
    json_: JsonFlag = False,
) -> int:
    """Show a job's progress, also during a run and after a crash."""
    if watch and json_:
        raise UserError("`--watch` repeats the status and `--json` prints one document; leave one of them out")
    with contextlib.suppress(KeyboardInterrupt) if watch else contextlib.nullcontext():
        while _show_status(job_file, as_json=json_) and watch:
            time.sleep(WATCH_S)
            if terminal.is_terminal():
                terminal.out.clear()
    return 0


def _show_status(job_file: Path, *, as_json: bool) -> bool:
    """Print the status once. Returns whether a run is live."""
    job = load_job(job_file)
    state = local_run.state_to_read(job, job_file)
    end = read_end(state)
    counts = None
    if read_plan(state):
        with folded_ledger(state) as con:
            counts = count(con)
    holder = lease_holder(state)
    running = f"running: {holder.run} (process {holder.pid} on {holder.host})" if holder else None
    hosts = read_hosts(state)
    if running and hosts is not None and hosts.paused:
        running += f"; paused at Prefect. To go on: ferry resume {job_file}"
    lost = None if running else lost_run(state)
    if as_json:
        known = dataclasses.asdict(hosts) if hosts else None
        print_json(
            {
                "job": job.name, "planned_yet": counts is not None, "running": running,
                **(counts or Counts()).as_dict(), "limiter": known,
                "last_end": dataclasses.asdict(end) if end else None, "lost_run": lost,
            }
        )  # fmt: skip
    else:
        terminal.status(job.name, counts, running)
        if running and (progress := progress_of(hosts, end)):
            terminal.say(progress_words(progress))
        elif not running:
            terminal.last_end(end, lost)
        if running and hosts is not None:
            terminal.hosts(hosts, time.time() - hosts.at)
    return running is not None


def progress_of(hosts: Hosts | None, end: RunEnd | None) -> dict[str, Any] | None:
    """Returns the progress of the run that is live. Until its first write, the file is that of the run before."""
    return hosts.progress if hosts is not None and hosts.run_no > (end.run_no if end else 0) else None
