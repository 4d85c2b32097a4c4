"""All jobs of a Prefect server in one table, for `ferry jobs` and the artifact `ferry-jobs`.

A job is what deployments of `migrate` and `verify` have in common: its name, and the project whose job files they were
made of. Everything comes from Prefect, and counts from the labels that tasks.reporting.run_end gives a run. Runs of an
earlier version have none. However many runs there are, the server gets some ten requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactCollectionFilter,
    ArtifactCollectionFilterKey,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort

from ferry.core import duration
from tasks.reporting.run_end import LABEL
from tasks.reporting.ui import plain

KEY = "ferry-jobs"
PAGE = 200  # the server returns at most this many at once
MOST_PAGES = 10  # for one column
LATE = timedelta(hours=1)  # a run that was due is late for the operator, too
LIVE = [StateType.RUNNING, StateType.PENDING, StateType.PAUSED, StateType.CANCELLING]
ENDED = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]
BAD = (StateType.FAILED, StateType.CRASHED)
Key = tuple[str, str]  # project, job


@dataclass(slots=True)
class JobRow:
    """One job. Times are the server's."""

    project: str
    name: str
    deployments: dict[UUID, str] = field(default_factory=dict)  # ID -> flow
    schedule_on: bool = False
    schedules: int = 0
    last: FlowRun | None = None  # the last migration that began and ended
    good: FlowRun | None = None  # the last one that was Completed
    check: FlowRun | None = None  # the last verification
    due: FlowRun | None = None  # the next scheduled run, or one that is late
    live: list[FlowRun] = field(default_factory=list)

    def count(self, name: str) -> int | None:
        """Returns a count of the job's rows after its last migration; None if it is not known."""
        value = self.last.labels.get(LABEL + name) if self.last else None
        return value if isinstance(value, int) else None


def trouble(row: JobRow, now: datetime, max_age: timedelta | None = None) -> list[str]:
    """Returns why an operator has to look at the job.

    | the job | trouble |
    |---|---|
    | its last migration is Failed or Crashed | yes |
    | its last verification is Failed or Crashed, and no migration was Completed since | yes |
    | the same, and a later migration was Completed | no: it repaired what the verification found |
    | a run was due an hour ago and has not begun | yes |
    | a schedule is on, and no migration was Completed within ``max_age`` | yes |
    | it has never run, or its last run was cancelled | no |
    """
    found = []
    if row.last is not None and row.last.state_type in BAD:
        found.append(f"the last run {_verdict(row.last).lower()}")
    repaired = row.good and row.check and _end(row.good) > _end(row.check)
    if row.check is not None and row.check.state_type in BAD and not repaired:
        found.append(f"the last verification {_verdict(row.check).lower()}")
    if row.due is not None and row.due.expected_start_time and row.due.expected_start_time < now - LATE:
        found.append(f"a run has been due for {_age(row.due.expected_start_time, now)}")
    if max_age is not None and row.schedule_on and (row.good is None or _end(row.good) < now - max_age):
        since = "none yet" if row.good is None else f"the last {_age(_end(row.good), now)} ago"
        found.append(f"no completed run for {duration(max_age.total_seconds())} ({since})")
    return found


def read(client: SyncPrefectClient, own: FlowRun | None = None) -> list[JobRow]:
    """Returns the server's jobs by name. ``own`` is a run that ends now, as it will be at the server."""
    rows = _jobs(client)
    if not rows:
        return []
    migrations, checks = _keys(rows, "migrate"), _keys(rows, "verify")
    ended = [own] if own else []
    for attribute, keys, kinds in (
        ("last", migrations, ENDED),
        ("good", migrations, [StateType.COMPLETED]),
        ("check", checks, ENDED),
    ):
        given = [run for run in ended if run.state_type in kinds]
        found = _first_of_each(client, keys, kinds, FlowRunSort.END_TIME_DESC, given)
        for key, run in found.items():
            setattr(rows[key], attribute, run)
    on = {id_: key for id_, key in (migrations | checks).items() if rows[key].schedule_on}
    for key, run in _first_of_each(client, on, [StateType.SCHEDULED], FlowRunSort.EXPECTED_START_TIME_ASC).items():
        rows[key].due = run
    every = migrations | checks
    for run in client.read_flow_runs(flow_run_filter=_filter(every, LIVE), limit=PAGE):
        if (id_ := run.deployment_id) and id_ in every and (own is None or run.id != own.id):
            rows[every[id_]].live.append(run)
    return [rows[key] for key in sorted(rows, key=lambda key: (key[1], key[0]))]


def _jobs(client: SyncPrefectClient) -> dict[Key, JobRow]:
    of_ferry = FlowFilter(name=FlowFilterName(any_=["migrate", "verify"]))
    flows = {flow.id: flow.name for flow in client.read_flows(flow_filter=of_ferry)}
    rows: dict[Key, JobRow] = {}
    offset = 0
    while page := client.read_deployments(flow_filter=of_ferry, limit=PAGE, offset=offset):
        for one in page:
            if (key := _key(one)) and one.flow_id in flows:
                row = rows.setdefault(key, JobRow(*key))
                row.deployments[one.id] = flows[one.flow_id]
                row.schedules += len(one.schedules)
                row.schedule_on |= not one.paused and any(schedule.active for schedule in one.schedules)
        if len(page) < PAGE:
            break
        offset += PAGE
    return rows


def _key(deployment: DeploymentResponse) -> Key | None:
    job = deployment.parameters.get("job")
    name = job.get("name") if isinstance(job, dict) else None
    project = next((tag.removeprefix("jobs:") for tag in deployment.tags if tag.startswith("jobs:")), "")
    return (project, name) if isinstance(name, str) else None


def _keys(rows: Mapping[Key, JobRow], flow: str) -> dict[UUID, Key]:
    return {id_: key for key, row in rows.items() for id_, its in row.deployments.items() if its == flow}


def _filter(deployments: Iterable[UUID], kinds: Sequence[StateType]) -> FlowRunFilter:
    return FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=list(deployments)),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(kinds))),
    )


def _first_of_each(
    client: SyncPrefectClient,
    keys: Mapping[UUID, Key],
    kinds: Sequence[StateType],
    sort: FlowRunSort,
    given: Iterable[FlowRun] = (),
) -> dict[Key, FlowRun]:
    """Returns each job's first run in this order. The next page is only about the jobs that the last one lacked.

    A run that was cancelled before it began, as a nightly one beside a migration, says nothing of the job.
    """
    found = {keys[id_]: run for run in given if (id_ := run.deployment_id) and id_ in keys}
    offset = 0
    for _ in range(MOST_PAGES):
        left = [id_ for id_, key in keys.items() if key not in found]
        if not left:
            break
        before = len(found)
        page = client.read_flow_runs(flow_run_filter=_filter(left, kinds), sort=sort, limit=PAGE, offset=offset)
        for run in page:
            never_began = run.state_type is StateType.CANCELLED and not run.run_count
            if (id_ := run.deployment_id) and id_ in keys and not never_began:
                found.setdefault(keys[id_], run)
        if len(page) < PAGE:
            break
        offset = offset + PAGE if len(found) == before else 0
    return found


def publish(client: SyncPrefectClient, own: FlowRun, now: datetime) -> None:
    """Bring the artifact `ferry-jobs` up to date. It stays one artifact, whose page keeps its address."""
    rows = read(client, own)
    if not rows:
        return
    bad = sum(bool(trouble(row, now)) for row in rows)
    description = f"{len(rows):,} {'job' if len(rows) == 1 else 'jobs'}, {bad:,} in trouble"
    data = markdown(rows, now)
    of_ferry = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[KEY]))
    there = client.read_latest_artifacts(artifact_filter=of_ferry, limit=1)
    if there:
        client.update_artifact(there[0].latest_id, ArtifactUpdate(data=data, description=description))
    else:
        client.create_artifact(ArtifactCreate(key=KEY, type="markdown", data=data, description=description))


HEAD = ("job", "last run", "ended", "last good", "failed", "pending", "verified", "next run", "now", "trouble")


def cells(row: JobRow, now: datetime, max_age: timedelta | None = None) -> dict[str, str]:
    """Returns what the table shows of a job, by column."""
    due = row.due.expected_start_time if row.due else None
    schedule = "off" if row.schedules else "no schedule"
    return {
        "job": row.name,
        "last run": _verdict(row.last) if row.last else "never ran",
        "ended": f"{_end(row.last):%Y-%m-%d %H:%M}" if row.last else "",
        "last good": f"{_age(_end(row.good), now)} ago" if row.good else "never",
        "failed": _number(row.count("failed")),
        "pending": _number(row.count("pending")),
        "verified": f"{_verdict(row.check)} {_age(_end(row.check), now)} ago" if row.check else "never",
        "next run": f"{due:%Y-%m-%d %H:%M}" if due else "on" if row.schedule_on else schedule,
        "now": ", ".join(f"{run.name} {_state(run)}" for run in row.live),
        "trouble": "; ".join(trouble(row, now, max_age)),
    }


def markdown(rows: Sequence[JobRow], now: datetime) -> str:
    """Returns the table as Markdown, with links to the runs."""
    lines = [f"# Jobs, {now:%Y-%m-%d %H:%M} UTC", "", f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for row in rows:
        shown = {name: plain(text) for name, text in cells(row, now).items()}
        for name, run in (("last run", row.last), ("verified", row.check), ("last good", row.good)):
            if run is not None:
                shown[name] = _link(shown[name], run)
        shown["now"] = ", ".join(_link(plain(f"{run.name} {_state(run)}"), run) for run in row.live)
        lines.append(f"| {' | '.join(shown[name] for name in HEAD)} |")
    return "\n".join(lines) + "\n"


def as_json(row: JobRow, now: datetime, max_age: timedelta | None = None) -> dict[str, Any]:
    """Returns a job for `ferry jobs --json`."""

    def run(one: FlowRun | None) -> dict[str, Any] | None:
        if one is None:
            return None
        return {"flow_run": str(one.id), "name": one.name, "state": _state(one), "ended_at": one.end_time}

    return {
        "job": row.name,
        "project": row.project,
        "last": run(row.last),
        "last_good": run(row.good),
        "failed": row.count("failed"),
        "pending": row.count("pending"),
        "planned": row.count("planned"),
        "verification": run(row.check),
        "next_at": row.due.expected_start_time if row.due else None,
        "schedule_on": row.schedule_on,
        "running": [run(one) for one in row.live],
        "trouble": trouble(row, now, max_age),
    }


def _link(text: str, run: FlowRun) -> str:
    return f"[{text}](/runs/flow-run/{run.id})"


def _end(run: FlowRun) -> datetime:
    """Returns when a run ended; Prefect sets no end for some that it ends itself."""
    end = run.end_time or (run.state.timestamp if run.state else None) or run.expected_start_time
    assert end is not None
    return end


def _verdict(run: FlowRun) -> str:
    return run.state_type.value.capitalize() if run.state_type else ""


def _state(run: FlowRun) -> str:
    return (run.state.name if run.state else None) or _verdict(run)


def _age(since: datetime, now: datetime) -> str:
    hours = max(0.0, (now - since).total_seconds()) / 3600
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.0f} days"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
