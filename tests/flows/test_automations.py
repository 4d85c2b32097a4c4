"""Each of Ferry's alerts is raised at a real Prefect server, and its notification is read."""

from __future__ import annotations

import os
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from prefect.states import AwaitingConcurrencySlot, Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled
from pydantic import SecretStr

from demo.origin import Fault, Origin, Trouble
from ferry.core.errors import UserError
from flows.deploying.alerts import Delays, alerts, full_name
from flows.deploying.automations import apply
from flows.deploying.rescue import restart_automations
from flows.server.home import quiet_environment
from flows.server.local import LocalServer
from tests.flows.project import QUICK, ROOT, serve, wait_for
from tests.flows.receivers import UI, WAIT_S, Receiver, a_webhook, listening, save

pytestmark = pytest.mark.slow

SHORT = Delays(start_s=10.0, restart_s=3600.0, crash_s=10.0, machine_s=3600.0, heartbeat_s=10.0)  # 10: Prefect's least
PROJECT = "shop"
ALARMS = [full_name(alarm.name, PROJECT) for alarm in alerts([], UI)]
RESCUES = [full_name(one.name, PROJECT) for one in restart_automations([])]
NAMES = [*RESCUES, *ALARMS]


@pytest.fixture(scope="module")
def webhook() -> Iterator[Receiver]:
    with a_webhook() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def mail() -> Iterator[Receiver]:
    """A mail server that accepts everything."""
    receiver = Receiver()

    class Smtp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for line in self.rfile:
                command = line[:4].upper()
                self.wfile.write({b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}.get(command, b"250 yes\r\n"))
                if command == b"QUIT":
                    return
                if command == b"DATA":
                    lines = iter(self.rfile.readline, b".\r\n")
                    text = b"".join(line.removeprefix(b".") for line in lines)  # RFC 5321, 4.5.2
                    message = message_from_bytes(text, policy=policy.default)
                    body = message.get_body(("plain",))
                    assert body is not None
                    receiver.got.append(
                        {"subject": message["subject"], "body": body.get_content().strip().replace("\r\n", "\n")}
                    )
                    self.wfile.write(b"250 taken\r\n")

    with listening(Smtp, receiver):
        yield receiver


@pytest.fixture(scope="module")
def client(prefect_local: LocalServer) -> Iterator[SyncPrefectClient]:
    settings = {PREFECT_API_URL: f"{prefect_local.url}/api", PREFECT_UI_URL: f"{UI}/"}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client
        for name in NAMES:
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)


@pytest.fixture(scope="module")
def deployments(client: SyncPrefectClient) -> dict[str, UUID]:
    return {
        f"{flow}/{name}": client.create_deployment(client.create_flow_from_name(flow), name)
        for flow, name in (("migrate", "alarmed"), ("verify", "alarmed"), ("migrate", "quiet"))
    }


@pytest.fixture(scope="module")
def alarmed(client: SyncPrefectClient, deployments: dict[str, UUID], webhook: Receiver) -> dict[str, UUID]:
    """The deployments with alerts; `migrate/quiet` has none."""
    save(webhook.block(), "alarms")
    loud = {name: id_ for name, id_ in deployments.items() if not name.endswith("/quiet")}
    changes = apply(client, PROJECT, loud, ["custom-webhook/alarms"], SHORT)
    assert [(change.name, change.what) for change in changes] == [(name, "created") for name in NAMES]
    return loud


def a_run(client: SyncPrefectClient, deployment: UUID, *states: Any) -> UUID:
    """Create a run of the deployment that goes through these states."""
    run = client.create_flow_run_from_deployment(
        deployment, name="products", state=Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
    )
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)
    return run.id


# What a worker's engine does with a run of a deployment, without the worker: Ferry's own flow, in a process of its own.
ENGINE = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from flows.migrate import migrate
*quick, last = sys.argv[1:]
for id, heartbeat_s in [*((id, None) for id in quick), (last, 30)]:
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(id)
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: heartbeat_s}):
        run_flow(migrate, flow_run=run, parameters=run.parameters, return_type="state")
"""


@dataclass
class Night:
    """Runs that are started at the same time, since their events take seconds."""

    over: UUID  # more failures than its budget
    fine: UUID  # within its budget
    killed: UUID  # dies while it moves
    late: UUID  # no worker takes it
    waiting: UUID  # for the slot of its deployment
    pending: UUID  # a worker took it, and no more
    deleted: UUID  # was due, and its schedule was switched off
    begun: UUID  # waited, and then began
    killer: threading.Thread


def a_job(folder: Path, name: str, rows: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    lines = ["sku,url", *(f"{row['sku']},{row['url']}" for row in rows)]
    (folder / f"{name}.csv").write_text("\n".join(lines))
    return {
        "name": name, "manifest": str(folder / f"{name}.csv"), "state": str(folder / name),
        "destination": (folder / f"{name}-copy").as_uri(), "source": {"allow_private_addresses": ["127.0.0.1"]},
        "retries": QUICK, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def night(
    client: SyncPrefectClient,
    alarmed: Mapping[str, UUID],
    prefect_local: LocalServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Night]:
    folder, prod = tmp_path_factory.mktemp("night"), alarmed["migrate/alarmed"]
    due: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(seconds=60))
    with Origin() as origin:
        good, _ = serve(origin, 120)
        broken = [{"sku": f"gone-{n}", "url": origin.url(f"/gone/{n}.jpg")} for n in range(3)]
        stuck = [{"sku": "stuck", "url": origin.add("/stuck.jpg", b"x" * 1000, fault=Fault(Trouble.STALL))}]
        jobs = [
            a_job(folder, "over", good[:5] + broken, failure_budget=2),
            a_job(folder, "fine", good + broken, failure_budget=3),
            a_job(folder, "killed", stuck),
        ]
        over, fine, killed = (client.create_flow_run_from_deployment(prod, parameters={"job": job}).id for job in jobs)
        late = client.create_flow_run_from_deployment(prod, state=due).id
        waiting = a_run(client, prod, Pending(), AwaitingConcurrencySlot())
        pending = a_run(client, alarmed["verify/alarmed"], Pending())
        deleted = a_run(client, prod, AwaitingConcurrencySlot())
        begun = a_run(client, prod, AwaitingConcurrencySlot(), Pending(), Running())
        environment = {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **quiet_environment(folder / "home"),
            "PREFECT_API_URL": f"{prefect_local.url}/api",
        }  # fmt: skip
        with (folder / "engine.log").open("wb") as log:
            engine = subprocess.Popen(
                [sys.executable, "-c", ENGINE, str(over), str(fine), str(killed)],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        client.delete_flow_run(deleted)
        heard = {
            "filter": {
                "event": {"name": ["prefect.flow-run.heartbeat"]},
                "resource": {"id": [f"prefect.flow-run.{killed}"]},
            }
        }

        def kill() -> None:
            """Kill the last run when it transfers and the server has received its heartbeat."""
            wait_for("the last run to move", lambda: origin.requests["/stuck.jpg"], WAIT_S)
            with get_client(sync_client=True) as another:
                wait_for(
                    "its heartbeat", lambda: another.request("POST", "/events/filter", json=heard).json()["events"]
                )
            engine.kill()

        killer = threading.Thread(target=copy_context().run, args=(kill,))  # Prefect's settings are in the context
        killer.start()
        try:
            yield Night(over, fine, killed, late, waiting, pending, deleted, begun, killer)
        finally:
            killer.join()
            engine.kill()
            engine.wait()
            print((folder / "engine.log").read_text())


FAILURES: list[tuple[str, State[Any], str, str]] = [
    ("migrate", Failed(message="Failed: 9 rows failed, more than the 1 that failure_budget allows; 1 row is pending"),
     "Ferry: products failed", "run it again; it resumes where this run stopped"),
    ("migrate", Failed(message="UserError: manifest: no such file products.csv"),
     "Ferry: products failed", "fix what the message names, and run it again. Nothing was copied"),
    ("migrate", Failed(message="Validation of flow parameters failed with error: it has\n - job.manifest: no such key"),
     "Ferry: products failed", "fix the job, and run it again. Nothing was copied"),
    ("migrate", Failed(message="LeaseHeld: another run of the job is on"),
     "Ferry: products failed", "if the other run is intended, wait for its end"),
    ("migrate", Failed(message="Fatal: the bucket is gone"),
     "Ferry: products failed", "fix the destination, the credentials or the disk"),
    ("migrate", Failed(message="FerryError: the accounts do not add up"), "Ferry: products failed", "report it"),
    ("migrate", Crashed(message=None), "Ferry: products crashed", "run it again"),
    ("verify", Failed(message="3 of 20 objects do not match the ledger"),
     "Ferry: products failed", "run migrate for the job"),
]  # fmt: skip


def test_each_way_to_fail_has_its_advice(
    night: Night,  # which is on meanwhile
    alarmed: dict[str, UUID],
    deployments: dict[str, UUID],
    webhook: Receiver,
    client: SyncPrefectClient,
) -> None:
    """Each kind of failure has its advice; Completed and cancelled runs and other deployments give no alert."""
    silent = [
        a_run(client, alarmed["migrate/alarmed"], Running(), Completed(message="this run: 5 copied")),
        a_run(client, alarmed["migrate/alarmed"], Running(), Cancelled(message="nothing has moved")),
        a_run(client, deployments["migrate/quiet"], Running(), Failed(message="this run: 9 failed (budget 0)")),
    ]
    runs = [a_run(client, alarmed[f"{flow}/alarmed"], Running(), state) for flow, state, _, _ in FAILURES]
    for run, (_, state, subject, advice) in zip(runs, FAILURES, strict=True):
        what, _, do = webhook.lines(run, subject)
        assert (state.message or "no reason was given").replace("\n", " ") in what
        assert advice in do
    assert [webhook.of(run) for run in silent] == [[], [], []]


def test_over_the_budget(night: Night, webhook: Receiver) -> None:
    """The text says what happened, with the counts, where to look and what to do."""
    what, look, do = webhook.lines(night.over, "Ferry: over #1 is over its failure budget")
    assert what == (
        "migrate/alarmed: Failed: 3 rows failed, more than the 2 that failure_budget allows. This run: 5 copied, "
        "3 failed; total: 5 of 8 stored, 5 of them confirmed by size alone, 3 failed (budget 2)"
    )
    assert look == f"Look: {UI}/runs/flow-run/{night.over}"
    assert do.startswith("Do: see in the run's Artifacts what the failures have in common")


def test_within_its_budget(night: Night, webhook: Receiver, client: SyncPrefectClient) -> None:
    """A run within its budget is Completed and raises no alert."""
    wait_for("its end", lambda: state_of(client, night.fine).is_final())
    assert state_of(client, night.fine).is_completed()
    assert not [subject for subject in webhook.of(night.fine) if "failed" in subject or "budget" in subject]


def state_of(client: SyncPrefectClient, run: UUID) -> State[Any]:
    state = client.read_flow_run(run).state
    assert state is not None
    return state


@pytest.mark.parametrize(
    ("which", "whose", "said", "do"),
    [
        ("late", "migrate/alarmed", "{} UTC but has not started; its state is Late.", "a worker of its work pool"),
        (
            "waiting",
            "migrate/alarmed",
            "its state is AwaitingConcurrencySlot.",
            "another run of the deployment is live",
        ),
        ("pending", "verify/alarmed", "verify/alarmed was due at", "a worker took the run but did not start it"),
        ("deleted", "migrate/alarmed", "A run that was due was deleted", "nothing, if that was intended"),
    ],
)
def test_a_run_that_did_not_start(
    which: str, whose: str, said: str, do: str, night: Night, webhook: Receiver, client: SyncPrefectClient
) -> None:
    """A run that is due but has no process raises an alert with the reason."""
    run = getattr(night, which)
    what, _, todo = webhook.lines(run, f"Ferry: {whose} did not start")
    if which == "late":
        due = client.read_flow_run(run).expected_start_time
        assert due is not None
        said = said.format(due.strftime("%Y-%m-%d %H:%M"))
    assert said in what
    assert do in todo


def test_nothing_is_said_of_runs_that_began(
    night: Night, webhook: Receiver, alarmed: Mapping[str, UUID], client: SyncPrefectClient
) -> None:
    """A run that started in time raises no alert.

    On a busy machine a run may be slower than the 10 s of this test, and then the alert is right: another run is tried.
    """
    webhook.lines(night.waiting, "Ferry: migrate/alarmed did not start")  # older than `begun`
    late = 0
    while webhook.of(night.begun) and late < 5:
        late += 1
        night.begun = a_run(client, alarmed["migrate/alarmed"], AwaitingConcurrencySlot(), Pending(), Running())
        waiting = a_run(client, alarmed["migrate/alarmed"], Pending(), AwaitingConcurrencySlot())
        webhook.lines(waiting, "Ferry: migrate/alarmed did not start")
    assert webhook.of(night.begun) == []


def test_no_sign_of_life(night: Night, webhook: Receiver, client: SyncPrefectClient) -> None:
    """A run without heartbeats raises an alert, which leaves it as Running."""
    night.killer.join()
    what, _, do = webhook.lines(night.killed, "Ferry: killed #1 gives no sign of life")
    assert what == "migrate/alarmed: its run killed #1 has sent no heartbeat for 10 seconds."
    assert "start a worker of its work pool" in do
    assert "do nothing: a run continues" in do
    assert state_of(client, night.killed).is_running()


def test_settled_once_more(client: SyncPrefectClient, alarmed: dict[str, UUID]) -> None:
    """A second deploy changes nothing, restores changed texts, and keeps automations on or off."""
    for notify in (["custom-webhook/alarms"], []):
        assert {change.what for change in apply(client, PROJECT, alarmed, notify, SHORT)} == {"unchanged"}
    (automation,) = client.read_automations_by_name(ALARMS[0])
    client.pause_automation(automation.id)
    details = [change.detail for change in apply(client, PROJECT, alarmed, [], SHORT)]
    assert details == ["", "", "", "off, as the operator left it", "", "", ""]
    save(SlackWebhook(url=SecretStr("https://hooks.slack.com/services/T000/B000/xyz")), "ops")
    changes = apply(client, PROJECT, alarmed, ["custom-webhook/alarms", "slack-webhook/ops"], SHORT)
    assert [change.what for change in changes] == [*["unchanged"] * 3, *["updated"] * 4]
    (now,) = client.read_automations_by_name(ALARMS[0])
    assert (now.id, now.enabled, len(now.actions)) == (automation.id, False, 2)
    client.resume_automation(automation.id)
    assert {
        change.what
        for change in apply(client, PROJECT, {**alarmed, "migrate/new": alarmed["verify/alarmed"]}, [], SHORT)
    } == {"unchanged"}
    client.delete_automation(automation.id)
    changes = apply(client, PROJECT, alarmed, [], SHORT)
    assert [change.what for change in changes] == [*["unchanged"] * 3, "created", *["unchanged"] * 3]


def test_by_mail(client: SyncPrefectClient, alarmed: dict[str, UUID], mail: Receiver) -> None:
    """A Slack block with a mail URL sends e-mail through Apprise."""
    address = f"mailto://127.0.0.1:{mail.port}?from=ferry@example.com&to=ops@example.com&mode=insecure&format=text"
    save(SlackWebhook(url=SecretStr(address)), "mail")
    apply(client, PROJECT, alarmed, ["slack-webhook/mail"], SHORT)
    run = a_run(client, alarmed["verify/alarmed"], Running(), Failed(message="3 of 20 objects are not there"))
    what, _, _ = mail.lines(run, "Ferry: products failed")
    assert what == "verify/alarmed ended as Failed: 3 of 20 objects are not there"


def test_nobody_to_tell(client: SyncPrefectClient, alarmed: dict[str, UUID]) -> None:
    """Without a block no alert is created, and an alert whose block was deleted is named."""
    save(SlackWebhook(url=SecretStr("https://hooks.slack.com/services/T000/B000/xyz")), "deleted")
    apply(client, PROJECT, alarmed, ["slack-webhook/deleted"], SHORT)
    block = client.read_block_document_by_name("deleted", "slack-webhook")
    client.delete_block_document(block.id)
    changes = apply(client, PROJECT, alarmed, [], SHORT)
    assert [change.name for change in changes] == NAMES
    assert all("its block was deleted" in change.detail for change in changes[len(RESCUES) :])
    for name in ALARMS:
        (automation,) = client.read_automations_by_name(name)
        client.delete_automation(automation.id)
    *_, change = apply(client, PROJECT, alarmed, [], SHORT)
    assert (change.what, change.detail.partition(". ")[0]) == ("unchanged", "none: no notification block is given")
    assert "ferry deploy --notify slack-webhook/NAME" in change.detail
    assert apply(client, PROJECT, {}, []) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ops", "write block-type/name"),
        ("slack-webhook/", "write block-type/name"),
        ("slack-webhook/nobody", "no such block"),
        ("no-such-type/ops", "no such block"),
        ("webhook/plain", "Use custom-webhook/NAME"),
        ("email-server-credentials/ops", "mailto"),
    ],
)
def test_a_block_that_cannot_tell(client: SyncPrefectClient, alarmed: dict[str, UUID], name: str, why: str) -> None:
    """A block that cannot notify is refused with an alternative, and nothing is created."""
    save(Webhook(url=SecretStr("http://127.0.0.1:9/")), "plain")
    with pytest.raises(UserError, match=f"--notify {re.escape(name)}: .*{re.escape(why)}"):
        apply(client, PROJECT, alarmed, [name], SHORT)
