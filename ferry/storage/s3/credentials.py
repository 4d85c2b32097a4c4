"""Keys of an S3 bucket: given ones, or those of boto3's chain."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Protocol

from ferry.core import FerryError, UserError
from ferry.storage.access import S3Access
from ferry.storage.errors import credentials_error
from ferry.storage.s3.sigv4 import Keys


class Credentials(Protocol):
    """Source of the keys, which may change during a run."""

    async def current(self) -> Keys | None:
        """Returns the keys to sign with, or None for an unsigned request."""
        ...


def region_of(access: S3Access) -> str:
    """Returns the configured region, else that of the boto3 session where boto3 has the keys, else us-east-1."""
    region = access.region or (None if access.anonymous or access.keys else boto3_session(access).region_name)
    return region or "us-east-1"


def endpoint_of(access: S3Access) -> str:
    """Returns the configured endpoint, else that of AWS in the region."""
    return access.endpoint_url or f"https://s3.{region_of(access)}.amazonaws.com"


def credentials_of(access: S3Access) -> Credentials:
    """Returns the source of the keys."""
    if access.anonymous:
        return StaticCredentials(None)
    if access.keys:
        return StaticCredentials(Keys(*access.keys))
    return Boto3Credentials(lambda: session_with_credentials(access).get_credentials())


def boto3_session(access: S3Access) -> Any:
    """Returns a boto3 session (environment, profiles, SSO, roles). Raises UserError for an unknown profile."""
    import boto3
    from botocore.exceptions import ProfileNotFound

    try:
        return boto3.session.Session(profile_name=access.profile, region_name=access.region)
    except ProfileNotFound:
        named = f"`{access.profile}`" if access.profile else "that AWS_PROFILE names"
        raise UserError(f"credentials: the AWS profile {named} does not exist on this machine") from None


def session_with_credentials(access: S3Access) -> Any:
    """Returns a boto3 session that has credentials, and uses the job's proxy. Raises UserError if boto3 finds none."""
    from botocore.config import Config

    from ferry.storage.token_session import proxies_of

    session = boto3_session(access)
    sts = os.environ.get("AWS_ENDPOINT_URL_STS") or "https://sts.amazonaws.com"  # for the identity of a pod, or a role
    if proxies := proxies_of(access.network, sts):
        session._session.set_default_client_config(Config(proxies=dict(proxies)))
    if session.get_credentials() is None:
        raise UserError(
            "no AWS credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name them with "
            "`credentials: profile:NAME` or `credentials: block:NAME`"
        )
    return session


class StaticCredentials:
    """Keys that do not change; None for unsigned requests."""

    def __init__(self, keys: Keys | None) -> None:
        self._keys = keys

    async def current(self) -> Keys | None:
        return self._keys


class Boto3Credentials:
    """Keys of a boto3 session.

    ``load`` returns boto3's credentials. boto3 is asked in a thread, since it may call a metadata service.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._credentials: Any = None
        self._frozen: Any = None
        self._keys: Keys | None = None
        self._lock: asyncio.Lock | None = None

    async def current(self) -> Keys | None:
        """Raises UserError if boto3 finds no credentials, ObjectError if they cannot be renewed."""
        needed = getattr(self._credentials, "refresh_needed", None)
        if self._keys is not None and (needed is None or not needed()):
            return self._keys
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            try:
                frozen = await asyncio.to_thread(self._ask)
            except FerryError:
                raise
            except Exception as exc:  # noqa: BLE001 - errors of botocore and of the services it calls
                raise credentials_error(exc) from None
            if frozen != self._frozen:
                self._frozen = frozen
                self._keys = Keys(frozen.access_key, frozen.secret_key, frozen.token)
        return self._keys

    def _ask(self) -> Any:
        if self._credentials is None:
            self._credentials = self._load()
        return self._credentials.get_frozen_credentials()
