"""Runs of a worker that their infrastructure takes away: the same run ends Completed, a bounded number of times."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from prefect.states import Cancelling

from demo.origin import Origin
from ferry.core.errors import UserError
from flows.deploying import rescue
from flows.deploying.alerts import Delays
from flows.deploying.automations import apply, ferry_automations
from flows.deploying.rescue import Ending, ending
from flows.running import prefect_state
from flows.server.local import LocalServer
from tasks.dead_runs import PID, TIMES
from tests.faults.amount import book_lost, only_long
from tests.flows.deployed import Deployed, worker
from tests.flows.project import Cli, Project, fold, serve, wait_for
from tests.flows.receivers import UI, Receiver, a_webhook, save

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BOUND_S = 240.0  # for what takes seconds; the delay of a minute is in it
SHORT = Delays(restart_s=20.0, crash_s=60.0, machine_s=75.0, heartbeat_s=240.0)


@dataclass
class Site:
    """A deployment of a job that takes a while, a worker of its pool, and who is told."""

    client: SyncPrefectClient
    project: Project
    deployed: Deployed
    origin: Origin
    told: Receiver
    bodies: dict[str, bytes]

    def submit(self) -> UUID:
        deployment = self.client.read_deployment_by_name(self.deployed.named("migrate/prod"))
        return self.client.create_flow_run_from_deployment(deployment.id).id

    def run(self, id_: UUID) -> FlowRun:
        return self.client.read_flow_run(id_)

    def state(self, id_: UUID) -> tuple[str, str]:
        state = self.run(id_).state
        assert state is not None
        return state.name or "", state.message or ""

    def moving(self, id_: UUID, start: int, rows: int) -> int:
        """Waits for this start of the run to have recorded rows; its process."""

        def pid() -> int:
            labels = self.run(id_).labels
            return int(labels[PID]) if labels.get(TIMES) == start and len(fold(self.project.state)) >= rows else 0

        return int(
            wait_for(f"start {start} of {id_} to move {rows} rows; {self.state(id_)}", pid, BOUND_S, every_s=0.2)
        )

    def until(self, id_: UUID, name: str) -> str:
        """Waits for this state; its message."""
        wait_for(f"{id_} to be {name}, now {self.state(id_)}", lambda: self.state(id_)[0] == name, BOUND_S, every_s=0.2)
        return self.state(id_)[1]

    def heard(self, id_: UUID) -> None:
        """Waits for a heartbeat of the run."""
        asked = {
            "filter": {
                "event": {"name": ["prefect.flow-run.heartbeat"]},
                "resource": {"id": [f"prefect.flow-run.{id_}"]},
            }
        }
        wait_for(
            "a heartbeat", lambda: self.client.request("POST", "/events/filter", json=asked).json()["events"], BOUND_S
        )

    def check(self, fault: str) -> None:
        """Everything is there."""
        stored = self.project.stored()
        book_lost(fault, stored, self.bodies)
        assert stored == self.bodies

    def logged(self, id_: UUID, words: str) -> bool:
        asked = {"logs": {"flow_run_id": {"any_": [str(id_)]}}, "limit": 200}
        return any(words in one["message"] for one in self.client.request("POST", "/logs/filter", json=asked).json())


@pytest.fixture
def site(project: Project, cli: Cli, origin: Origin, prefect_local: LocalServer, tmp_path: Path) -> Iterator[Site]:
    rows, bodies = serve(origin, 90)
    origin.latency_s = 0.5
    project.job(concurrency=3, chunk_rows=10, manifest=str(tmp_path / "products.csv"), state=str(project.state))
    project.manifest(rows)
    deployed = Deployed(tmp_path, cli)
    deployed.content["name"] = deployed.mark
    deployed.entry("prod")["parameters"]["job"] = project.settings
    deployed.write()
    settings = {PREFECT_API_URL: f"{prefect_local.url}/api", PREFECT_UI_URL: UI}
    with temporary_settings(settings), get_client(sync_client=True) as client, a_webhook() as told:
        deployed.deploy().expect(0)
        save(told.block(), f"told-{deployed.mark}")
        ids = {name: client.read_deployment_by_name(deployed.named(name)).id for name in ("migrate/prod",)}
        apply(client, deployed.mark, ids, [f"custom-webhook/told-{deployed.mark}"], SHORT)
        yield Site(client, project, deployed, origin, told, bodies)
        for automation in ferry_automations(client):
            if deployed.mark in automation.name:
                client.delete_automation(automation.id)


@only_long
def test_terminated_and_killed(site: Site, cli: Cli, tmp_path: Path) -> None:
    """The same run continues after a SIGTERM, and after a SIGKILL: it ends Completed with all rows, nothing that was
    recorded is fetched again after the SIGTERM, nobody is told of a failure, and its log says that it continues."""
    with worker(cli, site.deployed.pool, tmp_path / "worker.log"):
        id_ = site.submit()
        os.kill(site.moving(id_, 1, 6), signal.SIGTERM)
        message = site.until(id_, "AwaitingRetry")
        assert "interrupted by SIGTERM; start 2 of at most 20 resumes it" in message
        before = dict(site.origin.requests)
        recorded = {outcome["key"] for outcome in fold(site.project.state).values()}
        killed = site.moving(id_, 2, len(recorded) + 6)
        os.kill(killed, signal.SIGKILL)
        third = site.moving(id_, 3, len(recorded) + 6)
        assert third != killed
        site.origin.latency_s = 0.0
        site.until(id_, "Completed")
    site.check("the process of a deployment's run is terminated, then killed")
    assert all(site.origin.requests[f"/{key}"] == before[f"/{key}"] for key in recorded)
    assert site.run(id_).run_count == 3
    assert wait_for("its log", lambda: site.logged(id_, "start 3 of this run: it resumes"))
    assert site.told.got == []


@only_long
def test_a_run_that_keeps_dying(site: Site, cli: Cli, tmp_path: Path) -> None:
    """Killed three times within the hour it is Failed, its people are told of that alone, and no process continues it.

    (Told once or more: on a loaded machine Prefect takes one event for two.)"""
    with worker(cli, site.deployed.pool, tmp_path / "worker.log"):
        id_ = site.submit()
        for start in range(1, rescue.DEATHS + 1):
            os.kill(site.moving(id_, start, 1), signal.SIGKILL)
        assert "died 3 times within an hour" in site.until(id_, "Failed")
        wait_for("an alarm", lambda: site.told.of(id_), BOUND_S)
        time.sleep(SHORT.restart_s + 5.0)  # in which it would be scheduled again
    assert site.state(id_)[0] == "Failed"
    assert {message["subject"].rpartition(" ")[2] for message in site.told.got} == {"failed"}


def ancestors(pid: int) -> list[int]:
    """A process, its parent, and so on."""
    found = [pid]
    while found[-1] > 1:
        found.append(int(Path(f"/proc/{found[-1]}/stat").read_text().rpartition(")")[2].split()[1]))
    return found


@only_long
def test_a_machine_that_is_lost(site: Site, cli: Cli, tmp_path: Path) -> None:
    """The run's process and its worker are gone at once, and none reports it: the same run continues on another worker
    without anything that an operator does. It ends Completed with all rows, and an alarm tells of nothing."""
    often = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    with worker(cli, site.deployed.pool, tmp_path / "worker.log", **often):
        id_ = site.submit()
        pid = site.moving(id_, 1, 6)
        site.heard(id_)
        line = ancestors(pid)
        for one in line[: line.index(os.getpid())]:  # the run, what lies between, and the worker
            os.kill(one, signal.SIGKILL)
    assert site.state(id_)[0] == "Running"
    with worker(cli, site.deployed.pool, tmp_path / "another.log", **often):
        assert "no heartbeat for 75 seconds" in site.until(id_, "AwaitingRetry")
        site.origin.latency_s = 0.0
        site.until(id_, "Completed")
    site.check("a run's process and its worker are lost")
    assert site.run(id_).run_count == 2
    assert site.told.got == []


@only_long
def test_a_run_that_was_not_heard_and_lives(site: Site, cli: Cli, tmp_path: Path) -> None:
    """Its heartbeats stop, as after an absence of the server's: it leaves, another process continues, and no row is
    lost or moved twice."""
    site.origin.latency_s = 6.0  # three minutes for all rows
    with worker(cli, site.deployed.pool, tmp_path / "worker.log"):  # one heartbeat, and no second within the test
        id_ = site.submit()
        first = site.moving(id_, 1, 6)
        site.heard(id_)
        second = site.moving(id_, 2, 12)
        assert second != first
        site.origin.latency_s = 0.0
        site.until(id_, "Completed")
    site.check("heartbeats stop while the process lives")
    assert set(site.origin.requests.values()) == {1}
    assert site.told.got == []


@only_long
def test_a_worker_that_is_stopped_and_comes_back(site: Site, cli: Cli, tmp_path: Path) -> None:
    """What `systemctl stop` of the worker does (deployments/stop_runs.sh, then the worker): the run waits, and the
    next worker ends it."""
    stop = Path(__file__).parents[2] / "deployments" / "stop_runs.sh"
    log = tmp_path / "worker.log"
    with worker(cli, site.deployed.pool, log):
        id_ = site.submit()
        pid = site.moving(id_, 1, 6)
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        subprocess.run(["sh", str(stop), parent], check=True, timeout=60)
    assert site.state(id_)[0] == "AwaitingRetry"
    site.origin.latency_s = 0.0
    with worker(cli, site.deployed.pool, log):
        site.until(id_, "Completed")
    site.check("a worker is stopped and comes back")
    assert site.told.got == []


@only_long
def test_cancelled_is_cancelled(site: Site, cli: Cli, tmp_path: Path) -> None:
    """A run that is cancelled at Prefect, whose worker sends it SIGTERM as well, is Cancelled and stays so."""
    with worker(cli, site.deployed.pool, tmp_path / "worker.log"):
        id_ = site.submit()
        pid = site.moving(id_, 1, 6)
        site.client.set_flow_run_state(id_, Cancelling(), force=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        site.until(id_, "Cancelled")
    assert site.run(id_).run_count == 1


# A run of a deployment without its worker, of whose starts one is the most.
ENGINE = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from flows.deploying import rescue
from flows.migrate import migrate
rescue.MOST = 1
with get_client(sync_client=True) as client:
    run = client.read_flow_run(sys.argv[1])
run_flow(migrate, flow_run=run, parameters=run.parameters, return_type="state")
"""


def test_the_bound(site: Site, cli: Cli, tmp_path: Path) -> None:
    """A run that was started as often as it may be is Failed, its people are told, and it is not scheduled again."""
    id_ = site.submit()
    with (tmp_path / "engine.log").open("wb") as log:
        engine = subprocess.Popen(
            [sys.executable, "-c", ENGINE, str(id_)],
            cwd=tmp_path, env=cli.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        os.kill(site.moving(id_, 1, 6), signal.SIGTERM)
        message = site.until(id_, "Failed")
        assert message.endswith("It was started 1 times and is not restarted automatically")
        wait_for("an alarm", lambda: any(subject.endswith(" failed") for subject in site.told.of(id_)), BOUND_S)
    finally:
        engine.kill()
        engine.wait()
        print((tmp_path / "engine.log").read_text())


@pytest.mark.parametrize(
    ("end", "terminated", "deployed", "starts", "expected"),
    [
        (StateType.COMPLETED, True, True, 1, Ending.END),
        (StateType.FAILED, True, True, 1, Ending.END),
        (StateType.CANCELLED, False, True, 1, Ending.END),
        (StateType.CANCELLED, True, False, 1, Ending.END),
        (StateType.CANCELLED, True, True, 1, Ending.CONTINUE),
        (StateType.CANCELLED, True, True, rescue.MOST - 1, Ending.CONTINUE),
        (StateType.CANCELLED, True, True, rescue.MOST, Ending.GIVE_UP),
    ],
)
def test_what_becomes_of_it(end: StateType, terminated: bool, deployed: bool, starts: int, expected: Ending) -> None:
    """The table of fate()."""
    assert ending(end, terminated=terminated, deployed=deployed, starts=starts) is expected


def test_the_begin_of_a_run() -> None:
    """A run that continues says so; one that was started more often than it may be ends before anything moves."""
    said: list[str] = []
    prefect_state.check_start(1, said.append)
    assert said == []
    prefect_state.check_start(rescue.MOST, said.append)
    assert said == [f"start {rescue.MOST} of this run: it resumes where the previous process stopped"]
    with pytest.raises(UserError, match=r"was started 21 times, more than the limit of 20"):
        prefect_state.check_start(rescue.MOST + 1, said.append)
