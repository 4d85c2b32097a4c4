"""prefect.yaml, read as `prefect deploy` reads it, and checked as a whole before anything on a server is changed."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from prefect import Flow
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.exceptions import MissingFlowError, ScriptError
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError as SchemaError
from prefect.utilities.schema_tools.validation import validate
from prefect.utilities.templating import apply_values
from pydantic import ValidationError

from ferry import __version__
from ferry.core import UserError
from ferry.job import Job
from tasks.job_file import parse_job

# What `prefect deploy` does besides, and `ferry deploy` does not: it would do it anew each time.
NOT_HERE = {
    "build": "make the image first (deployments/README.md) and name it in `work_pool.job_variables.image`",
    "push": "make the image first (deployments/README.md) and name it in `work_pool.job_variables.image`",
    "triggers": "`ferry deploy` makes Ferry's own automations; others are made in the UI",
    "sla": "service levels are Prefect Cloud's",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A deployment as prefect.yaml has it, or as it is made of a job file (flows.deploying.job_files)."""

    name: str  # migrate/prod
    flow_name: str
    pool: str
    fields: dict[str, Any]  # what the API calls them, as JSON
    schedules: list[DeploymentScheduleCreate]
    job: Job | None
    file: Path | None = None  # the job file; None for one of prefect.yaml
    mark: str = ""  # the tag by which a later deploy finds those that were made of job files
    slot: str | None = None  # the limit of one run that all deployments of a job share, instead of `concurrency_limit`
    keeps_times: bool = False  # whether schedules that exist keep their hours


def read(path: Path) -> list[Wanted]:
    """The deployments of a prefect.yaml. Raises UserError that lists what is wrong, deployment by deployment."""
    raw = _mapping(path)
    if not isinstance(raw.get("deployments") or [], list):
        raise UserError(f"{path}: `deployments` is not a list")
    problems: list[str] = [f"`{key}` at the top: {NOT_HERE[key]}" for key in NOT_HERE if raw.get(key)]
    found: list[Wanted] = []
    for number, entry in enumerate(raw.get("deployments") or [], 1):
        if not isinstance(entry, dict):
            problems.append(f"deployment {number} is not a mapping")
            continue
        name = f"{_flow_of(entry)}/{entry.get('name') or f'(deployment {number})'}"
        try:
            found.append(_wanted(entry, raw.get("pull"), path.absolute().parent))
        except UserError as error:
            problems += [f"{name}: {line}" for line in str(error).splitlines()]
    names = [wanted.name for wanted in found]
    problems += [f"{name}: given twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if not found and not problems:
        problems.append("there are no `deployments` in it")
    if problems:
        raise UserError("\n".join([f"{path} cannot be deployed; nothing was changed:", *(f"  {p}" for p in problems)]))
    return found


def project(path: Path) -> str:
    """The project's name: `name` at the top of its prefect.yaml, else that of its folder."""
    return str(_mapping(path).get("name") or path.absolute().parent.name)


POOL: dict[str, Any] = {"name": "ferry", "job_variables": {"working_dir": "."}}
PULL = [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]


def for_jobs(path: Path) -> tuple[str, dict[str, Any], Any]:
    """Returns what deployments of job files have in common: the project's name, the work pool, the pull steps.

    They are those of the first deployment in prefect.yaml; without the file, as Ferry's own prefect.yaml has them.
    """
    if not path.exists():
        return path.absolute().parent.name, POOL, PULL
    raw = _mapping(path)
    first: Any = next(iter(raw.get("deployments") or []), {})
    first = apply_values(first, dict(os.environ), remove_notset=False, warn_on_notset=False)
    pool = first.get("work_pool") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(pool or {}, dict):
        raise UserError(f"{path}: its first deployment, whose work pool the jobs get, is not valid")
    return project(path), {**POOL, **(pool or {})}, first.get("pull") or raw.get("pull") or PULL


def _mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {path}: go to the project's root, or name it with --file") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"{path} cannot be read: {exc}") from None
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML ({getattr(exc, 'problem', None) or exc})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a prefect.yaml: it needs `deployments`")
    return raw


def _flow_of(entry: dict[str, Any]) -> str:
    """The flow's name as long as the flow is not loaded: that of its function."""
    return str(entry.get("entrypoint") or "?").rpartition(":")[2]


SHAPES: dict[str, type] = {"work_pool": dict, "parameters": dict, "schedules": list}


def _wanted(entry: dict[str, Any], pull: Any, folder: Path) -> Wanted:
    for key, instead in NOT_HERE.items():
        if entry.get(key):
            raise UserError(f"`{key}`: {instead}")
    for key, shape in SHAPES.items():
        if not isinstance(entry.get(key) or shape(), shape):
            raise UserError(f"`{key}` is not a {'list' if shape is list else 'mapping'}")
    # `{{ $NAME }}` is a variable of the environment; other placeholders of job variables are the worker's to fill in.
    entry = cast("dict[str, Any]", apply_values(entry, dict(os.environ), remove_notset=False, warn_on_notset=False))
    pool = entry.get("work_pool") or {}
    for key, value in (("name", entry.get("name")), ("work_pool.name", pool.get("name"))):
        if not value:
            raise UserError(f"`{key}` is missing")
        if "{{" in value:
            raise UserError(
                f"`{key}` is `{value}`, which nothing fills in: `{{{{ $NAME }}}}` is a variable of the environment"
            )
    return of_entry(entry, pull, _flow(entry.get("entrypoint"), folder))


def of_entry(entry: dict[str, Any], pull: Any, flow: Flow[Any, Any]) -> Wanted:
    """Returns the deployment of an entry whose name and pool are checked. Raises UserError for everything else."""
    pool = entry["work_pool"]
    parameters = entry.get("parameters") or {}
    schema = _schema(flow)
    job = _job(flow.name, schema, parameters)
    limit, options = _concurrency(entry.get("concurrency_limit"))
    fields = {
        "description": entry.get("description") or flow.description,
        "tags": list(entry.get("tags") or []),
        "version": entry.get("version") or __version__,
        "entrypoint": entry["entrypoint"],
        "path": None,
        "parameters": parameters,
        "parameter_openapi_schema": schema,
        "enforce_parameter_schema": entry.get("enforce_parameter_schema", True),
        "pull_steps": _steps(entry.get("pull") or pull),
        "work_pool_name": pool["name"],
        "job_variables": pool.get("job_variables") or {},
        "concurrency_limit": limit,
        "concurrency_options": options,
    }
    if pool.get("work_queue_name"):
        fields["work_queue_name"] = pool["work_queue_name"]
    fields = json.loads(json.dumps(fields, default=str))
    schedules = list(_schedules(entry))
    return Wanted(f"{flow.name}/{entry['name']}", flow.name, pool["name"], fields, schedules, job)


@functools.cache
def _schema(flow: Flow[Any, Any]) -> dict[str, Any]:
    return parameter_schema(flow).model_dump(mode="json", exclude_unset=True)


def _flow(entrypoint: Any, folder: Path) -> Flow[Any, Any]:
    if not isinstance(entrypoint, str) or ":" not in entrypoint:
        raise UserError("`entrypoint` is missing: `flows/migrate.py:migrate`")
    try:
        return _loaded(str(folder / entrypoint))
    except (OSError, AttributeError, ImportError, ValueError, ScriptError, MissingFlowError) as exc:
        why = str(exc).partition("\n")[0] or type(exc).__name__
        raise UserError(f"`entrypoint`: {entrypoint} cannot be loaded ({why})") from None


@functools.cache  # to load it executes its file, which takes half a second
def _loaded(entrypoint: str) -> Flow[Any, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        return load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)


def _job(flow: str, schema: dict[str, Any], parameters: dict[str, Any]) -> Job | None:
    """The job that it runs by itself, where it has one; its other parameters are checked, too."""
    given = parameters.get("job")
    if given is not None and not isinstance(given, dict):
        raise UserError("`parameters.job` is not a mapping of a job's keys (docs/reference/job.md lists them)")
    job = None if given is None else parse_job(given, "`parameters.job`")
    for name, value in parameters.items():
        if name not in schema["properties"]:
            known = ", ".join(schema["properties"])
            raise UserError(f"`parameters.{name}` is not a parameter of the flow {flow}, which has {known}")
        alone = schema["properties"][name]
        if "$ref" in alone:  # the job
            continue
        try:
            validate({name: value}, {"type": "object", "properties": {name: alone}}, raise_on_error=True)
        except SchemaError as exc:
            raise UserError(f"`parameters.{name}`: {str(exc).partition(chr(10))[0]}") from None
    return job


def _concurrency(given: Any) -> tuple[int | None, dict[str, Any] | None]:
    if not isinstance(given, dict):
        return given, None
    options = {key: given[key] for key in ("collision_strategy", "grace_period_seconds") if given.get(key) is not None}
    if options.get("collision_strategy") not in (None, "ENQUEUE", "CANCEL_NEW"):
        raise UserError("`concurrency_limit.collision_strategy` is ENQUEUE or CANCEL_NEW")
    return given.get("limit"), {"collision_strategy": "ENQUEUE", **options}


def _steps(given: Any) -> list[Any]:
    """Pull steps; `prefect deploy` also takes a single one."""
    return given if isinstance(given, list) else [given] if given else []


# Prefect's documentation, "Create schedules": what each kind of schedule is recognised by.
KINDS: dict[str, type[CronSchedule | IntervalSchedule | RRuleSchedule]] = {
    "cron": CronSchedule, "interval": IntervalSchedule, "rrule": RRuleSchedule,
}  # fmt: skip
OF_DEPLOYMENT = ("active", "parameters", "slug", "replaces")  # fields that are not the schedule's own


def schedule_of(given: dict[str, Any]) -> DeploymentScheduleCreate:
    """A schedule of prefect.yaml as the API has it. Raises pydantic's ValidationError, or ValueError."""
    values = {key: value for key, value in given.items() if value is not None}
    more = {key: values.pop(key) for key in OF_DEPLOYMENT if key in values}
    kinds = [kind for kind in KINDS if kind in values]
    if len(kinds) != 1:
        raise ValueError("it needs one of `cron`, `interval` and `rrule`")
    return DeploymentScheduleCreate(schedule=KINDS[kinds[0]](**values), **more)


def _schedules(entry: dict[str, Any]) -> Iterator[DeploymentScheduleCreate]:
    seen = set()
    for given in entry.get("schedules") or []:
        slug = given.get("slug") if isinstance(given, dict) else None
        if not slug:
            raise UserError("a schedule has no `slug`. Give it a name, by which it is recognised when its time changes")
        if slug in seen:
            raise UserError(f"the schedule `{slug}` is given twice")
        seen.add(slug)
        try:
            yield schedule_of(given)
        except ValidationError as exc:
            why = "; ".join(error["msg"].removeprefix("Value error, ") for error in exc.errors(include_url=False))
            raise UserError(f"the schedule `{slug}`: {why}") from None
        except ValueError as exc:
            raise UserError(f"the schedule `{slug}`: {exc}") from None
