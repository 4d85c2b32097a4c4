"""The table of all jobs: which job is in trouble, and what is shown of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Scheduled

from tasks.reporting.jobs import HEAD, JobRow, as_json, cells, markdown, trouble

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
