"""`ferry deploy jobs/*.yaml` on a real server: made once, kept, switched by the operator, retired on request."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Cancelled, Completed, Running

from flows.deploying.automations import apply_one, block, ferry_automations
from flows.deploying.missed_runs import missed_jobs_alert
from flows.server.local import LocalServer
from tests.flows.deployed import make_pool
from tests.flows.project import Cli, Ended, Prefect, wait_for
from tests.flows.receivers import UI, WAIT_S, Receiver, a_client, a_webhook, save

pytestmark = pytest.mark.slow  # a Prefect server, and a dozen commands


class Shop:
    """A project with a name, a pool and job files of its own, since all tests share a server."""

    def __init__(self, folder: Path, cli: Cli) -> None:
        self.folder, self.cli = folder, cli
        self.mark = secrets.token_hex(4)
        self.pool = f"pool-{self.mark}"
        entry = {"work_pool": {"name": self.pool, "job_variables": {"working_dir": "."}}}
        (folder / "prefect.yaml").write_text(yaml.safe_dump({"name": f"shop-{self.mark}", "deployments": [entry]}))
        (folder / "jobs").mkdir()

    def job(self, name: str, /, **more: Any) -> None:
        given = {
            "name": f"{name}-{self.mark}",
            "manifest": f"s3://lists/{name}.csv",
            "destination": f"s3://new/{name}/",
        }
        (self.folder / "jobs" / f"{name}.yaml").write_text(
            yaml.safe_dump({**given, "state": f"s3://states/{name}", **more})
        )

    def deploy(self, *arguments: str) -> Ended:
        jobs = [f"jobs/{path.name}" for path in sorted((self.folder / "jobs").iterdir())]
        return self.cli.run(["deploy", *jobs, *arguments], self.folder)

    def changes(self, *arguments: str) -> dict[str, str]:
        """Returns what a deploy did, such as `deployment migrate/a` -> created, apart from work pools."""
        said = self.deploy(*arguments, "--json").expect(0).json["changes"]
        return {
            f"{one['kind']} {one['name']}".replace(f"-{self.mark}", ""): one["what"]
            for one in said
            if one["kind"] != "work pool"
        }

    def there(self, client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
        marked = DeploymentFilter(tags=DeploymentFilterTags(all_=[f"jobs:shop-{self.mark}"]))
        return {one.name.replace(f"-{self.mark}", ""): one for one in client.read_deployments(deployment_filter=marked)}

    def automations(self, client: SyncPrefectClient) -> list[str]:
        return sorted(one.name for one in ferry_automations(client) if self.mark in one.name)


@pytest.fixture(scope="module")
def client(prefect_local: LocalServer) -> Iterator[SyncPrefectClient]:
    with a_client(prefect_local) as client:
        yield client


@pytest.fixture(scope="module")
def webhook() -> Iterator[Receiver]:
    with a_webhook() as receiver:
        yield receiver


@pytest.fixture
def shop(cli: Cli, tmp_path: Path) -> Shop:
    return Shop(tmp_path, cli)


def test_made_once_and_kept(shop: Shop, client: SyncPrefectClient, webhook: Receiver) -> None:
    """A second deploy changes nothing; hours and switches of the operator stay; the alerts are one set."""
    save(webhook.block(), f"jobs-{shop.mark}")
    shop.job("a")
    shop.job("b", machines=2)
    notify = ["--notify", f"custom-webhook/jobs-{shop.mark}", "--expect-every", "26h"]
    first = shop.changes(*notify)
    assert {name for name, what in first.items() if what == "created" and name.startswith("deployment")} == {
        f"deployment {name}"
        for one in "ab"
        for name in (f"migrate/{one}", f"migrate/{one}-nightly", f"verify/{one}-weekly")
    } | {"deployment shard/b"}
    assert len(shop.automations(client)) == 7, "three restarts and four alerts, however many jobs"
    made = shop.there(client)
    limits = {one.global_concurrency_limit.id for one in made.values() if one.global_concurrency_limit}
    assert len(limits) == 2, "one slot for all deployments of a job"
    assert len({made[name].global_concurrency_limit.id for name in ("a", "a-nightly", "a-weekly")}) == 1  # type: ignore[union-attr]
    assert set(shop.changes().values()) == {"unchanged"}
    assert {name: one.updated for name, one in shop.there(client).items()} == {
        n: one.updated for n, one in made.items()
    }

    (nightly,) = made["a-nightly"].schedules
    mine = CronSchedule(cron="7 4 * * *", timezone="Europe/Berlin")
    client.update_deployment_schedule(made["a-nightly"].id, nightly.id, active=True, schedule=mine)
    shop.job("c")
    again = shop.changes("--expect-every", "26h")
    assert again["schedule migrate/a-nightly nightly"] == "unchanged"
    assert again["deployment migrate/c"] == "created"
    (nightly,) = shop.there(client)["a-nightly"].schedules
    assert (nightly.active, nightly.schedule) == (True, mine)
    names = shop.automations(client)
    assert len(names) == 8, "and one alert for all jobs whose schedule is on"
    shop.deploy("--schedules", "on").expect(0)
    assert shop.automations(client) == names
    assert all(schedule.active for one in shop.there(client).values() for schedule in one.schedules)
    shop.deploy("--from", "02:00").expect(0)
    (moved,) = shop.there(client)["a-nightly"].schedules
    assert moved.active, "an hour that is given moves the schedule, and leaves it on"
    assert moved.schedule != mine


def test_jobs_whose_file_is_gone(shop: Shop, client: SyncPrefectClient) -> None:
    """Their deployments are named with their schedules' state, and deleted with --retire alone; others never."""
    for name in ("a", "b"):
        shop.job(name)
    shop.deploy("--schedules", "on").expect(0)
    other = client.create_deployment(client.create_flow_from_name("migrate"), f"other-{shop.mark}", tags=["ferry"])
    (shop.folder / "jobs" / "b.yaml").unlink()
    said = shop.deploy().expect(0).stdout
    for name in (f"migrate/b-{shop.mark}-nightly", f"verify/b-{shop.mark}-weekly"):
        assert f"{name}  (no given job file asks for it; its schedule is on. --retire deletes it)" in said
    assert f"migrate/b-{shop.mark}  (no given job file asks for it; it has no active schedule" in said
    assert len(shop.there(client)) == 6
    assert "needs a yes on a terminal, or the option --yes" in shop.deploy("--retire").expect(2).stderr
    assert len(shop.there(client)) == 6
    run = client.create_flow_run_from_deployment(shop.there(client)["b"].id, name="b")
    client.set_flow_run_state(run.id, Running(), force=True)
    assert f"migrate/b-{shop.mark} has a live run" in shop.deploy("--retire", "--yes").expect(2).stderr
    client.set_flow_run_state(run.id, Completed(), force=True)
    assert shop.changes("--retire", "--dry-run")["deployment migrate/b"] == "removed"
    assert len(shop.there(client)) == 6
    assert shop.changes("--retire", "--yes")["deployment migrate/b"] == "removed"
    assert set(shop.there(client)) == {"a", "a-nightly", "a-weekly"}
    assert client.read_deployment(other).name == f"other-{shop.mark}"


def test_what_is_wrong_is_said_first(shop: Shop, client: SyncPrefectClient, prefect_api: Prefect) -> None:
    """A name that is taken, a path that no run can read, and options that do not fit are refused; nothing is made."""
    client.create_deployment(client.create_flow_from_name("migrate"), f"a-{shop.mark}", tags=["ferry"])
    make_pool(prefect_api, f"pool-{shop.mark}", "kubernetes")
    shop.job("a")
    shop.job("b", manifest="b.csv", state=None)
    said = shop.deploy().expect(2).stderr
    assert (
        f"the deployment migrate/a-{shop.mark} is there already, and was not made of this project's job files" in said
    )
    assert "jobs/b.yaml: manifest and state: a local path, and runs of a pool of the type kubernetes" in said
    assert shop.there(client) == {}
    assert "are for job files: name these" in shop.cli.run(["deploy", "--retire"], shop.folder).expect(2).stderr


def test_a_job_that_never_completes(client: SyncPrefectClient, webhook: Receiver) -> None:
    """The alert of all jobs counts for each deployment, also for one that has never completed, and repeats."""
    save(webhook.block(), "late-jobs")
    flow, within = client.create_flow_from_name("migrate"), timedelta(seconds=10)  # the least that Prefect takes
    completed, cancelled = (f"{end}-{secrets.token_hex(4)}" for end in ("completed", "cancelled"))
    ids = {name: client.create_deployment(flow, name) for name in (completed, cancelled)}
    alert = missed_jobs_alert(ids.values(), UI, within)
    apply_one(client, alert.automation("shop", [block(client, "custom-webhook/late-jobs")], enabled=True), None)

    def about(name: str) -> list[dict[str, str]]:
        return [message for message in webhook.got if f"migrate/{name} " in message["subject"]]

    def twice() -> bool:
        for name, id_ in ids.items():
            run = client.create_flow_run_from_deployment(id_, name="products")
            client.set_flow_run_state(run.id, Running(), force=True)
            client.set_flow_run_state(run.id, Completed() if name == completed else Cancelled(), force=True)
        return len(about(cancelled)) >= 2

    wait_for("two alerts, one after the other", twice, WAIT_S, every_s=1.0)
    assert about(completed) == []
    what, look, do = about(cancelled)[0]["body"].splitlines()
    assert what.startswith(f"No run of migrate/{cancelled} was Completed within ")
    assert look == f"Look: {UI}/deployments/deployment/{ids[cancelled]}"
    assert do.startswith("Do: see whether its runs fail")
