"""A killed or interrupted run loses no outcome and repeats none (signals: tests/faults/test_signals.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any

import pytest

from demo.origin import Origin
from flows.server.local import Running
from flows.server.shared import is_running
from tests.faults.flow_runs import recorded_runs
from tests.flows.project import Cli, Prefect, Project, fold, processes_with, serve, wait_for

ROWS = 240

pytestmark = pytest.mark.slow


def _begin(project: Project, origin: Origin, *, some: int = 20) -> tuple[subprocess.Popen[str], dict[str, bytes]]:
    """Start a run, and wait until at least ``some`` rows are recorded and most are not."""
    rows, bodies = serve(origin, ROWS)
    origin.latency_s = 1.0  # long enough for what a test does before it kills, on a busy machine too
    project.job(concurrency=6, chunk_rows=40)
    project.manifest(rows)
    process = project.start("run", "job.yaml", "--json")
    wait_for(f"{some} recorded rows", lambda: len(fold(project.state)) >= some or process.poll() is not None)
    assert process.poll() is None, Cli.end(process, ("run",)).text
    return process, bodies


def _rerun(project: Project, origin: Origin, bodies: dict[str, bytes], done: set[str]) -> Any:
    """Run the job to its end, and check each promise of a rerun. ``done`` are the keys in the ledger before."""
    origin.latency_s = 0.0
    before = dict(origin.requests)
    report = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert project.stored() == bodies
    outcomes = fold(project.state)
    assert len(outcomes) == len({o["key"] for o in outcomes.values()}) == ROWS
    assert {o["status"] for o in outcomes.values()} <= {"copied", "unchanged"}
    asked = {path[1:] for path, count in origin.requests.items() if count > before.get(path, 0)}
    assert not asked & done, "rows that were recorded before the end were fetched again"
    assert asked == set(bodies) - done
    counts = report["counts"]
    assert counts["planned"] == counts["copied"] + counts["unchanged"] == ROWS
    assert counts["pending"] == counts["failed"] == 0
    return report


def _kill(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to the process alone; its output must end, since no child holds it open."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    Cli.end(process, ("run",), 20)


def test_sigkill(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """After a SIGKILL the state can be queried, and a rerun processes exactly the rows without an outcome."""
    process, bodies = _begin(project, origin)
    status = project.ferry("status", "job.yaml", "--json").expect(0).json
    assert str(process.pid) in status["running"]
    assert 0 < status["copied"] < ROWS
    assert project.ferry("failures", "job.yaml", "--json").expect(0).json["total"] == 0
    assert process.poll() is None
    _kill(process)

    recorded = {o["key"] for o in fold(project.state).values()}
    assert 0 < len(recorded) < ROWS
    status = project.ferry("status", "job.yaml", "--json").expect(0).json
    assert status["running"] is None
    assert (status["planned"], status["copied"], status["pending"]) == (ROWS, len(recorded), ROWS - len(recorded))
    human = project.ferry("status", "job.yaml").expect(0).stdout
    assert "not running" in human
    assert "pending" in human
    assert "no failed rows" in project.ferry("failures", "job.yaml").expect(0).stdout
    wait_for("the killed run's children to go", lambda: not processes_with(str(project.folder)), 10)

    _rerun(project, origin, bodies, recorded)
    assert not list((project.state / "spool").glob("body-*"))
    assert [run["state_type"] for run in prefect_api.runs(project.name)][-1] == "COMPLETED"


def test_interrupted_twice(project: Project, origin: Origin) -> None:
    """A second Ctrl-C ends the process at once with 130, and a rerun completes the job."""
    process, bodies = _begin(project, origin)
    origin.latency_s = 60.0  # what is in flight will not come back in time
    time.sleep(0.5)  # let requests meet it: there is nothing to poll for
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(5) == 130
    Cli.end(process, ("run",), 20)
    assert not processes_with(str(project.folder))
    origin.down()  # answers that were delayed by a minute are not waited for
    origin.up()
    _rerun(project, origin, bodies, {o["key"] for o in fold(project.state).values()})


def test_killed_with_its_own_server(project: Project, origin: Origin) -> None:
    """A SIGKILL of a run leaves its local server alone; the next run uses it and completes the job."""
    rows, bodies = serve(origin, ROWS)
    origin.latency_s = 1.0  # long enough for what a test does before it kills, on a busy machine too
    project.job(concurrency=6, chunk_rows=40)
    project.manifest(rows)
    alone = {"PREFECT_API_URL": None, "PREFECT_HOME": None}
    process = project.start("run", "job.yaml", "--json", env=alone)
    wait_for("recorded rows", lambda: len(fold(project.state)) >= 12 or process.poll() is not None, 60)
    assert process.poll() is None
    home = project.folder / ".ferry" / "prefect"
    before = Running.read(home)
    assert before is not None
    _kill(process)
    wait_for("all but the server to go", lambda: not processes_with(str(project.folder)), 10)
    recorded = {o["key"] for o in fold(project.state).values()}
    origin.latency_s = 0.0
    counts = project.ferry("run", "job.yaml", "--json", env=alone).expect(0).json["counts"]
    assert counts["copied"] + counts["unchanged"] == ROWS
    assert project.stored() == bodies
    assert all(origin.requests["/" + key] == 1 for key in recorded)
    assert not processes_with(str(project.folder))
    assert Running.read(home) == before
    killed, ended = recorded_runs(project)
    assert (killed.state, ended.state) == ("CRASHED", "COMPLETED")
    assert "CRASHED" in killed.tasks, "chunks of the killed run do not stay Running"
    assert is_running(home)
