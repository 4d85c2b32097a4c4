"""Runs of `ferry run` and of a worker are cancelled, paused and resumed at Prefect as in its UI."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Paused, Running

from demo.origin import Origin
from demo.s3 import S3Server
from flows.running.prefect_state import (
    SUSPENDED,
    TAKEN_OVER,
    Instruction,
    check_start,
    decide,
    instruction_for,
    state_to_record,
    version_mismatch,
)
from flows.running.signals import Interrupts
from flows.server.local import LocalServer
from tasks.dead_runs import TIMES
from tests.faults.amount import LONG
from tests.faults.flow_runs import Disturbed, begin
from tests.faults.test_workers import Site
from tests.flows.project import Prefect, Project, serve, wait_for
from tests.support.units import descendants

pytestmark = pytest.mark.slow
STOPS_WITHIN_S = 60.0
CANCEL = {"type": "CANCELLING", "name": "Cancelling"}
PAUSE = {"type": "PAUSED", "name": "Paused"}  # what `ferry pause` asks for


@pytest.mark.parametrize(
    ("kind", "reschedule", "deployed", "expected"),
    [
        (StateType.RUNNING, False, True, Instruction.CONTINUE),
        (StateType.PAUSED, False, False, Instruction.WAIT),
        (StateType.PAUSED, False, True, Instruction.WAIT),
        (StateType.PAUSED, True, False, Instruction.WAIT),
        (StateType.PAUSED, True, True, Instruction.HAND_OVER),
        (StateType.SCHEDULED, False, True, Instruction.HAND_OVER),
        (StateType.PENDING, False, True, Instruction.HAND_OVER),
        (StateType.SCHEDULED, False, False, Instruction.CONTINUE),
        (StateType.PENDING, False, False, Instruction.CONTINUE),
        (StateType.CANCELLING, False, True, Instruction.STOP),
        (StateType.CANCELLED, True, False, Instruction.STOP),
        (StateType.FAILED, False, True, Instruction.STOP),
        (StateType.COMPLETED, False, True, Instruction.CONTINUE),
        (StateType.CRASHED, False, True, Instruction.CONTINUE),
    ],
)
def test_what_a_state_asks(kind: StateType, reschedule: bool, deployed: bool, expected: Instruction) -> None:
    """decide() follows its table."""
    assert decide(kind, reschedule=reschedule, deployed=deployed, taken=False) is expected
    assert decide(kind, reschedule=reschedule, deployed=deployed, taken=True) is Instruction.HAND_OVER


@pytest.fixture
def client(prefect_local: LocalServer) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: f"{prefect_local.url}/api", PREFECT_LOGGING_TO_API_ENABLED: False}),
        get_client(sync_client=True) as client,
    ):
        yield client


@pytest.fixture
def own(client: SyncPrefectClient) -> UUID:
    """A deployment's run that its first process has started."""

    @flow(name="migrate")
    def nothing() -> None: ...

    made = client.create_deployment(client.create_flow(nothing), "begun")
    own = client.create_flow_run_from_deployment(made).id
    client.set_flow_run_state(own, Running())
    client.update_flow_run_labels(own, {TIMES: 1})
    return own


@pytest.mark.parametrize("since", [Running(), Completed(), Cancelling(), Cancelled(), Failed(), Crashed()])
def test_a_process_that_was_replaced_says_nothing(since: State[Any], client: SyncPrefectClient, own: UUID) -> None:
    """A process whose run another process has started leaves the state at Prefect unchanged."""
    own_end: State[Any] = Cancelled(message="interrupted")
    said: list[str] = []
    assert state_to_record(own, 1, own_end, said.append, Interrupts()) is own_end
    client.update_flow_run_labels(own, {TIMES: 2})
    client.set_flow_run_state(own, since, force=True)
    there = client.read_flow_run(own)
    with pytest.raises(Pause) as left:
        state_to_record(own, 1, own_end, said.append, Interrupts())
    assert left.value.state is not None
    assert left.value.state.id == there.state_id
    assert said == []


@pytest.mark.parametrize("reason", [SUSPENDED, TAKEN_OVER])
@pytest.mark.parametrize(
    ("since", "leaves"), [(Running(), True), (Completed(), True), (Cancelling(), False), (Failed(), False)]
)
def test_a_process_that_was_to_leave(
    reason: str, since: State[Any], leaves: bool, client: SyncPrefectClient, own: UUID
) -> None:
    """A process that hands over records no end, also before the next process has recorded its start."""
    interrupts = Interrupts()
    interrupts.requested = reason
    client.set_flow_run_state(own, since, force=True)
    with pytest.raises(Pause) if leaves else contextlib.nullcontext():
        assert state_to_record(own, 1, Cancelled(message=reason), print, interrupts).is_cancelled()


def test_a_run_that_is_resumed_in_its_process_goes_on(client: SyncPrefectClient, own: UUID) -> None:
    """A run that resumes in the waiting process continues, though Prefect counts another start."""
    client.set_flow_run_state(own, Paused(timeout_seconds=300))
    assert instruction_for(client.read_flow_run(own), 1) is Instruction.WAIT
    client.resume_flow_run(own)
    run = client.read_flow_run(own)
    assert run.run_count == 2
    assert instruction_for(run, 1) is Instruction.CONTINUE


SIGNALS = """
import os, signal, sys, threading
from flows.running.signals import Interrupts

signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may be a shell's background job
interrupts = Interrupts()
interrupts.listen()
with interrupts.stopping_by(lambda reason: print(reason, flush=True)):
    for what in sys.argv[1:]:
        if what == "cancel":
            thread = threading.Thread(target=interrupts.request, args=("cancelled",))
            thread.start()
            thread.join()
        else:
            os.kill(os.getpid(), signal.Signals[what])
    print("alive", interrupts.exit_code)
"""


@pytest.mark.parametrize(
    ("heard", "said", "code"),
    [
        (["cancel"], "cancelled alive 130", 0),
        (["cancel", "SIGTERM"], "cancelled alive 130", 0),  # the worker's, for the same reason
        (["cancel", "SIGTERM", "SIGINT"], "cancelled", 130),
        (["SIGTERM", "cancel"], "interrupted by SIGTERM; run the job again to resume alive 143", 0),
        (["SIGTERM", "SIGTERM"], "interrupted by SIGTERM; run the job again to resume", 143),
    ],
)
def test_a_cancellation_is_a_first_signal(heard: list[str], said: str, code: int) -> None:
    """A cancellation counts as the first signal, the worker's for it as none, a further one ends the process."""
    done = subprocess.run([sys.executable, "-c", SIGNALS, *heard], capture_output=True, text=True, timeout=30)
    assert (" ".join(done.stdout.split()), done.returncode) == (said, code), done.stderr


def set_state(prefect: Any, run: str, state: dict[str, Any]) -> float:
    """Set a run's state as the UI does. Returns the time of the request."""
    at = time.monotonic()
    assert prefect.post(f"flow_runs/{run}/set_state", {"state": state, "force": True})["status"] == "ACCEPT"
    return at


def check_quiet(origin: Origin, asked_at: float) -> None:
    """Fails unless the requests end, and none starts long after ``asked_at``."""
    wait_for("what is in flight to end", lambda: not origin.at_once)
    assert origin.last_at - asked_at <= STOPS_WITHIN_S


def own_run(run: Disturbed, prefect: Prefect) -> str:
    return str(prefect.runs(run.project.name)[-1]["id"])


def cpu_s(pids: list[int]) -> float:
    """Returns the CPU seconds of these processes (proc(5): fields 14 and 15 of stat)."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_ferry_run_is_cancelled(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """A cancelled run records its objects in flight, ends as Cancelled with 130, and gives its lease back."""
    run = begin(project, origin)
    flow_run = own_run(run, prefect_api)
    asked_at = set_state(prefect_api, flow_run, CANCEL)
    report = run.end().expect(130).json
    check_quiet(origin, asked_at)
    assert report["counts"]["pending"] > 0
    assert "interrupted by a cancellation at Prefect" in report["message"]
    known = prefect_api.runs(project.name)[-1]
    assert (known["state_type"], known["state"]["message"]) == ("CANCELLED", report["message"])
    assert set(project.stored()) == run.recorded
    assert not (project.state / "lease.json").exists()
    run.finish()
    assert prefect_api.runs(project.name)[0]["state_type"] == "CANCELLED"


def paused(run: Disturbed, prefect: Prefect, origin: Origin) -> str:
    """Pause a run and wait until it is paused. Returns its ID at Prefect."""
    flow_run = own_run(run, prefect)
    asked_at = set_state(prefect, flow_run, PAUSE)
    hosts = run.project.state / "reports" / "hosts.json"
    wait_for("the run to pause", lambda: json.loads(hosts.read_text())["paused"])
    check_quiet(origin, asked_at)
    return flow_run


def test_ferry_run_is_paused(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """A paused run keeps its lease, starts no object and uses little CPU; it resumes, and a Ctrl-C ends a pause."""
    run = begin(project, origin, rows=400, processes=2)
    flow_run = paused(run, prefect_api, origin)
    asked, pids = origin.total, [run.process.pid, *descendants(run.process.pid)]
    assert len(pids) >= 2
    assert asked < len(run.bodies)
    before, since = cpu_s(pids), time.monotonic()
    assert "paused at Prefect" in project.ferry("status", "job.yaml", "--json").json["running"]
    time.sleep(1.0)  # nothing to wait for: nothing is to happen
    assert cpu_s(pids) - before < 0.25 * (time.monotonic() - since)
    assert origin.total == asked
    prefect_api.post(f"flow_runs/{flow_run}/resume", {})
    wait_for("requests after the pause", lambda: origin.total > asked + 10)
    paused(run, prefect_api, origin)
    os.killpg(run.process.pid, signal.SIGINT)
    ended = run.end().expect(130)
    assert "interrupted by SIGINT" in ended.json["message"]
    assert "interrupted by SIGINT: rows in progress get 10 s at most" in ended.stderr
    assert ended.stderr.count("paused at Prefect: ") == 2
    assert ended.stderr.count("resumed at Prefect: ") == 1
    assert prefect_api.runs(project.name)[-1]["state_type"] == "CANCELLED"
    assert set(project.stored()) == run.recorded
    assert all(origin.requests[f"/{key}"] == 1 for key in run.recorded)


@pytest.mark.skipif(not LONG, reason="one more run for one line of a table: `make faults`")
def test_a_pause_that_is_too_long(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """A run whose pause times out ends as Failed and loses no outcome."""
    run = begin(project, origin)
    flow_run = paused(run, prefect_api, origin)
    set_state(prefect_api, flow_run, {"type": "FAILED", "message": "The flow was paused and never resumed."})
    report = run.end().expect(1).json
    assert "the pause was not resumed in time" in report["message"]
    assert prefect_api.runs(project.name)[-1]["state_type"] == "FAILED"
    run.finish()


def test_a_verification(project: Project, origin: Origin, prefect_api: Prefect) -> None:
    """A verification that is paused and then cancelled exits 130 and gives its lease back."""
    rows, _ = serve(origin, 20)
    project.manifest(rows)
    project.ferry("run", "job.yaml", "--json").expect(0)
    process = project.fork("verify", "job.yaml")

    def begun() -> list[dict[str, Any]]:
        return [run for run in prefect_api.runs(project.name, "verify") if run["state_type"] == "RUNNING"]

    runs = wait_for("it to begin", begun, every_s=0.01)
    set_state(prefect_api, runs[0]["id"], PAUSE)
    set_state(prefect_api, runs[0]["id"], CANCEL)
    assert process.wait(60) == 130
    assert prefect_api.runs(project.name, "verify")[0]["state_type"] == "CANCELLED"
    assert not (project.state / "lease.json").exists()


@pytest.fixture(scope="module")
def site(prefect_local: LocalServer, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Origin() as origin:
        made = Site(prefect_local, s3, origin, tmp_path_factory.mktemp("site"))
        made.worker()
        yield made
        made.stop_workers()


def test_a_worker_s_run_is_paused_in_the_ui_and_cancelled(site: Site) -> None:
    """The UI's Pause ends the process, Resume continues the run in another one, Cancel ends it as Cancelled."""
    site.work(120, 0.3)
    run = site.submit("free")
    site.under_way()
    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 300))
    details = {"pause_timeout": later, "pause_reschedule": True}
    asked_at = set_state(site.prefect, run, {"type": "PAUSED", "name": "Suspended", "state_details": details})
    wait_for("the lease to be given back", lambda: not (site.state / "lease.json").exists(), 20)
    check_quiet(site.origin, asked_at)
    first = site.recorded
    assert 0 < len(first) < 120
    known = site.run(run)
    assert (known["state_type"], known["state_name"]) == ("PAUSED", "Suspended")
    site.prefect.post(f"flow_runs/{run}/resume", {})
    site.under_way(len(first) + 6)
    asked_at = set_state(site.prefect, run, CANCEL)
    assert site.ended(run)[0] == "CANCELLED"
    wait_for("the worker to say it", lambda: site.worker_says("Cancelled flow run"))
    check_quiet(site.origin, asked_at)
    assert len(first) < len(site.recorded) < 120
    assert not (site.state / "lease.json").exists()
    assert list((site.state / "reports").glob("*/summary.json")), "it came to its end"
    assert all(site.origin.requests[f"/{key}"] == 1 for key in site.recorded)
    assert site.run(run)["state_type"] == "CANCELLED"
    assert not site.worker_says("Traceback")


@pytest.mark.parametrize(
    ("deployed", "said"),
    [(None, False), ("", False), ("1a79a4d60de6718e8e5b326e338ae533", False), ("prod", False), ("0.2.0", False),
     ("0.1.0", True), ("0.3.0", True), ("0.2.10", True)],
)  # fmt: skip
def test_a_deployment_of_another_ferry(deployed: str | None, said: bool) -> None:
    """version_mismatch() follows its table."""
    words = version_mismatch(deployed, "0.2.0")
    assert bool(words) is said
    assert words is None or (f"version {deployed}" in words and "Ferry is 0.2.0" in words and "`ferry deploy`" in words)


def test_a_run_says_that_its_deployment_is_of_another_ferry(client: SyncPrefectClient) -> None:
    """A run of a deployment with another version logs a warning; a run without one does not."""
    said: list[str] = []

    @flow(name="migrate")
    def beginning() -> None:
        check_start(1, said.append)

    made = client.create_deployment(client.create_flow(beginning), "of-another-ferry", version="0.0.1")
    run_flow(beginning, flow_run=client.create_flow_run_from_deployment(made))
    assert len(said) == 1
    assert "the deployment has version 0.0.1" in said[0]
    beginning()
    assert len(said) == 1
