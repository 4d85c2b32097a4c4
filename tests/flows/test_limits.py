"""`ferry limits`: what it refuses and shows, and what a live run does about it."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Origin
from ferry.core import UserError
from flows.cli.commands import app
from flows.cli.limits import end_of
from tests.flows.project import QUICK, Cli, Forked, Prefect, Project, fold, serve, wait_for
from tests.flows.test_processes import helpers

HOST = "127.0.0.1"
SOON_S = 30.0  # 5 s are promised; a busy machine may take longer
JOB = "name: shop\nmanifest: products.csv\ndestination: s3://bucket/p/\nlimits: {requests_per_s: 50}\n"


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def ferry(job_file: Path, *options: str) -> None:
    assert app(["limits", str(job_file), *options], result_action="return_value") == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--requests-per-s", "0"],
            "--requests-per-s: requests_per_s of 0 allows no request: to pause a run, use `ferry",
        ),
        (["--requests-per-s", "fast"], "--requests-per-s: requests_per_s is not a number; write a number from 0.001"),
        (["--bytes-per-s", "10Mb"], "--bytes-per-s: .* the unit is bytes, not bits"),
        (["--concurrency", "2.5"], "--concurrency: concurrency is not a whole number"),
        (["--concurrency", "4", "--host", "https://img.example/"], "--host: .* is not a host"),
        (["--concurrency", "4", "--host", "img.example", "--destination"], "run the command twice"),
        (["--concurrency", "4", "--until", "18:00", "--for", "2h"], "leave one of them out"),
        (["--concurrency", "4", "--until", "tomorrow"], "write a time such as 18:00 or 2026-12-24T18:00"),
        (["--concurrency", "4", "--until", "2020-01-01T12:00"], "has passed"),
        (["--concurrency", "4", "--for", "soon"], "--for: `soon` is not a duration"),
        (["--concurrency", "4", "--for", "0"], "ends the change at once"),
        (["--reset", "--concurrency", "4"], "takes neither a limit nor a time"),
        (["--reset", "--for", "2h"], "takes neither a limit nor a time"),
        (["--host", "img.example"], "no limit is given; add --requests-per-s"),
        (["--until", "18:00"], "no limit is given"),
    ],
)
def test_refused(options: list[str], words: str, job_file: Path) -> None:
    """Each message says what to do, and nothing is written."""
    with pytest.raises(UserError, match=words):
        ferry(job_file, *options)
    assert not (job_file.parent / ".ferry" / "shop" / "limits.json").exists()


AT_17 = datetime(2026, 12, 1, 17, 0).timestamp()  # local time


@pytest.mark.parametrize(
    ("until", "for_", "end"),
    [
        ("", "", None),
        ("18:00", "", datetime(2026, 12, 1, 18, 0)),
        ("17:00", "", datetime(2026, 12, 2, 17, 0)),
        ("16:30", "", datetime(2026, 12, 2, 16, 30)),
        ("9:05", "", datetime(2026, 12, 2, 9, 5)),
        ("2026-12-24T18:00", "", datetime(2026, 12, 24, 18, 0)),
        ("2026-12-24 18:00", "", datetime(2026, 12, 24, 18, 0)),
        ("2026-12-24T18:00+00:00", "", datetime.fromisoformat("2026-12-24T18:00+00:00")),
        ("", "2h", datetime(2026, 12, 1, 19, 0)),
    ],
)
def test_when_a_change_ends(until: str, for_: str, end: datetime | None) -> None:
    """The table of end_of, by local time. A time that has passed today is tomorrow's, and a note says so."""
    at, note = end_of(until, for_, AT_17)
    assert at == (end and end.timestamp())
    tomorrow = until in ("17:00", "16:30", "9:05")
    assert note == (f"{until} has passed today, so the change ends tomorrow ({end:%Y-%m-%d %H:%M})" if tomorrow else "")


def test_limits_are_shown_changed_and_reset(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line has the value, for whom, and by whom. A change replaces the one of the same limit alone."""

    def said(*options: str) -> list[str]:
        ferry(job_file, *options)
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        notes = [line for line in lines if line.startswith("No run is live with the state ")]
        assert len(notes) == bool(options)
        return [line for line in lines if line not in notes]

    by_job = "50 requests/s for all origin hosts together, by the job"
    assert said() == ["Limits of shop in force:", by_job]
    (_, *lines) = said("--host", "IMG.old.example", "--requests-per-s", "20", "--bytes-per-s", "10MB")
    by_command = ["20 requests/s for img.old.example, by ferry limits"]
    size = "10,000,000 bytes/s for img.old.example, by ferry limits"
    assert lines == [by_job, *by_command, size]
    (_, *lines) = said("--host", "img.old.example", "--bytes-per-s", "off", "--for", "1m")
    assert lines[:2] == [by_job, *by_command]
    assert lines[2].startswith("no limit on bytes/s for img.old.example, by ferry limits until ")
    said("--destination", "--concurrency", "3")
    (_, *lines) = said("--host", "img.old.example", "--reset")
    assert lines == [by_job, "3 requests in flight for the destination, by ferry limits"]
    assert said("--reset") == ["Limits of shop in force:", by_job]
    said("--requests-per-s", "none")
    assert said()[1:] == ["no limit on requests/s for all origin hosts together, by ferry limits"]
    ferry(job_file, "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["limits"] == [{"key": "", "limit": "requests_per_s", "value": None, "source": "ferry limits"}]
    assert (shown["running"], shown["at_limit"]) == (False, {})
    assert [one["value"] for one in shown["overrides"]] == ["off"]
    assert shown["shared"] is None
    job_file.write_text(JOB.replace("50}", "50, shared: old}"))
    assert said("--reset")[1:] == [by_job, "The live runs with `limits.shared: old` divide their limits equally."]
    job_file.write_text(JOB.partition("limits")[0])
    assert said("--reset") == ["shop has no limits; each host's are learned"]


def limited(project: Project) -> list[dict[str, Any]]:
    """The origin in reports/hosts.json, once the run has a rate for it."""
    try:
        found = json.loads((project.state / "reports" / "hosts.json").read_text())["hosts"]
    except FileNotFoundError:
        return []
    return [host for host in found if host["host"].startswith(HOST) and host["requests_per_s"] is not None]


def begin(project: Project, origin: Origin, rows: int, **job: Any) -> tuple[Forked, dict[str, bytes]]:
    """Start a run, and wait until it transfers."""
    listed, bodies = serve(origin, rows)
    project.job(**{"chunk_rows": 20, **job})
    project.manifest(listed)
    process = project.fork("run", "job.yaml", "--json")
    wait_for("recorded rows", lambda: len(fold(project.state)) >= 10 or process.poll() is not None, 60)
    assert process.poll() is None, Cli.end(process, ("run",)).text
    return process, bodies


def check_rate(origin: Origin, per_s: float, had_begun: int) -> None:
    """Fails if more requests arrive in the next seconds than a rate allows. ``had_begun``: may be on their way."""
    since = time.monotonic()
    time.sleep(2.0)
    assert sum(at > since for at in list(origin.times)) <= per_s * (time.monotonic() - since) + 2 + had_begun


@pytest.mark.slow
def test_a_live_run(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """A limit applies within seconds to all processes together, is logged and reported, and ends with --reset."""
    origin.latency_s = 0.2
    process, bodies = begin(project, origin, 300, processes=2, concurrency=8)
    said = project.ferry("limits", "job.yaml", "--host", HOST, "--requests-per-s", "6", "--for", "1h").expect(0).stdout
    assert "The live run applies them within 5 s." in said
    wait_for("the limit", lambda: limited(project), SOON_S)
    wait_for("it in all processes", lambda: round(limited(project)[0]["requests_per_s"], 3) == 6, SOON_S)
    check_rate(origin, 6, 8)
    wait_for("it to be reached", lambda: project.ferry("limits", "job.yaml", "--json").json["at_limit"], SOON_S)
    assert f"limited by limits.hosts.{HOST}" in project.ferry("limits", "job.yaml").expect(0).stdout
    assert "None of its" in project.ferry("limits", "job.yaml", "--host", "x.example", "--concurrency", "1").stdout
    project.ferry("limits", "job.yaml", "--reset").expect(0)
    wait_for("its end", lambda: not limited(project), SOON_S)
    ended = Cli.end(process, ("run",)).expect(0)
    assert ended.json["this_run"] == {"copied": 300}
    assert f"limits: 6 requests/s for {HOST}, by ferry limits until " in ended.stderr
    assert f"limits: no limit on requests/s for {HOST}" in ended.stderr
    assert any(f"6 requests/s for {HOST}" in change for change in ended.json["limit_changes"])
    assert f"6 requests/s for {HOST}" in (project.state / "reports" / "run-000001" / "summary.md").read_text()
    assert project.stored() == bodies
    assert all(origin.requests["/" + key] == 1 for key in bodies)


@pytest.mark.slow
def test_fewer_in_flight_than_processes(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """Processes without a permit end; each row is still transferred once, and no more requests are in flight."""
    origin.latency_s = 0.2
    retries = {**QUICK, "chunk_attempts": 0}  # the rows of such a process need none
    process, bodies = begin(project, origin, 200, processes=3, concurrency=6, retries=retries)
    wait_for("all processes", lambda: len(helpers(process.pid)) == 2)
    project.ferry("limits", "job.yaml", "--concurrency", "1").expect(0)
    wait_for("two processes to end", lambda: not helpers(process.pid), SOON_S)
    wait_for("one request in flight", lambda: origin.at_once <= 1)
    origin.most_at_once, before = 0, origin.total
    wait_for("more requests", lambda: origin.total > before + 5)
    assert origin.most_at_once == 1
    project.ferry("limits", "job.yaml", "--reset").expect(0)
    ended = Cli.end(process, ("run",)).expect(0)
    assert ended.json["counts"]["copied"] == 200
    assert project.stored() == bodies
    assert all(origin.requests["/" + key] == 1 for key in bodies)


@pytest.mark.slow
def test_a_run_that_starts_later_with_a_state_in_a_bucket(
    project: Project, origin: Origin, prefect_api: Prefect
) -> None:
    """A change waits in the state for the next run, and its end reaches that run. The timetable's limit follows."""
    origin.latency_s = 0.05
    timetable = [{"time": "00:00-24:00", "requests_per_s": 50}]
    project.job(state=f"s3://{project.bucket}/state/", limits={"timetable": timetable})
    project.manifest(serve(origin, 120)[0])
    project.ferry("limits", "job.yaml", "--requests-per-s", "4").expect(0)
    process = project.fork("run", "job.yaml", "--json")
    wait_for("requests", lambda: origin.total >= 4 or process.poll() is not None, 60)
    check_rate(origin, 4, 0)
    said = project.ferry("limits", "job.yaml", "--reset").expect(0).stdout
    assert "within 15 s" in said
    ended = Cli.end(process, ("run",)).expect(0)
    assert ended.json["this_run"] == {"copied": 120}
    assert "limits: 4 requests/s for all origin hosts together, by ferry limits" in ended.stderr
    by_timetable = "50 requests/s for all origin hosts together, by the timetable (mon-sun 00:00-24:00)"
    assert f"limits: {by_timetable}" in ended.stderr
    assert by_timetable in said
    assert origin.total == 120
