"""The command `ferry missing`: addresses of access logs that have no copy, most asked first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ferry.core import UserError, limit_arrow_memory

limit_arrow_memory()  # before the imports that load Arrow: NumPy would take a sixth of the command's time

from ferry.cutover import LOST, MissingReport, find_missing_addresses
from flows.cli import local_run
from flows.cli.output import JsonFlag, Several, print_json, split_names
from flows.cli.terminal import out, say, shown
from tasks.job_file import load_job

SHOWN_ADDRESSES = 50


def missing(
    job_file: Path,
    *access_log: Annotated[str, Parameter(allow_leading_hyphen=True)],
    as_list: Annotated[
        Path | None, Parameter(help="Write the addresses in no list to this .csv, as a manifest for a run.")
    ] = None,
    limit: Annotated[int, Parameter(help="Show at most this many addresses.")] = SHOWN_ADDRESSES,
    status: Annotated[
        tuple[str, ...], Several(help="Only requests that were answered with these status codes: 200,304.")
    ] = (),
    host: Annotated[str | None, Parameter(help="The host of requests that name none.")] = None,
    json_: JsonFlag = False,
) -> int:
    """List addresses of access logs that have no copy, most asked first, with what to do."""
    if not access_log:
        raise UserError("name at least one access log of the old origin, or `-` for standard input")
    if limit < 0:
        raise UserError(f"--limit {limit}: the limit must not be negative; or leave the option out")
    codes = split_names(status)
    if wrong := next((code for code in codes if not (code.isascii() and code.isdigit() and len(code) == 3)), None):
        raise UserError(f"--status: `{wrong}` is not a status code, such as 200")
    if as_list is not None and (as_list.exists() or as_list.suffix.lower() != ".csv"):
        raise UserError(f"--as-list {as_list}: name a .csv file that does not exist yet")
    job = load_job(job_file)
    target = as_list.absolute() if as_list is not None else None  # reading a block changes the working directory
    logs = [log if log == "-" else str(Path(log).absolute()) for log in access_log]
    state = local_run.state_to_read(job, job_file)
    report = find_missing_addresses(
        job, state, logs, limit=limit, statuses=[int(code) for code in codes], host=host, as_list=target
    )
    if json_:
        groups = [{**dataclasses.asdict(group), "todo": group.todo} for group in report.groups]
        print_json({**dataclasses.asdict(report), "groups": groups})
    else:
        _show(report, asked_for_list=as_list is not None)
    return 0


def _show(report: MissingReport, *, asked_for_list: bool) -> None:
    bad = f"; lines that are not requests: {report.bad_lines:,}" if report.bad_lines else ""
    say(
        f"{report.requests:,} requests for {report.addresses:,} addresses; with a copy: {report.copied:,} "
        f"({report.copied_requests:,} requests){bad}"
    )
    if not any(group.what in LOST for group in report.groups):
        say("every address of an object that visitors asked for has a copy")
    for group in report.groups:
        style = "red" if group.what in LOST else "dim"
        addresses = f"{group.addresses:,} {'address' if group.addresses == 1 else 'addresses'}"
        out.print(f"[bold]{group.requests:>9,}[/bold]  {addresses}: [{style}]{shown(group.todo)}[/]")
    if report.first:
        out.print("\nMost asked first:")
    for line in report.first:
        why, style = line["error_class"] or line["what"], "red" if line["what"] in LOST else "dim"
        out.print(f"{line['requests']:>9,}  [{style}]{why}[/]  {shown(line['address'])}")
    if report.list_file:
        addresses = "1 address" if report.list_rows == 1 else f"{report.list_rows:,} addresses"
        say(f"wrote {addresses} to {report.list_file}; take it as the manifest of a run")
    elif asked_for_list:
        say("no address is in no list; no file was written")
