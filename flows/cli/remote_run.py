"""Runs that a worker executes: submitting one to a deployment, finding it again, following it to its end.

The follower polls the server every two seconds and holds nothing open. It may stop and start again at any time, and
the server may restart meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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
from flows.deploying import job_files
from tasks import prefect_api, work_pools
from tasks.job_file import merged, parse_job, relative_paths
from tasks.reporting.text import exit_code_of

POLL_S = 2.0
HINT_S = 10.0  # a worker polls for work about every 10 s
PAGE = 200  # log lines or runs per request
LAST_LINES = 10  # earlier log lines that `ferry watch` shows first
LATE = timedelta(seconds=10)  # a log line may arrive this much later than newer ones
FLOWS = ["migrate", "verify"]
INFO, WARNING = 20, 30


def submit(
    client: SyncPrefectClient,
    on: str,
    data: dict[str, Any] | None,
    settings: Sequence[str],
    parameters: dict[str, Any],
    warn: Callable[[str], None],
) -> FlowRun:
    """Submit a job to a deployment of `migrate`: ``data``, or the deployment's own job, changed by ``settings``.

    ``parameters`` are the other parameters of the flow. Raises UserError for a job that is invalid or cannot run there.
    """
    deployment = _deployment(client, on)
    what = "the job"
    if data is None:
        data, what = deployment.parameters.get("job"), f"the job of {on}"
        if not isinstance(data, dict):
            raise UserError(f"the deployment {on} has no job of its own: name a job file")
    job = parse_job(merged(data, settings), f"{what} with --set" if settings else what)
    own = (deployment.parameters.get("job") or {}).get("name")
    if own not in (None, job.name) and any(tag.startswith(job_files.TAG) for tag in deployment.tags):
        raise UserError(
            f"--on {on}: the deployment is of the job `{own}`, whose runs take turns. Deploy the file of the job "
            f"`{job.name}` (`ferry deploy jobs/*.yaml`), and run it on migrate/{job.name}"
        )
    pool = client.read_work_pool(deployment.work_pool_name) if deployment.work_pool_name else None
    relative = relative_paths(job)
    if relative and pool is not None and pool.type != work_pools.LOCAL:
        raise UserError(
            f"{' and '.join(relative)} of the job: a local path, and the runs of {on} have no access to it: its work "
            f"pool `{pool.name}` has the type {pool.type}. Use an address such as `s3://bucket/...`"
        )
    if relative and what == "the job":
        warn(
            f"{' and '.join(relative)} of the job: the path is relative to the project's root on the worker's machine, "
            "not to the folder of the job file"
        )
    # Without the defaults: the run's page shows these parameters.
    given = job.model_dump(mode="json", exclude_unset=True)
    return client.create_flow_run_from_deployment(deployment.id, parameters={"job": given, **parameters}, name=job.name)


def _deployment(client: SyncPrefectClient, on: str) -> DeploymentResponse:
    if not on.startswith("migrate/"):
        raise UserError(f"--on {on}: name a deployment of the flow `migrate`, such as --on migrate/prod")
    try:
        return client.read_deployment_by_name(on)
    except ObjectNotFound:
        there = [
            one.name for one in client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=["migrate"])))
        ]
        known = f"; it has {', '.join(f'migrate/{name}' for name in sorted(there))}" if there else ""
        raise UserError(
            f"the Prefect server has no deployment {on}{known}. `ferry deploy` creates those of prefect.yaml"
        ) from None


def page_url(run: FlowRun) -> str:
    """Returns the URL of the run's page in the UI."""
    return f"{PREFECT_UI_URL.value() or ''}/runs/flow-run/{run.id}"


def find_run(client: SyncPrefectClient, wanted: str | None, job: str | None, now: datetime) -> FlowRun:
    """Returns the run with the ID or name ``wanted``, or of the job or deployment ``wanted``; by default the live run.

    ``job`` is the job's name where ``wanted`` is a job file. Raises UserError if there is no such run.
    """
    try:
        if wanted is not None:
            return client.read_flow_run(UUID(wanted))
    except ValueError:
        pass
    except ObjectNotFound:
        raise UserError(f"the Prefect server has no run {wanted}; see the UI for the IDs of runs") from None
    deployment = None
    if job is None and wanted is not None and "/" in wanted:
        try:
            deployment = client.read_deployment_by_name(wanted).id
        except ObjectNotFound:
            raise UserError(f"{wanted} is not an existing job file, nor a deployment on the Prefect server") from None
    due = FlowRunFilterExpectedStartTime.model_validate({"before_": now + LATE})  # schedules create hundreds for later
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
    run = newest_run(runs, now)
    if run is None:
        of = f" of {wanted}" if wanted is not None else ""
        raise UserError(f"the Prefect server has no run{of}. `ferry run JOB --on migrate/prod` submits one")
    return run


def job_of(run: FlowRun) -> str | None:
    """Returns the name of the run's job, or None."""
    job = (run.parameters or {}).get("job")
    return job.get("name") if isinstance(job, dict) else None


def newest_run(runs: Sequence[FlowRun], now: datetime) -> FlowRun | None:
    """Returns the newest run that is live or due, else the newest that has ended. Later scheduled runs do not count."""
    due = [run for run in runs if run.expected_start_time is None or run.expected_start_time <= now + LATE]
    due.sort(key=lambda run: run.expected_start_time or now, reverse=True)
    live = [run for run in due if run.state_type is None or not _is_final(run)]
    return next(iter(live or due), None)


def _name(run: FlowRun) -> str:
    """Returns the name of the run's state: Late, AwaitingConcurrencySlot, Running, ..."""
    return (run.state and run.state.name) or ""


def _is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def exit_code_for(run: FlowRun) -> tuple[int, str]:
    """Returns the exit code of `ferry run --on` for a run that has ended, and the run's message.

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
class RunFollower:
    """Follows one run by polling: reports its states, log lines and hints through three callbacks."""

    client: SyncPrefectClient
    run_id: UUID
    on_state: Callable[[str], None]
    on_log: Callable[[Log], None]
    on_hint: Callable[[str], None]
    _state: str = ""
    _hint: str = ""
    _since: datetime | None = None
    _seen: set[UUID] = field(default_factory=set)

    def until_end(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> FlowRun:
        """Wait for the run's end and return it; retry while the server is unreachable.

        Raises UserError for a deleted run.
        """
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
                    sleep(POLL_S)  # its last log lines may still arrive
                    self._logs()
                    return run
                if run.state is not None and run.state.type in (StateType.SCHEDULED, StateType.PENDING):
                    self._give_hint(run, clock() - moved)
                silent = False
            except ObjectNotFound:
                raise UserError(f"the run {self.run_id} is no longer on the Prefect server: it was deleted") from None
            except prefect_api.API_ERRORS:
                if not silent:
                    self.on_hint(
                        "the Prefect server does not answer; the run continues, and this command waits for the server"
                    )
                silent = True
            sleep(POLL_S)

    def earlier_lines(self) -> None:
        """Report the run's last log lines, for a command that joins it late."""
        asked = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.run_id]), level=LogFilterLevel(ge_=INFO))
        lines = [
            log for log in self.client.read_logs(asked, limit=PAGE, sort=LogSort.TIMESTAMP_DESC) if self._is_shown(log)
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
                if self._is_shown(log):
                    self.on_log(log)
            self._seen.update(log.id for log in new if log.id)
            self._since = max((log.timestamp for log in found), default=self._since)
            if len(found) < PAGE or not new:
                return

    @staticmethod
    def _is_shown(log: Log) -> bool:
        """Returns whether to show a line: all of the run itself, only warnings of its tasks and of the worker."""
        said_by_run = log.task_run_id is None and log.name == "prefect.flow_runs"
        again = log.message.startswith(("Finished in state", "Engine execution exited"))  # repeats the run's state
        return (log.level >= WARNING or said_by_run) and not again

    def _give_hint(self, run: FlowRun, waited_s: float) -> None:
        if run.expected_start_time and run.expected_start_time > datetime.now(UTC) + LATE:
            hint = f"the run is scheduled for {run.expected_start_time.astimezone():%Y-%m-%d %H:%M %Z}"
        elif waited_s < HINT_S:
            return
        else:
            hint = work_pools.look(self.client, _name(run), run.work_pool_name) or ""
        if hint and hint != self._hint:
            self.on_hint(hint)
        self._hint = hint
