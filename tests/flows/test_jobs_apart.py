"""Two jobs of one work pool: neither waits for the other, nor is cancelled by it (docs/how-to/many-jobs.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.origin import Origin
from tests.flows.deployed import worker
from tests.flows.project import Cli, Prefect, Project, serve, wait_for
from tests.flows.test_deploy_jobs import Shop

pytestmark = pytest.mark.slow  # a worker, and five runs of deployments

WITHIN_S = 120.0


@pytest.fixture
def shop(cli: Cli, tmp_path: Path) -> Iterator[Shop]:
    """A project, and a worker that takes two runs at a time."""
    (tmp_path / "shop").mkdir()
    found = Shop(tmp_path / "shop", cli)
    log = tmp_path / "worker.log"
    found.job("a")
    found.deploy().expect(0)  # makes the pool
    with worker(cli, found.pool, log, "--limit", "2"):
        yield found


def start(prefect_api: Prefect, name: str) -> str:
    """Submit a run of a deployment, and return its ID."""
    asked = {"deployments": {"name": {"any_": [name]}}}
    (found,) = prefect_api.post("deployments/filter", asked)
    return str(prefect_api.post(f"deployments/{found['id']}/create_flow_run", {})["id"])


def state(prefect_api: Prefect, run: str) -> tuple[str, str, str]:
    """Returns type, name and message of a run's state."""
    (found,) = prefect_api.post("flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return found["state"]["type"], found["state"]["name"], found["state"]["message"] or ""


def artifact(prefect_api: Prefect, words: str = "") -> str:
    """Returns the table of all jobs in the UI, if it has these words."""
    (found,) = prefect_api.post("artifacts/latest/filter", {"artifacts": {"key": {"any_": ["ferry-jobs"]}}})
    return str(found["data"]) if f"[Completed](/runs/flow-run/{words}" in found["data"] else ""


def completed(prefect_api: Prefect, run: str) -> None:
    wait_for("a run to complete", lambda: state(prefect_api, run)[0] == "COMPLETED", WITHIN_S)


def test_a_long_job_and_a_short_one(
    shop: Shop, project: Project, origin: Origin, prefect_api: Prefect, tmp_path: Path
) -> None:
    """While job A moves, its further runs hold no place of the worker, and job B's runs come and go."""
    slow, quick = Origin(), origin
    with slow:
        for name, source, count in (("a", slow, 600), ("b", quick, 3)):
            rows, _ = serve(source, count, name)
            project.manifest(rows, f"{name}.csv")
            given: dict[str, Any] = {**project.settings, "manifest": str(project.folder / f"{name}.csv")}
            given |= {
                "destination": {**project.destination(), "uri": f"s3://{project.bucket}/{name}/"},
                "concurrency": 1,
            }
            shop.job(name, **given | {"name": f"{name}-{shop.mark}", "state": str(tmp_path / f"state-{name}")})
        slow.latency_s = 1.0
        shop.deploy().expect(0)
        a = start(prefect_api, f"a-{shop.mark}")
        wait_for("job A to move", lambda: slow.total, WITHIN_S)
        nightly, weekly = start(prefect_api, f"a-{shop.mark}-nightly"), start(prefect_api, f"a-{shop.mark}-weekly")
        wait_for("A's nightly run to be left out", lambda: state(prefect_api, nightly)[0] == "CANCELLED", WITHIN_S)
        assert state(prefect_api, nightly)[2] == "Deployment concurrency limit reached."
        wait_for("A's weekly run to wait", lambda: state(prefect_api, weekly)[1] == "AwaitingConcurrencySlot", WITHIN_S)
        for name in (f"b-{shop.mark}", f"b-{shop.mark}-nightly", f"b-{shop.mark}-weekly"):
            completed(prefect_api, start(prefect_api, name))
        assert state(prefect_api, a)[1] == "Running", "all of that happened beside job A"
        assert state(prefect_api, weekly)[1] == "AwaitingConcurrencySlot"

        shown = {row["job"]: row for row in shop.cli.run(["jobs", "--json"], shop.folder).json["jobs"]}
        row = shown[f"b-{shop.mark}"]
        assert (row["last"]["state"], row["failed"], row["pending"], row["planned"]) == ("Completed", 0, 0, 3)
        assert row["verification"]["state"] == "Completed"
        assert [one["flow_run"] for one in shown[f"a-{shop.mark}"]["running"]] == [a]
        assert f"| b-{shop.mark} | [Completed](/runs/flow-run/{row['last']['flow_run']}) |" in artifact(prefect_api)

        asked = {
            "event": {"name": ["ferry.run.ended"]},
            "resource": {"id": [f"prefect.flow-run.{row['last']['flow_run']}"]},
        }
        (event,) = prefect_api.post("events/filter", {"filter": asked})["events"]
        assert {one["prefect.resource.role"] for one in event["related"]} >= {"flow", "deployment", "work-pool", "tag"}

        refused = shop.cli.run(["run", "jobs/b.yaml", "--on", f"migrate/a-{shop.mark}"], shop.folder).expect(2)
        assert f"the deployment is of the job `a-{shop.mark}`" in refused.stderr
        slow.latency_s = 0.0
        completed(prefect_api, a)
        wait_for("the table of all jobs", lambda: artifact(prefect_api, a), WITHIN_S)
        completed(prefect_api, weekly)
