"""The requests session that the providers' token libraries use: with the job's proxies and certificates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from ferry.http import Network, context_for, proxy_for

# The machine's own metadata services, which no proxy can reach.
_METADATA = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "metadata.google.internal", "metadata")


class TokenSession(requests.Session):
    """Takes nothing from the environment, since ``network`` has been resolved from it (docs/decisions/0049)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.trust_env = False
        self._network = network
        self.mount("https://", _Adapter(network))

    def send(self, request: requests.PreparedRequest, **given: Any) -> requests.Response:
        """Sends a request through the proxy of its host, if it has one."""
        given["proxies"] = proxies_of(self._network, request.url or "")
        return super().send(request, **given)


def proxies_of(network: Network, url: str) -> Mapping[str, str]:
    """Returns the proxy for a URL as requests and botocore take it: by the scheme, empty for a direct connection."""
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    if host in _METADATA or proxy_for(network, parts.scheme, host, parts.port or (443 if secure else 80)) is None:
        return {}
    proxy = network.https_proxy if secure else network.http_proxy
    return {parts.scheme: proxy if "://" in proxy else f"http://{proxy}"}


class _Adapter(HTTPAdapter):
    """TLS with the context that Ferry's other requests to the host have."""

    def __init__(self, network: Network) -> None:
        self._network = network
        super().__init__()

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: Any,  # noqa: ARG002 - the context has both
        cert: Any = None,  # noqa: ARG002
    ) -> tuple[Any, Any]:
        parts = urlsplit(request.url or "")
        host, port = parts.hostname or "", parts.port or 443
        where = {"scheme": "https", "host": host, "port": port}
        return where, {"ssl_context": context_for(self._network, host, port)}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Does nothing: the context has the certificates, and the default would add those of certifi."""
