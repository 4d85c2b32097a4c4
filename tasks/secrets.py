"""Resolves what a job only refers to: secrets, credentials, paths. Where the work runs, and never written down."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ferry.core import UserError, short
from ferry.http import OPEN_HEADERS
from ferry.job import Job
from ferry.storage import Access


def anchored(job: Job, base: Path) -> Job:
    """The job with its relative manifest and state made absolute against ``base``, the job file's folder."""
    manifest = job.manifest if "://" in job.manifest else _absolute(job.manifest, base, "manifest")
    state = job.state or f".ferry/{job.name}"
    if "://" not in state:
        state = _absolute(state, base, "state")
    return job.model_copy(update={"manifest": manifest, "state": state})


def _absolute(path: str, base: Path, setting: str) -> str:
    try:
        return str((base / Path(path).expanduser()).absolute())
    except RuntimeError:
        raise UserError(
            f"{setting}: `{short(path)}` begins with `~` and names no user's home; write ./~... or a path"
        ) from None


BLOCK_TYPES = {"secret": "secret", "block": "aws-credentials"}  # of a reference -> Prefect's name of the type


def named_blocks(job: Job) -> list[tuple[str, str, str]]:
    """What the job refers to that only a Prefect server has: ``(setting, type, name)``."""
    given = {f"source.headers.{name}": value for name, value in job.source.headers.items()}
    given |= {
        "source.credentials": job.source.credentials or "",
        "destination.credentials": job.destination.credentials or "",
    }
    split = ((setting, *value.partition(":")) for setting, value in given.items())
    return [(setting, BLOCK_TYPES[kind], name) for setting, kind, _, name in split if kind in BLOCK_TYPES]


def names_blocks(job: Job) -> bool:
    """Does the job refer to anything that only a Prefect server has?"""
    return bool(named_blocks(job))


def headers(job: Job) -> dict[str, str]:
    """The job's request headers with their references resolved. Raises UserError naming what is missing."""
    return {
        name: value if name.lower() in OPEN_HEADERS else _secret(value, f"source.headers.{name}")
        for name, value in job.source.headers.items()
    }


def _secret(reference: str, setting: str) -> str:
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = os.environ.get(name)
        if not value:
            raise UserError(f"{setting}: the environment variable {name} is not set where the work runs")
        return value
    from prefect.blocks.system import Secret

    block: Any = _load(Secret, name, setting, "Secret")
    return str(block.get())


def _load(block_type: Any, name: str, setting: str, kind: str) -> Any:
    try:
        return block_type.load(name)
    except ValueError:
        raise UserError(
            f"{setting}: there is no {kind} block `{name}` on the Prefect server{_which()}. Create it there: in the UI "
            "(Blocks), or with `ferry block` (docs/reference/job.md)"
        ) from None


def _which() -> str:
    """Which server was asked: a local one goes by its folder."""
    home = os.environ.get("PREFECT_HOME")
    return f" of {home}" if home and os.environ.get("PREFECT_API_URL", "").startswith("http://127.0.0.1:") else ""


def access(credentials: str | None, endpoint_url: str | None, region: str | None, setting: str) -> Access:
    """How to reach a bucket: `profile:NAME`, `block:NAME`, `anonymous`, or nothing for boto3's chain."""
    found = _access(credentials, endpoint_url, region, setting)
    return replace(found, proxied=_proxied(found.endpoint_url or "https://s3.amazonaws.com"))


def _proxied(address: str) -> bool:
    """Whether HTTPS_PROXY and the like name a proxy for an address."""
    parts = urlsplit(address)
    return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


def _access(credentials: str | None, endpoint_url: str | None, region: str | None, setting: str) -> Access:
    if credentials is None:
        return _from_environment(endpoint_url, region) or Access(endpoint_url, region)
    if credentials == "anonymous":
        return Access(endpoint_url, region, anonymous=True)
    kind, _, name = credentials.partition(":")
    if kind == "profile":
        return Access(endpoint_url, region, profile=name)
    from prefect_aws import AwsCredentials

    block: Any = _load(AwsCredentials, name, setting, "AwsCredentials")
    if getattr(block, "assume_role_arn", None):  # of prefect-aws 0.7
        raise UserError(
            f"{setting}: the AwsCredentials block `{name}` has `assume_role_arn`, which Ferry does not use. Write the "
            "role as a profile into ~/.aws/config where the work runs (`role_arn`, and `source_profile` or "
            "`credential_source`), and name that: `profile:NAME`. Its keys are renewed while a run lasts"
        )
    endpoint_url = endpoint_url or block.aws_client_parameters.endpoint_url
    region = region or block.region_name
    if block.aws_access_key_id and block.aws_secret_access_key:
        keys = (block.aws_access_key_id, block.aws_secret_access_key.get_secret_value(), block.aws_session_token)
        return Access(endpoint_url, region, keys=keys)
    return Access(endpoint_url, region, profile=block.profile_name)


def _from_environment(endpoint_url: str | None, region: str | None) -> Access | None:
    """The keys that boto3's chain would take first, where they are set and no file has a say.

    boto3 itself holds 9 MB, for two variables.
    """
    named = os.environ.get
    key_id, secret = named("AWS_ACCESS_KEY_ID"), named("AWS_SECRET_ACCESS_KEY")
    config = Path(named("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
    if not key_id or not secret or named("AWS_PROFILE") or named("AWS_DEFAULT_PROFILE") or config.exists():
        return None
    region = region or named("AWS_DEFAULT_REGION")
    return Access(
        endpoint_url, region, keys=(key_id, secret, named("AWS_SESSION_TOKEN") or named("AWS_SECURITY_TOKEN"))
    )


def source_access(job: Job) -> Access:
    s = job.source
    return access(s.credentials, s.endpoint_url, s.region, "source.credentials")


def destination_access(job: Job) -> Access:
    d = job.destination
    return access(d.credentials, d.endpoint_url, d.region, "destination.credentials")
