"""`ferry jobs` on a Prefect server of its own, where no other test has deployments."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed, Running

from flows.server.local import LocalServer
from tasks.reporting import jobs
from tests.flows.project import Cli, Ended

pytestmark = pytest.mark.slow  # a Prefect server of its own

MANY = 50


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with LocalServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}), get_client(sync_client=True) as client:
        yield client


def deployment(client: SyncPrefectClient, flow: str, name: str, job: str | None) -> UUID:
    parameters: dict[str, Any] = {} if job is None else {"job": {"name": job}}
    return client.create_deployment(client.create_flow_from_name(flow), name, parameters=parameters, tags=["ferry"])


def run(client: SyncPrefectClient, deployment: UUID, *states: Any, **labels: Any) -> UUID:
    made = client.create_flow_run_from_deployment(deployment, name="run")
    for state in states:
        client.set_flow_run_state(made.id, state, force=True)
    if labels:
        client.update_flow_run_labels(made.id, {f"ferry.end.{name}": value for name, value in labels.items()})
    return made.id


def test_the_table(client: SyncPrefectClient, server: LocalServer, cli: Cli, tmp_path: Path) -> None:
    """From a server without jobs to one with jobs in trouble; a run that was cancelled unbegun does not count."""

    def ferry(*arguments: str) -> Ended:
        return cli.run(["jobs", *arguments], tmp_path, {"PREFECT_API_URL": f"{server.url}/api"})

    assert "has no job of Ferry" in ferry().expect(0).stdout
    deployment(client, "migrate", "none", None)  # a deployment without a job of its own
    deployment(client, "other", "x", "not-of-ferry")
    assert "has no job of Ferry" in ferry().expect(0).stdout

    good, nightly = deployment(client, "migrate", "good", "good"), deployment(client, "migrate", "good-nightly", "good")
    check = deployment(client, "verify", "good-weekly", "good")
    deployment(client, "migrate", "new", "new")
    old = deployment(client, "migrate", "old", "old")
    run(client, good, Running(), Failed(), failed=7, pending=1)
    last = run(client, nightly, Running(), Completed(), failed=2, pending=0)
    run(client, nightly, Cancelled(message="Deployment concurrency limit reached."))
    run(client, check, Running(), Completed(), failed=0)
    run(client, old, Running(), Completed())
    live = run(client, good, Running())
    shown = ferry("--json").expect(0).json
    assert [row["job"] for row in shown["jobs"]] == ["good", "new", "old"]
    row = shown["jobs"][0]
    assert (row["last"]["flow_run"], row["last"]["state"], row["failed"], row["pending"]) == (
        str(last),
        "Completed",
        2,
        0,
    )
    assert [one["flow_run"] for one in row["running"]] == [str(live)]
    assert shown["jobs"][1]["last"] is None
    assert (shown["jobs"][2]["last"]["state"], shown["jobs"][2]["failed"]) == ("Completed", None)

    bad = deployment(client, "migrate", "bad", "bad")
    run(client, bad, Running(), Failed(), failed=7, pending=1)
    shown = ferry("--json").expect(1).json
    assert (shown["in_trouble"], shown["jobs"][0]["trouble"]) == (1, ["the last run failed"])
    text = ferry().expect(1).stdout
    assert "4 jobs, 1 in trouble" in text
    assert "never ran" in text
    assert "--max-age soon: " in ferry("--max-age", "soon").expect(2).stderr


def test_requests_for_many_jobs(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of 50 jobs, and the artifact, take a bounded number of requests; the artifact stays one."""
    for number in range(MANY):
        made = deployment(client, "migrate", f"shop{number}", f"shop{number}")
        if number % 2:
            run(client, made, Running(), Completed(), failed=number, pending=0)
    asked: list[str] = []
    request = client.request

    def counting(method: Any, path: Any, **more: Any) -> Any:
        asked.append(f"{method} {path}")
        return request(method, path, **more)

    monkeypatch.setattr(client, "request", counting)
    rows = jobs.read(client)
    assert len(rows) >= MANY
    assert len(asked) <= 12, asked
    own = client.read_flow_run(run(client, made, Running()))
    now = datetime.now(UTC)
    ends: list[State[Any]] = [Failed(), Completed()]
    for state in ends:
        ended = own.model_copy(update={"state": state, "state_type": state.type, "end_time": now})
        jobs.publish(client, ended, now)
    found = [one for one in client.read_artifacts() if one.key == jobs.KEY]
    assert len(found) == 1
    text = str(found[0].data)
    assert sum(line.startswith("| shop") for line in text.splitlines()) == MANY
    (line,) = (line for line in text.splitlines() if line.startswith(f"| shop{MANY - 1} "))
    assert f"| [Completed](/runs/flow-run/{own.id}) |" in line, "its last run is the one that ends now"
