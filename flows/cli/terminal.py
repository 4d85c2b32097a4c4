"""What `ferry` draws: progress, outcome tables, failures. All text from outside is shown escaped."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from ferry.core import Progress, Snapshot, escaped
from ferry.ratelimit import Hosts
from ferry.state import Counts, Planned
from tasks.reporting.text import Report, delta_table, describe, duration, outcome_table, size, speed, worth_retrying

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
STYLES = {"copied": "green", "unchanged": "green", "skipped": "yellow", "failed": "red", "pending": "yellow"}


def shown(text: object) -> str:
    """Safe on a terminal: control characters as escapes, no markup."""
    return escape(escaped(str(text)))


def say(text: str) -> None:
    """A sentence: on a terminal lines end between words; in a pipe there is one line."""
    out.print(shown(text), soft_wrap=not is_terminal())


def is_terminal() -> bool:
    return sys.stdout.isatty()


@contextlib.contextmanager
def draw_progress(progress: Progress, planned: Callable[[], Planned | None]) -> Iterator[None]:
    """One line that moves, on a terminal, until the block ends."""
    bar = Bar(
        TextColumn("{task.fields[rows]}"), BarColumn(bar_width=30), TextColumn("{task.fields[rest]}"),
        console=out, auto_refresh=False,
    )  # fmt: skip
    row = bar.add_task("", total=1, rows="starting", rest="")
    done = threading.Event()

    def refresh(live: Live) -> None:
        described = False
        while True:
            last = done.wait(0.25)
            plan = planned()
            if plan is not None and not described:
                described = True
                for line in describe(plan):
                    out.print(f"[dim]{shown(line)}[/dim]")
            s = progress.snapshot()
            if last and progress.steady_s:  # what stays on the screen is the whole run's rate
                s = replace(s, rate=s.done / progress.steady_s)
            if s.todo:
                bar.update(row, total=s.todo, completed=s.done, rows=f"{s.done:,} of {s.todo:,} rows", rest=_rest(s))
            live.refresh()
            if last:
                return

    with Live(bar, console=out, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        thread = threading.Thread(target=refresh, args=(live,), name="ferry-draw", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _rest(s: Snapshot) -> str:
    left = f"{duration(s.left_s)} left" if s.left_s is not None and s.done < s.todo else ""
    failed = f"[red]{s.failed:,} failed[/red]" if s.failed else ""
    rate = "[yellow]paused at Prefect[/yellow]" if s.paused else f"{s.rate:,.0f} rows/s"
    still = f"[yellow]{shown(s.still)}[/yellow]" if s.still else ""
    return "  ".join(part for part in (size(s.bytes), rate, left, failed, still) if part)


def outcome_rows(counts: dict[str, Any]) -> Table:
    """Outcomes by class, in plain words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("outcome")
    table.add_column("")
    table.add_column("rows", justify="right")
    for status, words, rows in outcome_table(counts):
        table.add_row(f"[{STYLES[status]}]{status}[/]", shown(words), f"{rows:,}")
    table.add_row("planned", "", f"{counts['planned']:,}", style="bold")
    return table


def report(job_path: str, r: Report) -> None:
    """The end of a run: what became of the rows, how fast, and where to look next."""
    out.print()
    out.print(outcome_rows(r.counts))
    out.print()
    out.print(f"{r.chunks:,} {'chunk' if r.chunks == 1 else 'chunks'}, {r.cached:,} of them cached. {speed(r)}.")
    if r.delta is not None:
        out.print("This delta run: " + "; ".join(f"{what}: {text}" for what, text in delta_table(r.delta)) + ".")
    say(r.message + ".")
    hints = []
    if r.counts["failed"]:
        hints.append((f"ferry failures {job_path}", "what failed, and why"))
    if worth_retrying(r.counts):
        hints.append((f"ferry run {job_path} --retry-failed", "try those alone"))
    if r.counts["pending"]:
        hints.append((f"ferry run {job_path}", "go on"))
    if r.counts["copied"] + r.counts["unchanged"]:
        hints.append((f"ferry verify {job_path}", "read the destination back and compare"))
    if r.counts["classes"].get("blocked_address"):
        out.print("Addresses in private networks are fetched only where `source.allow_private_addresses` names them;")
        out.print("then take the rows with --retry-failed=blocked_address.")
    out.print("Next:")
    width = max((len(command) for command, _ in hints), default=0) + 2
    for command, what in hints:
        out.print(f"  {shown(command):<{width}}{what}")


def status(name: str, counts: Counts | None, running: str | None) -> None:
    """`ferry status`."""
    out.print(f"[bold]{shown(name)}[/bold]: {shown(running) if running else 'no run is on'}")
    if counts is None:
        out.print("nothing is planned yet")
        return
    out.print(outcome_rows(counts.as_dict()))
    settled = counts.planned - counts.pending
    out.print(
        f"{settled:,} of {counts.planned:,} rows settled ({settled / max(1, counts.planned):.1%}), "
        f"{size(counts.bytes)} copied"
    )


def hosts(known: Hosts, age_s: float) -> None:
    """What the limiter does at each host, and why; `ferry status`."""
    out.print()
    if known.still:
        say(f"{known.still} (as of {duration(max(0.0, age_s))} ago)")
    out.print(f"Hosts, as of {duration(max(0.0, age_s))} ago (docs/concurrency.md):")
    for host in known.hosts:
        refused = f", [yellow]{host.refused:,} refused[/yellow]" if host.refused else ""
        out.print(
            f"[bold]{shown(host.host)}[/bold]  {host.in_flight:,} in flight of {host.limit:,} at most, "
            f"{host.requests:,} requests{refused}, {host.latency_s * 1000:,.0f} ms each"
        )
        out.print(f"  {shown(host.why)}")
    if known.omitted:
        out.print(f"... and {known.omitted:,} more")
    out.print(f"{known.connections_opened:,} connections were opened for all of it")


def failure_table(lines: Sequence[dict[str, Any]], total: int, asked: str | None = None) -> None:
    """`ferry failures`, as blocks: addresses are long. ``asked``: the classes that were asked for."""
    for line in lines:
        code = f" {line['status_code']}" if line["status_code"] else ""
        again = "retryable" if line["retryable"] else "terminal"
        out.print(
            f"[red]{shown(line['error_class'])}{code}[/red] "
            f"({again}, {line['requests']} requests, {line['recorded_at']})"
        )
        out.print(
            f"  {shown(line['source'] or '(no address)')} -> {shown(line['key'] or '(no key)')}"
            + (f"   id {shown(line['id'])}" if line["id"] else "")
        )
        out.print(f"  {shown(line['message'])}")
    if total > len(lines):
        out.print(f"... and {total - len(lines):,} more: `--limit`, or `--format csv`")
    if not total:
        out.print("no failed rows" if asked is None else f"no failed rows of {shown(asked)}")


def warning(text: str) -> None:
    err.print(f"[yellow]warning:[/yellow] {shown(text)}")


def error(text: str) -> None:
    err.print("[red]error:[/red] " + "\n".join(shown(line) for line in text.splitlines()))
