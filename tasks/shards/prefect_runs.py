"""The runs of shards at Prefect: which deployment they are of, submitting, watching and ending them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled

from ferry.core import UserError
from ferry.state import Holder
from ferry.state import State as StateFiles
from tasks import prefect_api
from tasks.shards.files import FOLDER, SETTINGS, read_settings

T = TypeVar("T")
FLOW = "shard"
TIMEOUT_S = 10.0
CLOCKS_APART = timedelta(minutes=5)  # at most, of a machine and the Prefect server


def deployment_for(job: str, own: UUID) -> DeploymentResponse:
    """Returns the deployment whose runs transfer the shards of this run.

    It is the deployment of the flow `shard` with the job's name, else the only one in the run's work pool; for a run
    without a work pool, the only one. Raises UserError, also for a clock that is far off.
    """
    with prefect_api.required_client() as client:
        check_clock(client)
        pool = client.read_flow_run(own).work_pool_name
        of_flow = FlowFilter(name=FlowFilterName(any_=[FLOW]))
        named = DeploymentFilter(name=DeploymentFilterName(any_=[job]))  # each of many jobs may have one
        known = client.read_deployments(flow_filter=of_flow, deployment_filter=named)
        known = known or client.read_deployments(flow_filter=of_flow, limit=200)
    return choose([(one, one.name, one.work_pool_name) for one in known], job, pool)


def check_clock(client: SyncPrefectClient) -> None:
    """Raises UserError if this machine's clock differs from the Prefect server's by more than CLOCKS_APART.

    The server's time is the `Date` of an answer (RFC 9110, section 6.6.1), to the second. An answer may lack it.
    """
    try:
        headers = client.request("GET", "/health").headers
    except httpx.HTTPStatusError as refusal:
        headers = refusal.response.headers
    with contextlib.suppress(KeyError, ValueError, TypeError):  # no date, or one without a zone
        ahead = datetime.now(UTC) - parsedate_to_datetime(headers["date"])
        if abs(ahead) > CLOCKS_APART:
            raise UserError(
                f"this machine's clock is {abs(ahead).total_seconds() / 60:,.0f} minutes "
                f"{'ahead of' if ahead > timedelta() else 'behind'} that of the Prefect server, and a worker begins a "
                "shard by its own clock. Set the clocks (`timedatectl set-ntp true`), or run with `machines: 1`"
            )


def choose(known: Sequence[tuple[T, str, str | None]], job: str, pool: str | None) -> T:
    """Returns a deployment of the flow `shard`, given each with its name and work pool. Raises UserError.

    | deployments with the job's name | in the run's work pool, or any if the run has none | chosen |
    |---|---|---|
    | one | any | that |
    | none | one | that |
    | none | none, or several | none: a UserError that says what to do |
    | several | any | none: Prefect does not allow it in one flow |
    """
    named = [one for one in known if one[1] == job]
    found = named or [one for one in known if pool is None or one[2] == pool]
    if len(found) == 1:
        return found[0][0]
    where = f" in the work pool `{pool}`" if pool else ""
    if not found:
        raise UserError(
            f"`machines` is more than 1, and the Prefect server has no deployment of the flow `shard`{where}. "
            "`ferry deploy` creates that of prefect.yaml"
        )
    names = ", ".join(sorted(f"{FLOW}/{name}" for _, name, _ in found))
    raise UserError(
        f"`machines` is more than 1, and the Prefect server has several deployments of the flow `shard`{where}: "
        f"{names}. Name one of them like the job, `{job}`"
    )


def submit(deployment: UUID, parameters: Mapping[str, Any], name: str, key: str) -> UUID:
    """Submit a shard, and return its flow run. The same ``key`` returns the same flow run.

    It is linked to the run in whose context this is called. It is due at once, also for a worker whose clock is behind
    this machine's: a worker takes what is due by its own clock. May raise one of prefect_api.API_ERRORS.
    """
    due = datetime.now(UTC) - CLOCKS_APART
    once = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: TIMEOUT_S}
    with temporary_settings(once):
        run: Any = run_deployment(
            deployment, parameters=dict(parameters), flow_run_name=name, timeout=0, idempotency_key=key, tags=["ferry"],
            scheduled_time=due,
        )  # fmt: skip
    return UUID(str(run.id))


def runs_of(client: SyncPrefectClient, ids: Collection[UUID]) -> dict[UUID, FlowRun]:
    """Returns these flow runs as Prefect has them."""
    if not ids:
        return {}
    asked = FlowRunFilter(id=FlowRunFilterId(any_=list(ids)))
    return {run.id: run for run in client.read_flow_runs(flow_run_filter=asked)}


def end(client: SyncPrefectClient, run: UUID, state: State[Any]) -> None:
    """Set the final state of a shard's flow run and of its chunk tasks."""
    client.set_flow_run_state(run, state, force=True)
    prefect_api.end_tasks(client, prefect_api.active_tasks(client, run), state)


def end_children(client: SyncPrefectClient, parent: UUID, state: State[Any]) -> int:
    """End the shards of a run that Prefect shows as not ended. Returns how many."""
    asked = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent]))
    left = [run.id for run in client.read_flow_runs(flow_run_filter=asked) if not (run.state and run.state.is_final())]
    for run in left:
        end(client, run, state)
    return len(left)


def end_orphans(
    own: UUID, starts: int, took_over: Holder | None, state: StateFiles, warn: Callable[[str], None]
) -> None:
    """End the shards of a run that died, and wait until each has looked at the lease and stopped.

    It is the run whose lease was taken over, or an earlier process of this flow run.
    """
    parents = {UUID(took_over.flow_run)} if took_over is not None and took_over.flow_run else set()
    for parent in parents | ({own} if starts > 1 else set()):
        with prefect_api.best_effort(warn, "the shards of a run that died are not ended at Prefect") as client:
            reason = "the run of this shard died; the job's next run resumes"
            if count := end_children(client, parent, Cancelled(message=reason)):
                warn(f"{count} shards of a run that died are now marked as Cancelled at Prefect")
    if took_over is not None and any(name != SETTINGS for name in state.list(FOLDER)):
        time.sleep(read_settings(state).look_s + 1.0)
