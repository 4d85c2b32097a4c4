"""Access to a bucket: endpoint, region, credentials, and the two clients built from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from obstore.store import S3Store

from ferry.core import UserError
from ferry.storage.errors import credentials_error
from ferry.storage.s3 import Boto3Credentials, BucketHttp, Credentials, StaticCredentials
from ferry.storage.sigv4 import Keys


@dataclass(frozen=True, slots=True)
class Access:
    """Endpoint, region and credentials of a bucket. Built where the work runs; never written to disk or logged."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    proxied: bool = False  # the environment names a proxy, which only obstore's client uses
    keys: tuple[str, str, str | None] | None = field(default=None, repr=False)  # id, secret, session token

    @classmethod
    def decode(cls, data: dict[str, Any]) -> Access:
        """Builds an Access from the JSON form of its ``dataclasses.asdict``."""
        return cls(**{**data, "keys": tuple(data["keys"]) if data["keys"] else None})


UPLOAD_BYTES_PER_S = 32 * 1024


def upload_timeout_s(size: int, read_s: float) -> float:
    """Returns the seconds that obstore's client may take to send a body and receive the response.

    The client has one timeout for both.
    """
    return read_s + size / UPLOAD_BYTES_PER_S


def obstore_client(bucket: str, access: Access, timeout_s: float, read_s: float | None = None) -> S3Store:
    """Returns obstore's client for a bucket, with its own retries off.

    ``timeout_s`` limits each request. ``read_s`` limits the time without a byte of the response. Do not set it for
    uploads, because this client also counts the time in which it sends a body.
    """
    options: dict[str, Any] = {}
    if access.endpoint_url:
        options["endpoint"] = access.endpoint_url.rstrip("/")
        options["virtual_hosted_style_request"] = False
    if access.anonymous:
        options["skip_signature"] = True
    elif access.keys:
        options["access_key_id"], options["secret_access_key"] = access.keys[:2]
        if access.keys[2]:
            options["session_token"] = access.keys[2]
    else:
        options["credential_provider"] = _boto3_provider(access)
    return S3Store(
        bucket,
        region=region_of(access),
        client_options={
            "allow_http": True,
            "timeout": timedelta(seconds=timeout_s),
            **({"read_timeout": timedelta(seconds=read_s)} if read_s is not None else {}),
            "connect_timeout": "15s",
            "pool_max_idle_per_host": "512",
        },
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=timeout_s)},
        **options,
    )


def region_of(access: Access) -> str:
    """Returns the configured region, else that of the boto3 session where boto3 has the keys, else us-east-1."""
    region = access.region or (None if access.anonymous or access.keys else boto3_session(access).region_name)
    return region or "us-east-1"


def endpoint_of(access: Access) -> str:
    """Returns the configured endpoint, else that of AWS in the region."""
    return access.endpoint_url or f"https://s3.{region_of(access)}.amazonaws.com"


def keys_of(access: Access) -> Callable[[], Keys | None]:
    """Returns a function that returns the current keys, or None for unsigned requests. Both may block.

    The returned function renews keys that expire, and raises ObjectError if it cannot. Raises UserError if boto3 finds
    no credentials.
    """
    if access.anonymous:
        return lambda: None
    if access.keys:
        keys = Keys(*access.keys)
        return lambda: keys
    credentials = session_with_credentials(access).get_credentials()

    def current() -> Keys:
        try:
            frozen = credentials.get_frozen_credentials()
        except Exception as exc:  # noqa: BLE001 - errors of botocore and of the services it calls
            raise credentials_error(exc) from None
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    return current


def http_client(bucket: str, access: Access, timeout_s: float, read_s: float = 30.0) -> BucketHttp:
    """Returns Ferry's HTTP client for a bucket. Call it in the loop that uses it. Raises UserError without keys."""
    region = region_of(access)
    credentials: Credentials
    if access.anonymous:
        credentials = StaticCredentials(None)
    elif access.keys:
        credentials = StaticCredentials(Keys(*access.keys))
    else:
        credentials = Boto3Credentials(session_with_credentials(access).get_credentials())
    return BucketHttp(
        endpoint_of(access), bucket, region, credentials, timeout_s=timeout_s, read_s=read_s, connections=512
    )


def boto3_session(access: Access) -> Any:
    """Returns a boto3 session (environment, profiles, SSO, roles). Raises UserError for an unknown profile."""
    import boto3
    from botocore.exceptions import ProfileNotFound

    try:
        return boto3.session.Session(profile_name=access.profile, region_name=access.region)
    except ProfileNotFound:
        named = f"`{access.profile}`" if access.profile else "that AWS_PROFILE names"
        raise UserError(f"credentials: the AWS profile {named} does not exist on this machine") from None


def _boto3_provider(access: Access) -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    return Boto3CredentialProvider(session_with_credentials(access))


def session_with_credentials(access: Access) -> Any:
    """Returns a boto3 session that has credentials. Raises UserError if boto3 finds none."""
    session = boto3_session(access)
    if session.get_credentials() is None:
        raise UserError(
            "no AWS credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name them with "
            "`credentials: profile:NAME` or `credentials: block:NAME`"
        )
    return session
