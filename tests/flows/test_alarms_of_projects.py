"""Several projects at one Prefect server each have their own alerts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.states import Failed, Running

from flows.deploying.alerts import TAG, alerts, full_name, is_named
from flows.deploying.automations import ferry_automations, is_own, watched
from flows.deploying.rescue import restart_automations
from flows.server.local import LocalServer
from tests.flows.deployed import Deployed
from tests.flows.project import Cli, wait_for
from tests.flows.receivers import UI, WAIT_S, Receiver, a_client, a_webhook, save

pytestmark = pytest.mark.slow

SUBJECT = "Ferry: products failed"


@pytest.fixture
def client(prefect_local: LocalServer) -> Iterator[SyncPrefectClient]:
    with a_client(prefect_local, f"{UI}/") as client:
        yield client


@dataclass
class Team:
    """A project: a prefect.yaml, the receiver of its alerts, and its deployments."""

    deployed: Deployed
    block: str
    told: Receiver
    client: SyncPrefectClient

    def deploy(self, *arguments: str) -> list[tuple[str, str]]:
        """Returns what was done to each automation, by name."""
        return [(one["name"], one["what"]) for one in self.changes(*arguments) if one["kind"] == "automation"]

    def changes(self, *arguments: str) -> list[dict[str, str]]:
        found = self.deployed.deploy(*arguments, "--json", env={"PREFECT_UI_URL": UI}).expect(0).json["changes"]
        return list(found)

    def id_of(self, name: str) -> UUID:
        return self.client.read_deployment_by_name(self.deployed.named(name)).id

    def a_failing_run(self) -> UUID:
        run = self.client.create_flow_run_from_deployment(self.id_of("migrate/prod"), name="products")
        failed: State[Any] = Failed(message="this run: 9 failed (budget 0), 3 pending")
        self.client.set_flow_run_state(run.id, Running(), force=True)
        self.client.set_flow_run_state(run.id, failed, force=True)
        return run.id

    def is_told(self, run: UUID) -> bool:
        return bool(wait_for(f"an alarm about {run}", lambda: SUBJECT in self.told.of(run), WAIT_S))


@pytest.fixture
def teams(cli: Cli, client: SyncPrefectClient, tmp_path: Path) -> Iterator[list[Team]]:
    """Two projects whose prefect.yaml has the same name, like copies of the shipped file."""
    with a_webhook() as one, a_webhook() as other:
        found = []
        for name, told in (("one", one), ("other", other)):
            (tmp_path / name).mkdir()
            deployed = Deployed(tmp_path / name, cli)
            save(told.block(), f"{name}-{deployed.mark}")
            found.append(Team(deployed, f"custom-webhook/{name}-{deployed.mark}", told, client))
        yield found


@pytest.mark.parametrize("notify", [True, False])
def test_a_second_project_silences_nobody(teams: list[Team], notify: bool) -> None:
    """A failing run alerts only its own project's receiver, whichever project was deployed last."""
    one, other = teams
    assert {what for _, what in one.deploy("--notify", one.block)} == {"created"}
    made = other.deploy(*(["--notify", other.block] if notify else []))
    assert {what for _, what in made} == ({"created"} if notify else {"created", "unchanged"})
    first = one.a_failing_run()
    assert one.is_told(first)
    if notify:
        second = other.a_failing_run()
        assert other.is_told(second)
        assert other.told.of(first) == one.told.of(second) == []


def test_its_own_are_updated(teams: list[Team], client: SyncPrefectClient) -> None:
    """A project keeps its alerts when it and a deployment are renamed, and still watches a removed one."""
    one, other = teams
    one.deploy("--notify", one.block)
    other.deploy("--notify", other.block)
    assert {what for _, what in one.deploy()} == {"unchanged"}
    before = {automation.id for automation in ferry_automations(client)}
    old = one.id_of("migrate/prod")
    one.deployed.content["name"] = "renamed"
    one.deployed.entry("prod")["name"] = f"main-{one.deployed.mark}"
    one.deployed.write()
    done = one.changes()
    changes = [(change["name"], change["what"]) for change in done if change["kind"] == "automation"]
    assert {what for _, what in changes} == {"updated"}
    (left,) = [change for change in done if change["name"] == one.deployed.named("migrate/prod")]
    assert "not in this prefect.yaml, left unchanged; it has no active schedule" in left["detail"]
    assert f"prefect deployment delete '{one.deployed.named('migrate/prod')}'" in left["detail"]
    assert all(name.endswith(" (renamed)") for name, _ in changes)
    assert {automation.id for automation in ferry_automations(client)} == before
    expected = {old, *(one.id_of(name) for name in ("migrate/main", "migrate/nightly", "verify/weekly"))}
    ours = [automation for automation in ferry_automations(client) if automation.name.endswith(" (renamed)")]
    assert [watched(automation) for automation in ours] == [expected] * len(ours)


def test_automations_of_the_first_version_go_on(teams: list[Team], client: SyncPrefectClient) -> None:
    """Automations without a project in their name belong to the project whose deployments they watch."""
    one, other = teams
    one.deploy()
    ids = [one.id_of(name) for name in ("migrate/prod", "migrate/nightly", "verify/weekly")]
    kind, _, name = one.block.partition("/")
    block = client.read_block_document_by_name(name, kind).id
    old = []
    for alarm in alerts(ids, UI):
        automation = alarm.automation("", [block], enabled=True)
        automation.name = alarm.name
        old.append(client.create_automation(automation))
    other.deploy("--notify", other.block)
    run = one.a_failing_run()
    assert one.is_told(run)
    changed = dict(one.deploy())
    acts = [one.name for one in restart_automations([])]
    assert {what for name, what in changed.items() if not any(is_named(name, act) for act in acts)} == {"updated"}
    names = {automation.name for automation in ferry_automations(client) if automation.id in old}
    assert names == {full_name(alarm.name, "ferry") for alarm in alerts([], UI)}


def test_deployments_that_were_deleted_and_made_again(teams: list[Team], client: SyncPrefectClient) -> None:
    """Alerts that watch only deleted deployments are updated by the project in their name, and keep their blocks."""
    one, _ = teams
    one.deployed.content["name"] = f"project-{one.deployed.mark}"
    one.deployed.write()
    one.deploy("--notify", one.block)
    for name in ("migrate/prod", "migrate/nightly", "verify/weekly"):
        client.delete_deployment(one.id_of(name))
    assert {what for _, what in one.deploy()} == {"updated"}
    assert all(TAG in automation.tags for automation in ferry_automations(client))
    assert one.is_told(one.a_failing_run())


OURS, THEIRS, GONE = uuid4(), uuid4(), uuid4()


@pytest.mark.parametrize(
    ("watches", "has_its_name", "expected"),
    [
        ({OURS}, False, True),
        ({OURS, THEIRS}, False, True),
        ({OURS, GONE}, True, True),
        ({GONE}, True, True),
        ({GONE}, False, False),
        ({THEIRS}, True, False),
        ({THEIRS, GONE}, True, False),
        (set(), False, False),
    ],
)
def test_whose_an_automation_is(watches: set[UUID], has_its_name: bool, expected: bool) -> None:
    """is_own() follows its table."""
    assert is_own(watches, has_its_name, {OURS}, {OURS, THEIRS}) is expected
