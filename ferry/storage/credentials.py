"""How a bucket is reached: endpoint, region, credentials, and the two clients made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from obstore.store import S3Store

from ferry.core import UserError
from ferry.storage.errors import credentials_error
from ferry.storage.s3 import Boto3, BucketHttp, Credentials, Fixed
from ferry.storage.sigv4 import Keys


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a bucket. Built where the work runs; never written to disk or logged."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    proxied: bool = False  # the environment names a proxy for it, which obstore's client uses
    keys: tuple[str, str, str | None] | None = field(default=None, repr=False)  # id, secret, session token

    @classmethod
    def decode(cls, data: dict[str, Any]) -> Access:
        """From what ``dataclasses.asdict`` gave, after a way through JSON."""
        return cls(**{**data, "keys": tuple(data["keys"]) if data["keys"] else None})


UPLOAD_BYTES_PER_S = 32 * 1024


def upload_s(size: int, read_s: float) -> float:
    """Seconds that obstore's client may take to send a body and have its answer: it does not tell the one from the
    other."""
    return read_s + size / UPLOAD_BYTES_PER_S


def s3_client(bucket: str, access: Access, timeout_s: float, read_s: float | None = None) -> S3Store:
    """obstore's client of a bucket, its own retries off.

    ``timeout_s`` bounds each request, ``read_s`` the silence before its answer and within it. That is no bound for
    uploads: the time in which a body is sent is silence, too, for this client.
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
    region = access.region or (None if access.anonymous or access.keys else boto3_session(access).region_name)
    return region or "us-east-1"


def endpoint_of(access: Access) -> str:
    return access.endpoint_url or f"https://s3.{region_of(access)}.amazonaws.com"


def keys_of(access: Access) -> Callable[[], Keys | None]:
    """What gives the keys to sign with, None to ask unsigned; those that expire are renewed. It may block.

    Raises UserError where there are none; what it returns raises ObjectError where they cannot be renewed.
    """
    if access.anonymous:
        return lambda: None
    if access.keys:
        keys = Keys(*access.keys)
        return lambda: keys
    credentials = chain(access).get_credentials()

    def current() -> Keys:
        try:
            frozen = credentials.get_frozen_credentials()
        except Exception as exc:  # noqa: BLE001 - botocore's, and those of what it asks
            raise credentials_error(exc) from None
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    return current


def short_client(bucket: str, access: Access, timeout_s: float, read_s: float = 30.0) -> BucketHttp:
    """The short way to the same bucket; inside the loop that uses it. Raises UserError where there are no keys."""
    region = region_of(access)
    credentials: Credentials
    if access.anonymous:
        credentials = Fixed(None)
    elif access.keys:
        credentials = Fixed(Keys(*access.keys))
    else:
        credentials = Boto3(chain(access).get_credentials())
    return BucketHttp(
        endpoint_of(access), bucket, region, credentials, timeout_s=timeout_s, read_s=read_s, connections=512
    )


def boto3_session(access: Access) -> Any:
    """boto3's credential chain: environment, profiles, SSO, roles. Raises UserError for an unknown profile."""
    import boto3
    from botocore.exceptions import ProfileNotFound

    try:
        return boto3.session.Session(profile_name=access.profile, region_name=access.region)
    except ProfileNotFound:
        named = f"`{access.profile}`" if access.profile else "as AWS_PROFILE names"
        raise UserError(f"credentials: there is no AWS profile {named} on this machine") from None


def _boto3_provider(access: Access) -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    return Boto3CredentialProvider(chain(access))


def chain(access: Access) -> Any:
    """A boto3 session that has credentials. Raises UserError for one that has none."""
    session = boto3_session(access)
    if session.get_credentials() is None:
        raise UserError(
            "no AWS credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name them with "
            "`credentials: profile:NAME` or `credentials: block:NAME`"
        )
    return session
