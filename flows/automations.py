"""Ferry's alarms at a Prefect server: made, brought up to date, and left on or off as the operator has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_UI_URL

from flows.alarms import Patience, alarms
from flows.changes import Change
from tasks.engine.errors import UserError

KIND = "automation"
COMPARED = {"name", "description", "tags", "trigger", "actions", "actions_on_trigger", "actions_on_resolve"}
HOW = (
    "Make one in the UI (Blocks), then `ferry deploy --notify slack-webhook/NAME`, or custom-webhook/NAME "
    "(docs/alerts.md)"
)
INSTEAD = {  # types that people name, and that cannot notify
    "email-server-credentials": (
        "It holds an account and sends nothing by itself, with prefect-email installed or not. For e-mail take "
        "sendgrid-email/NAME, or a slack-webhook block whose URL is mailtos://... (docs/alerts.md)"
    ),
    "webhook": "Take custom-webhook/NAME (docs/alerts.md)",
}


def settle(
    client: SyncPrefectClient,
    deployments: Mapping[str, UUID],
    notify: Sequence[str],
    patience: Patience | None = None,
) -> list[Change]:
    """Makes the automations of these deployments' alarms, or brings them up to date; what was done to each.

    ``notify``: whom they tell, as `block-type/name`. Without any, alarms that are there tell whom they told before, and
    none are made. Raises UserError for a block that is not there, or that cannot tell anybody.
    """
    named = [block(client, name) for name in dict.fromkeys(notify)]
    if not deployments:
        return []
    wanted = alarms(deployments.values(), (PREFECT_UI_URL.value() or "").rstrip("/"), patience)
    there = [next(iter(client.read_automations_by_name(alarm.name)), None) for alarm in wanted]
    told = named or [known for known in tells(there) if is_there(client, known)]
    if not told:
        return untold(there)
    changes = []
    for alarm, present in zip(wanted, there, strict=True):
        automation = alarm.automation(told, enabled=present is None or present.enabled)
        off = "" if automation.enabled else "off, as it was left"
        if present is None:
            client.create_automation(automation)
            changes.append(Change(KIND, alarm.name, "created"))
        elif differs(automation, present):
            client.update_automation(present.id, automation)
            changes.append(Change(KIND, alarm.name, "updated", off))
        else:
            changes.append(Change(KIND, alarm.name, "unchanged", off))
    return changes


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
        make = f"Make it in the UI, {PREFECT_UI_URL.value() or ''}/blocks/catalog/{slug}/create (docs/alerts.md)"
        raise UserError(f"--notify {name}: no such block at the Prefect server. {INSTEAD.get(slug, make)}") from None
    schema = document.block_schema
    if schema is None or "notify" not in schema.capabilities:
        raise UserError(f"--notify {name}: a block of this type cannot notify. {INSTEAD.get(slug, HOW)}")
    return document.id
