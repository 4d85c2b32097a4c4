"""The command `ferry failures`: the failed rows by class and host, and one by one."""

from __future__ import annotations

import csv
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ferry.core import ErrorClass, UserError, limit_arrow_memory

limit_arrow_memory()  # before the imports that load Arrow: NumPy would take a sixth of the command's time

from ferry.state import (
    FAILURE_COLUMNS,
    PLAIN_WORDS,
    REMEDIES,
    FailureFilter,
    FailureGroup,
    failure_cell,
    failure_groups,
    folded_ledger,
    select_failures,
)
from flows.cli import local_run
from flows.cli.output import JsonFlag, Several, check_classes, print_json, split_names
from flows.cli.terminal import out, say, shown
from tasks.job_file import load_job

SHOWN_ROWS = 50
CHUNK = re.compile(r"^chunk-.*?([0-9a-f]{12})")  # names of task runs, from tasks.transfer; earlier ones had no place


def failures(
    job_file: Path,
    *,
    class_: Annotated[
        tuple[str, ...],
        Several(name="--class", help="Only failures with these error classes or status codes: CLASS[,CLASS]."),
    ] = (),
    host: Annotated[str, Parameter(help="Only failures of one host, or of one bucket.")] = "",
    chunk: Annotated[str, Parameter(help="Only failures of one chunk: its first digits, or its name in the UI.")] = "",
    format_: Annotated[Literal["table", "csv", "json"], Parameter(name="--format")] = "table",
    limit: Annotated[int | None, Parameter(help="Show at most this many rows. Default for a table: 50.")] = None,
    json_: JsonFlag = False,
) -> int:
    """List the failed rows with their reasons."""
    if limit is not None and limit < 0:
        raise UserError(f"--limit {limit}: the limit must not be negative; or leave the option out")
    classes = split_names(class_)
    check_classes(classes)
    named = CHUNK.search(chunk)
    wanted = FailureFilter(classes, host, named[1] if named else chunk)
    as_table = format_ == "table" and not json_
    limit = SHOWN_ROWS if as_table and limit is None else limit
    state = local_run.state_to_read(load_job(job_file), job_file)
    with folded_ledger(state) as con:
        groups = failure_groups(con, wanted)
        rows = select_failures(con, wanted, limit)
    total = sum(group.rows for group in groups)
    if as_table:
        _print_groups(groups, total, wanted)
        _print_rows(rows, total)
    elif format_ == "csv" and not json_:
        writer = csv.DictWriter(sys.stdout, FAILURE_COLUMNS)
        writer.writeheader()
        writer.writerows({name: failure_cell(value) for name, value in row.items()} for row in rows)
    else:
        print_json({"total": total, "groups": [dataclasses.asdict(group) for group in groups], "failures": rows})
    return 0


def _print_groups(groups: Sequence[FailureGroup], total: int, wanted: FailureFilter) -> None:
    if not total:
        asked = [*wanted.classes, *filter(None, (wanted.host, f"chunk {wanted.chunk}" if wanted.chunk else ""))]
        say(f"no failed rows with {', '.join(asked)}" if asked else "no failed rows")
        return
    again = sum(group.rows for group in groups if group.retryable)
    rows = "row" if total == 1 else "rows"
    say(f"{total:,} failed {rows}: {again:,} that the next run tries again, {total - again:,} permanent")
    for group in groups:
        error = ErrorClass(group.error_class)
        at = f"  at {shown(group.host)}" if group.host else ""
        what = PLAIN_WORDS[error]
        code = f" {group.status_code}" if group.status_code and str(group.status_code) not in what else ""
        kind = "retryable" if group.retryable else "permanent"
        out.print()
        out.print(f"[bold]{group.rows:,}[/bold]  [red]{shown(what)}{code}[/red]{at}  [dim]{error}, {kind}[/dim]")
        say(f"  {group.message}")
        for example in group.examples:
            say(f"  {_place(example)}{example['source'] or '(no URL)'}")
        out.print(f"  [cyan]what to do:[/cyan] {shown(REMEDIES[error])}")


def _print_rows(rows: Sequence[dict[str, Any]], total: int) -> None:
    if rows:
        out.print("\nIn the order of the manifest:")
    for row in rows:
        id_ = f"   id {shown(row['id'])}" if row["id"] else ""
        source, key = shown(row["source"] or "(no URL)"), shown(row["key"] or "(no key)")
        out.print(f"{_place(row)}[red]{row['error_class']}[/red]  {source} -> {key}{id_}")
    if total > len(rows):
        say(f"... and {total - len(rows):,} more; see them with `--limit`, or with their messages: `--format csv`")


def _place(row: dict[str, Any]) -> str:
    return f"line {row['line']}  " if row["line"] is not None else ""
