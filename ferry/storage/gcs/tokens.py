"""Access tokens from google-auth, which is the extra `gcs` of Ferry's distribution."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ferry.core import UserError
from ferry.http import RETRY_S, Network, Token
from ferry.storage.access import GoogleAccess
from ferry.storage.gcs.errors import google_error

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.auth.transport.requests import Request

ENDPOINT = "https://storage.googleapis.com"
SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_REQUEST_S = 30.0  # for one request of google-auth, which repeats it a few times


class Tokens(Protocol):
    """Source of the tokens, which may change during a run."""

    async def headers(self) -> dict[str, str]:
        """Returns what authorises a request."""
        ...

    def accepted(self, used: Mapping[str, str]) -> None: ...

    def refused(self, used: Mapping[str, str]) -> bool:
        """Notes a 401, and returns whether the request may succeed with other headers."""
        ...


class Anonymous:
    """No credentials: public buckets, and emulators."""

    async def headers(self) -> dict[str, str]:
        return {}

    def accepted(self, used: Mapping[str, str]) -> None: ...

    def refused(self, used: Mapping[str, str]) -> bool:
        return False


class GoogleTokens:
    """Tokens of one set of credentials, renewed 60 s before they end and once after a 401. For one event loop.

    ``load`` makes the credentials, and may use google-auth's client. google-auth is asked in a thread, since it may
    read files, ask a metadata service and sign. ``now`` is in seconds of Unix time.
    """

    def __init__(
        self, load: Callable[[Request], Credentials], network: Network, now: Callable[[], float] = time.time
    ) -> None:
        self._load = load
        self._network = network
        self._now = now
        self._credentials: Credentials | None = None
        self._token = Token()
        self._lock = asyncio.Lock()
        self._failure: Exception | None = None
        self._retry_at = 0.0

    async def headers(self) -> dict[str, str]:
        """Returns the header with the token. Raises ObjectError or Fatal without one."""
        if self._token.is_due(self._now()):
            async with self._lock:
                if self._token.is_due(self._now()):
                    await self._renew()
        return {"authorization": f"Bearer {self._token.value}"}

    def accepted(self, used: Mapping[str, str]) -> None:
        self._token.accepted(_value(used))

    def refused(self, used: Mapping[str, str]) -> bool:
        return self._token.refused(_value(used))

    async def _renew(self) -> None:
        """Takes another token. While the old one is valid, it serves if there is no other."""
        if self._failure is None or self._now() >= self._retry_at:
            try:
                self._token.take(*await asyncio.to_thread(self._ask))
                self._failure = None
            except Exception as exc:  # noqa: BLE001 - errors.py knows those of google-auth
                self._failure, self._retry_at = exc, self._now() + RETRY_S
        if self._failure is not None and self._token.is_over(self._now()):
            raise google_error(self._failure)  # another one for each request

    def _ask(self) -> tuple[str, float, float]:
        from google.auth.transport.requests import Request

        from ferry.storage.token_session import TokenSession  # late, as google-auth: requests takes 0.1 s to import

        request = Request(session=TokenSession(self._network))
        if self._credentials is None:
            self._credentials = self._load(request)
        self._credentials.refresh(functools.partial(request, timeout=_REQUEST_S))
        asked_at, ends = self._now(), self._credentials.expiry
        return self._credentials.token, ends.replace(tzinfo=UTC).timestamp() - asked_at if ends else math.inf, asked_at


def _value(headers: Mapping[str, str]) -> str:
    return headers["authorization"].removeprefix("Bearer ")


def endpoint_of(access: GoogleAccess) -> str:
    """Returns the configured endpoint, else that of STORAGE_EMULATOR_HOST (a URL, or host and port), else Google's."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    return access.endpoint_url or emulator or ENDPOINT


def tokens_for(access: GoogleAccess) -> Tokens:
    """Returns the source of the tokens: none for an emulator that the environment names, as in Google's own libraries.

    Raises UserError if google-auth is not installed. Call it in the event loop that uses the tokens.
    """
    given = access.key_file or access.info
    if access.anonymous or (not access.endpoint_url and os.environ.get("STORAGE_EMULATOR_HOST") and not given):
        return Anonymous()
    try:
        installed = importlib.util.find_spec("google.auth") is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        raise UserError(
            "credentials: Google Cloud Storage needs the package google-auth, which is not installed. "
            "Install it: pip install 'image-ferry[gcs]'"
        )
    return GoogleTokens(functools.partial(load, access), access.network)


def load(access: GoogleAccess, request: Request | None = None) -> Credentials:
    """Returns the credentials. It blocks. Raises exceptions of google-auth, OSError, ValueError and KeyError."""
    import google.auth
    from google.auth import impersonated_credentials

    path = access.key_file or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    info = access.info or (json.loads(Path(path).read_text()) if path else None)
    found: Credentials = google.auth.default(scopes=SCOPES, request=request)[0] if info is None else _from_info(info)
    if access.impersonate:
        found = impersonated_credentials.Credentials(found, access.impersonate, SCOPES)
    return found


def _from_info(info: Mapping[str, Any]) -> Any:
    """Returns the credentials of a file by its type.

    google.auth.default() would ask Google's resource manager for the project of an external account, and its functions
    that load any type are deprecated.
    """
    from google.auth import aws, external_account_authorized_user, identity_pool, impersonated_credentials, pluggable
    from google.oauth2 import credentials, service_account

    source = info.get("credential_source") or {}
    match info["type"]:
        case "service_account":
            return service_account.Credentials.from_service_account_info(info, scopes=SCOPES)
        case "authorized_user":
            return credentials.Credentials.from_authorized_user_info(info)
        case "impersonated_service_account":
            kind: Any = impersonated_credentials.Credentials
            return kind.from_impersonated_service_account_info(info, scopes=SCOPES)
        case "external_account_authorized_user":
            return external_account_authorized_user.Credentials.from_info(info, scopes=SCOPES)
        case "external_account" if "executable" in source:
            return pluggable.Credentials.from_info(info, scopes=SCOPES)
        case "external_account" if str(source.get("environment_id", "")).startswith("aws"):
            return aws.Credentials.from_info(info, scopes=SCOPES)
        case "external_account":
            return identity_pool.Credentials.from_info(info, scopes=SCOPES)
    raise ValueError("the type of the credentials is not known")
