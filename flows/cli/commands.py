"""The commands of `ferry`. Each one loads the job, calls the code that does the work, and prints the result."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Group, Parameter

from ferry import __version__
from ferry.core import UserError, limit_arrow_memory
from flows.cli import local_run
from flows.cli.output import JsonFlag, Several, check_classes, print_json, split_names
from flows.running import signals
from tasks.job_file import load_job
from tasks.own_files import refuse_own_files
from tasks.retry_selection import RetrySelection
from tasks.workers.tuning import skip_gc_at_exit

if TYPE_CHECKING:
    from ferry.job import Job

EXAMPLES = """\
A migration, in this order:

    ferry init products.csv s3://new-bucket/products/
    ferry plan job.yaml
    ferry check job.yaml
    ferry run job.yaml --limit 100
    ferry run job.yaml
    ferry verify job.yaml

Exit codes: 0 done; 1 rows are pending, or too many failed; 2 the job, manifest or destination cannot be used;
3 another run of the job is running; 130 and 143 interrupted. docs/index.md has all pages.
"""
START, MOVE, PREFECT = (Group(name, sort_key=number) for number, name in enumerate(("Start", "Migrate", "Prefect")))
app = App(
    name="ferry",
    version=__version__,
    help="Copies large image libraries between storage providers and records the outcome of every object.",
    help_epilogue=EXAMPLES,
    group_commands=Group("Other", sort_key=9),
    suppress_keyboard_interrupt=False,  # flows.cli.main maps the signal to an exit code
)


app.register_install_completion_command(help="Install completion for your shell (bash, zsh or fish).")


@app.command(group=MOVE, sort_key=1)
def plan(job_file: Path, *, json_: JsonFlag = False) -> int:
    """Show which rows a run would copy, and why. Nothing is copied or written."""
    return _show_plan(load_job(job_file), job_file, json_)


def _show_plan(job: Job, job_file: Path, json_: bool) -> int:
    from flows.cli import terminal
    from tasks.dry_run import dry_plan
    from tasks.reporting.text import describe

    refuse_own_files(job, job_file)
    with local_run.blocks_for(job, job_file.absolute().parent):
        planned = dry_plan(job)
    if json_:
        print_json(dataclasses.asdict(planned))
    else:
        for line in describe(planned):
            terminal.out.print(terminal.shown(line))
    return 0


@app.command(group=MOVE, sort_key=2)
def run(
    job_file: Path | None = None,
    /,
    *,
    on: Annotated[str | None, Parameter(help="Run on a deployment, such as migrate/prod. JOB may be omitted.")] = None,
    set_: Annotated[
        tuple[str, ...], Several(name="--set", help="Override a job setting, such as limits.concurrency=8.")
    ] = (),
    limit: Annotated[int | None, Parameter(help="Copy at most this many rows, the first ones.")] = None,
    sample: Annotated[int | None, Parameter(help="Copy at most this many rows, drawn at random.")] = None,
    retry_failed: Annotated[
        tuple[str, ...],
        Several(
            name="--retry-failed",
            help="Take only failed rows: all, or with =CLASS[,CLASS] those with an error class or status code.",
        ),
    ] = (),
    replan: Annotated[
        bool, Parameter(negative="", help="Set the plan aside and plan again. Objects at the destination stay.")
    ] = False,
    dry_run: Annotated[bool, Parameter(negative="", help="Show the plan, as `ferry plan` does.")] = False,
    wait: Annotated[bool, Parameter(negative="", help="Wait while another run of the job holds the lease.")] = False,
    json_: JsonFlag = False,
) -> int:
    """Copy new rows, pending rows and retryable failures."""
    if on is not None or job_file is None:
        from flows.cli.remote import run_on

        if dry_run:
            raise UserError("--dry-run plans on this machine: leave out --on, and name the job file")
        selected = _selection(limit, sample, retry_failed).parameter
        given = {"retry_failed": selected or None, "limit": limit, "sample": sample, "wait": wait or None}
        return run_on(job_file, on, set_, given, replan=replan, as_json=json_)
    with signals.ended_by_the_system():
        limit_arrow_memory()
        skip_gc_at_exit()
        from flows.cli import terminal
        from flows.cli.local_run import migrate_here, prefect_for
        from flows.running import reporter
        from tasks.reporting.text import Report

    selection = _selection(limit, sample, retry_failed)
    if dry_run:
        if limit is not None or sample is not None or retry_failed or replan:
            raise UserError("--dry-run plans all rows; leave out --limit, --sample, --retry-failed and --replan")
        return _show_plan(load_job(job_file, set_), job_file, json_)
    job, folder = load_job(job_file, set_), job_file.absolute().parent
    if limit is None and sample is None and not retry_failed:
        local_run.refuse_unreachable_server(job)
    local_run.say_start(job, folder)
    local_run.prepare(job, job_file, replan=replan, wait=wait)
    draw = terminal.is_terminal() and not json_
    with prefect_for(folder, quiet=draw) as api_url:
        if draw:
            reporter.progress_drawer = terminal.draw_progress
            terminal.out.print(
                f"Prefect UI: {api_url.removesuffix('/api')}   "
                f"(if it no longer answers: ferry ui {terminal.shown(shlex.quote(str(job_file)))})"
            )
        code, end = migrate_here(api_url, signals.current(), job, selection, limit, wait, sample)
    if not isinstance(end, Report):
        if json_:
            print_json({"error": str(end), "exit_code": code})
        if code:
            terminal.error(str(end))
        return code
    if json_:
        print_json({**dataclasses.asdict(end), "exit_code": code, "verdict": end.verdict, "message": end.message})
    else:
        terminal.report(shlex.quote(str(job_file)), end)
    return code


def _selection(limit: int | None, sample: int | None, retry_failed: tuple[str, ...]) -> RetrySelection:
    """Returns the rows that `--retry-failed` selects. Raises UserError if it or a number of rows cannot be used."""
    for name, rows in (("limit", limit), ("sample", sample)):
        if rows is not None and rows < 1:
            raise UserError(f"--{name} {rows}: it must be at least 1; or leave the option out")
    if limit is not None and sample is not None:
        raise UserError("--limit takes the first rows, and --sample takes random ones; leave one of them out")
    selection = RetrySelection.from_option(split_names(retry_failed))
    check_classes(selection.classes)
    return selection


# Loaded when they are used. Their help is here, since the list of commands would load them, too.
for where, group, number, text in (
    ("job_file.init:init", START, 1, "Write a job file: for a manifest and a destination, or a commented example."),
    ("job_file.init:schema", START, 2, "Print the JSON schema of job files, for editors and checks."),
    ("failures:failures", MOVE, 4, "List the failed rows: by class and host with what to do, then row by row."),
    ("check:check", START, 4, "Copy a sample and delete it again, and predict time, failures and cost of the run."),
    ("verify:verify", MOVE, 5, "Read the destination, all of it or a sample, and compare it with the ledger."),
    ("export:export", MOVE, 6, "Write the map from old to new addresses, redirects, or the failures, to a file."),
    ("prove:prove", MOVE, 6, "Verify the destination, and write a proof that can be checked without Ferry."),
    ("missing:missing", MOVE, 6, "List addresses of access logs that have no copy, most asked first, with what to do."),
    ("control:pause", MOVE, 7, "Pause the live run. It waits, and keeps the lease."),
    ("control:resume", MOVE, 8, "Resume a paused run."),
    ("control:cancel", MOVE, 9, "End the live run as a Ctrl-C does. The next run resumes."),
    ("limits:limits", MOVE, 10, "Show the limits in force, or change them, also during a run."),
    ("status:status", MOVE, 3, "Show a job's progress, also during a run and after a crash."),
    ("report:report", MOVE, 6, "Write the report of a job, for those who sign it off, as one HTML file."),
    (
        "server:ui",
        PREFECT,
        1,
        "Print the address of the Prefect UI, and keep its server until Ctrl-C.",
    ),
    ("server:server", PREFECT, 5, "Show, start or stop the local Prefect server."),
    (
        "deploy:deploy",
        PREFECT,
        2,
        "Create or update deployments of prefect.yaml or job files, their schedules and alerts.",
    ),
    ("jobs:jobs", PREFECT, 3, "Show all jobs of the Prefect server: last runs, failures, what is due or in trouble."),
    ("remote:watch", PREFECT, 3, "Follow a run of a deployment until its end."),
    ("deploy:block", PREFECT, 4, "Save the credentials and secrets that a job names as Prefect blocks."),
):
    app.command(f"flows.cli.{where}", help=text, group=group, sort_key=number)


@app.command(group=START, sort_key=3)
def demo(
    *,
    keep: Annotated[bool, Parameter(negative="", help="Keep the servers running at the end, until Ctrl-C.")] = False,
    json_: JsonFlag = False,
) -> int:
    """Run the demo on its own local servers, in `.demo/` of the current folder."""
    return local_run.demo_tour()(Path.cwd() / ".demo", keep=keep, as_json=json_)
