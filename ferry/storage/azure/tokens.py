"""Bearer tokens from azure-identity, which is the extra `azure` of Ferry's distribution."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ferry.core import UserError
from ferry.http import RETRY_S, Network, Token
from ferry.storage.azure.keys import Authority
from ferry.storage.errors import credentials_error

SCOPE = "https://storage.azure.com/.default"


class AccessToken(Protocol):
    """A token of azure-identity; ``expires_on`` is in seconds of Unix time."""

    @property
    def token(self) -> str: ...
    @property
    def expires_on(self) -> int: ...


class Identity(Protocol):
    """A credential of azure-identity."""

    def get_token(self, *scopes: str) -> AccessToken: ...


class Tokens(Authority):
    """Tokens of one identity, renewed 60 s before they end and once after a 401 (ferry.http.Token has the rule).

    ``identity`` makes the credential. After a 401 another one is made, since azure-identity keeps a token until shortly
    before its end. It is asked in a thread, because it may call a metadata service.
    """

    https_only = True

    def __init__(self, identity: Callable[[], Identity], now: Callable[[], float] = time.time) -> None:
        self._make = identity
        self._now = now
        self._identity: Identity | None = None
        self._token = Token()
        self._lock = asyncio.Lock()
        self._retry_at = 0.0

    async def authorize(
        self, method: str, path: str, query: Mapping[str, str], headers: dict[str, str], length: int
    ) -> str:
        headers["authorization"] = await self._header()
        return ""

    async def authorize_source(self, blob: str, headers: dict[str, str]) -> str:
        headers["x-ms-copy-source-authorization"] = await self._header()
        return ""

    def accepted(self, headers: Mapping[str, str]) -> None:
        self._token.accepted(headers["authorization"].removeprefix("Bearer "))

    def refused(self, headers: Mapping[str, str]) -> bool:
        again = self._token.refused(headers["authorization"].removeprefix("Bearer "))
        if not self._token.value:
            self._identity = None
        return again

    async def _header(self) -> str:
        """Returns the header with a token. One that is due serves until its end while another cannot be had."""
        if self._is_due():
            async with self._lock:
                if self._is_due():
                    try:
                        await asyncio.to_thread(self._renew)
                    except Exception as exc:  # noqa: BLE001 - errors of azure-identity and of the services it calls
                        self._retry_at = self._now() + RETRY_S
                        if self._token.is_over(self._now()):
                            raise credentials_error(exc, "Azure") from None
        return f"Bearer {self._token.value}"

    def _is_due(self) -> bool:
        now = self._now()
        return self._token.is_over(now) or (self._token.is_due(now) and now >= self._retry_at)

    def _renew(self) -> None:
        if self._identity is None:
            self._identity = self._make()
        asked_at = self._now()
        found = self._identity.get_token(SCOPE)
        self._token.take(found.token, found.expires_on - asked_at, asked_at)


def managed_identity(network: Network, **settings: Any) -> Callable[[], Identity]:
    """The identity of the machine; ``client_id`` chooses a user-assigned one. Raises UserError without the package."""
    return _maker("ManagedIdentityCredential", network, settings)


def workload_identity(network: Network, **settings: Any) -> Callable[[], Identity]:
    """The identity of a Kubernetes pod, from its environment. Raises UserError without the package."""
    return _maker("WorkloadIdentityCredential", network, settings)


def service_principal(
    network: Network, tenant_id: str, client_id: str, client_secret: str, **settings: Any
) -> Callable[[], Identity]:
    """An application with a secret. Raises UserError without the package."""
    given = {"tenant_id": tenant_id, "client_id": client_id, "client_secret": client_secret, **settings}
    return _maker("ClientSecretCredential", network, given)


def _maker(name: str, network: Network, settings: Mapping[str, Any]) -> Callable[[], Identity]:
    try:
        import azure.identity
        from azure.core.pipeline.transport import RequestsTransport
    except ImportError:
        raise UserError(
            "credentials: this identity of Azure needs the package azure-identity, which is not installed. "
            "Install it: pip install 'image-ferry[azure]'"
        ) from None
    credential: Callable[..., Identity] = getattr(azure.identity, name)

    def make() -> Identity:
        from ferry.storage.token_session import TokenSession

        transport = RequestsTransport(session=TokenSession(network), session_owner=False)
        return credential(transport=transport, **settings)

    return make
