"""Access to a bucket: endpoint, region, credentials, and the client built from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ferry.core import UserError
from ferry.http import Network
from ferry.storage.s3 import Boto3Credentials, BucketHttp, Credentials, StaticCredentials
from ferry.storage.sigv4 import Keys


@dataclass(frozen=True, slots=True)
class Access:
    """Endpoint, region and credentials of a bucket. Built where the work runs; never written to disk or logged."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    keys: tuple[str, str, str | None] | None = field(default=None, repr=False)  # id, secret, session token
    network: Network = field(default_factory=Network)

    @classmethod
    def decode(cls, data: dict[str, Any]) -> Access:
        """Builds an Access from the JSON form of its ``dataclasses.asdict``."""
        keys = tuple(data["keys"]) if data["keys"] else None
        return cls(**{**data, "keys": keys, "network": Network.decode(data["network"])})


def region_of(access: Access) -> str:
    """Returns the configured region, else that of the boto3 session where boto3 has the keys, else us-east-1."""
    region = access.region or (None if access.anonymous or access.keys else boto3_session(access).region_name)
    return region or "us-east-1"


def endpoint_of(access: Access) -> str:
    """Returns the configured endpoint, else that of AWS in the region."""
    return access.endpoint_url or f"https://s3.{region_of(access)}.amazonaws.com"


def http_client(
    bucket: str, access: Access, timeout_s: float, read_s: float = 30.0, credentials: Credentials | None = None
) -> BucketHttp:
    """Returns Ferry's HTTP client for a bucket. Call it in the loop that uses it. Raises UserError without keys."""
    return BucketHttp(
        endpoint_of(access), bucket, region_of(access), credentials or credentials_of(access), timeout_s=timeout_s,
        read_s=read_s, connections=512, network=access.network,
    )  # fmt: skip


def credentials_of(access: Access) -> Credentials:
    """Returns the source of the keys. Raises UserError if boto3 finds no credentials."""
    if access.anonymous:
        return StaticCredentials(None)
    if access.keys:
        return StaticCredentials(Keys(*access.keys))
    return Boto3Credentials(session_with_credentials(access).get_credentials())


def boto3_session(access: Access) -> Any:
    """Returns a boto3 session (environment, profiles, SSO, roles). Raises UserError for an unknown profile."""
    import boto3
    from botocore.exceptions import ProfileNotFound

    try:
        return boto3.session.Session(profile_name=access.profile, region_name=access.region)
    except ProfileNotFound:
        named = f"`{access.profile}`" if access.profile else "that AWS_PROFILE names"
        raise UserError(f"credentials: the AWS profile {named} does not exist on this machine") from None


def session_with_credentials(access: Access) -> Any:
    """Returns a boto3 session that has credentials. Raises UserError if boto3 finds none."""
    session = boto3_session(access)
    if session.get_credentials() is None:
        raise UserError(
            "no AWS credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name them with "
            "`credentials: profile:NAME` or `credentials: block:NAME`"
        )
    return session
