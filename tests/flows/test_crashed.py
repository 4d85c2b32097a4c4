"""A run is marked as Crashed at Prefect only if its process is certainly dead, or its lease was taken over."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Running

from demo.ports import free_ports
from ferry.state.lease import LENGTH_S, RELEASED, Holder, this_process
from flows.server.local import LocalServer
from tasks import dead_runs

NOW = time.time()
FLOW = "migrate"


def holder(expires_at: float = NOW + LENGTH_S) -> Holder:
    """Returns a holder that has just renewed its lease."""
    return Holder(socket.gethostname(), 1, "elsewhere", "1", "job", "token", expires_at, "id")


@pytest.mark.parametrize(
    ("kind", "its_own", "since_s", "expected"),
    [
        (StateType.RUNNING, False, -3600, True),
        (StateType.CANCELLING, False, -1, True),
        (StateType.RUNNING, False, 29, True),
        (StateType.RUNNING, False, 31, False),
        (StateType.RUNNING, True, 3600, True),  # the holder's clock was set back by an hour
        (StateType.COMPLETED, True, -3600, False),
        (StateType.FAILED, False, -3600, False),
        (StateType.SCHEDULED, True, -1, False),
        (StateType.PENDING, False, -1, False),
        (StateType.PAUSED, True, -1, False),
    ],
)
def test_what_a_dead_holder_left(kind: StateType, its_own: bool, since_s: float, expected: bool) -> None:
    """is_stale() follows its table; ``since_s`` counts from the holder's last renewal."""
    since = datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=since_s)
    assert dead_runs.is_stale(kind, since, holder(), its_own=its_own) is expected
    assert not dead_runs.is_stale(kind, since, holder(RELEASED), its_own=its_own)


def test_whose_run_it_is() -> None:
    """A holder is a run's process if Prefect has recorded it last, and no other process has started since."""
    labels = {dead_runs.HOST: socket.gethostname(), dead_runs.PID: 1, dead_runs.STARTED: "1", dead_runs.TIMES: 1}
    run: Any = SimpleNamespace(labels=labels, run_count=1)
    assert dead_runs.is_process(run, holder())
    assert not dead_runs.is_process(run, replace(holder(), pid=2))
    assert not dead_runs.is_process(SimpleNamespace(labels=labels, run_count=2), holder())  # type: ignore[arg-type]
    assert not dead_runs.is_process(SimpleNamespace(labels={}, run_count=1), holder())  # type: ignore[arg-type]


def labelled(**changed: Any) -> Any:
    """Returns a run of this process, with some labels changed."""
    me = this_process("", 0.0)
    labels = {
        dead_runs.PID: os.getpid(), dead_runs.PLACE: me.boot_id, dead_runs.STARTED: me.process_start,
        dead_runs.TIMES: 1, **changed
    }  # fmt: skip
    return SimpleNamespace(labels=labels, run_count=1)


@pytest.mark.parametrize(
    ("changed", "died"),
    [
        ({}, False),
        ({dead_runs.STARTED: "1"}, True),  # another process has its number now
        ({dead_runs.PID: 2**22 + 1}, True),  # more than the kernel gives out
        ({dead_runs.PID: 2**22 + 1, dead_runs.PLACE: "another machine"}, False),
        ({dead_runs.PID: 2**22 + 1, dead_runs.PLACE: ""}, False),
        ({dead_runs.PID: 2**22 + 1, dead_runs.TIMES: 2}, False),  # retried in the UI
        ({dead_runs.PID: 2**22 + 1, dead_runs.TIMES: None}, False),  # nobody said who it is
    ],
)
def test_whose_process_is_gone(changed: dict[str, Any], died: bool) -> None:
    """A process of another machine, or without a record, is never taken for dead."""
    assert dead_runs.has_died(labelled(**changed)) is died


@pytest.fixture
def at_prefect(prefect_local: LocalServer) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: f"{prefect_local.url}/api"}),
        get_client(sync_client=True) as client,
    ):
        yield client


def running(client: SyncPrefectClient) -> UUID:
    """Create a run that Prefect has as Running."""

    @flow(name=FLOW)
    def nothing() -> None: ...

    return client.create_flow_run(nothing, name="left-behind", state=Running()).id


def state_of(client: SyncPrefectClient, run: UUID) -> StateType | None:
    state = client.read_flow_run(run).state
    return state.type if state else None


@pytest.mark.slow
def test_the_run_whose_lease_was_taken_over(at_prefect: SyncPrefectClient) -> None:
    """The run of the earlier lease is marked on any machine; this run and ended runs are not."""
    dead, own = running(at_prefect), running(at_prefect)
    said: list[str] = []
    for victim in (own, dead):
        lease: Any = SimpleNamespace(took_over=replace(holder(time.time() + LENGTH_S), flow_run=str(victim)))
        dead_runs.mark_predecessor(lease, own, said.append)
    assert (state_of(at_prefect, own), state_of(at_prefect, dead)) == (StateType.RUNNING, StateType.CRASHED)
    assert len(said) == 1
    at_prefect.set_flow_run_state(own, Completed())
    lease = SimpleNamespace(took_over=replace(holder(), flow_run=str(own)))
    dead_runs.mark_predecessor(lease, dead, said.append)
    assert state_of(at_prefect, own) == StateType.COMPLETED


def test_of_two_runs_on_this_machine_the_dead_one(at_prefect: SyncPrefectClient) -> None:
    """Only the run whose process is dead is marked, not a live one or one without a record."""
    live, dead, unknown, own = (running(at_prefect) for _ in range(4))
    me = this_process("", 0.0)
    gone = subprocess.Popen(["true"])
    gone.wait()
    for run, pid, started in ((live, os.getpid(), me.process_start), (dead, gone.pid, "12345")):
        labels: dict[str, Any] = {
            dead_runs.PID: pid,
            dead_runs.PLACE: me.boot_id,
            dead_runs.STARTED: started,
            dead_runs.HOST: "here",
        }
        at_prefect.update_flow_run_labels(run, {**labels, dead_runs.TIMES: at_prefect.read_flow_run(run).run_count})
    dead_runs.mark_dead_runs(own, 1, lambda _: None)
    states = [state_of(at_prefect, run) for run in (live, dead, unknown, own)]
    assert states == [StateType.RUNNING, StateType.CRASHED, StateType.RUNNING, StateType.RUNNING]


@pytest.mark.slow
def test_another_server_or_none(prefect_local: LocalServer) -> None:
    """An unknown run and an unreachable server raise no error."""
    said: list[str] = []
    lease: Any = SimpleNamespace(took_over=replace(holder(), flow_run=str(uuid4())))
    with temporary_settings({PREFECT_API_URL: f"{prefect_local.url}/api"}):
        dead_runs.mark_predecessor(lease, uuid4(), said.append)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_ports(1)[0]}/api"}):
        dead_runs.mark_predecessor(lease, uuid4(), said.append)
        dead_runs.mark_dead_runs(uuid4(), 1, said.append)
    assert len(said) == 1
    assert "not marked as Crashed" in said[0]
