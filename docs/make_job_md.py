# ruff: noqa: E501 (Markdown tables are one line a row)
"""Writes docs/reference/job.md from the job model: `python docs/make_job_md.py`. A test fails when it is old."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ferry.job.model import Job

HEAD = """\
# The job, key by key

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

Relative paths are taken from the job file's folder; in a deployment from the project's root.
"""

TAIL = """\
## Secrets

A job carries none. Header values are references (`env:NAME` is an environment variable, `secret:BLOCK` a Prefect
Secret block, both read where the work runs), except Accept, Accept-Language, Referer and User-Agent. Credentials
are boto3's own chain (environment, profiles, SSO, roles), `profile:NAME`, or `block:NAME`, a saved AwsCredentials
block.

Blocks are kept by the Prefect server that the work asks. `ferry` without PREFECT_API_URL has one of its own, in
`.ferry/prefect` beside the job file. Save them in its UI (`ferry ui job.yaml`, Blocks), or from the environment:

```sh
ferry block job.yaml aws-credentials/new-store secret/old-token=OLD_TOKEN
```

The job names them `block:new-store` and `secret:old-token`. The first has the keys that AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_DEFAULT_REGION hold, the second the value of OLD_TOKEN. With
PREFECT_API_URL, or an active profile that has it, they are saved on that server.

A destination of the job must be a folder of its own. Ferry refuses (exit code 2) a directory that is, or holds, the
working directory, the job file, the list, your home, Prefect's home or Ferry's code. It also refuses a directory for
settings, commands, Python modules or states, and files that variables such as AWS_CONFIG_FILE name. A row of a list could
replace a file there.

`ferry` reads no `prefect.toml`, `.env` or `pyproject.toml` of the working directory. Settings of Prefect come from the
environment or from a profile.

Addresses in a job must not hold a user name, a password or a signature. The manifest's rows may hold signed URLs:
they stand in `plan/` and `chunks/` of the state (mode 0600) and nowhere else.

State in a bucket (`state: s3://...`) is reached as the destination is: the same endpoint and credentials. It may not lie
in the destination (exit code 2), where a row's key could be that of one of its files, nor in a directory or prefix that
is listed, unless `exclude` leaves it out: its addresses would be moved too.

## What a change means for work that is done

| changed | what the next run does |
|---|---|
| `source.url`, `columns`, `key`, `destination.uri`, `destination.endpoint_url` | stops with exit code 2 and names the key: rows that are done would lie in the wrong place. Undo it, use another `state`, or `--replan` |
| `checks`, `on_existing`, `max_bytes`, `destination.cache_control`, `destination.metadata`, names of headers | plans failed and skipped rows anew, keeps what is copied |
| size, digests, ETag or type of a row, in the list | what waits is moved by what the list says now; what is copied stays, and so does what failed for a lasting reason (`--retry-failed` takes it) |
| anything else | nothing: limits, retries, timeouts, budget, credentials and the manifest's place are free to change |
"""


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


def default_words(field: Any) -> str:
    if field.is_required():
        return "**required**"
    default = field.default
    if default is None or default is PydanticUndefined or isinstance(default, BaseModel) or default in ([], {}):
        return ""
    return f"`{getattr(default, 'value', default)}`"


def table(model: type[BaseModel], prefix: str = "") -> list[str]:
    lines = ["| key | what it is | type | default |", "|---|---|---|---|"]
    nested: list[str] = []
    for name, field in model.model_fields.items():
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        kind = type_words(field.annotation).replace("|", "\\|")
        lines.append(f"| `{prefix}{name}` | {text} | {kind} | {default_words(field)} |")
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


def render() -> str:
    return "\n".join([HEAD, "## Keys", "", *table(Job), "", TAIL])


if __name__ == "__main__":
    (Path(__file__).parent / "reference" / "job.md").write_text(render())
