"""Ferry's alarms at a Prefect server: made, brought up to date, and left on or off as the operator has them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.sorting import AutomationSort
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_UI_URL

from ferry.core import UserError
from flows.deploying.alerts import TAG, Patience, alarms, full_name, is_named
from flows.deploying.change import Change
from flows.deploying.missed_runs import chosen, longest_gap, missed
from flows.deploying.rescue import rescues

KIND = "automation"
PAGE = 200  # the most that the server gives at once
COMPARED = {"name", "description", "tags", "trigger", "actions", "actions_on_trigger", "actions_on_resolve"}
HOW = (
    "Make one in the UI (Blocks), then `ferry deploy --notify slack-webhook/NAME`, or custom-webhook/NAME "
    "(docs/how-to/alerts.md)"
)
INSTEAD = {  # types that people name, and that cannot notify
    "email-server-credentials": (
        "It holds an account and sends nothing by itself, with prefect-email installed or not. For e-mail take "
        "sendgrid-email/NAME, or a slack-webhook block whose URL is mailtos://... (docs/how-to/alerts.md)"
    ),
    "webhook": "Take custom-webhook/NAME (docs/how-to/alerts.md)",
}


def settle(
    client: SyncPrefectClient,
    project: str,
    deployments: Mapping[str, UUID],
    notify: Sequence[str],
    patience: Patience | None = None,
    expected: Sequence[timedelta] = (),
) -> list[Change]:
    """Makes the automations of this project's alarms, or brings them up to date; what was done to each.

    ``project``: its name in prefect.yaml, which the automations' names end with. ``notify``: whom they tell, as
    `block-type/name`. Without any, alarms that are there tell whom they told before, and none are made. ``expected``:
    within which times runs are to complete, where a schedule is on. Raises UserError for a block that is not there, or
    that cannot tell anybody.
    """
    named = [block(client, name) for name in dict.fromkeys(notify)]
    if not deployments:
        return []
    ours, ui = set(deployments.values()), (PREFECT_UI_URL.value() or "").rstrip("/")
    present = ferrys(client)
    living = ours | still_there(client, {one for automation in present for one in watched(automation)} - ours)
    rescuers = [own(one.name, project, present, ours, living) for one in rescues(ours, patience)]
    there = [own(alarm.name, project, present, ours, living) for alarm in alarms(ours, ui, patience)]
    # What another file of the project has, and what was taken out of this one and is still on the server
    all_ = ours | {one for automation in (*rescuers, *there) if automation for one in watched(automation) & living}
    changes = [
        settle_one(client, rescue.automation(project, enabled=is_on(found)), found)
        for rescue, found in zip(rescues(all_, patience), rescuers, strict=True)
    ]
    changes += [left_behind(client, id_) for id_ in sorted(all_ - ours)]
    told = named or [known for known in tells(there) if is_there(client, known)]
    if not told:
        return [*changes, *untold(there)]
    changes += [
        settle_one(client, alarm.automation(project, told, enabled=is_on(found)), found)
        for alarm, found in zip(alarms(all_, ui, patience), there, strict=True)
    ]
    for name, id_ in deployments.items():
        found = own(missed(name, id_, ui, timedelta()).name, project, present, {id_}, living)
        changes += settle_missed(client, project, name, id_, found, told, expected)
    return changes


def left_behind(client: SyncPrefectClient, deployment: UUID) -> Change:
    """A deployment that prefect.yaml no longer has: named, since its schedule may be on, and left for the operator."""
    found = client.read_deployment(deployment)
    name = f"{client.read_flow(found.flow_id).name}/{found.name}"
    schedule = "its schedule is on" if any(one.active for one in found.schedules) else "no schedule of it is on"
    detail = f"not in this prefect.yaml, left as it is; {schedule}. To delete it: prefect deployment delete '{name}'"
    return Change("deployment", name, "unchanged", detail)


def is_on(found: Automation | None) -> bool:
    """On or off is the operator's; a new one is on."""
    return found is None or found.enabled


def settle_one(client: SyncPrefectClient, automation: AutomationCore, found: Automation | None) -> Change:
    off = "" if automation.enabled else "off, as it was left"
    if found is None:
        client.create_automation(automation)
        return Change(KIND, automation.name, "created")
    if differs(automation, found):
        client.update_automation(found.id, automation)
        return Change(KIND, automation.name, "updated", off)
    return Change(KIND, automation.name, "unchanged", off)


def settle_missed(
    client: SyncPrefectClient,
    project: str,
    name: str,
    deployment: UUID,
    found: Automation | None,
    told: Sequence[UUID],
    expected: Sequence[timedelta],
) -> list[Change]:
    """The alarm of a deployment that does not complete in time: only where a schedule is on. Without ``expected`` one
    that is there keeps its time."""
    on = [one for one in client.read_deployment(deployment).schedules if one.active]
    within, why = within_of(found) if on else None, "its schedule is off"
    if on and expected:
        gap = longest_gap(on, datetime.now(UTC))
        within, why = chosen(gap, expected), f"its runs begin up to {gap} apart: --expect-every is to be longer"
    if within is not None:
        ui = (PREFECT_UI_URL.value() or "").rstrip("/")
        wanted = missed(name, deployment, ui, within).automation(project, told, enabled=is_on(found))
        return [settle_one(client, wanted, found)]
    if found is not None:
        client.delete_automation(found.id)
        return [Change(KIND, found.name, "removed", why)]
    return [Change(KIND, f"{name} did not complete in time", "unchanged", f"none: {why}")] if expected else []


def within_of(automation: Automation | None) -> timedelta | None:
    """Within which time an alarm that is there expects a run to complete."""
    trigger = automation.trigger if automation else None
    return trigger.within if isinstance(trigger, EventTrigger) else None


def ferrys(client: SyncPrefectClient) -> list[Automation]:
    """The automations at the server that Ferry made, those of other projects included."""
    found: list[Automation] = []
    while True:
        page = client.read_automations(sort=AutomationSort.CREATED_DESC, limit=PAGE, offset=len(found))
        found += page
        if len(page) < PAGE:
            return [one for one in found if TAG in one.tags]


def watched(automation: Automation) -> set[UUID]:
    """The deployments whose runs an automation watches."""
    trigger = automation.trigger
    if not isinstance(trigger, EventTrigger) or isinstance(trigger.match_related, list):  # an operator's own
        return set()
    found = set()
    for one in ResourceSpecification.model_validate(trigger.match_related).get("prefect.resource.id") or []:
        with contextlib.suppress(ValueError):  # a pattern: an operator's own, too
            found.add(UUID(one.removeprefix("prefect.deployment.")))
    return found


def still_there(client: SyncPrefectClient, deployments: Collection[UUID]) -> set[UUID]:
    """Those of these deployments that the server has."""
    asked, found = sorted(deployments), set[UUID]()
    for first in range(0, len(asked), PAGE):
        ids = DeploymentFilterId(any_=asked[first : first + PAGE])
        there = client.read_deployments(deployment_filter=DeploymentFilter(id=ids), limit=PAGE)
        found |= {one.id for one in there}
    return found


def own(
    base: str, project: str, present: Iterable[Automation], ours: Set[UUID], living: Set[UUID]
) -> Automation | None:
    """The automation at the server that is this one of the project; None: there is none yet."""
    name = full_name(base, project)
    candidates = [
        one for one in present if is_named(one.name, base) and is_own(watched(one), one.name == name, ours, living)
    ]
    return max(candidates, key=lambda one: (len(watched(one) & ours), one.name == name), default=None)


def is_own(watches: Set[UUID], has_its_name: bool, ours: Set[UUID], living: Set[UUID]) -> bool:
    """Is an automation this project's? Names do not tell: two projects may have one, and names used to be fixed.

    | it watches | its name | |
    |---|---|---|
    | one of the project's deployments | any | yes |
    | only deployments that the server no longer has | the project's | yes: they were deleted, and made again |
    | only deployments that the server no longer has | another one | no |
    | other deployments | any | no: another project's, which stays as it is |
    """
    return bool(watches & ours) or (has_its_name and not watches & living)


def untold(there: Sequence[Automation | None]) -> list[Change]:
    """Nobody is named, and nobody was told before."""
    gone = [present.name for present in there if present is not None]
    if not gone:
        return [Change(KIND, "Ferry's alarms", "unchanged", f"none: nobody to tell. {HOW}")]
    return [Change(KIND, name, "unchanged", f"tells nobody: its notification block is gone. {HOW}") for name in gone]


def differs(wanted: AutomationCore, present: Automation) -> bool:
    """Would an update change anything? IDs are the server's, on or off is the operator's.

    An update is not for nothing: the server forgets what it was waiting for.
    """
    return wanted.model_dump(include=COMPARED) != present.model_dump(include=COMPARED)


def tells(present: Sequence[Automation | None]) -> list[UUID]:
    """The blocks that the alarms at the server tell now."""
    actions = [action for automation in present if automation is not None for action in automation.actions]
    found = [action.block_document_id for action in actions if isinstance(action, SendNotification)]
    return list(dict.fromkeys(found))


def is_there(client: SyncPrefectClient, block_id: UUID) -> bool:
    try:
        client.read_block_document(block_id, include_secrets=False)
    except ObjectNotFound:
        return False
    return True


def block(client: SyncPrefectClient, name: str) -> UUID:
    """The notification block of this `block-type/name`."""
    slug, _, own = name.partition("/")
    if not slug or not own:
        raise UserError(f"--notify {name}: write block-type/name, as in slack-webhook/ops")
    try:
        document = client.read_block_document_by_name(own, slug, include_secrets=False)
    except ObjectNotFound:
        make = f"Make it in the UI, {PREFECT_UI_URL.value() or ''}/blocks/catalog/{slug}/create (docs/how-to/alerts.md)"
        raise UserError(f"--notify {name}: no such block at the Prefect server. {INSTEAD.get(slug, make)}") from None
    schema = document.block_schema
    if schema is None or "notify" not in schema.capabilities:
        raise UserError(f"--notify {name}: a block of this type cannot notify. {INSTEAD.get(slug, HOW)}")
    return document.id
