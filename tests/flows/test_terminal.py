"""What the `ferry` command prints, called in this process."""

from __future__ import annotations

import re
import time

import pytest
from rich.console import Console

from ferry.core import ErrorClass, Progress, Status
from ferry.ratelimit import Hosts, HostSnapshot
from ferry.state import Counts, RunEnd
from flows.cli import terminal
from flows.cli.status import progress_of
from tasks.reporting.run_view import RunView
from tasks.reporting.text import progress_words


@pytest.mark.parametrize("lesser", [0, 1, 3])
def test_status_counts_lesser_checks(lesser: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Only if there are any."""
    terminal.status("job", Counts(planned=9, copied=9, lesser_checks=lesser), None)
    printed = capsys.readouterr().out
    assert "9 of 9 rows done (100.0%)" in printed
    assert ("1 of them was checked by length or structure alone" in printed) == (lesser == 1)
    assert ("3 of them were checked by length or structure alone" in printed) == (lesser == 3)


def test_status_names_lost_attributes(capsys: pytest.CaptureFixture[str]) -> None:
    """With the number of objects that had them; nothing without a loss."""
    terminal.status("job", Counts(planned=9, copied=9, lost_attributes={"Expires": 1200, "tags": 1}), None)
    assert "Attributes that the destination cannot hold: Expires (1,200 objects), tags (1 object)" in " ".join(
        capsys.readouterr().out.split()
    )
    terminal.status("job", Counts(planned=9, copied=9, lost_attributes={"tags": 1}, lost_more=1200), None)
    assert "tags (1 object) and 1,200 more" in " ".join(capsys.readouterr().out.split())
    terminal.status("job", Counts(planned=9, copied=9), None)
    assert "Attributes" not in capsys.readouterr().out


def test_the_live_view_names_failures_by_class() -> None:
    """The most frequent classes, in words; nothing without failures."""
    progress = Progress()
    progress.start(20)
    progress.add(Status.COPIED, None, 10)
    assert terminal.failure_line(progress.snapshot()) == []
    for name, count in (("timeout", 1), ("not_found", 3), ("gone", 2), ("forbidden", 2), ("truncated", 2), ("tls", 1)):
        for _ in range(count):
            progress.add(Status.FAILED, ErrorClass(name), 0)
    (line,) = terminal.failure_line(progress.snapshot())
    assert line.startswith(
        "failed: 3 not found (404), 2 access denied (401, 403), 2 permanently gone (410), 2 truncated"
    )
    assert line.endswith(", 1 more kinds")


def test_the_live_view_has_a_line_for_each_busy_host() -> None:
    """In flight, limit, rate and reason, the busiest host first; markup in a name is text."""
    rates = terminal.HostRates()

    def hosts(requests: int) -> list[HostSnapshot]:
        busy = HostSnapshot("b[red].example", 16, 12, 3, 0.0, "growing", requests=requests, latency_s=0.12)
        return [HostSnapshot("a.example", 8, 2, 0, 0.0, "at its limit"), busy]

    assert rates.lines(hosts(100), 10.0)[0].endswith("12 in flight, limit 16, 0 requests/s, 120 ms. growing")
    first, second = rates.lines(hosts(150), 12.0)
    assert first == r"b\[red].example: 12 in flight, limit 16, 25 requests/s, 120 ms. growing"
    assert second == "a.example: 2 in flight, limit 8, 0 requests/s, 0 ms. at its limit"
    many = [HostSnapshot(f"h{n}.example", 8, n, 0, 0.0, "") for n in range(9)]
    lines = rates.lines(many, 13.0)
    assert [line.partition(":")[0] for line in lines] == [
        "h8.example", "h7.example", "h6.example", "h5.example", "... and 5 more hosts"
    ]  # fmt: skip


def test_the_bar_says_how_much_and_how_fast(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line stays, with elapsed time, bytes, both rates and failures of the whole run; the lines below go."""
    view = RunView("job", "full", Progress(), hosts=lambda: ([HostSnapshot("h.example", 8, 1, 0, 0.0, "why")], 1))
    monkeypatch.setattr(terminal, "out", Console(width=160, force_terminal=True, color_system=None))
    view.progress.start(2)
    with terminal.draw_progress(view):
        view.progress.add(Status.COPIED, None, 2_000_000)
        time.sleep(1.1)
        view.progress.add(Status.FAILED, ErrorClass.NOT_FOUND, 0)
    printed = capsys.readouterr().out
    assert "h.example: 1 in flight, limit 8" in printed
    last = printed.rstrip().rpartition("rows ")[2]
    assert re.search(r"2 of 2 rows [━╸ ]+ ?\d:\d\d  2\.0 MB, [\d.]+ [kM]B/s  \d+ rows/s  1 failed", printed), printed
    assert "h.example" not in last


def test_a_short_run_has_no_rate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Five rows within a millisecond are no 5,000 rows/s."""
    view = RunView("job", "full", Progress(), hosts=lambda: ([], 0))
    monkeypatch.setattr(terminal, "out", Console(width=160, force_terminal=True, color_system=None))
    view.progress.start(5)
    with terminal.draw_progress(view):
        for _ in range(5):
            view.progress.add(Status.COPIED, None, 1_000)
    last = capsys.readouterr().out.rpartition("5 of 5 rows")[2]
    assert "5.0 kB" in last
    assert "/s" not in last


def test_status_says_how_the_last_run_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """Its number, time and verdict, or that it was killed."""
    end = RunEnd(3, "2026-11-30T20:13:00+00:00", "Failed: 2 rows failed, more than the 1 that failure_budget allows")
    terminal.last_end(end, None)
    assert capsys.readouterr().out.startswith("run 3 ended 2026-11-30 20:13:00 UTC. Failed: 2 rows failed, more than")
    terminal.last_end(end, 4)
    assert capsys.readouterr().out.startswith("run 4 recorded no end: it was killed, or its machine was lost.")
    terminal.last_end(None, None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("left_s", "ending"), [(40.0, ", about 0:40 left"), (None, "1.5 MB/s")])
def test_status_answers_when_a_run_is_done(left_s: float | None, ending: str) -> None:
    """Since when it runs, what it has done, how fast, and how long it takes."""
    progress = {
        "started_at": 1_764_533_580.0, "todo": 6000, "done": 3000, "failed": 7, "bytes": 2e9, "rate": 300.4,
        "bytes_rate": 1.5e6, "left_s": left_s,
    }  # fmt: skip
    said = progress_words(progress)
    assert said.startswith("this run, since 2025-11-30 20:13:00 UTC: 3,000 of 6,000 rows, 7 failed, 2.0 GB, 300 rows/s")
    assert said.endswith(ending)


def test_status_does_not_show_the_progress_of_an_earlier_run() -> None:
    """A run that still plans has written none; the file is that of the run before."""
    end = RunEnd(3, "2026-11-30T20:13:00+00:00", "Completed")
    progress = {"done": 5}
    assert progress_of(Hosts(4, 0.0, [], progress=progress), end) == progress
    assert progress_of(Hosts(1, 0.0, [], progress=progress), None) == progress
    assert progress_of(Hosts(3, 0.0, [], progress=progress), end) is None
    assert progress_of(None, end) is None
