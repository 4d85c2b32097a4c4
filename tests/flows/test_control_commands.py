"""`ferry pause`, `resume` and `cancel` reach the live run of a job."""

from __future__ import annotations

import pytest

from demo.origin import Origin
from tests.flows.project import Cli, Environment, Prefect, Project, fold, processes_with, serve, wait_for

pytestmark = pytest.mark.slow


def test_a_run_is_paused_resumed_and_cancelled(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """A pause stops the requests and keeps the lease, a resume continues, a cancellation ends it with exit code 130."""
    rows, _ = serve(origin, 400)
    origin.latency_s = 0.2
    project.job(concurrency=4, chunk_rows=100)
    project.manifest(rows)
    assert "there is none to pause" in project.ferry("pause", "job.yaml").expect(2).stderr
    process = project.fork("run", "job.yaml", "--json")
    wait_for("recorded rows", lambda: len(fold(project.state)) >= 10)
    said = project.ferry("pause", "job.yaml").expect(0).stdout
    assert "To go on: ferry resume job.yaml" in said
    (run,) = prefect_api.runs(project.name)
    assert f"{project.name} " in said
    wait_for("the pause", lambda: project.ferry("status", "job.yaml", "--json").json["limiter"]["paused"], 30)
    wait_for("objects in flight to end", lambda: origin.at_once == 0)
    before = origin.total
    assert project.ferry("run", "job.yaml").expect(3).stderr
    assert origin.total == before
    assert project.ferry("resume", "job.yaml", "--json").expect(0).json["flow_run"] == run["id"]
    wait_for("more requests", lambda: origin.total > before, 30)
    assert "Prefect refused to resume" in project.ferry("resume", "job.yaml").expect(2).stderr
    project.ferry("cancel", "job.yaml").expect(0)
    report = Cli.end(process, ("run",)).expect(130).json
    assert report["verdict"].startswith("Cancelled: interrupted by a cancellation at Prefect")
    assert report["counts"]["pending"] > 0


def test_without_an_address_they_use_the_local_server(project: Project, origin: Origin) -> None:
    """The commands start no server of Prefect's own, and read no settings from the working directory."""
    rows, _ = serve(origin, 200)
    origin.latency_s = 0.2
    project.job(concurrency=2)
    project.manifest(rows)
    alone: Environment = {"PREFECT_API_URL": None, "PREFECT_HOME": None}
    (project.folder / ".env").write_text("PREFECT_API_URL=http://127.0.0.1:9/api\n")
    process = project.start("run", "job.yaml", "--json", env=alone)
    wait_for("recorded rows", lambda: len(fold(project.state)) >= 2, 60)
    for what in ("pause", "resume", "cancel"):
        Cli.end(project.start(what, "job.yaml", env=alone), (what,)).expect(0)
        assert not [line for line in processes_with(str(project.folder), servers=True) if "uvicorn" in line]
    Cli.end(process, ("run",)).expect(130)


def test_a_run_of_another_server(project: Project, origin: Origin) -> None:
    """The server that the command asks does not know the run: the error says how to name the right one."""
    rows, _ = serve(origin, 1000)
    origin.latency_s = 0.3
    project.job(concurrency=2)
    project.manifest(rows)
    process = project.fork("run", "job.yaml", "--json")
    wait_for("recorded rows", lambda: len(fold(project.state)) >= 2)
    alone = {"PREFECT_API_URL": None, "PREFECT_HOME": None}
    ended = project.ferry("cancel", "job.yaml", env=alone).expect(2)
    assert "does not know the run" in ended.stderr
    assert "Set PREFECT_API_URL" in ended.stderr
    project.ferry("cancel", "job.yaml").expect(0)
    Cli.end(process, ("run",)).expect(130)
