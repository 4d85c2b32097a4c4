"""The commands `ferry ui` and `ferry server`, for the local Prefect server that outlives the other commands."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ferry.core import UserError, duration
from flows.cli import local_run, terminal
from flows.cli.output import JsonFlag, print_json
from flows.server.local import Running, is_free
from flows.server.shared import SharedServer, idle_setting, is_in_use, is_running, stop
from tasks.job_file import load_job

server = App(name="server", help="Show, start or stop the local Prefect server.", help_epilogue="")
Idle = Annotated[str | None, Parameter(help="End the server when it was unused for this long (30m, 8h). Default: 30m.")]
Port = Annotated[int | None, Parameter(help="The port. Default: that of the last server, or a free one.")]


def ui(job_file: Path | None = None, *, port: Port = None, json_: JsonFlag = False) -> int:
    """Print the address of the Prefect UI, and keep its server until Ctrl-C."""
    with SharedServer(_home(job_file, has_runs=True), port=_free(job_file, port), idle_s=idle_setting()) as found:
        _say_address(found.url, "Ctrl-C ends this command", json_)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0


@server.command
def start(job_file: Path | None = None, *, idle: Idle = None, port: Port = None, json_: JsonFlag = False) -> int:
    """Start the local Prefect server, unless it runs."""
    idle_s = idle_setting(idle)
    with SharedServer(_home(job_file), port=_free(job_file, port), idle_s=idle_s) as found:
        _say_address(found.url, _until(Running.read(found.home)), json_)
    return 0


@server.command
def status(job_file: Path | None = None, *, json_: JsonFlag = False) -> int:
    """Show whether the local Prefect server runs, and since when it is unused."""
    home = _home(job_file)
    found = Running.read(home) if is_running(home) else None
    if json_:
        used = {"url": found.url, "in_use": is_in_use(home), "last_request_at": _last_request(home)} if found else {}
        print_json({"home": str(home), "running": found is not None} | (asdict(found) if found else {}) | used)
    elif found is None:
        terminal.out.print(f"no Prefect server runs for {terminal.shown(str(home))}")
    else:
        unused_s = max(0.0, time.time() - _last_request(home))
        use = "in use by a running command" if is_in_use(home) else f"unused for {duration(unused_s)}"
        terminal.out.print(f"Prefect UI: {found.url}   ({use}; {_until(found)})")
        terminal.out.print(f"records: {terminal.shown(str(home / 'prefect.db'))}, process {found.pid}")
    return 0


@server.command(name="stop")
def stop_(job_file: Path | None = None, *, json_: JsonFlag = False) -> int:
    """Stop the local Prefect server, unless a running command uses it."""
    home = _home(job_file)
    ended = stop(home)
    if json_:
        print_json({"home": str(home), "stopped": ended is not None})
    else:
        what = f"stopped the Prefect server at {ended.url}" if ended else "no Prefect server runs for"
        terminal.out.print(what if ended else f"{what} {terminal.shown(str(home))}")
    return 0


def _home(job_file: Path | None, *, has_runs: bool = False) -> Path:
    if job_file is not None:
        load_job(job_file)
    home = local_run.prefect_home(job_file.absolute().parent if job_file else Path.cwd()).absolute()
    if has_runs and job_file is None and not (home / "prefect.db").exists():
        raise UserError(f"no runs are recorded in {home}; name the job file whose runs you want to see")
    return home


def _free(job_file: Path | None, port: int | None) -> int | None:
    """Returns ``port``. Raises UserError if another program uses it."""
    if port is None or is_free(port):
        return port
    home = _home(job_file)
    if is_running(home) and (found := Running.read(home)) and found.port == port:
        return port
    raise UserError(f"--port {port}: the port is in use or not a valid port number; leave it out for a free port")


def _say_address(url: str, note: str, as_json: bool) -> None:
    if as_json:
        print_json({"url": url})
    else:
        terminal.out.print(f"Prefect UI: {url}   ({note})")
    sys.stdout.flush()


def _until(found: Running | None) -> str:
    if found is None or found.idle_s is None:
        return "ends with the program that started it"
    return f"ends after {duration(found.idle_s)} without use"


def _last_request(home: Path) -> float:
    return (home / "server.json").stat().st_mtime
