"""The command `ferry jobs`: all jobs of the Prefect server in one table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from cyclopts import Parameter

from ferry.core import UserError
from flows.cli import terminal
from flows.cli.output import JsonFlag, print_json
from flows.running import signals
from flows.server.api_address import given_server


def jobs(
    *,
    max_age: Annotated[
        str | None, Parameter(help="Trouble if a job whose schedule is on had no completed run for this long: 26h.")
    ] = None,
    json_: JsonFlag = False,
) -> int:
    """Show all jobs of the Prefect server. Exits with 1 if one of them is in trouble."""
    oldest = _age(max_age) if max_age is not None else None
    with signals.ended_by_the_system():
        given_server("ferry jobs", ". For a job on this machine, use `ferry status JOB`")
        from tasks import prefect_api
        from tasks.reporting import jobs as overview

    now = datetime.now(UTC)
    with prefect_api.required_client() as client:
        rows = overview.read(client)
    troubled = [row for row in rows if overview.trouble(row, now, oldest)]
    if json_:
        print_json({"jobs": [overview.as_json(row, now, oldest) for row in rows], "in_trouble": len(troubled)})
    elif not rows:
        terminal.say("the Prefect server has no job of Ferry. `ferry deploy` makes the deployments of jobs")
    else:
        terminal.table(overview.HEAD, [overview.cells(row, now, oldest) for row in rows])
        terminal.say(f"{len(rows)} jobs, {len(troubled)} in trouble. Times are UTC")
    return 1 if troubled else 0


def _age(text: str) -> timedelta:
    from ferry.job import duration

    try:
        return timedelta(seconds=float(duration(text)))
    except ValueError as exc:
        raise UserError(f"--max-age {text}: {exc}") from None
