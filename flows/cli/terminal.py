"""Terminal output of `ferry`: progress, outcome tables, failures. Text from outside is escaped."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from ferry.core import ErrorClass, Snapshot, duration, escaped, size
from ferry.ratelimit import Hosts, HostSnapshot
from ferry.state import PLAIN_WORDS, Counts, outcome_table
from tasks.reporting.text import (
    SHORTEST_S,
    Report,
    dedupe_note,
    delta_table,
    describe,
    lost_note,
    speed,
    worth_retrying,
)

if TYPE_CHECKING:
    from ferry.state import RunEnd
    from tasks.reporting.run_view import RunView

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
MOST_HOSTS, MOST_CLASSES = 4, 5  # in the live view
HOST_TICKS = 4  # of the bar, four a second
MARKS = 5  # of the rates of a host, one a second
STYLES = {"copied": "green", "unchanged": "green", "skipped": "yellow", "failed": "red", "pending": "yellow"}


def shown(text: object) -> str:
    """Returns text that is safe on a terminal: control characters and markup are escaped."""
    return escape(escaped(str(text)))


def say(text: str) -> None:
    """Print a sentence: wrapped between words on a terminal, as one line in a pipe."""
    out.print(shown(text), soft_wrap=not is_terminal())


def is_terminal() -> bool:
    """Returns whether standard output is a terminal."""
    return sys.stdout.isatty()


def confirm(text: str) -> bool:
    """Ask for a yes on a terminal. Returns False without one."""
    if not (sys.stdin.isatty() and is_terminal()):
        return False
    say(text)
    return out.input("Go on? [y/N] ").strip().lower() in ("y", "yes")


@contextlib.contextmanager
def draw_progress(view: RunView) -> Iterator[None]:
    """Draw a run on the terminal until the block ends: a bar, the failures by class, and a line for each host."""
    bar = Bar(
        TextColumn("{task.fields[rows]}"), BarColumn(bar_width=30), TextColumn("{task.fields[rest]}"),
        console=out, auto_refresh=False,
    )  # fmt: skip
    row = bar.add_task("", total=1, rows="starting", rest="")
    done, rates = threading.Event(), HostRates()

    def refresh(live: Live) -> None:
        described, ticks, hosts = False, 0, list[str]()
        while True:
            last = done.wait(0.25)
            plan = view.planned()
            if plan is not None and not described:
                described = True
                for line in describe(plan):
                    out.print(f"[dim]{shown(line)}[/dim]", soft_wrap=False)  # between words
            s = view.progress.snapshot()
            if last:  # this line stays on the screen, with the whole run's rates, if these mean something
                steady = view.progress.steady_s
                per_s = 1 / steady if steady >= SHORTEST_S else 0.0
                s = replace(s, rate=s.done * per_s, bytes_rate=s.bytes * per_s)
            if s.todo:
                bar.update(row, total=s.todo, completed=s.done, rows=f"{s.done:,} of {s.todo:,} rows", rest=_rest(s))
            if not last and ticks % HOST_TICKS == 0:  # less often: there may be thousands of hosts
                hosts = rates.lines(view.hosts()[0], time.monotonic())
            ticks += 1
            silent = [f"[yellow]{shown(s.silent)}[/yellow]"] if s.silent else []
            below = [] if last else [*silent, *failure_line(s), *hosts]
            # one line each: a line that wraps would leave parts of itself on the screen
            texts = [Text.from_markup(line, style="dim", overflow="ellipsis") for line in below]
            for text in texts:
                text.no_wrap = True
            live.update(Group(bar, *texts), refresh=True)
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
    moved = f"{size(s.bytes)}, {size(s.bytes_rate)}/s"
    if s.paused or (s.done >= s.todo and not s.rate):  # over, and too soon for a rate
        moved, rate = size(s.bytes), rate if s.paused else ""
    still = f"[yellow]{shown(s.still)}[/yellow]" if s.still else ""
    return "  ".join(part for part in (duration(s.elapsed_s), moved, rate, left, failed, still) if part)


def failure_line(s: Snapshot) -> list[str]:
    """Returns the failures of this run by class, as a line; [] without failures."""
    classes = sorted(s.classes.items(), key=lambda item: (-item[1], item[0])) if s.failed else []
    said = [f"{count:,} {shown(PLAIN_WORDS[ErrorClass(name)])}" for name, count in classes[:MOST_CLASSES] if count]
    more = f", {len(classes) - MOST_CLASSES} more kinds" if len(classes) > MOST_CLASSES else ""
    return [f"failed: {', '.join(said)}{more}"] if said else []


class HostRates:
    """The hosts of a run as lines, with their requests per second over the last seconds."""

    def __init__(self) -> None:
        self._marks: dict[str, deque[tuple[float, int]]] = {}

    def lines(self, hosts: Sequence[HostSnapshot], now: float) -> list[str]:
        """Returns a line for each of the busiest hosts: in flight, limit, rate, latency, and why the limit is so."""
        busiest = sorted(hosts, key=lambda host: (-host.in_flight - host.waiting, host.host))
        found = [self._line(host, now) for host in busiest[:MOST_HOSTS]]
        return [*found, f"... and {len(hosts) - MOST_HOSTS:,} more hosts"] if len(hosts) > MOST_HOSTS else found

    def _line(self, host: HostSnapshot, now: float) -> str:
        marks = self._marks.setdefault(host.host, deque(maxlen=MARKS))
        marks.append((now, host.requests))
        since, before = marks[0]
        rate = (host.requests - before) / (now - since) if now > since else 0.0
        return (
            f"{shown(host.host)}: {host.in_flight:,} in flight, limit {host.limit:,}, {rate:,.0f} requests/s, "
            f"{host.latency_s * 1000:,.0f} ms. {shown(host.why)}"
        )


def outcome_rows(counts: dict[str, Any]) -> Table:
    """Returns a table of the outcomes by error class, described in words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("outcome")
    table.add_column("")
    table.add_column("rows", justify="right")
    for status, words, rows in outcome_table(counts):
        table.add_row(f"[{STYLES[status]}]{status}[/]", shown(words), f"{rows:,}")
    table.add_row("planned", "", f"{counts['planned']:,}", style="bold")
    return table


def report(job_path: str, r: Report) -> None:
    """Print the end of a run: the verdict, the outcomes, the speed and the commands to run next."""
    out.print()
    out.print(shown(r.verdict + "."), style="bold" if r.exit_code == 0 else "bold red", soft_wrap=not is_terminal())
    out.print()
    out.print(outcome_rows(r.counts))
    out.print()
    out.print(f"{r.chunks:,} {'chunk' if r.chunks == 1 else 'chunks'}, {r.cached:,} of them cached. {speed(r)}.")
    if r.delta is not None:
        out.print("This delta run: " + "; ".join(f"{what}: {text}" for what, text in delta_table(r.delta)) + ".")
    say(r.details + ".")
    hints = []
    if r.counts["failed"]:
        hints.append((f"ferry failures {job_path}", "list the failed rows with their reasons"))
    if worth_retrying(r.counts):
        hints.append((f"ferry run {job_path} --retry-failed", "retry only the failed rows"))
    if r.counts["pending"]:
        hints.append((f"ferry run {job_path}", "process the pending rows"))
    if r.counts["copied"] + r.counts["unchanged"]:
        hints.append((f"ferry verify {job_path}", "read the destination and compare it with the ledger"))
    if r.counts["classes"].get("blocked_address"):
        say(
            "Ferry connects to private addresses only if `source.allow_private_addresses` names them. Add them to the "
            "job, then run it again."
        )
    out.print("Next:")
    width = max((len(command) for command, _ in hints), default=0) + 2
    for command, what in hints:
        out.print(f"  {shown(command):<{width}}{what}")


def status(name: str, counts: Counts | None, running: str | None) -> None:
    """Print the counts and the running process, for `ferry status`."""
    out.print(f"[bold]{shown(name)}[/bold]: {shown(running) if running else 'not running'}")
    if counts is None:
        out.print("not planned yet")
        return
    out.print(outcome_rows(counts.as_dict()))
    done = counts.planned - counts.pending
    out.print(
        f"{done:,} of {counts.planned:,} rows done ({done / max(1, counts.planned):.1%}), {size(counts.bytes)} copied"
    )
    if counts.lesser_checks:
        was = "was" if counts.lesser_checks == 1 else "were"
        out.print(f"{counts.lesser_checks:,} of them {was} checked by length or structure alone")
    if saved := dedupe_note(counts.deduped):
        out.print(saved)
    if lost := lost_note(counts.lost_attributes, more=counts.lost_more):
        out.print(shown(lost))


def table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Print a table of texts; columns without any text are left out."""
    shown_ = [name for name in columns if any(row[name] for row in rows)]
    found = Table(*shown_, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        found.add_row(*(shown(row[name]) for name in shown_))
    wide = Console(highlight=False, width=1000)  # a pipe gets a line for each row
    (out if is_terminal() else wide).print(found)


def last_end(end: RunEnd | None, lost: int | None) -> None:
    """Print how the last run ended, for `ferry status`."""
    if lost is not None:
        say(f"run {lost} recorded no end: it was killed, or its machine was lost. Run the job again; it resumes")
    elif end is not None:
        say(f"run {end.run_no} ended {end.ended_at.replace('T', ' ').removesuffix('+00:00')} UTC. {end.message}")


def hosts(known: Hosts, age_s: float) -> None:
    """Print the limit of each host and its reason, for `ferry status`."""
    out.print()
    if known.still:
        say(f"{known.still} (as of {duration(max(0.0, age_s))} ago)")
    out.print(f"Hosts, as of {duration(max(0.0, age_s))} ago (docs/explanation/concurrency.md):")
    for host in known.hosts:
        refused = f", [yellow]{host.refused:,} refused[/yellow]" if host.refused else ""
        out.print(
            f"[bold]{shown(host.host)}[/bold]  {host.in_flight:,} in flight, limit {host.limit:,}, "
            f"{host.requests:,} requests{refused}, latency {host.latency_s * 1000:,.0f} ms"
        )
        out.print(f"  {shown(host.why)}")
    if known.omitted:
        out.print(f"... and {known.omitted:,} more")
    out.print(f"{known.connections_opened:,} connections opened")


def warning(text: str) -> None:
    """Print a warning on standard error."""
    err.print(f"[yellow]warning:[/yellow] {shown(text)}")


def error(text: str) -> None:
    """Print an error, which may have several lines, on standard error."""
    err.print("[red]error:[/red] " + "\n".join(shown(line) for line in text.splitlines()))
