"""The job file that `ferry init` writes: what the manifest needs, and what most jobs need next as comments."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from ferry.core import UserError, in_bucket, scheme_of
from ferry.job import Job
from ferry.manifest import URL_OF_IDS, Look, look_at
from tasks.job_file import parse_job, read_yaml

SCHEMA_FILE = Path(".ferry", "job.schema.json")  # beside the job file
LISTS = (".csv", ".tsv", ".tab", ".txt", ".jsonl", ".ndjson", ".parquet", ".xlsx", ".gz", ".zst")
MANIFEST, DESTINATION = "products.csv", "s3://new-bucket/products/"
MOST_HOSTS = 5


def is_manifest(text: str) -> bool:
    """Returns whether an argument of `ferry init` is a manifest, and not the job file to write."""
    return "://" in text or text.lower().endswith(LISTS)


def draft(file: Path, manifest: str | None = None, destination: str | None = None) -> str:
    """Returns the text of a job file for a manifest and a destination, or of an example without them.

    A local manifest is read, others are only named. Raises UserError for a manifest or a destination that cannot be
    used.
    """
    look = None
    if manifest is not None and "://" not in manifest:
        look = look_at(Path(manifest))
        manifest = _beside(file, manifest)
    name = job_name(Path(manifest).name.partition(".")[0] if manifest else file.stem, file)
    text = _text(file, name, manifest, destination, look)
    parse_job(read_yaml(text, str(file)), "with these arguments, the job file")
    return text


def job_name(wish: str, file: Path) -> str:
    """Returns a valid name for the job: the wish, else that of the file's folder."""
    if wish in ("job", ""):
        wish = file.absolute().parent.name
    return re.sub(r"[^A-Za-z0-9._-]", "-", wish).strip("._-") or "job"


def _beside(file: Path, manifest: str) -> str:
    """Returns the manifest's path as the job file names it: relative paths count from its folder."""
    path = Path(manifest).absolute()
    try:
        return str(path.relative_to(file.absolute().parent))
    except ValueError:
        return str(path)


def _text(file: Path, name: str, manifest: str | None, destination: str | None, look: Look | None) -> str:
    command = shlex.quote(str(file))
    parts = [
        f"# yaml-language-server: $schema={SCHEMA_FILE.as_posix()}\n"
        "# A job for Ferry: what to copy, from where, to where and how. docs/reference/job.md lists every key.\n"
        f"# Show the plan:               ferry plan {command}\n"
        f"# Predict the run by a sample: ferry check {command}\n"
        f"# Copy the first hundred rows: ferry run {command} --limit 100\n"
        f"# Copy all rows:               ferry run {command}",
        _yaml(name=name),
        "# The file of rows: csv, tsv, txt, jsonl, parquet or xlsx (text also .gz or .zst), local, in a bucket\n"
        "# or at https://. Or a location to list: s3://bucket/images/, gs://bucket/images/, az://account/container/images/,\n"
        "# file:///srv/images/\n" + _yaml(manifest=manifest or MANIFEST),
        *([_columns(look)] if look else []),
        _destination(destination or DESTINATION),
        _source(look),
        f'# key: "{_key(look)}"       # default: the key column, else the path of the URL\n'
        '# public_url: "https://img.new.example/{key}"   # where visitors get the copies: for redirects and reports\n'
        "# checks: image                    # none, length, image, decode\n"
        "# on_existing: skip-same           # skip-same, skip, overwrite, fail\n"
        "# failure_budget: 1%               # with more failures, the run is Failed\n"
        "# limits:                          # Ferry adapts to each host; set what its operator allows\n"
        f"#   hosts: {{{_first_host(look)}: {{requests_per_s: 50}}}}\n"
        f"# state: .ferry/{name}             # or {_state(destination or DESTINATION)}",
    ]
    return "\n\n".join(parts) + "\n"


def _destination(destination: str) -> str:
    """Returns the destination, with the settings that its provider has as comments."""
    endpoint, credentials = {
        "gs": (None, "env:GOOGLE_JSON        # or secret:BLOCK; default: Application Default Credentials"),
        "az": (None, "env:STORAGE_SAS        # or secret:BLOCK, an account's key or a SAS; default: an identity"),
    }.get(scheme_of(destination), ("https://s3.example", "profile:new        # or block:NAME; default: boto3's chain"))
    return (
        f"# The destination. {'A bucket outside AWS' if endpoint else 'One with credentials'} needs a mapping:\n"
        "#   destination:\n"
        f"#     uri: {destination}\n"
        + (f"#     endpoint_url: {endpoint}\n" if endpoint else "")
        + f"#     credentials: {credentials}\n"
        + _yaml(destination=destination)
    )


def _state(destination: str) -> str:
    """Returns an example of a state in a bucket, which the destination's credentials open."""
    if destination.startswith("az://"):
        return f"az://{destination.split('/')[2]}/container/prefix"
    return f"{scheme_of(destination) if in_bucket(destination) else 's3'}://bucket/prefix"


def _columns(look: Look) -> str:
    lines = [
        f"# {role} = {_comment(column)}" + (f", such as {_comment(look.samples[role])}" if role in look.samples else "")
        for role, column in look.recognised.items()
    ]
    if look.more_sources:
        every = _comment(", ".join([look.recognised["source"], *look.more_sources]))
        lines.append(
            "# More columns have addresses. If all addresses of a row are of one object, name the columns in order:\n"
            f"# columns: {{source: [{every}]}}"
        )
    text = "\n".join(["# Columns that are read:", *lines, *(f"# {_comment(why)}" for why in look.left)])
    return f"{text}\n{_yaml(columns=look.columns)}" if look.columns else text


def _source(look: Look | None) -> str:
    comments = (
        '#   user_agent: "product-images migration, ops@shop.example"\n'
        "#   headers:\n"
        "#     Authorization: env:OLD_TOKEN            # or secret:BLOCK; never the value itself\n"
        f"#   headers_for: [{_first_host(look)}]            # hosts that get these headers; default: the host of `url`"
    )
    if look is None:
        return (
            f"# source:\n#   url: {URL_OF_IDS}    # for rows with only an ID; any column may be in braces\n{comments}"
        )
    known = "".join(f"#   {_comment(host)}: {count:,}\n" for host, count in look.hosts.most_common(MOST_HOSTS))
    hosts = f"# Hosts in the first {look.rows:,} rows:\n{known}" if known else ""
    if look.has_only_ids:
        return (
            f"# The manifest has IDs and no addresses: correct the address that is made from them.\n"
            f"{_yaml(source={'url': URL_OF_IDS})}\n{comments}"
        )
    if look.private_hosts:
        allowed = ", ".join(look.private_hosts[:MOST_HOSTS])
        comments = f"#   allow_private_addresses: [{allowed}]   # Ferry does not connect to them otherwise\n{comments}"
    return f"{hosts}# source:\n{comments}"


def _key(look: Look | None) -> str:
    id_ = look.recognised.get("id", "sku") if look else "sku"
    return f"{{{id_}}}-{{n}}.{{source.ext}}" if look and "split" in look.columns else f"{{{id_}}}/{{source.name}}"


def _first_host(look: Look | None) -> str:
    host = next(iter(look.hosts), None) if look else None
    return host if host and re.fullmatch(r"[A-Za-z0-9.-]+", host) else "img.old.example"


def _comment(text: str) -> str:
    """Returns text from a manifest that stays in its line."""
    return re.sub(r"[^\S ]|[^ -\U0010ffff]|[\x7f-\x9f\u2028\u2029]", " ", text)


def _yaml(**value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000).rstrip("\n")


def check_is_new(path: Path) -> None:
    """Raises UserError if the file exists."""
    if path.exists():
        raise UserError(f"{path} already exists; name another file")


def schema() -> dict[str, object]:
    """Returns the JSON schema of job files, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema()}
