"""Creation and update of Ferry's automations at a Prefect server. The operator decides which ones are on."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import AutomationSort
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_UI_URL

from ferry.core import UserError
from flows.deploying.alerts import TAG, Delays, alerts, full_name, is_named
from flows.deploying.change import Change
from flows.deploying.missed_runs import (
    JOBS,
    longest_gap,
    missed_alert,
    missed_jobs_alert,
    shortest_over,
)
from flows.deploying.rescue import restart_automations

KIND = "automation"
PAGE = 200  # the server returns at most this many at once
COMPARED = {"name", "description", "tags", "trigger", "actions", "actions_on_trigger", "actions_on_resolve"}
HOW = (
    "Create one in the UI (Blocks), then run `ferry deploy --notify slack-webhook/NAME` or custom-webhook/NAME "
    "(docs/how-to/alerts.md)"
)
INSTEAD = {  # types that users name by mistake: they cannot notify
    "email-server-credentials": (
        "It only stores an account, with prefect-email installed or not. For e-mail, use sendgrid-email/NAME, or a "
        "slack-webhook block whose URL is mailtos://... (docs/how-to/alerts.md)"
    ),
    "webhook": "Use custom-webhook/NAME (docs/how-to/alerts.md)",
}


def apply(
    client: SyncPrefectClient,
    project: str,
    deployments: Mapping[str, UUID],
    notify: Sequence[str],
    delays: Delays | None = None,
    expected: Sequence[timedelta] = (),
    jobs: Mapping[str, DeploymentResponse] | None = None,
) -> list[Change]:
    """Create or update the automations of a project, and return what was done to each.

    ``project``: its name in prefect.yaml, with which the automations' names end. ``notify``: notification blocks, as
    `block-type/name`. Without any, existing alerts keep their blocks, and no alerts are created. ``expected``:
    durations within which runs must complete while a schedule is on. ``jobs``: the same deployments, if they were made
    of job files; then one alert for each duration watches all of them. Raises UserError for a block that does not exist
    or cannot notify.
    """
    named = [block(client, name) for name in dict.fromkeys(notify)]
    if not deployments:
        return []
    ours, ui = set(deployments.values()), (PREFECT_UI_URL.value() or "").rstrip("/")
    present = ferry_automations(client)
    # those of other projects are told apart without that
    relevant = [one for one in present if one.name.endswith(f" ({project})") or watched(one) & ours]
    existing = ours | still_there(client, {one for automation in relevant for one in watched(automation)} - ours)
    found_restarts = [find_own(one.name, project, present, ours, existing) for one in restart_automations(ours, delays)]
    found_alerts = [find_own(alert.name, project, present, ours, existing) for alert in alerts(ours, ui, delays)]
    # Also the deployments of the project's other files, and those that this file no longer has but the server still has
    all_ = ours | {
        one for automation in (*found_restarts, *found_alerts) if automation for one in watched(automation) & existing
    }
    changes = [
        apply_one(client, restart.automation(project, enabled=is_on(found)), found)
        for restart, found in zip(restart_automations(all_, delays), found_restarts, strict=True)
    ]
    changes += [unlisted_deployment(client, id_) for id_ in sorted(all_ - ours)]
    blocks = named or [known for known in notified_blocks(found_alerts) if is_there(client, known)]
    if not blocks:
        return [*changes, *without_blocks(found_alerts)]
    changes += [
        apply_one(client, alert.automation(project, blocks, enabled=is_on(found)), found)
        for alert, found in zip(alerts(all_, ui, delays), found_alerts, strict=True)
    ]
    if jobs is not None:
        own = [one for one in present if one.name.startswith(JOBS) and is_own(watched(one), False, ours, existing)]
        return changes + apply_missed_jobs(client, project, jobs, own, blocks, expected)
    for name, id_ in deployments.items():
        found = find_own(missed_alert(name, id_, ui, timedelta()).name, project, present, {id_}, existing)
        changes += apply_missed(client, project, name, id_, found, blocks, expected)
    return changes


def unlisted_deployment(client: SyncPrefectClient, deployment: UUID) -> Change:
    """Returns an entry for a deployment that prefect.yaml no longer has. It is left alone; its schedule may be on."""
    found = client.read_deployment(deployment)
    name = f"{client.read_flow(found.flow_id).name}/{found.name}"
    schedule = "its schedule is on" if any(one.active for one in found.schedules) else "it has no active schedule"
    detail = f"not in this prefect.yaml, left unchanged; {schedule}. To delete it: prefect deployment delete '{name}'"
    return Change("deployment", name, "unchanged", detail)


def is_on(found: Automation | None) -> bool:
    """Returns whether an automation is to be on: as the operator left it, and on if it is new."""
    return found is None or found.enabled


def apply_one(client: SyncPrefectClient, automation: AutomationCore, found: Automation | None) -> Change:
    """Create an automation, or update the one that was found if it differs."""
    off = "" if automation.enabled else "off, as the operator left it"
    if found is None:
        client.create_automation(automation)
        return Change(KIND, automation.name, "created")
    if differs(automation, found):
        client.update_automation(found.id, automation)
        return Change(KIND, automation.name, "updated", off)
    return Change(KIND, automation.name, "unchanged", off)


def apply_missed(
    client: SyncPrefectClient,
    project: str,
    name: str,
    deployment: UUID,
    found: Automation | None,
    blocks: Sequence[UUID],
    expected: Sequence[timedelta],
) -> list[Change]:
    """Create, update or delete the alert for a deployment that does not complete in time.

    It exists only while a schedule is on. Without ``expected``, an existing alert keeps its duration.
    """
    on = [one for one in client.read_deployment(deployment).schedules if one.active]
    within, why = expected_duration(found) if on else None, "the deployment's schedule is off"
    if on and expected:
        gap = longest_gap(on, datetime.now(UTC))
        within, why = shortest_over(gap, expected), f"runs start up to {gap} apart; --expect-every must be longer"
    if within is not None:
        ui = (PREFECT_UI_URL.value() or "").rstrip("/")
        wanted = missed_alert(name, deployment, ui, within).automation(project, blocks, enabled=is_on(found))
        return [apply_one(client, wanted, found)]
    if found is not None:
        client.delete_automation(found.id)
        return [Change(KIND, found.name, "removed", why)]
    return [Change(KIND, f"{name} did not complete in time", "unchanged", f"none: {why}")] if expected else []


def apply_missed_jobs(
    client: SyncPrefectClient,
    project: str,
    jobs: Mapping[str, DeploymentResponse],
    own: Sequence[Automation],
    blocks: Sequence[UUID],
    expected: Sequence[timedelta],
) -> list[Change]:
    """Create, update or delete the alerts for jobs that do not complete in time: one for each duration.

    Each watches the deployments with a schedule that is on and has shorter gaps. Without ``expected``, the durations
    are those of the alerts that exist.
    """
    found = {within: one for one in own if (within := expected_duration(one))}
    given = sorted(expected or found)
    groups: dict[timedelta, dict[str, DeploymentResponse]] = {}
    for name, deployment in jobs.items() if given else ():
        on = [one for one in deployment.schedules if one.active]
        within = shortest_over(longest_gap(on, datetime.now(UTC)), given) if on else None
        if within is not None:
            groups.setdefault(within, {})[name] = deployment
    changes, ui = [], (PREFECT_UI_URL.value() or "").rstrip("/")
    for within, watches in sorted(groups.items()):
        alert = missed_jobs_alert([one.id for one in watches.values()], ui, within)
        old = found.pop(within, None)
        changes.append(apply_one(client, alert.automation(project, blocks, enabled=is_on(old)), old))
    for old in found.values():
        client.delete_automation(old.id)
        changes.append(Change(KIND, old.name, "removed", "no deployment has a schedule that is on and fits"))
    if expected and (others := len(jobs) - sum(map(len, groups.values()))):
        detail = f"none for {others} deployments: their schedules are off, or longer apart than --expect-every"
        changes.append(Change(KIND, "jobs that did not complete in time", "unchanged", detail))
    return changes


def expected_duration(automation: Automation | None) -> timedelta | None:
    """Returns the duration within which an existing alert expects a completed run."""
    trigger = automation.trigger if automation else None
    return trigger.within if isinstance(trigger, EventTrigger) else None


def ferry_automations(client: SyncPrefectClient) -> list[Automation]:
    """Returns all automations at the server with Ferry's tag, also those of other projects."""
    found: list[Automation] = []
    while True:
        page = client.read_automations(sort=AutomationSort.CREATED_DESC, limit=PAGE, offset=len(found))
        found += page
        if len(page) < PAGE:
            return [one for one in found if TAG in one.tags]


def watched(automation: Automation) -> set[UUID]:
    """Returns the deployments whose runs an automation watches."""
    trigger = automation.trigger
    if not isinstance(trigger, EventTrigger) or isinstance(trigger.match_related, list):  # made by the operator
        return set()
    found = set()
    for one in ResourceSpecification.model_validate(trigger.match_related).get("prefect.resource.id") or []:
        with contextlib.suppress(ValueError):  # a pattern, so also made by the operator
            found.add(UUID(one.removeprefix("prefect.deployment.")))
    return found


def still_there(client: SyncPrefectClient, deployments: Collection[UUID]) -> set[UUID]:
    """Returns those of these deployments that still exist at the server."""
    asked, found = sorted(deployments), set[UUID]()
    for first in range(0, len(asked), PAGE):
        ids = DeploymentFilterId(any_=asked[first : first + PAGE])
        there = client.read_deployments(deployment_filter=DeploymentFilter(id=ids), limit=PAGE)
        found |= {one.id for one in there}
    return found


def find_own(
    base: str, project: str, present: Iterable[Automation], ours: Set[UUID], existing: Set[UUID]
) -> Automation | None:
    """Returns the project's automation with this base name, or None if the server has none yet."""
    name = full_name(base, project)
    candidates = [
        one for one in present if is_named(one.name, base) and is_own(watched(one), one.name == name, ours, existing)
    ]
    return max(candidates, key=lambda one: (len(watched(one) & ours), one.name == name), default=None)


def is_own(watches: Set[UUID], has_its_name: bool, ours: Set[UUID], existing: Set[UUID]) -> bool:
    """Returns whether an automation belongs to this project.

    The name alone does not decide: two projects may have the same name, and early names had no project.

    | it watches | its name | the project's |
    |---|---|---|
    | one of the project's deployments | any | yes |
    | only deployments that no longer exist | the project's | yes: they were deleted and created again |
    | only deployments that no longer exist | another one | no |
    | other deployments | any | no: another project's, which stays unchanged |
    """
    return bool(watches & ours) or (has_its_name and not watches & existing)


def without_blocks(found_alerts: Sequence[Automation | None]) -> list[Change]:
    """Returns the entries for alerts without any notification block."""
    without = [present.name for present in found_alerts if present is not None]
    if not without:
        return [Change(KIND, "Ferry's alerts", "unchanged", f"none: no notification block is given. {HOW}")]
    return [Change(KIND, name, "unchanged", f"notifies no block: its block was deleted. {HOW}") for name in without]


def differs(wanted: AutomationCore, present: Automation) -> bool:
    """Returns whether an update would change anything, apart from IDs and whether the automation is on.

    Unneeded updates do harm: at each update the server forgets the events that it waits for.
    """
    return wanted.model_dump(include=COMPARED) != present.model_dump(include=COMPARED)


def notified_blocks(present: Sequence[Automation | None]) -> list[UUID]:
    """Returns the blocks that the existing alerts notify."""
    actions = [action for automation in present if automation is not None for action in automation.actions]
    found = [action.block_document_id for action in actions if isinstance(action, SendNotification)]
    return list(dict.fromkeys(found))


def is_there(client: SyncPrefectClient, block_id: UUID) -> bool:
    """Returns whether a block exists."""
    try:
        client.read_block_document(block_id, include_secrets=False)
    except ObjectNotFound:
        return False
    return True


def block(client: SyncPrefectClient, name: str) -> UUID:
    """Returns the ID of the block `block-type/name`. Raises UserError if it does not exist or cannot notify."""
    slug, _, own_name = name.partition("/")
    if not slug or not own_name:
        raise UserError(f"--notify {name}: write block-type/name, such as slack-webhook/ops")
    try:
        document = client.read_block_document_by_name(own_name, slug, include_secrets=False)
    except ObjectNotFound:
        make = (
            f"Create it in the UI, {PREFECT_UI_URL.value() or ''}/blocks/catalog/{slug}/create (docs/how-to/alerts.md)"
        )
        raise UserError(f"--notify {name}: the Prefect server has no such block. {INSTEAD.get(slug, make)}") from None
    schema = document.block_schema
    if schema is None or "notify" not in schema.capabilities:
        raise UserError(f"--notify {name}: a block of this type cannot notify. {INSTEAD.get(slug, HOW)}")
    return document.id
