"""The commands `ferry deploy`, which applies prefect.yaml to a Prefect server, and `ferry block`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.cli import local_run, terminal
from flows.cli.output import JsonFlag, Several, print_json
from flows.running import signals
from flows.server.api_address import given_server
from flows.server.shared import prefect_server

if TYPE_CHECKING:
    from flows.deploying.change import Change

STYLES = {"created": "green", "updated": "yellow", "removed": "red", "unchanged": "dim"}


def block(
    job_file: Path,
    names: Annotated[tuple[str, ...], Parameter(help="aws-credentials/NAME, or secret/NAME=VARIABLE.")],
    *,
    json_: JsonFlag = False,
) -> int:
    """Save blocks from the environment on the Prefect server that the job's runs use."""
    with prefect_server(local_run.prefect_home(job_file.absolute().parent), lambda: None):
        with signals.ended_by_the_system():
            from flows.deploying import deployments as deploying
            from tasks import prefect_api
        asked = dict(map(deploying.block_of, names))
        with prefect_api.required_client() as client:
            changes = [deploying.settle_block(client, full, values, dry_run=False) for full, values in asked.items()]
    if json_:
        print_json({"changes": [dataclasses.asdict(change) for change in changes]})
    else:
        _print_changes(changes)
    return 0


def deploy(
    *,
    file: Annotated[Path, Parameter(help="The prefect.yaml to deploy.")] = Path("prefect.yaml"),
    block: Annotated[
        tuple[str, ...],
        Several(help="Create or update a block from the environment: aws-credentials/NAME, or secret/NAME=VARIABLE."),
    ] = (),
    notify: Annotated[tuple[str, ...], Several(help="Send alerts to this block: slack-webhook/NAME.")] = (),
    expect_every: Annotated[
        tuple[str, ...],
        Several(help="Alert if no run completes for this long (26h) while a schedule is on. Needs --notify once."),
    ] = (),
    dry_run: Annotated[bool, Parameter(negative="", help="Print the changes without making them.")] = False,
    json_: JsonFlag = False,
) -> int:
    """Apply prefect.yaml to the Prefect server. Existing schedules are not switched on or off."""
    file = file.absolute()
    with signals.ended_by_the_system():
        given_server("ferry deploy")
        from flows.deploying import automations, missed_runs, prefect_yaml
        from flows.deploying import deployments as deploying
        from tasks import prefect_api

    expected = missed_runs.parse_expect_every(expect_every)
    wanted = prefect_yaml.read(file)
    with prefect_api.required_client() as client:
        changes, ids = deploying.deploy(client, wanted, block, notify, dry_run=dry_run)
        if not dry_run:
            changes += automations.apply(client, prefect_yaml.project(file), ids, notify, expected=expected)
        hints = _hints(client, ids) if not dry_run else []
    if dry_run and (notify or expect_every):
        hints.append("a dry run does not check the alerts, which are created after the deployments")
    if json_:
        print_json({"dry_run": dry_run, "changes": [dataclasses.asdict(change) for change in changes], "next": hints})
    else:
        _print(changes, hints, dry_run)
    return 0


def _hints(client: Any, ids: Any) -> list[str]:
    """Returns what the operator still has to do: start a worker, switch schedules on."""
    from tasks import work_pools

    found = [client.read_deployment(id_) for id_ in ids.values()]
    hints = [
        f"the work pool `{name}` has no online worker. Start one {work_pools.start_command(name)}"
        for name in dict.fromkeys(one.work_pool_name for one in found)
        if name and not work_pools.workers(client, name)
    ]
    for full, one in zip(ids, found, strict=True):
        hints += [
            f"a schedule of {full} is off. To switch it on: prefect deployment schedule resume {full} {schedule.id}"
            for schedule in one.schedules
            if not schedule.active
        ]
    return hints


def _print_changes(changes: Sequence[Change]) -> None:
    kinds = max((len(change.kind) for change in changes), default=0)
    for change in changes:
        style = STYLES[change.what]
        detail = f"  ({terminal.shown(change.detail)})" if change.detail else ""
        terminal.out.print(
            f"[{style}]{change.what:<9}[/]  {change.kind:<{kinds}}  {terminal.shown(change.name)}{detail}"
        )


def _print(changes: Sequence[Change], hints: Sequence[str], dry_run: bool) -> None:
    _print_changes(changes)
    counts = {what: sum(change.what == what for change in changes) for what in STYLES}
    done = ", ".join(f"{number} {what}" for what, number in counts.items() if number and what != "unchanged")
    if dry_run:
        terminal.say(f"dry run: {done}. Nothing was changed" if done else "dry run: no changes needed")
    else:
        terminal.say(f"{done}; the rest is unchanged" if done else "nothing changed: the server matches prefect.yaml")
    for hint in hints:
        terminal.say(hint)
