"""The commands `ferry run --on` and `ferry watch`, which follow a run that a worker executes."""

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
    """Submit a run to a deployment and follow it. A parameter of None keeps the deployment's value."""
    if on is None:
        raise UserError("name a job file: `ferry run job.yaml`; or run a deployment's own job: `--on migrate/prod`")
    if replan:
        raise UserError(
            "--replan cannot be combined with --on: run `ferry run JOB --replan` on a machine that can access the state"
        )
    data = read_job(job_file) if job_file is not None else None
    with signals.ended_by_the_system():
        given_server("ferry run --on")
        from flows.cli import remote_run
        from tasks import prefect_api

    with prefect_api.required_client() as client:
        given = {name: value for name, value in parameters.items() if value is not None}
        run = remote_run.submit(client, on, data, settings, given, terminal.warning)
        if not as_json:
            terminal.out.print(
                f"submitted to {terminal.shown(on)}: {run.id}   {terminal.shown(remote_run.page_url(run))}"
            )
        return _follow(client, run, rejoining=False, as_json=as_json)


def watch(
    what: Annotated[
        str | None, Parameter(help="A job file, a run's ID or name, or a deployment. Default: the live run.")
    ] = None,
    *,
    json_: JsonFlag = False,
) -> int:
    """Follow a run of a deployment until it ends. A Ctrl-C ends only this command, not the run."""
    job = load_job(Path(what)).name if what is not None and Path(what).is_file() else None
    with signals.ended_by_the_system():
        given_server("ferry watch", ". For a run on this machine, use `ferry status JOB`")
        from flows.cli import remote_run
        from tasks import prefect_api

    with prefect_api.required_client() as client:
        run = remote_run.find_run(client, what, job, datetime.now(UTC))
        if not json_:
            terminal.out.print(f"{terminal.shown(run.name)}: {run.id}   {terminal.shown(remote_run.page_url(run))}")
        return _follow(client, run, rejoining=True, as_json=json_)


def _follow(client: SyncPrefectClient, run: FlowRun, *, rejoining: bool, as_json: bool) -> int:
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

    follower = remote_run.RunFollower(client, run.id, state, line, terminal.warning)
    try:
        if rejoining:
            follower.earlier_lines()
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            ended = follower.until_end()
    except KeyboardInterrupt:
        if as_json:
            print_json({"flow_run": str(run.id), "name": run.name, "state": None, "message": "left", "exit_code": 130})
        terminal.err.print(f"the run continues. To follow it again: ferry watch {run.id}")
        return 130
    code, message = remote_run.exit_code_for(ended)
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
