# ruff: noqa: E501 (Markdown tables are one line a row)
"""Writes docs/reference/job.md from the job model: `python docs/make_job_md.py`. A test fails when it is old."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ferry.job.model import Job
from ferry.job.templates import LATE_FIELDS, SOURCE_FIELDS
from ferry.manifest.columns import USUAL_NAMES

HEAD = """\
# Job settings

<!-- Written by docs/make_job_md.py from ferry/job/model.py; change it there. -->

A job is one model: a YAML file for `ferry run`, the parameter `job` of the flow `migrate`, and the form in
Prefect's UI. Unknown keys are errors that name the nearest known one. The smallest job is three lines:

```yaml
name: product-images
manifest: products.csv
destination: s3://new-bucket/products/
```

A fuller one:

```yaml
name: product-images
manifest: products.csv.gz
columns:
  id: article
source:
  url: https://img.old.example/{article}.jpg
  user_agent: "product-images migration, ops@shop.example"
  headers:
    Authorization: env:OLD_TOKEN
destination:
  uri: s3://new-bucket/products/
  region: eu-central-1
  credentials: profile:new
  cache_control: public, max-age=31536000
key: "{article}/{source.name}"
checks: image
on_existing: skip-same
failure_budget: 0.5%
```

Relative paths start at the job file's folder; in a deployment at the project's root.
"""

TAIL = """\
## Secrets

A job carries no secrets. Header values are references: `env:NAME` is an environment variable, `secret:BLOCK` a Prefect
Secret block. Both are read where the work runs. Accept, Accept-Language, Referer and User-Agent may have literal
values. Credentials are boto3's own chain (environment, profiles, SSO, roles), `profile:NAME`, or `block:NAME`, a saved
AwsCredentials block.

The Prefect server of the run keeps the blocks. Without PREFECT_API_URL, `ferry` has a server of its own, whose database
is in `.ferry/prefect` beside the job file. Save blocks in its UI (`ferry ui job.yaml`, Blocks), or from the
environment:

```sh
ferry block job.yaml aws-credentials/new-store secret/old-token=OLD_TOKEN
```

The job then names them `block:new-store` and `secret:old-token`. The first takes the values of AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_DEFAULT_REGION. The second takes the value of OLD_TOKEN. With
PREFECT_API_URL, or an active profile that has it, the blocks are saved on that server.

Addresses in a job must not hold a user name, a password or a signature. The manifest's rows may hold signed URLs: Ferry
keeps them only in `plan/` and `chunks/` of the state (mode 0600).

## Directories and working directory

A destination directory must be a folder of its own. Ferry refuses (exit code 2) a directory that is, or holds, the
working directory, the job file, the manifest, your home, Prefect's home or Ferry's code. It also refuses a directory
for settings, commands, Python modules or states, and files that variables such as AWS_CONFIG_FILE name. A row of the
manifest could replace a file there.

`ferry` reads no `prefect.toml`, `.env` or `pyproject.toml` of the working directory. Settings of Prefect come from the
environment or from a profile.

## State in a bucket

`state: s3://...` uses the endpoint and credentials of the destination. The state must not lie in the destination (exit
code 2), where a row's key could be that of one of its files. It must not lie in a directory or prefix that is listed,
unless `exclude` leaves it out: its files would be transferred too.

## Which settings cause objects to be transferred again

| changed | what the next run does |
|---|---|
| `source.url`, `columns`, `key`, `destination.uri`, `destination.endpoint_url` | stops with exit code 2 and names the key: rows that are done would lie in the wrong place. Undo the change, use another `state`, or `--replan` |
| `checks`, `on_existing`, `max_bytes`, `destination.cache_control`, `destination.metadata`, names of headers | plans failed and skipped rows again, keeps what is copied |
| size, digests, ETag or type of a row, in the manifest | pending rows use the new values. Copied rows stay, and so do permanent failures (`--retry-failed` takes them) |
| anything else | nothing: limits, retries, timeouts, budget, credentials and the manifest's place are free to change |
"""

FIELDS = {
    "source.name": "the last part of the source's path: `front.jpg`",
    "source.stem": "the same without its extension: `front`",
    "source.ext": "the extension of the source's path: `jpg`",
    "source.path": "the source's path without its leading slash: `shoes/front.jpg`",
    "source.host": "the host of the source: `img.old.example`",
    "sha256": "SHA-256 of the bytes. The key is known only after the download",
    "ext": "the extension of the format that the bytes have. The key is known only after the download",
}


def type_words(annotation: Any) -> str:
    """A type as people write it in YAML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_words(a) for a in arguments if a is not type(None))
    if origin is list:
        return f"list of {type_words(arguments[0])}s"
    if origin is dict:
        return "mapping"
    if origin is not None and hasattr(annotation, "__metadata__"):  # Annotated
        return type_words(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    if isinstance(annotation, type) and hasattr(annotation, "__members__"):
        return " or ".join(f"`{member.value}`" for member in annotation)
    return {str: "text", int: "number", float: "number", bool: "true or false"}.get(annotation, str(annotation))


def default_words(name: str, field: Any) -> str:
    if field.is_required():
        return "**required**"
    default = field.default
    if name == "revalidate_after":
        return f"`{default / 86_400:g}d`"
    if name == "max_bytes":
        return f"`{default}` ({default >> 30} GiB)"
    if default is None or default is PydanticUndefined or isinstance(default, BaseModel) or default in ([], {}):
        return ""
    return f"`{getattr(default, 'value', default)}`"


def table(model: type[BaseModel], prefix: str = "") -> list[str]:
    lines = ["| key | what it is | type | default |", "|---|---|---|---|"]
    nested: list[str] = []
    for name, field in model.model_fields.items():
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        kind = type_words(field.annotation).replace("|", "\\|")
        lines.append(f"| `{prefix}{name}` | {text} | {kind} | {default_words(name, field)} |")
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            nested += [
                "",
                f"## `{prefix}{name}`",
                "",
                (inner.__doc__ or "").strip(),
                "",
                *table(inner, f"{prefix}{name}."),
            ]
    return lines + nested


def column_names() -> list[str]:
    """The names by which Ferry recognises a manifest's columns."""
    rows = [f"| `{role}` | {', '.join(f'`{name}`' for name in names)} |" for role, names in USUAL_NAMES.items()]
    return [
        "## Column names", "",
        "Columns that `columns` does not name are recognised by these names, without regard to case, spaces, `_` and `-`.",
        "", "| role | names |", "|---|---|", *rows, "",
    ]  # fmt: skip


def template_fields() -> list[str]:
    """The fields that a key template may name besides columns."""
    assert FIELDS.keys() == SOURCE_FIELDS | LATE_FIELDS
    return [
        "## Template fields", "",
        "`key` may name any column of the manifest in braces, and these fields. `source.url` may name columns only.",
        "`{{` and `}}` stand for braces.",
        "", "| field | value |", "|---|---|", *(f"| `{{{name}}}` | {text} |" for name, text in FIELDS.items()), "",
    ]  # fmt: skip


def render() -> str:
    return "\n".join([HEAD, "## Keys", "", *table(Job), "", *column_names(), *template_fields(), TAIL])


if __name__ == "__main__":
    (Path(__file__).parent / "reference" / "job.md").write_text(render())
