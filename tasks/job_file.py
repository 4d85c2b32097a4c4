"""Reading of job files: YAML to a validated Job, with errors that name the key."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ferry.core import UserError, escaped, short
from tasks.job_mistakes import LineOf, lines_of, problems

if TYPE_CHECKING:
    from ferry.job import Job

MOST_CHARACTERS = 1 << 18  # a long job has a few thousand


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses repeated keys, of which the last would win silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key `{short(key.value)}` is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_job(path: Path, settings: Sequence[str] = ()) -> Job:
    """Read a job file and make its relative paths absolute, from its folder. ``settings`` are those of `--set`.

    Raises UserError for a file or a setting that cannot be used.
    """
    data = merged(read_job(path), settings)
    what = f"{path} with --set" if settings else str(path)
    return with_absolute_paths(parse_job(data, what, lines_of(path)), path.absolute().parent)


def with_absolute_paths(job: Job, base: Path) -> Job:
    """Returns the job with absolute paths of its files, relative to ``base``, the job file's folder."""
    address = job.manifest_address
    manifest = job.manifest if "://" in address else _absolute(address, base, "manifest")
    state = job.state or f".ferry/{job.name}"
    if "://" not in state:
        state = _absolute(state, base, "state")
    network, certificate = job.network, job.network.client_certificate
    if network.ca_bundle is not None:
        bundle = _absolute(network.ca_bundle, base, "network.ca_bundle")
        network = network.model_copy(update={"ca_bundle": bundle})
    if certificate is not None:
        files = certificate.model_dump(include={"certificate", "key"}, exclude_none=True)
        paths = {name: _absolute(path, base, f"network.client_certificate.{name}") for name, path in files.items()}
        network = network.model_copy(update={"client_certificate": certificate.model_copy(update=paths)})
    return job.model_copy(update={"manifest": manifest, "state": state, "network": network})


def _absolute(path: str, base: Path, setting: str) -> str:
    try:
        return str((base / Path(path).expanduser()).absolute())
    except RuntimeError:
        raise UserError(
            f"{setting}: `{short(path)}` starts with `~` but names no known user; write an absolute path, or ./~..."
        ) from None


def relative_paths(job: Job) -> list[str]:
    """Returns the settings (`manifest`, `state`) whose value is a relative path."""
    found = []
    if "://" not in job.manifest_address and not Path(job.manifest_address).is_absolute():
        found.append("manifest")
    if job.state is None or ("://" not in job.state and not Path(job.state).is_absolute()):
        found.append("state")
    return found


def read_job(path: Path) -> dict[str, Any]:
    """Returns the mapping in a job file, not validated. Raises UserError for a file that is not one."""
    if not _is_text(path.absolute()):
        raise UserError(f"the path of {path.name!a} is not valid UTF-8; rename its folder, or move the job file")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise UserError(f"the job file {path} does not exist; `ferry init {path}` creates one") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"the job file {path} cannot be read: {exc}") from None
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{path} is not a job file: it is larger than {MOST_CHARACTERS:,} characters")
    data = read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a job file: it must be a mapping with the keys name, manifest and destination")
    return data


def read_yaml(text: str, what: str) -> Any:
    """Returns the value of a YAML text. Raises UserError for invalid YAML, with ``what`` as its name."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(exc, "problem", None) or getattr(exc, "reason", None) or "it cannot be read"
        raise UserError(f"{what}{where}: not valid YAML ({escaped(str(problem))})") from None
    except RecursionError:
        raise UserError(f"{what}: not valid YAML (nested too deeply)") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):  # 2001-99-99, a number of 5,000 digits
        raise UserError(f"{what}: not valid YAML (a value that cannot be read)") from None


def _is_text(path: Path) -> bool:
    """Returns whether a path is valid UTF-8, as JSON requires it in requests, states and the server's records."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_job(data: dict[str, Any], what: str, line_of: LineOf = lambda _: None) -> Job:
    """Returns a validated Job. Raises UserError with one line for each mistake, in the order of the file."""
    from pydantic import ValidationError  # a quarter of the time of `ferry --help`, which needs no job

    from ferry.job import Job

    try:
        return Job.model_validate(data)
    except ValidationError as exc:
        found = [f"  {line}" for line in problems(exc, line_of)]
        raise UserError("\n".join([f"{what} is not a valid job:", *found])) from None


def merged(data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Returns a copy of a job's mapping with ``settings`` applied: dotted keys, with values as in YAML.

    | data | setting | result |
    |---|---|---|
    | {checks: image} | `checks=decode` | {checks: decode} |
    | {} | `limits.concurrency=8` | {limits: {concurrency: 8}} |
    | {destination: s3://a/} | `destination.region=eu-1` | {destination: {uri: s3://a/, region: eu-1}} |
    | {state: x} | `state=` | {state: null}, which means the default |
    | {} | `limits.hosts={a.b: {concurrency: 2}}` | {limits: {hosts: {a.b: ...}}}: keys with dots |
    """
    result = copy.deepcopy(data)
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise UserError(
                f"--set {short(setting)}: write key=value, with dots for nested keys, as in limits.concurrency=8"
            )
        value = read_yaml(text, f"--set {short(path)}")
        mapping = result
        for number, key in enumerate(keys[:-1], 1):
            inner = mapping.get(key)
            if key == "destination" and number == 1 and isinstance(inner, str):
                inner = {"uri": inner}
            if inner is None:
                inner = {}
            if not isinstance(inner, dict):
                raise UserError(
                    f"--set {short(path)}: `{short('.'.join(keys[:number]))}` is a value, not a mapping of keys"
                )
            mapping[key] = inner
            mapping = inner
        mapping[keys[-1]] = value
    return result
