"""Prefect's server is killed, restarted or away in the middle of a run: transfers go on, and nothing fails for it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient

from demo.origin import Origin
from flows.running import concurrency_slot
from flows.server.local import LocalServer
from tests.faults.amount import only_long
from tests.faults.flow_runs import ALONE, begin, check, recorded_runs
from tests.flows.project import Environment, Prefect, Project, fold, processes_with, wait_for

AWAY_S = 125
AT_THE_END_S = 90.0  # more than the minute for which Prefect's client tries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@contextlib.contextmanager
def server_of_its_own(folder: Path) -> Iterator[tuple[LocalServer, Prefect, Environment]]:
    """A server that nobody else uses, its API, and the environment of a run that does."""
    with LocalServer(folder / "prefect") as server:
        environment = {"PREFECT_API_URL": f"{server.url}/api", "PREFECT_HOME": str(folder / "home")}
        yield server, Prefect(server.url, server.home), environment


def test_the_run_s_own_server_is_killed(project: Project, origin: Origin, tried: Callable[..., None]) -> None:
    """It is started again on its port: the run ends well, and its database has it as Completed."""
    run = begin(project, origin, env=ALONE)
    os.kill(run.server(), signal.SIGKILL)
    ended = run.end().expect(0)
    check(project, run.bodies)
    assert all(count == 1 for count in origin.requests.values())
    assert "EventsWorker" not in ended.stderr
    (known,) = recorded_runs(project)
    assert known.state == "COMPLETED"
    assert not processes_with(str(project.folder))
    tried("SIGKILL of the Prefect server of a run")


@only_long
def test_away_in_the_middle(project: Project, origin: Origin, tmp_path: Path, tried: Callable[..., None]) -> None:
    """For two minutes: rows go on being moved and recorded, and the run is Completed once the server is back."""
    with server_of_its_own(tmp_path) as (server, api, environment):
        run = begin(project, origin, env=environment, rows=200)
        server.stop()
        since = time.monotonic()
        before = len(fold(project.state))
        wait_for("rows to move without the server", lambda: len(fold(project.state)) >= before + 50, 60)
        time.sleep(max(0.0, AWAY_S - (time.monotonic() - since)))
        server.start()
        server.ready()
        ended = run.end(120).expect(0)
        (known,) = api.runs(project.name)
    assert known["state_type"] == "COMPLETED"
    check(project, run.bodies)
    assert all(count == 1 for count in origin.requests.values())
    assert ended.stderr.count("the Prefect server does not answer") <= 2 + AWAY_S // 60
    assert "EventsWorker" not in ended.stderr
    tried(f"Prefect server away for {AWAY_S} s in the middle of a run")


@only_long
def test_away_at_the_end(project: Project, origin: Origin, tmp_path: Path, tried: Callable[..., None]) -> None:
    """The run has ended and the lease is given back; the server hears of it when it is back, later than Prefect's own
    client would have tried."""
    with server_of_its_own(tmp_path) as (server, api, environment):
        run = begin(project, origin, env=environment)
        server.stop()
        wait_for("all rows to be recorded", lambda: len(run.recorded) == len(run.bodies), 60)
        wait_for("the lease to be given back", lambda: not (project.state / "lease.json").exists(), 60)
        time.sleep(AT_THE_END_S)
        assert run.process.poll() is None
        server.start()
        server.ready()
        ended = run.end(120).expect(0)
        (known,) = api.runs(project.name)
    assert known["state_type"] == "COMPLETED"
    assert known["state"]["message"] == ended.json["message"]
    check(project, run.bodies)
    tried(f"Prefect server away for {AT_THE_END_S:.0f} s at the end of a run")


@only_long
def test_away_for_good(project: Project, origin: Origin, tmp_path: Path, tried: Callable[..., None]) -> None:
    """Whoever does not want to wait for it presses Ctrl-C: the report and the exit code are those of the work, and the
    next run, with the server, marks this one."""
    with server_of_its_own(tmp_path) as (server, api, environment):
        run = begin(project, origin, env=environment)
        server.stop()
        wait_for("all rows to be recorded", lambda: len(run.recorded) == len(run.bodies), 60)
        wait_for("the lease to be given back", lambda: not (project.state / "lease.json").exists(), 60)
        time.sleep(3)
        os.killpg(run.process.pid, signal.SIGINT)
        ended = run.end(240).expect(0)
        assert ended.json["counts"]["copied"] == len(run.bodies)
        assert "still shows this run as Running" in ended.stderr
        server.start()
        server.ready()
        run.finish(env=environment)
        assert [known["state_type"] for known in api.runs(project.name)] == ["CRASHED", "COMPLETED"]
    tried("Prefect server away for good")


def test_a_lost_slot_ends_no_run(monkeypatch: pytest.MonkeyPatch, prefect_local: LocalServer) -> None:
    """Prefect would throw into the flow's thread when a slot's lease is gone (its server keeps them in memory): ours
    asks on, and the block ends as if nothing were the matter."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(concurrency_slot, "RENEW_S", 0.05)
    asked = threading.Event()
    renew: Any = SyncPrefectClient.renew_concurrency_lease

    def counted(self: SyncPrefectClient, **given: Any) -> Any:
        asked.set()
        return renew(self, **given)

    monkeypatch.setattr(SyncPrefectClient, "renew_concurrency_lease", counted)
    with (
        temporary_settings({PREFECT_API_URL: f"{prefect_local.url}/api"}),
        concurrency_slot.held(
            uuid4(), 300, raise_on_lease_renewal_failure=True
        ),  # test_prefect_patches: Prefect calls it so
    ):
        assert asked.wait(30)
        asked.clear()
        assert asked.wait(30), "it gave up after the first refusal"
