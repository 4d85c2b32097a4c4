"""Several engine processes give the same results as one, and share its limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Fault, Origin, Trouble
from tests.flows.project import Cli, Prefect, Project, fold, processes_with, serve, wait_for

ROWS = 160
HELPER = "tasks.workers.worker"

pytestmark = pytest.mark.slow


def helpers(of: int) -> list[int]:
    """Returns the worker processes of a run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if parent == of and HELPER in command:
            found.append(int(stat.parent.name))
    return found


def hosts(project: Project) -> Any:
    return json.loads((project.state / "reports" / "hosts.json").read_text())["hosts"]


def begin(project: Project, origin: Origin, **job: Any) -> tuple[subprocess.Popen[str], dict[str, bytes]]:
    """Start a run with two engine processes, and wait until it transfers."""
    rows, bodies = serve(origin, ROWS)
    origin.latency_s = 0.25
    project.job(processes=2, concurrency=8, chunk_rows=10, **job)
    project.manifest(rows)
    process = project.start("run", "job.yaml", "--json")
    wait_for("recorded rows", lambda: len(fold(project.state)) >= 30 or process.poll() is not None)
    assert process.poll() is None, Cli.end(process, ("run",)).text
    return process, bodies


def started_at(project: Project) -> list[float]:
    return sorted(outcome["started_at"].timestamp() for outcome in fold(project.state).values())


def test_two_processes_move_each_row_once(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """Both processes work; chunks, outcomes, counts, failures and a second run are as with one process."""
    rows, bodies = serve(origin, ROWS)
    for number in range(5):
        rows.append({"sku": f"gone-{number}", "url": origin.url(f"/gone/{number}.jpg")})
    origin.latency_s = 1.0
    project.job(processes=2, concurrency=8, chunk_rows=10)
    project.manifest(rows)
    process = project.start("run", "job.yaml", "--json")
    # One process has half of the concurrency. Without this wait, it may be done before the other one has started.
    wait_for("requests of both processes", lambda: origin.at_once > 4 or process.poll() is not None)
    origin.latency_s = 0.02
    report = Cli.end(process, ("run",)).expect(0).json
    assert report["this_run"] == {"copied": ROWS, "failed": 5}
    assert project.stored() == bodies
    assert all(origin.requests["/" + key] == 1 for key in bodies)
    assert len(fold(project.state)) == ROWS + 5
    (host,) = [host for host in hosts(project) if host["host"] != "destination"]
    assert host["requests"] >= ROWS
    assert host["why"].endswith("(of 2 processes)"), "one of them had nothing to do"
    again = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert again["this_run"] == {}
    assert set(prefect_api.chunk_states(prefect_api.runs(project.name)[-1])) == {"Cached"}


def test_an_engine_process_that_is_killed_loses_nothing(project: Project, origin: Origin) -> None:
    """After a process is killed, the run finishes and fetches no recorded object again."""
    process, bodies = begin(project, origin)
    (helper,) = helpers(process.pid)
    os.kill(helper, signal.SIGKILL)
    time.sleep(0.3)  # what it had asked for is answered by now, or never
    recorded = {outcome["key"] for outcome in fold(project.state).values()}
    origin.latency_s = 0.0
    report = Cli.end(process, ("run",)).expect(0).json
    assert report["counts"]["copied"] + report["counts"]["unchanged"] == ROWS
    assert project.stored() == bodies
    assert len(fold(project.state)) == ROWS
    assert all(origin.requests["/" + key] == 1 for key in recorded)


def test_ctrl_c_reaches_all_processes(project: Project, origin: Origin) -> None:
    """A Ctrl-C ends both processes with their outcomes recorded; a rerun copies the rest."""
    process, bodies = begin(project, origin)
    os.killpg(process.pid, signal.SIGINT)
    report = Cli.end(process, ("run",)).expect(130).json
    assert report["counts"]["pending"] > 0
    assert not processes_with(str(project.folder))
    recorded = {outcome["key"] for outcome in fold(project.state).values()}
    assert set(project.stored()) == recorded
    origin.latency_s = 0.0
    project.ferry("run", "job.yaml", "--json").expect(0)
    assert project.stored() == bodies
    assert all(origin.requests["/" + key] == 1 for key in recorded)


def test_a_killed_run_takes_its_processes_along(project: Project, origin: Origin) -> None:
    process, bodies = begin(project, origin)
    (helper,) = helpers(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    Cli.end(process, ("run",), 20)
    wait_for("the engine process to go", lambda: not Path(f"/proc/{helper}").exists(), 5)
    recorded = {outcome["key"] for outcome in fold(project.state).values()}
    origin.latency_s = 0.0
    project.ferry("run", "job.yaml", "--json").expect(0)
    assert project.stored() == bodies
    assert all(origin.requests["/" + key] == 1 for key in recorded)


def test_bounds_are_shared(project: Project, origin: Origin) -> None:
    """Two processes together send no more than 40 requests/s, and respect the limit of concurrency."""
    rows, _ = serve(origin, 120)
    project.job(processes=2, chunk_rows=10, limits={"hosts": {"127.0.0.1": {"requests_per_s": 40, "concurrency": 6}}})
    project.manifest(rows)
    project.ferry("run", "job.yaml", "--json").expect(0)
    times = started_at(project)
    assert len(times) == 120
    assert 119 / (times[-1] - times[0]) <= 40 * 1.1
    assert all(host["limit"] <= 6 for host in hosts(project) if host["host"] != "destination")


def test_a_pause_is_everybody_s(project: Project, origin: Origin) -> None:
    """A Retry-After that one process receives pauses the other process."""
    rows, bodies = serve(origin, ROWS)
    fault = Fault(Trouble.RATE_LIMITED, seconds=3)
    body = next(iter(bodies.values()))
    rows.insert(60, {"sku": "limited", "url": origin.add("/images/limited.jpg", body, fault=fault)})
    origin.latency_s = 0.05
    project.job(processes=2, concurrency=4, chunk_rows=10)
    project.manifest(rows)
    project.ferry("run", "job.yaml", "--json").expect(0)
    times = started_at(project)
    assert len(times) == ROWS + 1
    assert max(after - before for before, after in pairwise(times)) > 2.0


def test_a_run_with_a_limit_has_one_process(project: Project, origin: Origin) -> None:
    """A run with --limit uses one process, and copies exactly that many rows."""
    rows, _ = serve(origin, 40)
    project.job(processes=4, chunk_rows=5)
    project.manifest(rows)
    report = project.ferry("run", "job.yaml", "--json", "--limit", "17").expect(0).json
    assert report["this_run"] == {"copied": 17}
