"""Job files: YAML in, a validated Job out, with errors that name the key."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ferry.core import UserError, escaped, short
from ferry.job import Job
from tasks.secrets import anchored

TEMPLATE = """\
# A job for Ferry: what to move, from where, to where and how. Every key: docs/reference/job.md
# Look at what would be done:  ferry plan {file}
# Move the first hundred:      ferry run {file} --limit 100
# Move everything:             ferry run {file}

name: {name}

# The list: csv, tsv, txt, jsonl, parquet or xlsx (text also .gz or .zst), here, at s3:// or at https://.
# Or what to list: s3://old-bucket/images/ or file:///srv/images/
manifest: products.csv

# Where to. A bucket that is not at AWS needs the mapping:
#   destination:
#     uri: s3://new-bucket/products/
#     endpoint_url: https://s3.example
#     credentials: profile:new        # or block:NAME; without it boto3's own chain
destination: s3://new-bucket/products/

# source:
#   url: https://img.old.example/{{id}}.jpg    # for lists of bare IDs; any column may stand in braces
#   user_agent: "product-images migration, ops@shop.example"
#   headers:
#     Authorization: env:OLD_TOKEN            # or secret:BLOCK; never the value itself
#   headers_for: [img.old.example]            # who is sent it; default: the host of `url`

# key: "{{sku}}/{{source.name}}"     # default: the key column, else the path of the URL
# checks: image                    # none, length, image, decode
# on_existing: skip-same           # skip-same, skip, overwrite, fail
# failure_budget: 1%               # a run with more failures than this is Failed
# state: .ferry/{name}             # or s3://bucket/prefix
"""


MOST_CHARACTERS = 1 << 18  # a long job has some thousands
MOST_KEYS = 10_000


class _Loader(yaml.SafeLoader):
    """YAML without its oddest rules: of a key that is given twice, the last one would win in silence, and nine lines
    of `<<` could become a thousand million keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise _marked(f"the key `{short(key.value)}` is given twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_KEYS:
            raise _marked(f"more than {MOST_KEYS:,} keys", node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, OverflowError, KeyError, AttributeError):  # 2001-99-99, a number of 5,000 digits
            raise _marked("a value that cannot be read", node) from None


def _marked(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def load_job(path: Path, settings: Sequence[str] = ()) -> Job:
    """Reads a job file; relative paths in it are made absolute against its folder. ``settings`` are those of `--set`.

    Raises UserError.
    """
    data = merged(read_job(path), settings)
    return anchored(parse_job(data, f"{path} with --set" if settings else str(path)), path.absolute().parent)


def read_job(path: Path) -> dict[str, Any]:
    """A job file as it is written. Raises UserError."""
    if not _is_text(path.absolute()):
        raise UserError(f"the folder of {path.name!a} has a name that is not UTF-8; rename it, or move the job")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise UserError(f"there is no job file {path}; `ferry init {path}` writes one") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"the job file {path} cannot be read: {exc}") from None
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{path} is no job: it holds more than {MOST_CHARACTERS:,} characters")
    data = read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path} is no job: it needs at least the keys name, manifest and destination")
    return data


def read_yaml(text: str, what: str) -> Any:
    """Raises UserError, which says ``what`` it was."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(exc, "problem", None) or getattr(exc, "reason", None) or "it cannot be read"
        raise UserError(f"{what}{where}: not valid YAML ({escaped(str(problem))})") from None
    except RecursionError:
        raise UserError(f"{what}: not valid YAML (nested too deeply)") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):  # of sets and the like, made at the end
        raise UserError(f"{what}: not valid YAML (a value that cannot be read)") from None


def _is_text(path: Path) -> bool:
    """Paths go into JSON: into requests, states and the server's records."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_job(data: dict[str, Any], what: str) -> Job:
    """A validated Job. Raises UserError that lists what is wrong, key by key."""
    try:
        return Job.model_validate(data)
    except ValidationError as exc:
        raise UserError("\n".join([f"{what} is not a valid job:", *(f"  {line}" for line in problems(exc))])) from None


# what pydantic adds to a path to say which member of a union it tried
_UNION_MEMBERS = {"int", "float", "str", "constrained-int", "literal['auto']"}


def problems(exc: ValidationError) -> list[str]:
    """One line per problem: the key as a path, and what to write instead. Values are not shown: they may be secret."""
    found: dict[str, list[str]] = {}
    for error in exc.errors(include_url=False):
        place = ".".join(short(str(part)) for part in error["loc"] if part not in _UNION_MEMBERS)
        found.setdefault(place, []).append(_in_words(error))
    # The members of a union (`concurrency`: a number or `auto`) each say what they miss: one line for all.
    return [f"{place}: {'; or: '.join(words)}" if place else "; ".join(words) for place, words in found.items()]


def _in_words(error: ErrorDetails) -> str:
    """What is wrong with one value, without the value; where YAML read something else than was meant, that too."""
    if error["type"] == "string_pattern_mismatch":
        return "1 to 100 letters, digits, `.`, `_` and `-`, the first one a letter or digit"
    words = error["msg"].removeprefix("Value error, ")
    given = error["input"]
    if error["type"] == "model_type":
        return "not a value but a mapping of keys is wanted here (docs/reference/job.md lists them)"
    if error["type"] == "int_parsing":
        return "a whole number is wanted here, without a unit"
    if error["type"] in ("string_type", "enum") and not isinstance(given, str | dict | list):
        if isinstance(given, bool):
            return f"{words} (to YAML, yes, no, on and off are true and false: write one of the words, or use quotes)"
        if given is not None:
            return f"{words} (put the {'number' if isinstance(given, int | float) else type(given).__name__} in quotes)"
    return words


def merged(data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A job's mapping with ``settings`` in it: dotted keys, values as in YAML. ``data`` stays as it is.

    | data | setting | becomes |
    |---|---|---|
    | {checks: image} | `checks=decode` | {checks: decode} |
    | {} | `limits.concurrency=8` | {limits: {concurrency: 8}} |
    | {destination: s3://a/} | `destination.region=eu-1` | {destination: {uri: s3://a/, region: eu-1}} |
    | {state: x} | `state=` | {state: null}: as if it were left out |
    | {} | `limits.hosts={a.b: {concurrency: 2}}` | a key with dots in it is given in its mapping |
    """
    result = copy.deepcopy(data)
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise UserError(
                f"--set {short(setting)}: write key=value, with dots for what lies deeper: limits.concurrency=8"
            )
        value = read_yaml(text, f"--set {short(path)}")
        place = result
        for number, key in enumerate(keys[:-1], 1):
            inner = place.get(key)
            if key == "destination" and number == 1 and isinstance(inner, str):
                inner = {"uri": inner}
            if inner is None:
                inner = {}
            if not isinstance(inner, dict):
                raise UserError(
                    f"--set {short(path)}: `{short('.'.join(keys[:number]))}` is a value, not a mapping of keys"
                )
            place[key] = inner
            place = inner
        place[keys[-1]] = value
    return result
