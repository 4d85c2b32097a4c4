"""One job on several machines: each a worker with a HOME and a TMPDIR of its own, which shares only S3 and the API.

In the second tier, since each test starts runs of a deployment, which takes 5 to 10 s a process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo.origin import Origin
from ferry.state import State, open_state
from tasks.shards.files import SETTINGS
from tests.faults.amount import book_lost, only_long
from tests.flows.deployed import Deployed, worker
from tests.flows.project import ROOT, Cli, Forked, Prefect, Project, serve, wait_for
from tests.support.helpers import access
from tests.support.units import descendants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

QUICK = {"least_rows": 40, "look_s": 1.0, "fresh_s": 4.0, "silent_s": 6.0, "hint_s": 2.0, "unclaimed_s": 600.0}
SOON_S = 150.0
SLOW_S, FAST_S = 3.0, 0.05  # of an answer: until the shards have begun, which takes 5 to 60 s, and after that


class Machines:
    """The deployment of shards, and workers that take its runs; each test has a bucket and a state of its own."""

    def __init__(self, cli: Cli, api: Prefect, folder: Path) -> None:
        self.cli, self.api, self.folder = cli, api, folder
        self.deployed = Deployed(folder, cli)
        self.name = f"shards-{self.deployed.mark}"
        for one in self.deployed.content["deployments"]:
            if one["entrypoint"].endswith("shard.py:shard"):
                one["name"] = self.name
        self.deployed.write()
        self.deployed.deploy().expect(0)
        self.workers: list[str] = []
        self.stack = contextlib.ExitStack()

    def start_workers(self, count: int) -> None:
        """Start workers for one run at a time each, with nothing in common but their environment's credentials."""
        for _ in range(count):
            home = self.folder / f"machine-{len(self.workers)}"
            (home / "tmp").mkdir(parents=True)
            own = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PREFECT_HOME": str(home / "prefect")}
            self.workers.append(f"{self.deployed.mark}-{home.name}")
            options = ("--limit", "1", "--name", self.workers[-1])
            self.stack.enter_context(worker(self.cli, self.deployed.pool, home / "worker.log", *options, **own))

    def shards(self, parent: str) -> list[dict[str, Any]]:
        """Returns the runs of shards that Prefect links to this run."""
        found: list[dict[str, Any]] = self.api.post(
            "flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [parent]}}, "sort": "START_TIME_ASC"}
        )
        return found

    def process_of(self, run: str) -> int:
        """Returns the process on this machine that executes a flow run."""
        return min(_processes("environ", f"FLOW_RUN_ID={run}"))  # its children have the same environment

    def worker_of(self, pid: int) -> int:
        """Returns the worker that started a process."""
        workers = (pid for name in self.workers for pid in _processes("cmdline", name))
        return next(one for one in workers if pid in descendants(one))


def _processes(file: str, text: str) -> list[int]:
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{file}"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


class Job:
    """A job of ``machines`` machines with its manifest, bucket and state."""

    def __init__(self, machines: Machines, project: Project, origin: Origin, rows: int, count: int = 3) -> None:
        self.machines, self.project, self.origin = machines, project, origin
        listed, self.bodies = serve(origin, rows)
        project.manifest(listed)
        project.name = machines.name
        self.uri = f"s3://{project.bucket}/state"
        project.job(name=machines.name, state=self.uri, machines=count, chunk_rows=20, concurrency=6)
        self.files: State = open_state(self.uri, access(machines.cli.s3), project.folder / "cache")
        self.settings()

    def settings(self, **more: Any) -> None:
        self.files.write(SETTINGS, json.dumps({**QUICK, **more}).encode())

    def start(self) -> Forked:
        return self.project.fork("run", "job.yaml", "--json", env={"TMPDIR": str(self.own_tmp())})

    def own_tmp(self) -> Path:
        folder = self.project.folder / "tmp"
        folder.mkdir(exist_ok=True)
        return folder

    def end(self, process: Forked, code: int = 0) -> Any:
        return Cli.end(process, ("run",), 400).expect(code).json

    @property
    def parent(self) -> str:
        """The flow run that holds the lease."""
        return str(json.loads(self.files.read("lease.json"))["flow_run"])

    def outcomes(self) -> list[dict[str, Any]]:
        """Returns all lines of the ledger, folded or not."""
        found: list[dict[str, Any]] = []
        for name in [*self.files.list("ledger"), *self.files.list("outcomes")]:
            if name.endswith(".parquet"):
                with contextlib.suppress(FileNotFoundError):
                    found += pq.read_table(self.files.local(name, refresh=True)).to_pylist()
        return found

    def attempts(self) -> dict[str, int]:
        """Returns the attempt of each shard that counts."""
        orders = next((name for name in self.files.list("shards") if name.endswith("orders.json")), None)
        return {} if orders is None else dict(json.loads(self.files.read(orders))["attempts"])

    def claimed(self) -> list[str]:
        return [name for name in self.files.list("shards") if name.endswith(".claim")]

    def moving(self, attempts: int = 1) -> list[dict[str, Any]]:
        """Wait until as many shards have recorded outcomes, and return the live runs of shards."""

        def busy() -> bool:
            beats = [json.loads(self.files.read(name)) for name in self.files.list("shards") if name.endswith(".beat")]
            return sum(bool(beat["beat"]["statuses"]) for beat in beats) >= attempts

        wait_for("shards that move", busy, SOON_S, every_s=0.3)
        return [run for run in self.machines.shards(self.parent) if run["state_type"] == "RUNNING"]

    def check(self, most_twice: int = 0, *, fault: str = "") -> None:
        """Everything is there, each row copied, and no more objects asked for twice than were in flight."""
        stored = self.project.stored()
        if fault:
            book_lost(fault, stored, self.bodies)
        assert stored == self.bodies
        assert {line["status"] for line in self.outcomes()} <= {"copied", "unchanged"}
        assert len({line["row_id"] for line in self.outcomes()}) == len(self.bodies)
        twice = {path: count for path, count in Counter(self.origin.requests).items() if count > 1}
        assert len(twice) <= most_twice, twice


def stored(report: Any) -> int:
    """Returns the rows with an object; what was in flight at a kill, another process finds unchanged."""
    return int(report["counts"]["copied"] + report["counts"]["unchanged"])


@pytest.fixture(scope="module")
def machines(cli: Cli, prefect_api: Prefect, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    made = Machines(cli, prefect_api, tmp_path_factory.mktemp("machines"))
    with made.stack:
        yield made


@pytest.fixture(scope="module")
def workers(machines: Machines) -> Machines:
    """The deployment with two workers; the test without any comes before."""
    machines.start_workers(2)
    return machines


def test_no_worker_at_all(machines: Machines, project: Project, origin: Origin) -> None:
    """The run does all shards itself, and says that the pool has no worker, with the command that starts one.

    It also says that more machines than requests at a time make no sense.
    """
    job = Job(machines, project, origin, 160, 8)
    job.settings(unclaimed_s=4.0)
    origin.latency_s = 0.4
    process = job.start()
    wait_for("a shard", lambda: job.files.list("shards", "0000"), SOON_S)
    report = job.end(process)
    assert stored(report) == 160
    job.check(fault="no worker for the shards")
    (run,) = machines.api.runs(machines.name)[-1:]
    asked = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC"}
    said = "\n".join(line["message"] for line in machines.api.post("logs/filter", asked))
    assert f"prefect worker start --pool {machines.deployed.pool}" in said
    assert "machines: 8, but the lowest `concurrency` limit is 6: 6 machines work at a time" in said
    assert {one["state_type"] for one in machines.shards(run["id"])} == {"CANCELLED"}


def test_three_machines_move_one_job(workers: Machines, project: Project, origin: Origin) -> None:
    """Each does a part, once; the run's page has the shards; a rerun finds each chunk Cached."""
    job = Job(workers, project, origin, 400)
    origin.latency_s = SLOW_S
    process = job.start()
    job.moving(2)
    hosts = wait_for("the whole in hosts.json", lambda: _progress(job, 60), SOON_S)
    assert hosts["progress"]["todo"] == 400
    status = project.ferry("status", "job.yaml").expect(0).stdout
    assert "400" in status
    parent = job.parent
    origin.latency_s = FAST_S
    report = job.end(process)
    assert stored(report) == 400
    assert report["chunks"] == 20
    job.check()
    shards = workers.shards(parent)
    done = [run for run in shards if run["state_type"] == "COMPLETED"]
    assert len(done) >= 2, shards
    before = origin.total
    report = job.end(job.start())
    assert (report["chunks"], report["cached"]) == (20, 20)
    assert origin.total == before


def _progress(job: Job, rows: int) -> Any:
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(job.files.read("reports/hosts.json"))
        return found if found["progress"]["done"] >= rows else None
    return None


def test_a_shard_that_is_killed(workers: Machines, project: Project, origin: Origin) -> None:
    """Another process continues in the middle of its chunk; what was recorded is not asked for again."""
    job = Job(workers, project, origin, 300)
    origin.latency_s = SLOW_S
    process = job.start()
    killed = job.moving()[0]
    os.kill(workers.process_of(killed["id"]), signal.SIGKILL)
    parent = job.parent
    origin.latency_s = FAST_S
    report = job.end(process)
    assert stored(report) == 300
    # in flight, and recorded at the next write, at most 2 s later
    job.check(most_twice=6 + 2 * 6 * 4, fault="a shard is killed")
    states = {run["id"]: run["state_type"] for run in workers.shards(parent)}
    assert states[killed["id"]] == "CRASHED"
    assert "COMPLETED" in states.values()


def test_a_run_that_is_killed(workers: Machines, project: Project, origin: Origin) -> None:
    """Its shards stop when the next run has the lease; that run continues from what all of them recorded."""
    job = Job(workers, project, origin, 300)
    origin.latency_s = SLOW_S
    first = job.start()
    live = job.moving()
    first.kill()
    parent = job.parent
    second = job.start()
    wait_for("the next run", lambda: job.parent != parent, SOON_S)
    for run in live:
        state = wait_for("the end of a shard", partial(_ended, workers, run["id"]), SOON_S)
        assert state == "CANCELLED"
    assert job.outcomes()
    origin.latency_s = FAST_S
    report = job.end(second)
    assert stored(report) == 300
    job.check(most_twice=80, fault="the run of several machines is killed, and run again")


def _ended(machines: Machines, run: str) -> str | None:
    (found,) = machines.api.post("flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return found["state_type"] if found["state_type"] in ("CANCELLED", "COMPLETED", "FAILED", "CRASHED") else None


def test_cancelled(workers: Machines, project: Project, origin: Origin) -> None:
    """A Ctrl-C ends the run and its shards within 30 s, with rows pending."""
    job = Job(workers, project, origin, 600)
    origin.latency_s = SLOW_S
    process = job.start()
    live = job.moving()
    parent, began = job.parent, time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    report = job.end(process, 130)
    assert time.monotonic() - began < 30
    assert report["counts"]["pending"] > 0
    assert stored(report) == len(job.outcomes())
    total = origin.total
    states = {run["id"]: run["state_type"] for run in workers.shards(parent)}
    assert {states[run["id"]] for run in live} == {"CANCELLED"}
    time.sleep(3)
    assert origin.total == total


@only_long  # beside test_machines.py, where a machine is cut off and comes back
def test_a_shard_that_is_suspended(workers: Machines, project: Project, origin: Origin) -> None:
    """It counts as dead, another process does its rows, and it stops before its next write when it comes back."""
    job = Job(workers, project, origin, 300)
    origin.latency_s = SLOW_S
    process = job.start()
    zombie = job.moving()[0]
    pid = workers.process_of(zombie["id"])
    os.kill(pid, signal.SIGSTOP)
    parent = job.parent
    try:
        wait_for("another attempt", lambda: 2 in job.attempts().values(), SOON_S)
        time.sleep(QUICK["fresh_s"])
    finally:
        os.kill(pid, signal.SIGCONT)
    origin.latency_s = FAST_S
    report = job.end(process)
    assert stored(report) == 300
    wait_for("the zombie's end", lambda: not Path(f"/proc/{pid}").exists(), SOON_S)
    job.check(most_twice=60, fault="a shard is suspended and comes back")
    states = {run["id"]: run["state_type"] for run in workers.shards(parent)}
    assert states[zombie["id"]] in ("CRASHED", "CANCELLED")  # as the run has it, or as the process says at its end


def test_another_version(workers: Machines, project: Project, origin: Origin) -> None:
    """Workers with other sources refuse before they move anything; the run does the work, and says why."""
    job = Job(workers, project, origin, 200)
    origin.latency_s = SLOW_S
    other = "import tasks.shards.window as window; window.code_digest = lambda: '0.0.1 0123456789abcdef'"
    process = project.fork("run", "job.yaml", "--json", first=other, env={"TMPDIR": str(job.own_tmp())})
    wait_for("a refusal", lambda: any(attempt > 1 for attempt in job.attempts().values()), SOON_S, every_s=0.5)
    parent = job.parent
    report = job.end(process)
    assert stored(report) == 200
    owners = [json.loads(job.files.read(name))["pid"] for name in job.claimed()]
    assert set(owners) <= {process.pid}  # the run claims an attempt whose submission had no answer
    refused = [run["state"]["message"] for run in workers.shards(parent) if run["state_type"] == "FAILED"]
    assert refused
    assert all("and that of the run is 0.0.1 0123456789abcdef. Install the same version" in one for one in refused)
    job.check(fault="workers with other sources")


@only_long  # beside test_a_shard_that_is_killed
def test_a_worker_that_is_killed_with_its_shard(workers: Machines, project: Project, origin: Origin) -> None:
    """As a machine that loses its power; its work goes to another."""
    workers.start_workers(1)
    job = Job(workers, project, origin, 300, 4)
    origin.latency_s = SLOW_S
    process = job.start()
    live = job.moving(3)
    pid = workers.process_of(live[0]["id"])
    owner = workers.worker_of(pid)
    for one in (owner, pid):
        os.kill(one, signal.SIGKILL)
    origin.latency_s = FAST_S
    report = job.end(process)
    assert stored(report) == 300
    job.check(most_twice=60, fault="a worker is killed with its shard")


def test_the_module_uses_sources_of_this_checkout() -> None:
    """Both sides compute the digest of the same files."""
    from tasks.shards.files import ROOT as root

    assert root == ROOT
