"""`ferry verify`: the destination, or what visitors get, compared with the ledger."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.cli import local_run
from flows.cli.output import JsonFlag, print_json
from flows.cli.terminal import draw_progress, error, is_terminal, out, say, shown
from flows.running import signals
from tasks.job_file import load_job

if TYPE_CHECKING:
    from ferry.cutover import PublicReport
    from ferry.job import Job

SHOWN_WRONG = 50  # objects that are named at most
MOST_EXAMPLES = 50  # of public addresses


def verify(
    job_file: Path,
    *,
    list_: Annotated[
        bool,
        Parameter(name="--list", negative="", help="Compare only the ETags and sizes of a listing. No object is read."),
    ] = False,
    sample: Annotated[
        str | None, Parameter(help="Read objects drawn at random: a share such as `1%`, or a count.")
    ] = None,
    seed: Annotated[int | None, Parameter(help="Draw the sample with this seed again.")] = None,
    public: Annotated[
        bool, Parameter(negative="", help="Ask for the public addresses instead, as visitors do (public_url).")
    ] = False,
    json_: JsonFlag = False,
) -> int:
    """Read the destination, all of it or a sample, and compare it with the ledger."""
    with signals.ended_by_the_system():
        from ferry.cutover import public_site
        from ferry.reconcile import check_choice
        from ferry.state import folded_ledger, select_wrong

    check_choice(list_, sample, seed, public)
    job = load_job(job_file)
    if public:
        public_site(job)
    else:
        local_run.refuse_second_run(job)
    code, end, report = verify_here(
        job, job_file, as_json=json_, list_only=list_, sample=sample, seed=seed, public=public
    )
    if report is not None and code < 2:
        return _show_public(report, code, as_json=json_)
    wrong: list[dict[str, str]] = []
    if code == 1:
        with folded_ledger(local_run.state_to_read(job, job_file)) as con:
            wrong = select_wrong(con, SHOWN_WRONG)
    if json_:
        if code > 1:
            print_json({"error": str(end), "exit_code": code})
        else:
            print_json({"exit_code": code, "message": str(end), "ok": code == 0, "wrong": wrong})
    elif code > 1:
        error(str(end))
    else:
        for what, key, why in ((line["error_class"], line["key"], line["message"]) for line in wrong):
            out.print(f"[red]{what}[/red]  {shown(key)}  [dim]{shown(why)}[/dim]")
        if len(wrong) == SHOWN_WRONG:
            out.print("... only the first are shown; the ledger has all of them (docs/reference/state.md)")
        out.print(shown(str(end)))
    return code


def verify_here(job: Job, job_file: Path, *, as_json: bool, **parameters: Any) -> tuple[int, Any, PublicReport | None]:
    """Run the flow `verify` in this process, with its ``parameters``.

    Returns the exit code, the run's message, and the report of a check of public addresses.
    """
    from flows.running import reporter

    draw, folder = is_terminal() and not as_json, job_file.absolute().parent
    local_run.say_start(job, folder)
    reporter.progress_drawer = draw_progress if draw else None
    with local_run.prefect_for(folder, quiet=draw):
        local_run.load_flows()
        from flows import verify as flow

        interrupts = signals.current()
        with interrupts.listening(), local_run.tagged():
            ended = local_run.run_flow(flow.verify, job, **parameters)
        code, end = local_run.exit_code(interrupts, ended)
    return code, end, flow.public_report


def _show_public(report: PublicReport, code: int, *, as_json: bool) -> int:
    """Print the result of a check of public addresses, and return the exit code."""
    if as_json:
        more = {"exit_code": code, "ok": code == 0, "message": report.message, "advice": report.advice or None}
        print_json({**dataclasses.asdict(report), **more})
        return code
    left = MOST_EXAMPLES
    for group in report.groups:
        out.print(f"[bold]{group.rows:,}[/bold]  [red]{shown(group.what)}[/red]: {shown(group.how)}")
        for example in group.examples[: max(0, left)]:
            left -= 1
            say(f"  {example['public_url'] or example['key']}")
            out.print(f"    [dim]{shown(example['expected'])} -> {shown(example['found'])}[/dim]")
    if report.advice:
        say(report.advice)
    say(report.message)
    return code
