"""The `ferry` command. Each command is wiring: load the job, call what does the work, draw the answer."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from ferry import __version__
from ferry.core import Fatal, FerryError, LeaseHeld, UserError, class_problem
from ferry.job import Job
from flows.cli import local_run
from flows.cli.output import JsonFlag, Several, print_json
from flows.running import signals
from tasks.job_file import TEMPLATE, load_job
from tasks.own_files import refuse_own_files
from tasks.workers.tuning import arrow_without_numpy, skip_gc_at_exit

app = App(
    name="ferry",
    version=__version__,
    help="Moves large image libraries between storage providers, and can say what became of each object.",
    suppress_keyboard_interrupt=False,  # main() says which signal it was
)


SHOWN_WRONG = 50  # objects that `ferry verify` names


@app.command
def init(path: Path = Path("job.yaml"), *, json_: JsonFlag = False) -> int:
    """Write a commented job file to start from."""
    from flows.cli import terminal

    if path.exists():
        raise UserError(f"{path} exists already; name another file")
    name = path.stem if path.stem not in ("job", "") else path.absolute().parent.name
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name).strip("._-") or "job"
    try:
        path.write_text(TEMPLATE.format(file=path, name=safe))
    except OSError as exc:
        raise UserError(f"{path} cannot be written: {exc.strerror}") from None
    if json_:
        print_json({"file": str(path)})
    else:
        terminal.out.print(
            f"wrote {terminal.shown(path)}. Edit it, then: ferry plan {terminal.shown(shlex.quote(str(path)))}"
        )
    return 0


@app.command
def plan(job_file: Path, *, json_: JsonFlag = False) -> int:
    """Show what a run would do and why. Nothing is moved, nothing is written."""
    from flows.cli import terminal
    from tasks.dry_run import dry_plan
    from tasks.reporting.text import describe

    job = load_job(job_file)
    refuse_own_files(job, job_file)
    with local_run.blocks_for(job, job_file.absolute().parent):
        planned = dry_plan(job)
    if json_:
        print_json(dataclasses.asdict(planned))
    else:
        for line in describe(planned):
            terminal.out.print(terminal.shown(line))
    return 0


@app.command
def run(
    job_file: Path | None = None,
    /,
    *,
    on: Annotated[str | None, Parameter(help="Have a deployment do it: migrate/prod; JOB may be left out.")] = None,
    set_: Annotated[
        tuple[str, ...], Several(name="--set", help="A setting in place of the job's: limits.concurrency=8.")
    ] = (),
    limit: Annotated[int | None, Parameter(help="Move this many rows at most.")] = None,
    retry_failed: Annotated[
        tuple[str, ...],
        Several(
            name="--retry-failed",
            help="Take failed rows alone: all, or with =CLASS[,CLASS] those of a class or status code.",
        ),
    ] = (),
    replan: Annotated[
        bool, Parameter(negative="", help="Plan from scratch; what is at the destination stays.")
    ] = False,
    wait: Annotated[bool, Parameter(negative="", help="Wait while another run of the job is on.")] = False,
    json_: JsonFlag = False,
) -> int:
    """Move what is new, pending or worth another try."""
    if on is not None or job_file is None:
        from flows.cli.remote import run_on

        given = {"retry_failed": _classes(limit, retry_failed) or None, "limit": limit, "wait": wait or None}
        return run_on(job_file, on, set_, given, replan=replan, as_json=json_)
    with signals.ended_by_the_system():
        arrow_without_numpy()
        skip_gc_at_exit()
        from flows.cli import terminal
        from flows.cli.local_run import migrate_here, prefect_for
        from flows.running import reporter
        from tasks.reporting.text import Report

    classes = _classes(limit, retry_failed)
    job, folder = load_job(job_file, set_), job_file.absolute().parent
    local_run.prepare(job, job_file, replan=replan, wait=wait)
    draw = terminal.is_terminal() and not json_
    with prefect_for(folder, quiet=draw, job=job) as api:
        if draw:
            reporter.drawer = terminal.draw_progress
            terminal.out.print(
                f"Prefect UI while this runs: {api.url.removesuffix('/api')}   "
                f"(later: ferry ui {terminal.shown(shlex.quote(str(job_file)))})"
            )
        code, end = migrate_here(api, job, classes, limit, wait)
    if not isinstance(end, Report):
        if json_:
            print_json({"error": str(end), "exit_code": code})
        if code:
            terminal.error(str(end))
        return code
    if json_:
        print_json({**dataclasses.asdict(end), "exit_code": code, "message": end.message})
    else:
        terminal.report(shlex.quote(str(job_file)), end)
    return code


def _classes(limit: int | None, retry_failed: tuple[str, ...]) -> bool | list[str]:
    """The flow's `retry_failed`. Raises UserError for options that make no sense."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: move at least one row, or leave the option out")
    retry_failed = _split(retry_failed)
    _check_classes(name for name in retry_failed if name != "all")
    return bool(retry_failed) and ([name for name in retry_failed if name != "all"] or True)


def _split(names: tuple[str, ...]) -> tuple[str, ...]:
    """`--class not_found,404` as well as the option twice."""
    return tuple(part.strip() for name in names for part in name.split(",") if part.strip())


def _check_classes(names: Iterable[str]) -> None:
    """Raises UserError for the name of an error class that there is not: it would take no row, silently."""
    for name in names:
        if problem := class_problem(name):
            raise UserError(problem)


def _state(job: Job, job_file: Path) -> Any:
    """The job's state, to be read."""
    from tasks.run import state_of

    if not str(job.state).startswith("s3://"):
        return state_of(job)
    with local_run.blocks_for(job, job_file.absolute().parent):
        return state_of(job)


@app.command
def status(job_file: Path, *, json_: JsonFlag = False) -> int:
    """Show how far a job is; also while it runs, and after a crash."""
    from ferry.ratelimit import read_hosts
    from ferry.state import Counts, count, folded_ledger, lease_holder, read_plan
    from flows.cli import terminal

    job = load_job(job_file)
    state = _state(job, job_file)
    counts = None
    if read_plan(state):
        with folded_ledger(state) as con:
            counts = count(con)
    holder = lease_holder(state)
    running = f"running: {holder.run} (process {holder.pid} on {holder.host})" if holder else None
    hosts = read_hosts(state)
    if running and hosts is not None and hosts.paused:
        running += "; paused at Prefect: it goes on when it is resumed there (docs/control.md)"
    if json_:
        known = dataclasses.asdict(hosts) if hosts else None
        print_json(
            {
                "job": job.name, "planned_yet": counts is not None, "running": running,
                **(counts or Counts()).as_dict(), "limiter": known,
            }
        )  # fmt: skip
    else:
        terminal.status(job.name, counts, running)
        if hosts is not None:
            terminal.hosts(hosts, time.time() - hosts.at)
    return 0


@app.command
def failures(
    job_file: Path,
    *,
    class_: Annotated[
        tuple[str, ...], Several(name="--class", help="Only those of CLASS[,CLASS] or status codes.")
    ] = (),
    chunk: Annotated[str, Parameter(help="Only those of one chunk: its first digits, or its name in the UI.")] = "",
    format_: Annotated[Literal["table", "csv", "json"], Parameter(name="--format")] = "table",
    limit: Annotated[int | None, Parameter(help="Show this many at most (table: 50).")] = None,
    json_: JsonFlag = False,
) -> int:
    """List the failed rows, each with its reason."""
    import csv

    from ferry.state import FAILURE_COLUMNS, failure_cell, folded_ledger, select_failures
    from flows.cli import terminal

    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: show at least one row, or leave the option out")
    class_ = _split(class_)
    _check_classes(class_)
    chunk = chunk.removeprefix("chunk-").partition("-")[0]
    as_table = format_ == "table" and not json_
    limit = 50 if as_table and limit is None else limit
    state = _state(load_job(job_file), job_file)
    with folded_ledger(state) as con:
        lines, total = select_failures(con, class_, limit, chunk)
    if as_table:
        terminal.failure_table(lines, total, ", ".join([*class_, *([f"chunk {chunk}"] if chunk else [])]) or None)
    elif format_ == "csv" and not json_:
        writer = csv.DictWriter(sys.stdout, FAILURE_COLUMNS)
        writer.writeheader()
        writer.writerows({name: failure_cell(value) for name, value in line.items()} for line in lines)
    else:
        print_json({"total": total, "failures": lines})
    return 0


@app.command
def verify(
    job_file: Path,
    *,
    list_: Annotated[
        bool, Parameter(name="--list", negative="", help="Compare ETags and sizes from a listing; read no object.")
    ] = False,
    sample: Annotated[str | None, Parameter(help="Read some objects, drawn at random: `1%`, or a count.")] = None,
    seed: Annotated[int | None, Parameter(help="Draw that sample again which named this seed.")] = None,
    json_: JsonFlag = False,
) -> int:
    """Read the destination back, all of it or a sample, and compare it with the ledger."""
    with signals.ended_by_the_system():
        from ferry.state import folded_ledger, select_wrong
        from flows.cli import terminal
        from flows.cli.local_run import as_recorded, end_of, exit_code, load_flows, prefect_for
        from flows.running import reporter
        from tasks.run import state_of

    job = load_job(job_file)
    draw = terminal.is_terminal() and not json_
    reporter.drawer = terminal.draw_progress if draw else None
    with prefect_for(job_file.absolute().parent, quiet=draw) as api:
        load_flows()
        from flows.verify import verify as verify_flow

        with signals.listening(), as_recorded():
            state = end_of(verify_flow, job, list_, sample, seed)
        api.settle(state)
    code, end = exit_code(state)
    wrong: list[dict[str, str]] = []
    if code == 1:
        with folded_ledger(state_of(job)) as con:
            wrong = select_wrong(con, SHOWN_WRONG)
    if json_:
        if code > 1:
            print_json({"error": str(end), "exit_code": code})
        else:
            print_json({"exit_code": code, "message": str(state.message), "ok": code == 0, "wrong": wrong})
    elif code > 1:
        terminal.error(str(end))
    else:
        for what, key, why in ((line["error_class"], line["key"], line["message"]) for line in wrong):
            terminal.out.print(f"[red]{what}[/red]  {terminal.shown(key)}  [dim]{terminal.shown(why)}[/dim]")
        if len(wrong) == SHOWN_WRONG:
            terminal.out.print("... these are the first; the ledger has them all (docs/state.md)")
        terminal.out.print(terminal.shown(state.message))
    return code


@app.command
def export(
    job_file: Path,
    out: Annotated[Path, Parameter(help="A .csv, .parquet or .xlsx file.")],
    *,
    what: Literal["map", "failures"] = "map",
    full: Annotated[
        bool,
        Parameter(negative="", help="Addresses byte for byte, with their query strings: they may hold signatures."),
    ] = False,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace the file when it exists.")] = False,
    json_: JsonFlag = False,
) -> int:
    """Write the map from old address to new key, or the failures, for people."""
    from ferry.state import export as write
    from flows.cli import terminal

    job = load_job(job_file)
    if out.exists() and out.resolve() in (Path(job.manifest).resolve(), job_file.resolve()):
        raise UserError(f"{out} is the job's own file; export to another one")
    place = out.absolute()  # the state's credentials may be a block: Prefect is asked from another directory
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already; name another file, or add --overwrite")
    rows = write(_state(job, job_file), what, place, full=full)
    if json_:
        print_json({"file": str(out), "rows": rows})
    else:
        terminal.out.print(f"wrote {rows:,} rows to {terminal.shown(out)}")
    return 0


app.command("flows.cli.deploy:block")
app.command("flows.cli.deploy:deploy")
app.command("flows.cli.remote:watch")


@app.command
def ui(job_file: Path | None = None, *, port: int | None = None, json_: JsonFlag = False) -> int:
    """Serve the Prefect UI over the runs that `ferry run` recorded, and the blocks that they use. Ctrl-C ends it."""
    from flows.cli import terminal
    from flows.cli.local_run import prefect_home
    from flows.server.local import LocalServer, is_free

    if job_file is not None:
        load_job(job_file)
    if port is not None and not is_free(port):
        raise UserError(f"--port {port} cannot be used: it is taken, or no port at all. Leave it out for any free one")
    home = prefect_home(job_file.absolute().parent if job_file else Path.cwd())
    if job_file is None and not (home / "prefect.db").exists():
        raise UserError(f"there are no runs in {home}; name the job file whose runs you want to see")
    with LocalServer(home, port) as server:
        if json_:
            print_json({"url": server.url})
        else:
            terminal.out.print(f"Prefect UI: {server.url}   (Ctrl-C ends it)")
        sys.stdout.flush()
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0


@app.command
def demo(
    *,
    keep: Annotated[bool, Parameter(negative="", help="Keep the servers up at the end, to look around.")] = False,
    json_: JsonFlag = False,
) -> int:
    """Run the whole tour on servers of its own, in `.demo/` of the current folder."""
    return local_run.demo_tour()(Path.cwd() / ".demo", keep=keep, as_json=json_)


def main() -> None:
    """The console script. Exit codes: SEMANTICS, results of a run."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # no command sends Prefect's telemetry
    warnings.showwarning = _show_warning
    try:
        code = app(_bare_retry_failed(sys.argv[1:]), result_action="return_value")
    except FerryError as exc:
        # Fatal outside the flow: the state cannot be read, and nothing has moved.
        code = 3 if isinstance(exc, LeaseHeld) else 2 if isinstance(exc, UserError | Fatal) else 1
        from flows.cli import terminal

        terminal.error(str(exc))
        if "--json" in sys.argv:
            print_json({"error": str(exc), "exit_code": code})
    except KeyboardInterrupt:
        code = signals.exit_code()
    except BrokenPipeError:  # `ferry failures ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    _leave(code if isinstance(code, int) else 0)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,  # noqa: ARG001 - the signature is that of warnings.showwarning
    line: Any = None,
) -> None:
    """A FutureWarning is meant for the user: without the line of code that gave it. Others are for developers."""
    if category is FutureWarning:
        from flows.cli import terminal

        terminal.warning(str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _leave(code: int) -> None:
    """Ends the process; where the Prefect server is gone, without what Prefect would try to send it for minutes."""
    if not local_run.lost:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _bare_retry_failed(arguments: list[str]) -> list[str]:
    """`--retry-failed` alone means every class; with `=CLASS` only that one."""
    return ["--retry-failed=all" if argument == "--retry-failed" else argument for argument in arguments]
