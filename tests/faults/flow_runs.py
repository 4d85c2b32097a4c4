"""Runs of `ferry run` that are to be disturbed, and what one plain run must come to afterwards."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
from dataclasses import dataclass
from typing import Any

from demo.origin import Origin
from flows.server.local import SERVER
from tests.flows.project import Cli, Ended, Environment, Project, fold, processes_with, serve, wait_for

ALONE: Environment = {"PREFECT_API_URL": None, "PREFECT_HOME": None}  # with a Prefect server of its own
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
BOUND_S = 180.0  # for what takes seconds; a busy machine takes longer


@dataclass(slots=True)
class Disturbed:
    """A run under way, and what its destination must hold at the end."""

    project: Project
    origin: Origin
    process: subprocess.Popen[str]
    bodies: dict[str, bytes]

    @property
    def recorded(self) -> set[str]:
        """Keys that the ledger has as copied, read without Ferry."""
        return {outcome["key"] for outcome in fold(self.project.state).values() if outcome["status"] == "copied"}

    def end(self, within_s: float = BOUND_S) -> Ended:
        return Cli.end(self.process, ("run", "job.yaml"), within_s)

    def server(self) -> int:
        """The process of the Prefect server that the run has started."""
        (line,) = [line for line in processes_with(str(self.project.folder), servers=True) if SERVER in line]
        return int(line.partition(":")[0])

    def finish(self, *, env: Environment = {}, what: str = "") -> Any:
        """One plain run ends the job: byte for byte, each row once, and nothing fetched that was recorded before."""
        self.origin.latency_s = 0.0
        recorded, before = self.recorded, dict(self.origin.requests)
        report = self.project.ferry("run", "job.yaml", "--json", env=env).expect(0).json
        check(self.project, self.bodies, what)
        asked = {path[1:] for path, count in self.origin.requests.items() if count > before.get(path, 0)}
        assert not asked & recorded, f"{what}: recorded rows were fetched again: {sorted(asked & recorded)[:3]}"
        return report


def check(project: Project, bodies: dict[str, bytes], what: str = "") -> None:
    """The destination holds the bodies and nothing else, and each row is in one state, which is a good one."""
    assert project.stored() == bodies, what
    outcomes = fold(project.state).values()
    assert {outcome["key"] for outcome in outcomes} == set(bodies), what
    assert len(outcomes) == len(bodies), what
    assert {outcome["status"] for outcome in outcomes} <= {"copied", "unchanged"}, what
    assert not list((project.state / "spool").glob("body-*")), what


def begin(
    project: Project,
    origin: Origin,
    *,
    rows: int = 160,
    some: int = 20,
    latency_s: float = 0.25,
    env: Environment = {},
    **job: Any,
) -> Disturbed:
    """A run in its middle: ``some`` rows or more are recorded, most are not."""
    listed, bodies = serve(origin, rows)
    origin.latency_s = latency_s
    project.job(**{"concurrency": 6, "chunk_rows": 20, **job})
    project.manifest(listed)
    process = project.start("run", "job.yaml", "--json", env=env)
    run = Disturbed(project, origin, process, bodies)
    wait_for("recorded rows", lambda: len(fold(project.state)) >= some or process.poll() is not None, BOUND_S)
    assert process.poll() is None, run.end().text
    return run


@dataclass(frozen=True, slots=True)
class Recorded:
    """A flow run as Prefect's database has it."""

    state: str
    message: str
    tasks: list[str]  # their states


def recorded_runs(project: Project) -> list[Recorded]:
    """The runs of a local server, oldest first, once it has recorded the ends of their tasks."""
    wait_for("recorded ends", lambda: all(set(run.tasks) <= set(ENDED) for run in _in_database(project)), 15)
    return _in_database(project)


def _in_database(project: Project) -> list[Recorded]:
    database = project.folder / ".ferry" / "prefect" / "prefect.db"
    with contextlib.closing(sqlite3.connect(database)) as con:
        runs = con.execute(
            "SELECT run.id, run.state_type, state.message FROM flow_run run"
            " LEFT JOIN flow_run_state state ON state.id = run.state_id ORDER BY run.created"
        ).fetchall()
        tasks = con.execute("SELECT flow_run_id, state_type FROM task_run").fetchall()
    return [Recorded(state, message or "", [t for of, t in tasks if of == id_]) for id_, state, message in runs]
