"""Resolution of a job's references to secrets and credentials, on the machine of the run and in memory only."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import getproxies

from ferry.core import UserError, in_bucket
from ferry.http import OPEN_HEADERS, Auth, Network, TokenRequest, basic, proxy_at, tls
from ferry.job import Job, Side
from ferry.storage import Access, AzureAccess, GoogleAccess, S3Access, open_control

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
    found = block.get()
    return json.dumps(found) if isinstance(found, dict) else str(found)  # a block's value may be JSON


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


def s3_access(credentials: str | None, endpoint_url: str | None, region: str | None, setting: str) -> S3Access:
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


def _from_environment(endpoint_url: str | None, region: str | None) -> S3Access | None:
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


def google_access(credentials: str | None, endpoint_url: str | None, setting: str) -> GoogleAccess:
    """Returns the access to a bucket of Google Cloud Storage. Raises UserError.

    `env:NAME` and `secret:BLOCK` have the JSON of a credentials file. `impersonate:ACCOUNT` and None use Application
    Default Credentials.
    """
    if credentials is None or credentials == "anonymous":
        return GoogleAccess(endpoint_url, anonymous=credentials is not None)
    kind, _, name = credentials.partition(":")
    if kind == "impersonate":
        return GoogleAccess(endpoint_url, impersonate=name)
    info: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        info = json.loads(_secret(credentials, setting))
    if not isinstance(info, dict) or "type" not in info:
        raise UserError(
            f"{setting}: {credentials} does not hold the JSON of a Google credentials file. To name a file, set "
            "GOOGLE_APPLICATION_CREDENTIALS to its path, and remove `credentials`"
        )
    return GoogleAccess(endpoint_url, info=info)


_IDENTITY = {  # variables of azure-identity, by its parameters
    "tenant_id": "AZURE_TENANT_ID",
    "client_id": "AZURE_CLIENT_ID",
    "client_secret": "AZURE_CLIENT_SECRET",
    "token_file_path": "AZURE_FEDERATED_TOKEN_FILE",
}


def azure_access(credentials: str | None, endpoint_url: str | None, account: str, setting: str) -> AzureAccess:
    """Returns the access to containers of an Azure storage account.

    | `credentials` | environment | access |
    |---|---|---|
    | `anonymous` | any | without credentials |
    | `env:NAME`, `secret:BLOCK` | any | that key or SAS |
    | None | AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN; AZURE_STORAGE_ACCOUNT not set, or this account | that one |
    | None | tenant, client and AZURE_CLIENT_SECRET | service principal |
    | None | AZURE_FEDERATED_TOKEN_FILE | workload identity |
    | None | AZURE_CLIENT_ID | user-assigned managed identity |
    | None | none of these | the machine's managed identity |
    """
    if credentials == "anonymous":
        return AzureAccess(endpoint_url, anonymous=True)
    if credentials is not None:
        return AzureAccess(endpoint_url, secret=_secret(credentials, setting).strip())
    named = os.environ.get
    secret = named("AZURE_STORAGE_KEY") or named("AZURE_STORAGE_SAS_TOKEN")
    if secret and named("AZURE_STORAGE_ACCOUNT", account) in ("", account):
        return AzureAccess(endpoint_url, secret=secret.strip())
    found = {key: value for key, variable in _IDENTITY.items() if (value := named(variable))}
    principal, workload = ("tenant_id", "client_id", "client_secret"), ("tenant_id", "client_id", "token_file_path")
    if found.keys() >= set(principal):
        used: tuple[str, ...] = principal
    else:
        used = workload if "token_file_path" in found else ("client_id",)
    return AzureAccess(endpoint_url, settings={key: found[key] for key in used if key in found})


def accesses(job: Job) -> tuple[Access, Access]:
    """Returns the access to the buckets of source and destination. Raises UserError for a reference without a value."""
    shared = network(job)
    return _access(job, "source", shared), _access(job, "destination", shared)


def refuse_unusable(job: Job, source: Access) -> None:
    """Raises UserError if no client can be made of the source's credentials; each row would fail. Asks no bucket."""
    root = next(filter(in_bucket, job.roots()), None)
    if root is not None:
        try:
            open_control(root, source, side="source").endpoint()
        except UserError as error:
            raise UserError(f"source: {error}") from None


def destination_access(job: Job) -> Access:
    """Returns the access to the job's destination, and to a state in a bucket."""
    return _access(job, "destination", network(job))


def _access(job: Job, side: Side, shared: Network) -> Access:
    bucket, setting = job.bucket(side), f"{side}.credentials"
    given = job.source if side == "source" else job.destination
    found = Access(given.endpoint_url)
    match bucket.provider if bucket else "":
        case "s3":
            found = s3_access(given.credentials, given.endpoint_url, given.region, setting)
        case "gs":
            found = google_access(given.credentials, given.endpoint_url, setting)
        case "az":
            assert bucket is not None
            found = azure_access(given.credentials, given.endpoint_url, bucket.account, setting)
    return replace(found, network=shared)
