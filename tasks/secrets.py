"""Resolution of a job's references to secrets and credentials, on the machine of the run and in memory only."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import getproxies

from ferry.core import UserError
from ferry.http import OPEN_HEADERS, Auth, Network, TokenRequest, basic, proxy_at, tls
from ferry.job import Job
from ferry.storage import Access, S3Access

BLOCK_TYPES = {"secret": "secret", "block": "aws-credentials"}  # kind of reference -> Prefect's block type


def named_blocks(job: Job) -> list[tuple[str, str, str]]:
    """Returns the Prefect blocks that the job names, as ``(setting, block type, block name)``."""
    given = {f"source.headers.{name}": value for name, value in job.source.headers.items()}
    if job.source.auth is not None:
        given |= {f"source.auth.{key}": value for key, value in job.source.auth.references().items()}
    given |= {
        "source.credentials": job.source.credentials or "",
        "destination.credentials": job.destination.credentials or "",
    }
    split = ((setting, *value.partition(":")) for setting, value in given.items())
    return [(setting, BLOCK_TYPES[kind], name) for setting, kind, _, name in split if kind in BLOCK_TYPES]


def names_blocks(job: Job) -> bool:
    """Returns whether the job names any Prefect block."""
    return bool(named_blocks(job))


def headers(job: Job) -> dict[str, str]:
    """Returns the job's request headers with their references resolved. Raises UserError for a missing one."""
    return {
        name: value if name.lower() in OPEN_HEADERS else _secret(value, f"source.headers.{name}")
        for name, value in job.source.headers.items()
    }


def auth(job: Job) -> Auth | None:
    """Returns the job's `source.auth` with its references resolved. Raises UserError for a missing one."""
    given = job.source.auth
    if given is None:
        return None
    found = {key: _secret(value, f"source.auth.{key}") for key, value in given.references().items()}
    value = {**given.model_dump(), **found}
    to = job.auth_recipients()
    match given.type:
        case "bearer":
            return Auth(to, header=("Authorization", f"Bearer {value['token']}"))
        case "http_basic":
            return Auth(to, header=basic(f"{value['username']}:{value['password']}"))
        case "api_key" if given.location == "query":
            return Auth(to, parameter=(value["name"], value["api_key"]))
        case "api_key":
            return Auth(to, header=(value["name"], value["api_key"]))
    data = {
        name: found.get(f"access_token_request_data.{name}", text)
        for name, text in given.access_token_request_data.items()
    }
    return Auth(to, token=TokenRequest(value["access_token_url"], value["client_id"], value["client_secret"], data))


def network(job: Job) -> Network:
    """Returns the job's network settings, with what the environment adds to them.

    Raises UserError for a proxy or a file that cannot be used.

    | `proxy` | http:// | https:// | NO_PROXY |
    |---|---|---|---|
    | `env` | HTTP_PROXY, else ALL_PROXY | HTTPS_PROXY, else ALL_PROXY | counts |
    | `env:NAME` | NAME | NAME | counts |
    | `none` | | | |
    """
    given, environment = job.network, getproxies()  # variables in lower case come first, and an empty one removes one
    no_proxy = tuple(filter(None, (entry.strip() for entry in environment.get("no", "").split(","))))
    proxies: dict[str, tuple[str, str]] = {}  # scheme -> variable, its value
    if given.proxy == "env":
        for scheme in ("http", "https"):
            name = scheme if scheme in environment else "all"
            proxies[scheme] = f"{name.upper()}_PROXY", environment.get(name, "")
    elif given.proxy != "none":
        value = _secret(given.proxy, "network.proxy")
        proxies = dict.fromkeys(("http", "https"), (given.proxy.removeprefix("env:"), value))
    for variable, url in proxies.values():
        try:
            if url:
                proxy_at(url)
        except UserError as error:
            raise UserError(f"network.proxy: {variable} {error}") from None
    certificate = given.client_certificate
    found = Network(
        http_proxy=proxies["http"][1] if proxies else "",
        https_proxy=proxies["https"][1] if proxies else "",
        no_proxy=no_proxy,
        direct=tuple(job.source.allow_private_addresses),
        local_names=given.proxy_names == "local",
        ca_bundle=given.ca_bundle or os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or "",
        certificate=certificate.certificate if certificate else "",
        key=(certificate.key if certificate else None) or "",
        certificate_hosts=tuple(certificate.hosts) if certificate else (),
    )
    if found.ca_bundle or found.certificate:
        try:
            tls(found.ca_bundle, found.certificate, found.key)
        except UserError as error:
            raise UserError(f"network: {error}") from None
    return found


def _secret(reference: str, setting: str) -> str:
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = os.environ.get(name)
        if not value:
            raise UserError(f"{setting}: the environment variable {name} is not set on the machine of the run")
        return value
    from prefect.blocks.system import Secret

    block: Any = _load(Secret, name, setting, "Secret")
    return str(block.get())


def _load(block_type: Any, name: str, setting: str, kind: str) -> Any:
    try:
        return block_type.load(name)
    except ValueError:
        raise UserError(
            f"{setting}: the Prefect server{_which()} has no {kind} block `{name}`. Create it there, in the UI "
            "(Blocks) or with `ferry block` (docs/reference/job.md)"
        ) from None


def _which() -> str:
    """Returns ` of FOLDER` for a local server, else ""."""
    home = os.environ.get("PREFECT_HOME")
    return f" of {home}" if home and os.environ.get("PREFECT_API_URL", "").startswith("http://127.0.0.1:") else ""


def access(credentials: str | None, endpoint_url: str | None, region: str | None, setting: str) -> Access:
    """Returns the access to a bucket by `profile:NAME`, `block:NAME`, `anonymous`, or None for boto3's chain."""
    if credentials is None:
        return _from_environment(endpoint_url, region) or S3Access(endpoint_url, region)
    if credentials == "anonymous":
        return S3Access(endpoint_url, region, anonymous=True)
    kind, _, name = credentials.partition(":")
    if kind == "profile":
        return S3Access(endpoint_url, region, profile=name)
    from prefect_aws import AwsCredentials

    block: Any = _load(AwsCredentials, name, setting, "AwsCredentials")
    if getattr(block, "assume_role_arn", None):  # of prefect-aws 0.7
        raise UserError(
            f"{setting}: the AwsCredentials block `{name}` has `assume_role_arn`, which Ferry does not support. Define "
            "the role as a profile in ~/.aws/config on the machine of the run (`role_arn`, and `source_profile` or "
            "`credential_source`), and set `profile:NAME`. Ferry renews its keys during a run"
        )
    endpoint_url = endpoint_url or block.aws_client_parameters.endpoint_url
    region = region or block.region_name
    if block.aws_access_key_id and block.aws_secret_access_key:
        keys = (block.aws_access_key_id, block.aws_secret_access_key.get_secret_value(), block.aws_session_token)
        return S3Access(endpoint_url, region, keys=keys)
    return S3Access(endpoint_url, region, profile=block.profile_name)


def _from_environment(endpoint_url: str | None, region: str | None) -> Access | None:
    """Returns the access by the two environment variables, which boto3's chain would also use; None in other cases.

    This avoids loading boto3, which takes 9 MB. None is returned if a profile or a config file could change the result.
    """
    named = os.environ.get
    key_id, secret = named("AWS_ACCESS_KEY_ID"), named("AWS_SECRET_ACCESS_KEY")
    config = Path(named("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
    if not key_id or not secret or named("AWS_PROFILE") or named("AWS_DEFAULT_PROFILE") or config.exists():
        return None
    region = region or named("AWS_DEFAULT_REGION")
    return S3Access(
        endpoint_url, region, keys=(key_id, secret, named("AWS_SESSION_TOKEN") or named("AWS_SECURITY_TOKEN"))
    )


def source_access(job: Job) -> Access:
    """Returns the access to the job's source bucket."""
    s = job.source
    return replace(access(s.credentials, s.endpoint_url, s.region, "source.credentials"), network=network(job))


def destination_access(job: Job) -> Access:
    """Returns the access to the job's destination bucket."""
    d = job.destination
    return replace(access(d.credentials, d.endpoint_url, d.region, "destination.credentials"), network=network(job))
