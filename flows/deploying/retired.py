"""Deployments of job files that are gone: they are named, and deleted only when the operator asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse

from ferry.core import UserError
from flows.deploying.change import Change
from flows.deploying.deployments import PAGE, read_deployments
from flows.deploying.job_files import PURPOSES, tag

LIVE = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]


def made_before(client: SyncPrefectClient, project: str) -> dict[str, DeploymentResponse]:
    """Returns all deployments that were made of a project's job files, by full name."""
    marked = DeploymentFilter(tags=DeploymentFilterTags(all_=[tag(project)]))
    return read_deployments(client, {purpose.flow for purpose in PURPOSES}, marked)


def describe(deployment: DeploymentResponse) -> str:
    """Returns whether a deployment's schedule is on, in words."""
    return "its schedule is on" if any(one.active for one in deployment.schedules) else "it has no active schedule"


def named(gone: Mapping[str, DeploymentResponse]) -> list[Change]:
    """Returns the entries for deployments that stay."""
    return [
        Change("deployment", name, "unchanged", f"no given job file asks for it; {describe(one)}. --retire deletes it")
        for name, one in gone.items()
    ]


def check(client: SyncPrefectClient, gone: Mapping[str, DeploymentResponse], ask: Callable[[str], bool]) -> None:
    """Raises UserError if a deployment has a live run, or if ``ask`` gets no for an answer."""
    if not gone:
        return
    ids = {one.id: name for name, one in gone.items()}
    live = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=list(ids)),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=LIVE)),
    )
    if runs := client.read_flow_runs(flow_run_filter=live, limit=PAGE):
        names = ", ".join(sorted({ids[run.deployment_id] for run in runs if run.deployment_id}))
        raise UserError(f"nothing was changed: {names} has a live run. Wait for its end or cancel it, then retire it")
    lines = [f"  {name}: {describe(one)}" for name, one in gone.items()]
    if not ask("\n".join(["these deployments are deleted, with their scheduled runs:", *lines])):
        raise UserError("nothing was changed: --retire needs a yes on a terminal, or the option --yes")


def retire(client: SyncPrefectClient, gone: Iterable[tuple[str, DeploymentResponse]], *, dry_run: bool) -> list[Change]:
    """Delete deployments. Prefect deletes their scheduled runs, and the limit that those of a job share."""
    changes = []
    for name, one in gone:
        if not dry_run:
            client.delete_deployment(one.id)
        changes.append(Change("deployment", name, "removed", describe(one)))
    return changes
