"""Runs that a worker does: submitted to a deployment, followed until they end, left and come back to.

Everything is asked of the server every two seconds, and nothing is held open: whoever follows may come and go, and the
server may be restarted meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
    LogFilterTimestamp,
)
from prefect.client.schemas.objects import FlowRun, Log, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort, LogSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_UI_URL

from ferry.core import UserError
from ferry.job import Job
from flows.cli.local_run import exit_code_of
from tasks import prefect_api, work_pools
from tasks.job_file import merged, parse_job

LOOK_S = 2.0
HINT_S = 10.0  # a worker looks for work every 10 s or so
PAGE = 200  # logs, and runs, asked for at once
LAST_LINES = 10  # of what was said before somebody came back
LATE = timedelta(seconds=10)  # log lines may arrive so much after later ones
FLOWS = ["migrate", "verify"]
INFO, WARNING = 20, 30
# Runs of these types of pools have a file system of their own, which holds the code and nothing of the project's.
OWN_FILES = "process"


def submit(
    client: SyncPrefectClient,
    on: str,
    data: dict[str, Any] | None,
    settings: Sequence[str],
    parameters: dict[str, Any],
    tell: Callable[[str], None],
) -> FlowRun:
    """Has a deployment of `migrate` run a job: ``data``, or else the deployment's own, with ``settings`` in it.

    ``parameters``: the flow's others. Raises UserError for a job that is none, or that could not work there.
    """
    deployment = _deployment(client, on)
    what = "the job"
    if data is None:
        data, what = deployment.parameters.get("job"), f"the job of {on}"
        if not isinstance(data, dict):
            raise UserError(f"{on} has no job of its own: name a job file")
    job = parse_job(merged(data, settings), f"{what} with --set" if settings else what)
    pool = client.read_work_pool(deployment.work_pool_name) if deployment.work_pool_name else None
    relative = relative_paths(job)
    if relative and pool is not None and pool.type != OWN_FILES:
        raise UserError(
            f"{' and '.join(relative)} of the job: a path of this machine or of the project, and {on} runs on the work "
            f"pool `{pool.name}` of the type {pool.type}, whose runs have neither. Put it at `s3://bucket/...`"
        )
    if relative and what == "the job":
        tell(
            f"{' and '.join(relative)} of the job: relative to the project's root where the worker runs, not to the "
            "job file's folder here"
        )
    # What was given, and not what is the default: that is what the run's page shows.
    given = job.model_dump(mode="json", exclude_unset=True)
    return client.create_flow_run_from_deployment(deployment.id, parameters={"job": given, **parameters}, name=job.name)


def _deployment(client: SyncPrefectClient, on: str) -> DeploymentResponse:
    if not on.startswith("migrate/"):
        raise UserError(f"--on {on}: a job runs on a deployment of the flow migrate: --on migrate/prod")
    try:
        return client.read_deployment_by_name(on)
    except ObjectNotFound:
        there = [
            one.name for one in client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=["migrate"])))
        ]
        known = f"; there are: {', '.join(f'migrate/{name}' for name in sorted(there))}" if there else ""
        raise UserError(
            f"there is no deployment {on} on the Prefect server{known}. `ferry deploy` makes those of prefect.yaml"
        ) from None


def relative_paths(job: Job) -> list[str]:
    """The settings that mean another place on another machine, as `manifest` and `state`."""
    found = []
    if "://" not in job.manifest and not Path(job.manifest).is_absolute():
        found.append("manifest")
    if job.state is None or ("://" not in job.state and not Path(job.state).is_absolute()):
        found.append("state")
    return found


def page(run: FlowRun) -> str:
    """Its page in the UI."""
    return f"{PREFECT_UI_URL.value() or ''}/runs/flow-run/{run.id}"


def find(client: SyncPrefectClient, wanted: str | None, job: str | None, now: datetime) -> FlowRun:
    """The run to come back to: by its ID, its name, its job's or its deployment's; else the one that is on.

    ``job``: the name of the job whose file ``wanted`` is. Raises UserError where there is none.
    """
    try:
        if wanted is not None:
            return client.read_flow_run(UUID(wanted))
    except ValueError:
        pass
    except ObjectNotFound:
        raise UserError(f"there is no run {wanted} on the Prefect server") from None
    deployment = None
    if job is None and wanted is not None and "/" in wanted:
        try:
            deployment = client.read_deployment_by_name(wanted).id
        except ObjectNotFound:
            raise UserError(f"there is neither a job file nor a deployment {wanted}") from None
    due = FlowRunFilterExpectedStartTime.model_validate({"before_": now + LATE})  # hundreds are planned for later
    runs = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=FLOWS)),
        flow_run_filter=FlowRunFilter(expected_start_time=due),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=PAGE,
    )
    if deployment is not None:
        runs = [run for run in runs if run.deployment_id == deployment]
    elif wanted is not None:
        runs = [run for run in runs if (job or wanted) in (run.name, job_of(run))]
    run = choose(runs, now)
    if run is None:
        of = f" of {wanted}" if wanted is not None else ""
        raise UserError(f"the Prefect server knows of no run{of}. `ferry run JOB --on migrate/prod` submits one")
    return run


def job_of(run: FlowRun) -> str | None:
    job = (run.parameters or {}).get("job")
    return job.get("name") if isinstance(job, dict) else None


def choose(runs: Sequence[FlowRun], now: datetime) -> FlowRun | None:
    """The newest run that is on, or due; else the newest that has ended. What is scheduled for later is neither."""
    due = [run for run in runs if run.expected_start_time is None or run.expected_start_time <= now + LATE]
    due.sort(key=lambda run: run.expected_start_time or now, reverse=True)
    live = [run for run in due if run.state_type is None or not _is_final(run)]
    return next(iter(live or due), None)


def _name(run: FlowRun) -> str:
    """Of its state: Late, AwaitingConcurrencySlot, Running, ..."""
    return (run.state and run.state.name) or ""


def _is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def code_of(run: FlowRun) -> tuple[int, str]:
    """The exit code of `ferry run` for a run that a worker did, and what it came to.

    | its state | the message begins with | code |
    |---|---|---|
    | Completed | any | 0 |
    | Cancelled | any | 130 |
    | Failed | `UserError: ` | 2 |
    | Failed | `LeaseHeld: ` | 3 |
    | Failed, Crashed | anything else | 1 |
    """
    assert run.state is not None
    message = run.state.message or run.state.type.value.capitalize()
    if run.state.type is StateType.CANCELLED:
        return 130, message
    return exit_code_of(run.state.type is StateType.COMPLETED, message)


@dataclass(slots=True)
class Followed:
    """How far somebody has followed a run."""

    client: SyncPrefectClient
    run_id: UUID
    on_state: Callable[[str], None]
    on_log: Callable[[Log], None]
    on_hint: Callable[[str], None]
    _state: str = ""
    _hint: str = ""
    _since: datetime | None = None
    _seen: set[UUID] = field(default_factory=set)

    def until_the_end(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> FlowRun:
        """The run, once it has ended. An absence of the server's is waited for. Raises UserError for a deleted run."""
        moved = clock()
        silent = False
        while True:
            try:
                run = self.client.read_flow_run(self.run_id)
                name = _name(run)
                if name != self._state:
                    self._state, moved = name, clock()
                    self.on_state(name)
                self._logs()
                if _is_final(run):
                    sleep(LOOK_S)  # its last lines are on their way
                    self._logs()
                    return run
                if run.state is not None and run.state.type in (StateType.SCHEDULED, StateType.PENDING):
                    self._hint_at(run, clock() - moved)
                silent = False
            except ObjectNotFound:
                raise UserError(
                    f"the run {self.run_id} is no longer on the Prefect server: somebody deleted it"
                ) from None
            except prefect_api.API_ERRORS:
                if not silent:
                    self.on_hint(
                        "the Prefect server does not answer; the run goes on, and this goes on when it is back"
                    )
                silent = True
            sleep(LOOK_S)

    def last_lines(self) -> None:
        """What the run said last, for somebody who comes back to it."""
        asked = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.run_id]), level=LogFilterLevel(ge_=INFO))
        lines = [
            log
            for log in self.client.read_logs(asked, limit=PAGE, sort=LogSort.TIMESTAMP_DESC)
            if self._is_for_people(log)
        ]
        for log in reversed(lines[:LAST_LINES]):
            self.on_log(log)
        self._seen.update(log.id for log in lines if log.id)
        self._since = max((log.timestamp for log in lines), default=None)

    def _logs(self) -> None:
        while True:
            after = LogFilterTimestamp.model_validate({"after_": self._since - LATE}) if self._since else None
            asked = LogFilter(
                flow_run_id=LogFilterFlowRunId(any_=[self.run_id]), level=LogFilterLevel(ge_=INFO), timestamp=after
            )
            found = self.client.read_logs(asked, limit=PAGE, sort=LogSort.TIMESTAMP_ASC)
            new = [log for log in found if log.id not in self._seen]
            for log in new:
                if self._is_for_people(log):
                    self.on_log(log)
            self._seen.update(log.id for log in new if log.id)
            self._since = max((log.timestamp for log in found), default=self._since)
            if len(found) < PAGE or not new:
                return

    @staticmethod
    def _is_for_people(log: Log) -> bool:
        """What the run itself says; of its hundreds of tasks, and of the worker, what went wrong."""
        said_by_run = log.task_run_id is None and log.name == "prefect.flow_runs"
        again = log.message.startswith(("Finished in state", "Engine execution exited"))  # the run's state says it
        return (log.level >= WARNING or said_by_run) and not again

    def _hint_at(self, run: FlowRun, waited_s: float) -> None:
        if run.expected_start_time and run.expected_start_time > datetime.now(UTC) + LATE:
            hint = f"it is to begin at {run.expected_start_time.astimezone():%Y-%m-%d %H:%M %Z}"
        elif waited_s < HINT_S:
            return
        else:
            hint = work_pools.look(self.client, _name(run), run.work_pool_name) or ""
        if hint and hint != self._hint:
            self.on_hint(hint)
        self._hint = hint
