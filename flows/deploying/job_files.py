"""Deployments made of job files: what `ferry deploy jobs/*.yaml` makes for each job (docs/how-to/many-jobs.md).

The job files are the list: nothing else is written by hand for a job. Their deployments carry a tag with the project's
name, by which a later deploy finds those whose file is gone, and leaves all others alone.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from ferry.core import UserError
from ferry.job import Job
from flows.deploying.prefect_yaml import Wanted, of_entry
from tasks.job_file import parse_job, read_job
from tasks.job_mistakes import lines_of

TAG = "jobs:"
WINDOW = 240  # minutes over which the runs of all jobs begin
NOT_IN_NAMES = re.compile(r"[/%&<>]")  # Prefect's names of limits have none of these


@dataclass(frozen=True, slots=True)
class Purpose:
    """One deployment of each job."""

    flow: str
    suffix: str
    description: str
    collision: str  # with another run of the job: ENQUEUE waits for its end, CANCEL_NEW leaves it to a later run; or ""
    tags: tuple[str, ...] = ()
    job: Mapping[str, Any] = field(default_factory=dict)  # settings in place of the job's own
    parameters: Mapping[str, Any] = field(default_factory=dict)
    slug: str = ""  # of its schedule, if it has one
    days: str = "*"
    hours_later: int = 0
    has_job: bool = True  # as a parameter
    takes_slot: bool = True  # one run of the job's deployments at a time
    is_needed: Callable[[Job], bool] = lambda _: True

    def name(self, job: str) -> str:
        """Returns the deployment's full name: `migrate/products`, `migrate/products-nightly`."""
        return f"{self.flow}/{job}{self.suffix}"


# A run waits for the lease of the job's state as well, where it meets one that Prefect does not know, of `ferry run`.
PURPOSES = (
    Purpose("migrate", "", "Moves every object of a list to the destination, and says what became of each.", "ENQUEUE"),
    Purpose(
        "migrate",
        "-nightly",
        "Every night, while both ends are in use. Moves what is new, and rechecks what is done.",
        "CANCEL_NEW",
        tags=("nightly",),
        job={"mode": "delta"},
        parameters={"wait": True},
        slug="nightly",
    ),
    Purpose(
        "verify",
        "-weekly",
        "Every week, reads a sample of the objects at the destination back and compares them with the ledger.",
        "ENQUEUE",
        tags=("verify",),
        parameters={"sample": "1%", "wait": True},
        slug="weekly",
        days="0",
        hours_later=8,
    ),
    Purpose(
        "shard",
        "",
        "A part of a run, on another machine. Runs with `machines` submit it; it is not to be run by hand.",
        "",
        tags=("shard",),
        has_job=False,
        takes_slot=False,
        is_needed=lambda job: job.machines > 1,
    ),
)


@dataclass(frozen=True, slots=True)
class Times:
    """When the first nightly run begins; the others follow within WINDOW."""

    first: int = 60  # minutes after midnight
    timezone: str = "UTC"
    given: bool = False  # by the operator: then schedules that exist get them, too

    def cron(self, job: str, purpose: Purpose) -> CronSchedule:
        """Returns the schedule of one job, on a minute of its own."""
        minute = (self.first + stagger(job) + 60 * purpose.hours_later) % (24 * 60)
        return CronSchedule(cron=f"{minute % 60} {minute // 60} * * {purpose.days}", timezone=self.timezone)


def parse_times(first: str | None, timezone: str | None) -> Times:
    """Returns the times of `--from` and `--timezone`. Raises UserError for one that cannot be used."""
    times = Times(given=first is not None or timezone is not None)
    if first is not None:
        found = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", first)
        if not found:
            raise UserError(f"--from {first}: write a time of day such as 01:30")
        times = replace(times, first=60 * int(found[1]) + int(found[2]))
    if timezone is not None:
        times = replace(times, timezone=timezone)
        try:
            times.cron("", PURPOSES[0])
        except ValidationError:
            raise UserError(f"--timezone {timezone}: write a name such as Europe/Berlin or UTC") from None
    return times


def stagger(job: str) -> int:
    """Returns the job's minute in the window, from its name alone: it stays when other jobs come and go."""
    return int.from_bytes(hashlib.sha256(job.encode()).digest()[:8]) % WINDOW


def tag(project: str) -> str:
    """Returns the tag of all deployments that were made of a project's job files."""
    return f"{TAG}{project}"


def read(paths: Sequence[Path], project: str, pool: Mapping[str, Any], pull: Any, times: Times) -> list[Wanted]:
    """Returns the deployments of job files. Raises UserError that lists what is wrong, file by file.

    ``pool`` and ``pull``: the work pool and the pull steps, as in prefect.yaml.
    """
    problems: list[str] = []
    jobs: dict[Path, tuple[dict[str, Any], Job]] = {}
    for path in dict.fromkeys(paths):
        try:
            data = read_job(path)
            jobs[path] = data, parse_job(data, str(path), lines_of(path))
        except UserError as error:
            problems += str(error).splitlines()
    problems += doubles({path: job for path, (_, job) in jobs.items()})
    found: list[Wanted] = []
    for path, (data, job) in jobs.items():
        for purpose in PURPOSES:
            if purpose.is_needed(job):
                try:
                    found.append(_wanted(path, data, job.name, purpose, project, pool, pull, times))
                except UserError as error:
                    problems += [f"{path}, {purpose.name(job.name)}: {line}" for line in str(error).splitlines()]
    if problems:
        raise UserError("\n".join(["nothing was changed:", *(f"  {problem}" for problem in problems)]))
    return found


def doubles(jobs: Mapping[Path, Job]) -> list[str]:
    """Returns what two job files have in common and may not: a deployment's name, or a state."""
    names = [(purpose.name(job.name), path) for path, job in jobs.items() for purpose in PURPOSES]
    return _shared("the deployment", names) + _shared("the state", [(_state(job), path) for path, job in jobs.items()])


def _shared(what: str, named: Iterable[tuple[str, Path]]) -> list[str]:
    first: dict[str, Path] = {}
    pairs: dict[tuple[Path, Path], str] = {}
    for name, path in named:
        if first.setdefault(name, path) != path:
            pairs.setdefault((first[name], path), name)
    return [f"{one} and {other} both have {what} `{name}`" for (one, other), name in pairs.items()]


def _state(job: Job) -> str:
    state = job.state or f".ferry/{job.name}"
    scheme, separator, path = state.rpartition("://")
    return scheme + separator + posixpath.normpath(path)


def _wanted(
    path: Path,
    data: dict[str, Any],
    job: str,
    purpose: Purpose,
    project: str,
    pool: Mapping[str, Any],
    pull: Any,
    times: Times,
) -> Wanted:
    flow = getattr(import_module(f"flows.{purpose.flow}"), purpose.flow)
    cron = times.cron(job, purpose)
    schedule: dict[str, Any] = {
        "slug": purpose.slug,
        "cron": cron.cron,
        "timezone": cron.timezone,
        "active": False,
        "parameters": {},
    }
    entry = {
        "name": purpose.name(job).partition("/")[2],
        "entrypoint": f"flows/{purpose.flow}.py:{purpose.flow}",
        "description": purpose.description,
        "tags": ["ferry", tag(project), *purpose.tags],
        "work_pool": pool,
        "concurrency_limit": {"collision_strategy": purpose.collision} if purpose.collision else None,
        "schedules": [schedule] if purpose.slug else [],
        "parameters": {"job": {**data, **purpose.job}, **purpose.parameters} if purpose.has_job else {},
    }
    wanted = of_entry(entry, pull, flow)
    fields = {name: value for name, value in wanted.fields.items() if name != "concurrency_limit"}
    fields["parameter_openapi_schema"] = _without_job(fields["parameter_openapi_schema"])
    slot = NOT_IN_NAMES.sub("_", f"ferry {project}: {job}") if purpose.takes_slot else None
    return replace(wanted, fields=fields, file=path, mark=tag(project), slot=slot, keeps_times=not times.given)


def _without_job(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters' schema, in which the job may be any mapping: it comes from its file, not from a form.

    The server checks and sends the schema with each deployment. With the job's it has 47 KB, and a deployment takes the
    server 0.5 s of CPU time to make and 0.1 s to send; without it 0.02 s and 0.01 s.
    """
    job = {"title": "job", "type": "object", "description": "The job, from its file.", "position": 0}
    without = {name: value for name, value in schema.items() if name != "definitions"}
    return {**without, "properties": {**schema["properties"], "job": job}}
