"""The commands `ferry deploy`, which applies prefect.yaml or job files to a Prefect server, and `ferry block`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ferry.core import UserError
from flows.cli import local_run, terminal
from flows.cli.output import JsonFlag, Several, print_json
from flows.running import signals
from flows.server.api_address import given_server
from flows.server.shared import prefect_server
from tasks.job_file import relative_paths

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

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
    job_files: Annotated[
        tuple[Path, ...],
        Parameter(help="Job files, each of which gets its deployments. Default: those of prefect.yaml."),
    ] = (),
    /,
    *,
    file: Annotated[Path, Parameter(help="The prefect.yaml to deploy.")] = Path("prefect.yaml"),
    pool: Annotated[str | None, Parameter(help="The work pool of the jobs. Default: that of prefect.yaml.")] = None,
    from_: Annotated[
        str | None, Parameter(name="--from", help="When the first nightly run begins. Default: 01:00, or as it is.")
    ] = None,
    timezone: Annotated[str | None, Parameter(help="The zone of that time. Default: UTC, or as it is.")] = None,
    schedules: Annotated[
        Literal["on", "off"] | None, Parameter(help="Switch the schedules of the jobs on or off. Default: as they are.")
    ] = None,
    retire: Annotated[
        bool, Parameter(negative="", help="Delete the deployments of jobs whose file is not given any more.")
    ] = False,
    yes: Annotated[bool, Parameter(negative="", help="Do not ask before --retire deletes.")] = False,
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
    """Apply prefect.yaml, or job files, to the Prefect server. Existing schedules are not switched on or off."""
    if not job_files and (pool or from_ or timezone or schedules or retire or yes):
        raise UserError("--pool, --from, --timezone, --schedules, --retire and --yes are for job files: name these")
    file, job_files = file.absolute(), tuple(path.absolute() for path in job_files)
    with signals.ended_by_the_system():
        given_server("ferry deploy")
        from flows.deploying import automations, missed_runs, prefect_yaml, retired
        from flows.deploying import deployments as deploying
        from flows.deploying import job_files as jobs
        from tasks import prefect_api

    expected = missed_runs.parse_expect_every(expect_every)
    switch = None if schedules is None else schedules == "on"
    with prefect_api.required_client() as client:
        if job_files:
            times = jobs.parse_times(from_, timezone)
            project, work_pool, pull = prefect_yaml.for_jobs(file)
            work_pool = {**work_pool, "name": pool or work_pool["name"]}
            wanted = jobs.read(job_files, project, work_pool, pull, times)
            before = retired.made_before(client, project)
            gone = {name: before[name] for name in before.keys() - {one.name for one in wanted}}
            if retire:
                retired.check(client, gone, lambda text: yes or dry_run or terminal.confirm(text))
            changes, there = deploying.deploy(
                client, wanted, block, notify, dry_run=dry_run, switch=switch, known=before
            )
            changes += retired.retire(client, gone.items(), dry_run=dry_run) if retire else retired.named(gone)
            watched, project = there if retire else {**gone, **there}, f"{project}, jobs"
        else:
            wanted = prefect_yaml.read(file)
            changes, there = deploying.deploy(client, wanted, block, notify, dry_run=dry_run)
            watched, project = there, prefect_yaml.project(file)
        if not dry_run:
            # the run of a shard submits it again, and its alerts are those of the run
            watched = {name: one for name, one in watched.items() if not name.startswith("shard/")}
            ids = {name: one.id for name, one in watched.items()}
            together = watched if job_files else None
            changes += automations.apply(client, project, ids, notify, expected=expected, jobs=together)
        hints = _hints(client, there, bool(job_files)) if not dry_run else []
    if dry_run and (notify or expect_every):
        hints.append("a dry run does not check the alerts, which are created after the deployments")
    if relative := [one.file for one in wanted if one.file and one.job and relative_paths(one.job)]:
        hints.append(
            f"the relative paths of {len(set(relative))} jobs start at the project's root on the worker's machine, not "
            "at the job file's folder"
        )
    if json_:
        print_json({"dry_run": dry_run, "changes": [dataclasses.asdict(change) for change in changes], "next": hints})
    else:
        if job_files:  # a line for each of 50 jobs would hide the few that matter
            changes = [change for change in changes if change.what != "unchanged" or "--retire" in change.detail]
        _print(changes, hints, dry_run, "the job files" if job_files else "prefect.yaml")
    return 0


def _hints(client: SyncPrefectClient, there: Mapping[str, DeploymentResponse], of_jobs: bool) -> list[str]:
    """Returns what the operator still has to do: start a worker, switch schedules on."""
    from tasks import work_pools

    hints = [
        f"the work pool `{name}` has no online worker. Start one {work_pools.start_command(name)}"
        for name in dict.fromkeys(one.work_pool_name for one in there.values())
        if name and not work_pools.workers(client, name)
    ]
    off = [(full, schedule.id) for full, one in there.items() for schedule in one.schedules if not schedule.active]
    if of_jobs and off:
        return [*hints, f"{len(off)} schedules are off. To switch them on: the same command with --schedules on"]
    return hints + [
        f"a schedule of {full} is off. To switch it on: prefect deployment schedule resume {full} {id_}"
        for full, id_ in off
    ]


def _print_changes(changes: Sequence[Change]) -> None:
    kinds = max((len(change.kind) for change in changes), default=0)
    for change in changes:
        style = STYLES[change.what]
        detail = f"  ({terminal.shown(change.detail)})" if change.detail else ""
        terminal.out.print(
            f"[{style}]{change.what:<9}[/]  {change.kind:<{kinds}}  {terminal.shown(change.name)}{detail}"
        )


def _print(changes: Sequence[Change], hints: Sequence[str], dry_run: bool, what: str) -> None:
    _print_changes(changes)
    counts = {kind: sum(change.what == kind for change in changes) for kind in STYLES}
    done = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number and kind != "unchanged")
    if dry_run:
        terminal.say(f"dry run: {done}. Nothing was changed" if done else "dry run: no changes needed")
    else:
        terminal.say(f"{done}; the rest is unchanged" if done else f"nothing changed: the server matches {what}")
    for hint in hints:
        terminal.say(hint)
