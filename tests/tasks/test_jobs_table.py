"""The table of all jobs: which job is in trouble, and what is shown of it."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Scheduled

from flows.cli.jobs import jobs
from tasks.reporting.jobs import HEAD, PAGE, JobRow, as_json, cells, markdown, read, trouble

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def made(state: State[Any], **given: Any) -> FlowRun:
    return FlowRun(flow_id=uuid4(), name="shop #7", state=state, state_type=state.type, **given)


def run(state: State[Any], hours_ago: float, **labels: Any) -> FlowRun:
    named = {f"ferry.end.{name}": value for name, value in labels.items()}
    return made(state, end_time=NOW - hours_ago * HOUR, labels=named)


def due(hours_ago: float) -> FlowRun:
    return made(Scheduled(), expected_start_time=NOW - hours_ago * HOUR)


GOOD = run(Completed(), 9)


@pytest.mark.parametrize(
    ("row", "max_age", "reasons"),
    [
        ({}, None, []),
        ({"last": GOOD, "good": GOOD}, None, []),
        ({"last": run(Cancelled(), 1), "good": GOOD}, None, []),
        ({"last": run(Failed(), 1), "good": GOOD}, None, ["the last run failed"]),
        ({"last": run(Crashed(), 1)}, None, ["the last run crashed"]),
        ({"last": GOOD, "good": GOOD, "check": run(Failed(), 10)}, None, []),
        ({"last": GOOD, "good": GOOD, "check": run(Failed(), 8)}, None, ["the last verification failed"]),
        ({"check": run(Failed(), 8)}, None, ["the last verification failed"]),
        ({"due": due(0.9)}, None, []),
        ({"due": due(1.5)}, None, ["a run has been due for 2 h"]),
        ({"due": due(-8)}, None, []),
        ({"good": GOOD, "schedule_on": True}, 10 * HOUR, []),
        ({"good": GOOD, "schedule_on": True}, 8 * HOUR, ["no completed run for 8:00:00 (the last 9 h ago)"]),
        ({"good": GOOD, "schedule_on": False}, 8 * HOUR, []),
        ({"schedule_on": True}, 8 * HOUR, ["no completed run for 8:00:00 (none yet)"]),
    ],
)
def test_which_job_is_in_trouble(row: dict[str, Any], max_age: timedelta | None, reasons: list[str]) -> None:
    """trouble() follows its table."""
    assert trouble(JobRow("", "shop", **row), NOW, max_age) == reasons


def test_what_is_shown() -> None:
    """Counts come from the last migration's labels; runs of an earlier version show none; runs are linked."""
    failed, live = run(Failed(), 2, failed=1234, pending=0), run(Running(), 0)
    row = JobRow("p", "shop|1", schedule_on=True, schedules=2, last=failed, good=GOOD, due=due(-8), live=[live])
    shown = cells(row, NOW)
    assert set(shown) == set(HEAD)
    assert (shown["last run"], shown["failed"], shown["pending"]) == ("Failed", "1,234", "0")
    assert (shown["last good"], shown["next run"], shown["now"]) == ("9 h ago", "2026-12-01 20:00", "shop #7 Running")
    text = markdown([row], NOW)
    for one in (failed, GOOD, live):
        assert f"(/runs/flow-run/{one.id})" in text
    assert "shop\\|1" in text
    assert as_json(row, NOW)["trouble"] == ["the last run failed"]
    old = cells(JobRow("", "shop", last=GOOD, good=GOOD, schedules=1), NOW)
    assert (old["last run"], old["failed"], old["next run"]) == ("Completed", "", "off")
    assert cells(JobRow("", "shop"), NOW)["last run"] == "never ran"


class Server(SimpleNamespace):
    """A Prefect server with one flow `migrate`, its deployments, and runs in the order in which it returns them."""

    def read_flows(self, **_: Any) -> list[Any]:
        return [SimpleNamespace(id=FLOW, name="migrate")]

    def read_deployments(self, offset: int, limit: int, **_: Any) -> list[Any]:
        return list(self.deployments)[offset : offset + limit]

    def read_flow_runs(self, flow_run_filter: Any, limit: int, offset: int = 0, **_: Any) -> list[FlowRun]:
        ids, kinds = flow_run_filter.deployment_id.any_, flow_run_filter.state.type.any_
        found = [one for one in self.runs if one.deployment_id in ids and one.state_type in kinds]
        return found[offset : offset + limit]


FLOW = uuid4()


def deployed(job: str, *, on: bool = True, paused: bool = False) -> Any:
    return SimpleNamespace(
        id=uuid4(), flow_id=FLOW, parameters={"job": {"name": job}}, tags=["jobs:p"], paused=paused,
        schedules=[SimpleNamespace(active=on)],
    )  # fmt: skip


@pytest.mark.parametrize(("on", "paused", "watched"), [(True, False, True), (False, False, False), (True, True, False)])
def test_whose_late_run_is_trouble(on: bool, paused: bool, watched: bool) -> None:
    """That of a job whose schedule is on: a deployment that is paused begins no run either."""
    shop = deployed("shop", on=on, paused=paused)
    late = made(Scheduled(), expected_start_time=NOW - 2 * HOUR, deployment_id=shop.id)
    server: Any = Server(deployments=[shop], runs=[late])
    (row,) = read(server)
    assert (row.schedule_on, bool(trouble(row, NOW))) == (watched, watched)


def test_a_failure_behind_many_other_runs() -> None:
    """It is found behind pages of a busy job's runs, and behind runs that were cancelled before they began."""
    busy, shop = deployed("busy"), deployed("shop")
    runs = [made(Completed(), end_time=NOW, deployment_id=busy.id) for _ in range(PAGE)]
    runs += [made(Cancelled(), end_time=NOW, deployment_id=shop.id, run_count=0) for _ in range(2 * PAGE)]
    runs += [made(Failed(), end_time=NOW - HOUR, deployment_id=shop.id, run_count=1)]
    server: Any = Server(deployments=[busy, shop], runs=runs)
    assert {row.name: trouble(row, NOW) for row in read(server)} == {"busy": [], "shop": ["the last run failed"]}


def test_a_run_that_ends_now() -> None:
    """It is its job's last run, not one of those that are live, although the server still has it as running."""
    shop = deployed("shop")
    before = made(Running(), deployment_id=shop.id)
    own = before.model_copy(update={"state": Failed(), "state_type": Failed().type, "end_time": NOW})
    server: Any = Server(deployments=[shop], runs=[before, made(Completed(), end_time=NOW, deployment_id=shop.id)])
    (row,) = read(server, own)
    assert (row.last, row.live, trouble(row, NOW)) == (own, [], ["the last run failed"])


@pytest.mark.parametrize("as_document", [False, True])
@pytest.mark.parametrize(
    ("row", "max_age", "code"),
    [
        (None, None, 0),
        ({"last": GOOD, "good": GOOD}, None, 0),
        ({"last": run(Failed(), 1), "good": GOOD}, None, 1),
        ({"good": GOOD, "schedule_on": True}, "26h", 1),  # it is two days later
        ({"good": GOOD, "schedule_on": False}, "26h", 0),
    ],
)
def test_the_exit_code(
    row: dict[str, Any] | None, max_age: str | None, code: int, as_document: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ferry jobs` exits with 1 if a job is in trouble, also with --json, since scripts look at nothing else."""
    monkeypatch.setattr("flows.cli.jobs.given_server", lambda *_: "http://127.0.0.1:4200/api")
    monkeypatch.setattr("flows.cli.jobs.datetime", SimpleNamespace(now=lambda _: NOW + 48 * HOUR))
    monkeypatch.setattr("tasks.prefect_api.required_client", contextlib.nullcontext)
    monkeypatch.setattr("tasks.reporting.jobs.read", lambda _: [] if row is None else [JobRow("", "shop", **row)])
    assert jobs(max_age=max_age, json_=as_document) == code
