"""`ferry run --on` and `ferry watch`: runs that a worker does, seen from a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ferry.core import UserError
from flows.cli import terminal
from flows.cli.output import JsonFlag, print_json
from flows.running import signals
from flows.server.api_address import given_server
from tasks.job_file import load_job, read_job

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, Log

LEVELS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


def run_on(
    job_file: Path | None,
    on: str | None,
    settings: tuple[str, ...],
    parameters: dict[str, Any],
    *,
    replan: bool,
    as_json: bool,
) -> int:
    """Submits, and follows. A parameter that is None is as the deployment has it."""
    if on is None:
        raise UserError("name a job file: `ferry run job.yaml`; with `--on migrate/prod` the deployment's own job runs")
    if replan:
        raise UserError(
            "--replan is for `ferry run JOB` on a machine that reaches the state: run it there, without --on"
        )
    data = read_job(job_file) if job_file is not None else None
    with signals.ended_by_the_system():
        given_server("ferry run --on")
        from flows.cli import remote_run
        from tasks import prefect_api

    with prefect_api.asking() as client:
        given = {name: value for name, value in parameters.items() if value is not None}
        run = remote_run.submit(client, on, data, settings, given, terminal.warning)
        if not as_json:
            terminal.out.print(f"submitted to {terminal.shown(on)}: {run.id}   {terminal.shown(remote_run.page(run))}")
        return _follow(client, run, came_back=False, as_json=as_json)


def watch(
    what: Annotated[
        str | None, Parameter(help="A job file, a run's ID or name, or a deployment. Default: the run that is on.")
    ] = None,
    *,
    json_: JsonFlag = False,
) -> int:
    """Come back to a run of a deployment, and follow it until it ends. Ctrl-C leaves it running."""
    job = load_job(Path(what)).name if what is not None and Path(what).is_file() else None
    with signals.ended_by_the_system():
        given_server("ferry watch", "; of a run on this machine `ferry status JOB` tells")
        from flows.cli import remote_run
        from tasks import prefect_api

    with prefect_api.asking() as client:
        run = remote_run.find(client, what, job, datetime.now(UTC))
        if not json_:
            terminal.out.print(f"{terminal.shown(run.name)}: {run.id}   {terminal.shown(remote_run.page(run))}")
        return _follow(client, run, came_back=True, as_json=json_)


def _follow(client: SyncPrefectClient, run: FlowRun, *, came_back: bool, as_json: bool) -> int:
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from flows.cli import remote_run

    def state(name: str) -> None:
        if not as_json:
            terminal.out.print(f"[bold]{terminal.shown(name)}[/bold]")

    def line(log: Log) -> None:
        if not as_json:
            level = _level(log.level)
            style = LEVELS.get(level)
            text = f"{log.timestamp.astimezone():%H:%M:%S}  {terminal.shown(log.message)}"
            terminal.out.print(f"[{style}]{text}[/{style}]" if style else text)

    followed = remote_run.Followed(client, run.id, state, line, terminal.warning)
    try:
        if came_back:
            followed.last_lines()
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            ended = followed.until_the_end()
    except KeyboardInterrupt:
        if as_json:
            print_json({"flow_run": str(run.id), "name": run.name, "state": None, "message": "left", "exit_code": 130})
        terminal.err.print(f"left; the run goes on. To come back to it: ferry watch {run.id}")
        return 130
    code, message = remote_run.code_of(ended)
    if as_json:
        state_name = ended.state.name if ended.state else None
        print_json(
            {"flow_run": str(run.id), "name": ended.name, "state": state_name, "message": message, "exit_code": code}
        )
    elif code in (2, 3):
        terminal.error(message)
    else:
        terminal.say(message)
    return code


def _level(number: int) -> str:
    import logging

    return logging.getLevelName(number)
