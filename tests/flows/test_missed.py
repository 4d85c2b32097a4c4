"""The alert for a missed run exists while a schedule is on, and repeats while no run completes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.events.schemas.automations import EventTrigger
from prefect.states import Cancelled, Completed, Running

from ferry.core.errors import UserError
from flows.deploying.automations import apply_one, block, ferry_automations
from flows.deploying.missed_runs import longest_gap, missed_alert, parse_expect_every, shortest_over
from flows.server.local import LocalServer
from tests.flows.deployed import Deployed
from tests.flows.project import Cli, wait_for
from tests.flows.receivers import UI, WAIT_S, Receiver, a_client, a_webhook, save

pytestmark = pytest.mark.slow

LEAST = timedelta(seconds=10)  # that Prefect takes
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BERLIN = "Europe/Berlin"


@pytest.fixture(scope="module")
def client(prefect_local: LocalServer) -> Iterator[SyncPrefectClient]:
    with a_client(prefect_local) as client:
        yield client


@pytest.fixture(scope="module")
def webhook() -> Iterator[Receiver]:
    with a_webhook() as receiver:
        yield receiver


def run(client: SyncPrefectClient, deployment: UUID, end: str) -> None:
    made = client.create_flow_run_from_deployment(deployment, name="products")
    client.set_flow_run_state(made.id, Running(), force=True)
    client.set_flow_run_state(made.id, Completed() if end == "Completed" else Cancelled(), force=True)


def test_it_speaks_while_no_run_completes(client: SyncPrefectClient, webhook: Receiver) -> None:
    """The alert repeats while runs are only cancelled, and names the deployment and its page."""
    save(webhook.block(), "missed")
    ids = {
        name: client.create_deployment(client.create_flow_from_name("migrate"), name) for name in ("good", "cancelled")
    }
    told = [block(client, "custom-webhook/missed")]
    for name, id_ in ids.items():
        apply_one(client, missed_alert(f"migrate/{name}", id_, UI, LEAST).automation("shop", told, enabled=True), None)

    def about(name: str) -> list[dict[str, str]]:
        return [message for message in webhook.got if f"migrate/{name} " in message["subject"]]

    def twice() -> bool:
        for name, id_ in ids.items():
            run(client, id_, "Completed" if name == "good" else "Cancelled")
        return len(about("cancelled")) >= 2

    wait_for("two alarms, one after the other", twice, WAIT_S, every_s=1.0)
    assert about("good") == []
    what, look, do = about("cancelled")[0]["body"].splitlines()
    assert what.startswith("No run of migrate/cancelled was Completed within 0:00:10")
    assert look == f"Look: {UI}/deployments/deployment/{ids['cancelled']}"
    assert do.startswith("Do: see whether its runs fail")


def test_made_where_a_schedule_is_on(cli: Cli, client: SyncPrefectClient, webhook: Receiver, tmp_path: Path) -> None:
    """--expect-every creates the alert while a schedule is on; a later deploy keeps it, or removes it."""
    deployed = Deployed(tmp_path, cli)
    save(webhook.block(), f"missed-{deployed.mark}")
    telling = ["--notify", f"custom-webhook/missed-{deployed.mark}"]

    def fate(*arguments: str) -> dict[str, tuple[str, str]]:
        changes = deployed.deploy(*arguments, "--json").expect(0).json["changes"]
        return {
            one["name"].replace(f"-{deployed.mark}", ""): (one["what"], one["detail"])
            for one in changes
            if one["kind"] == "automation" and "did not complete" in one["name"]
        }

    def switch(on: bool) -> None:
        for name in ("migrate/nightly", "verify/weekly"):
            found = client.read_deployment_by_name(deployed.named(name))
            (schedule,) = found.schedules
            client.update_deployment_schedule(found.id, schedule.id, active=on)

    off = ("unchanged", "none: the deployment's schedule is off")
    none = {f"{name} did not complete in time": off for name in ("migrate/prod", "migrate/nightly", "verify/weekly")}
    assert fate(*telling, "--expect-every", "26h") == none
    switch(on=True)
    made = fate("--expect-every", "26h")
    nightly = "Ferry: migrate/nightly did not complete in time (ferry)"
    assert made.pop(nightly) == ("created", "")
    what, why = made["verify/weekly did not complete in time"]
    assert (what, why.startswith("none: runs start up to 7 days")) == ("unchanged", True)
    both = fate("--expect-every", "26h", "--expect-every", "8d")
    weekly = "Ferry: verify/weekly did not complete in time (ferry)"
    assert (both[nightly][0], both[weekly][0]) == ("unchanged", "created")
    assert fate() == {nightly: ("unchanged", ""), weekly: ("unchanged", "")}
    within = {
        one.name.replace(f"-{deployed.mark}", ""): one.trigger.within
        for one in ferry_automations(client)
        if deployed.mark in one.name and isinstance(one.trigger, EventTrigger)
    }
    assert within == {nightly: 26 * HOUR, weekly: 8 * DAY}
    switch(on=False)
    assert fate() == {
        nightly: ("removed", "the deployment's schedule is off"),
        weekly: ("removed", "the deployment's schedule is off"),
    }
    assert fate() == {}


@pytest.mark.parametrize(
    ("gap", "given", "expected"),
    [
        (24 * HOUR, ["26h", "8d"], 26 * HOUR),
        (7 * DAY, ["8d", "26h"], 8 * DAY),
        (72 * HOUR, ["26h"], None),
        (26 * HOUR, ["26h"], None),
        (24 * HOUR, [], None),
    ],
)
def test_which_time_is_chosen(gap: timedelta, given: list[str], expected: timedelta | None) -> None:
    """shortest_over() follows its table."""
    assert shortest_over(gap, parse_expect_every(given)) == expected


@pytest.mark.parametrize("text", ["soon", "-1h", "10", "30m"])
def test_a_time_that_is_none(text: str) -> None:
    """An unusable duration is refused with the option's name."""
    with pytest.raises(UserError, match=f"--expect-every {text}: "):
        parse_expect_every([text])


@pytest.mark.parametrize(
    ("schedules", "expected"),
    [
        ([CronSchedule(cron="30 1 * * *", timezone=BERLIN)], DAY + HOUR),  # the night on which clocks are set back
        ([CronSchedule(cron="0 9 * * 1-5", timezone="UTC")], 3 * DAY),
        ([CronSchedule(cron="0 9 * * 1-5", timezone="UTC"), CronSchedule(cron="0 9 * * 0,6", timezone="UTC")], DAY),
        ([IntervalSchedule(interval=6 * HOUR)], 6 * HOUR),
        ([RRuleSchedule(rrule="FREQ=WEEKLY;BYDAY=SU")], 7 * DAY),
    ],
)
def test_how_far_apart_runs_begin(
    schedules: list[CronSchedule | IntervalSchedule | RRuleSchedule], expected: timedelta
) -> None:
    """The gap is that of Prefect's own scheduler, over all active schedules."""
    given = [DeploymentSchedule(schedule=one) for one in schedules]
    assert longest_gap(given, datetime(2027, 9, 1, tzinfo=UTC)) == expected
