"""Makes a Prefect server hold what prefect.yaml or job files say: blocks, work pools, deployments and their schedules.

`prefect deploy --all` writes everything anew: schedules that an operator switched on go off, and runs that were about
to begin are deleted. Here what is as it should be is not touched, and whether a schedule is on is the operator's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from uuid import UUID

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowFilter, FlowFilterName
from prefect.client.schemas.objects import DeploymentSchedule, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_UI_URL
from prefect.workers.process import ProcessWorker
from pydantic import SecretStr

from ferry.core import UserError
from flows.deploying import automations
from flows.deploying.change import Change
from flows.deploying.prefect_yaml import Wanted
from tasks import work_pools
from tasks.job_file import relative_paths
from tasks.secrets import named_blocks

NEW_POOL = work_pools.LOCAL
PAGE = 200  # the server returns at most this many at once
SLOT = "global_concurrency_limit_id"  # Prefect's client has no parameter for it, so the requests here are plain ones
WORKING_DIR = "working_dir"  # the job variable of prefect.yaml that process pools alone have
AWS = {
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_session_token": "AWS_SESSION_TOKEN",
    "region_name": "AWS_DEFAULT_REGION",
}


def deploy(
    client: SyncPrefectClient,
    wanted: Sequence[Wanted],
    blocks: Sequence[str],
    notify: Sequence[str],
    *,
    dry_run: bool,
    switch: bool | None = None,
    known: Mapping[str, DeploymentResponse] = MappingProxyType({}),
) -> tuple[list[Change], dict[str, DeploymentResponse]]:
    """What was done, or would be, and the deployments there. Raises UserError before anything is changed.

    ``switch``: whether the operator wants all their schedules on, or off; None leaves each as it is. ``known``:
    deployments that have been read already.
    """
    made = dict(block_of(text) for text in blocks)
    there = existing(client, wanted, known)
    pools = {name: _pool(client, name) for name in dict.fromkeys(w.pool for w in wanted)}
    left_out = {one.pool for one in wanted if WORKING_DIR in one.fields["job_variables"]}
    left_out -= {name for name in left_out if WORKING_DIR in _variables(pools[name])}
    wanted = [_without_working_dir(one) if one.pool in left_out else one for one in wanted]
    problems = [problem for name, pool in pools.items() for problem in pool_problems(name, pool, wanted)]
    problems += foreign(wanted, there)
    problems += missing_blocks(client, wanted, made)
    problems += wrong_alarms(client, notify)
    if problems:
        raise UserError("\n".join(["nothing was changed:", *(f"  {problem}" for problem in problems)]))
    changes = [settle_block(client, name, values, dry_run) for name, values in made.items()]
    changes += [_settle_pool(client, name, pool, name in left_out, dry_run) for name, pool in pools.items()]
    flows = {} if dry_run else {name: client.create_flow_from_name(name) for name in {w.flow_name for w in wanted}}
    limits = _limits(client, wanted, there, dry_run)
    settled: list[Change] = []
    for one in wanted:
        if one.slot is not None:
            one = replace(one, fields={**one.fields, SLOT: limits.get(one.slot)})
        one = replace(one, schedules=_intended(one, there.get(one.name), switch))
        settled += _settle_deployment(client, one, there.get(one.name), flows.get(one.flow_name), switch, dry_run)
    if not dry_run and any(change.what != "unchanged" for change in settled):
        there = existing(client, wanted)
    return changes + settled, there


def existing(
    client: SyncPrefectClient, wanted: Iterable[Wanted], known: Mapping[str, DeploymentResponse] = MappingProxyType({})
) -> dict[str, DeploymentResponse]:
    """Returns those of the deployments that the server has, by full name; ``known`` are not read again."""
    flows = {one.name: one.flow_name for one in wanted}
    asked = flows.keys() - known.keys()
    found = dict(known)
    if asked:
        names = DeploymentFilterName(any_=sorted({name.partition("/")[2] for name in asked}))
        found |= read_deployments(client, {flows[name] for name in asked}, DeploymentFilter(name=names))
    return {name: found[name] for name in flows if name in found}


def read_deployments(
    client: SyncPrefectClient, flows: Collection[str], filter_: DeploymentFilter | None = None
) -> dict[str, DeploymentResponse]:
    """Returns the deployments of these flows by full name, with a request for each 200 of them."""
    of_flows = FlowFilter(name=FlowFilterName(any_=sorted(flows)))
    names = {flow.id: flow.name for flow in client.read_flows(flow_filter=of_flows)}
    found: list[DeploymentResponse] = []
    while True:
        page = client.read_deployments(flow_filter=of_flows, deployment_filter=filter_, limit=PAGE, offset=len(found))
        found += page
        if len(page) < PAGE:
            return {f"{names[one.flow_id]}/{one.name}": one for one in found if one.flow_id in names}


def foreign(wanted: Iterable[Wanted], there: Mapping[str, DeploymentResponse]) -> list[str]:
    """Deployments that job files would change although they were made otherwise, or of another project's job files."""
    return [
        f"{one.file}: the deployment {one.name} is there already, and was not made of this project's job files. Give "
        f"the job another name, or delete it: prefect deployment delete '{one.name}'"
        for one in wanted
        if one.file and one.name in there and one.mark not in there[one.name].tags
    ]


def _limits(
    client: SyncPrefectClient, wanted: Sequence[Wanted], there: Mapping[str, DeploymentResponse], dry_run: bool
) -> dict[str, str]:
    """The IDs of the limits that deployments of a job share; made where they are missing.

    Prefect deletes a limit with any of its deployments. The others of the job have none then, and get a new one.
    """
    limits = [one.global_concurrency_limit for one in there.values()]
    known = {limit.name: str(limit.id) for limit in limits if limit is not None}
    missing = {one.slot for one in wanted if one.slot} - known.keys()
    if dry_run or not missing:
        return known
    offset = 0
    while page := client.read_global_concurrency_limits(PAGE, offset):
        known |= {limit.name: str(limit.id) for limit in page}
        offset += len(page)
    for name in sorted(missing - known.keys()):
        known[name] = str(client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1)))
    return known


def _pool(client: SyncPrefectClient, name: str) -> WorkPool | None:
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        return None


def _variables(pool: WorkPool | None) -> Mapping[str, Any]:
    """The job variables that the pool's template declares; without a pool, those of a new one."""
    template = pool.base_job_template if pool else {}
    known: Mapping[str, Any] = template.get("variables", {}).get("properties", {})
    if known or (pool is not None and pool.type != NEW_POOL):
        return known
    # A process pool that was made by hand has no template until its first worker starts.
    default: Mapping[str, Any] = ProcessWorker.get_default_base_job_template()["variables"]["properties"]
    return default


def _without_working_dir(wanted: Wanted) -> Wanted:
    """The deployment for a pool whose runs start in an image: the image sets their working directory."""
    variables = {name: value for name, value in wanted.fields["job_variables"].items() if name != WORKING_DIR}
    return replace(wanted, fields={**wanted.fields, "job_variables": variables})


def pool_problems(name: str, pool: WorkPool | None, wanted: Iterable[Wanted]) -> list[str]:
    """Why runs of these deployments would not work on a pool: of a type that does not know what they ask of it.

    Where there is no pool, a new one is of the type process.
    """
    kind = pool.type if pool else NEW_POOL
    known = _variables(pool)
    what = (
        f"the work pool `{name}` is of the type {kind}, which"
        if pool
        else f"there is no work pool `{name}`, and a new one, of the type {kind},"
    )
    problems = []
    for one in wanted:
        if one.pool != name:
            continue
        for variable in one.fields["job_variables"]:
            if variable not in known:
                instead = (
                    f"take `{variable}` away in prefect.yaml, or name another pool"
                    if pool
                    else f"make it first: prefect work-pool create {name} --type TYPE"
                )
                problems.append(f"{one.name}: {what} knows no job variable `{variable}`; {instead}")
        if one.file and one.job and kind != NEW_POOL and (relative := relative_paths(one.job)):
            problems.append(
                f"{one.file}: {' and '.join(relative)}: a local path, and runs of a pool of the type {kind} have no "
                "access to it. Use an address such as `s3://bucket/...`"
            )
    return list(dict.fromkeys(problems))


def wrong_alarms(client: SyncPrefectClient, notify: Iterable[str]) -> list[str]:
    """Blocks of `--notify` that are not there, or cannot tell anybody."""
    problems = []
    for name in notify:
        try:
            automations.block(client, name)
        except UserError as error:
            problems.append(str(error))
    return problems


def missing_blocks(client: SyncPrefectClient, wanted: Iterable[Wanted], made: Mapping[str, Any]) -> list[str]:
    """What the jobs refer to and the server does not have; each with how to make it."""
    asked: dict[str, str] = {}
    for one in wanted:
        for setting, kind, name in named_blocks(one.job) if one.job else ():
            asked.setdefault(f"{kind}/{name}", f"{one.name}: {setting}")
    problems = []
    for full, where in asked.items():
        kind, _, name = full.partition("/")
        if full in made or _has_block(client, kind, name):
            continue
        ways = {
            "aws-credentials": f"with its keys in the environment, `ferry deploy --block {full}`; or ",
            "secret": f"with it in an environment variable, `ferry deploy --block {full}=VARIABLE`; or ",
        }
        problems.append(
            f"{where}: there is no block `{full}` on the server. Make it: {ways.get(kind, '')}in the UI, "
            f"{PREFECT_UI_URL.value() or ''}/blocks/catalog/{kind}/create"
        )
    return problems


def _has_block(client: SyncPrefectClient, kind: str, name: str) -> bool:
    try:
        client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound:
        return False
    return True


def block_of(text: str) -> tuple[str, dict[str, str]]:
    """A block as it is asked for: its name, and its values from the environment. Raises UserError.

    `aws-credentials/NAME` takes AWS_ACCESS_KEY_ID and what belongs to it; `secret/NAME=VARIABLE` that variable.
    """
    full, _, variable = text.partition("=")
    kind, _, name = full.partition("/")
    if kind == "secret" and name and variable:
        needed, names = [variable], {"value": variable}
    elif kind == "aws-credentials" and name and not variable:
        needed, names = [AWS["aws_access_key_id"], AWS["aws_secret_access_key"]], AWS
    else:
        raise UserError(
            f"`{text}` is not a block: write aws-credentials/NAME, or secret/NAME=VARIABLE; others are made in the UI"
        )
    for one in needed:
        if not os.environ.get(one):
            raise UserError(f"block {text}: the environment variable {one} is not set")
    return full, {field: value for field, one in names.items() if (value := os.environ.get(one))}


def settle_block(client: SyncPrefectClient, full: str, values: dict[str, str], dry_run: bool) -> Change:
    """Makes a block, or brings it up to date."""
    kind, _, name = full.partition("/")
    found = _load(full) if _has_block(client, kind, name) else None
    if found is not None and all(_plain(getattr(found, field)) == value for field, value in values.items()):
        return Change("block", full, "unchanged")
    if not dry_run:
        from prefect.blocks.system import Secret
        from prefect_aws import AwsCredentials

        if kind == "secret":
            block: Any = Secret(value=SecretStr(values["value"]))
        else:
            kept: dict[str, Any] = {} if found is None else {"aws_client_parameters": found.aws_client_parameters}
            block = AwsCredentials(**{**kept, **values})
        block.save(name, overwrite=True)
    return Change("block", full, "updated" if found else "created", "from the environment")


def _load(full: str) -> Any:
    import prefect_aws  # noqa: F401 - its blocks are known by name then

    return Block.load(full)


def _plain(value: Any) -> Any:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def _settle_pool(
    client: SyncPrefectClient, name: str, pool: WorkPool | None, without_working_dir: bool, dry_run: bool
) -> Change:
    if pool is not None:
        detail = f"of the type {pool.type}"
        if without_working_dir:
            detail += f"; `{WORKING_DIR}` is left out: its runs start in their image's directory"
        if pool.is_paused:
            detail += "; it is paused: no run begins until it is resumed"
        return Change("work pool", name, "unchanged", detail)
    if not dry_run:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type=NEW_POOL, base_job_template=template))
    return Change("work pool", name, "created", f"of the type {NEW_POOL}")


def _settle_deployment(
    client: SyncPrefectClient,
    wanted: Wanted,
    found: DeploymentResponse | None,
    flow: UUID | None,
    switch: bool | None,
    dry_run: bool,
) -> list[Change]:
    if found is None:
        if not dry_run:
            schedules = [one.model_dump(mode="json", exclude_none=True) for one in wanted.schedules]
            name = wanted.name.partition("/")[2]
            body = {**wanted.fields, "flow_id": str(flow), "name": name, "schedules": schedules}
            client.request("POST", "/deployments/", json=body)
        made = [
            Change("schedule", _name(wanted, one.slug), "created", _when(one.schedule, one.active))
            for one in wanted.schedules
        ]
        return [Change("deployment", wanted.name, "created"), *made]
    other = differing(wanted.fields, found)
    if other and not dry_run:
        client.request("PATCH", "/deployments/{id}", path_params={"id": found.id}, json=wanted.fields)
    what = Change("deployment", wanted.name, "updated" if other else "unchanged", ", ".join(other))
    return [what, *_settle_schedules(client, wanted, found, switch, dry_run)]


def differing(fields: Mapping[str, Any], found: DeploymentResponse) -> list[str]:
    """The fields whose values are others on the server."""
    there = found.model_dump(mode="json")
    limit = there.pop("global_concurrency_limit", None)
    there["concurrency_limit"] = limit["limit"] if limit else None
    there[SLOT] = limit["id"] if limit else None
    there["pull_steps"] = there.get("pull_steps") or []
    options = there.get("concurrency_options")
    there["concurrency_options"] = options and {key: value for key, value in options.items() if value is not None}
    return [name for name, value in fields.items() if there.get(name) != value]


def _intended(wanted: Wanted, found: DeploymentResponse | None, switch: bool | None) -> list[DeploymentScheduleCreate]:
    """The schedules with the hours that they have, where these are to be kept; a new one on where that is asked for."""
    intended = []
    for one in wanted.schedules:
        old = match(one, found.schedules) if found and wanted.keeps_times else None
        active = one.active if switch is None else switch
        intended.append(one.model_copy(update={"schedule": old.schedule if old else one.schedule, "active": active}))
    return intended


def _settle_schedules(
    client: SyncPrefectClient, wanted: Wanted, found: DeploymentResponse, switch: bool | None, dry_run: bool
) -> list[Change]:
    """Made where they are missing, corrected where their hour is another one; on and off only as ``switch`` says."""
    left = list(found.schedules)
    changes = []
    for one in wanted.schedules:
        name, old = _name(wanted, one.slug), match(one, left)
        if old is None:
            if not dry_run:
                client.create_deployment_schedules(found.id, [one])
            changes.append(Change("schedule", name, "created", _when(one.schedule, one.active)))
            continue
        left.remove(old)
        active = old.active if switch is None else switch
        same = (old.schedule, old.parameters, old.slug, old.active) == (one.schedule, one.parameters, one.slug, active)
        if not same and not dry_run:
            client.update_deployment_schedule(
                found.id, old.id, schedule=one.schedule, parameters=one.parameters, slug=one.slug, active=switch
            )
        changes.append(Change("schedule", name, "unchanged" if same else "updated", _when(one.schedule, active)))
    for old in left:
        detail = f"{_when(old.schedule, old.active)}; not of `ferry deploy`, left as it is"
        changes.append(Change("schedule", _name(wanted, old.slug or "(without a slug)"), "unchanged", detail))
    return changes


def match(wanted: DeploymentScheduleCreate, there: Sequence[DeploymentSchedule]) -> DeploymentSchedule | None:
    """Which of the server's schedules a schedule of prefect.yaml is.

    | the server has one | it is |
    |---|---|
    | with its slug | that |
    | with the slug that it `replaces` | that, renamed |
    | without a slug, at the same hours | that: made before it had a name |
    | neither | none: a new one |
    """
    for slug in (wanted.slug, wanted.replaces):
        for one in there:
            if slug is not None and one.slug == slug:
                return one
    return next((one for one in there if one.slug is None and one.schedule == wanted.schedule), None)


def _name(wanted: Wanted, slug: str | None) -> str:
    return f"{wanted.name} {slug}"


def _when(schedule: Any, active: bool) -> str:
    if isinstance(schedule, CronSchedule):
        text = f"{schedule.cron} {schedule.timezone or 'UTC'}"
    else:
        given = schedule.model_dump(mode="json", exclude_none=True)
        text = json.dumps(given)
    return f"{'on' if active else 'off'}, {text}"
