"""Pages of other sites in the owner's browser cannot use the local Prefect server."""

from __future__ import annotations

import http.client
import json

import pytest

from flows.server.local import LocalServer
from flows.server.localhost_guard import is_allowed


@pytest.mark.parametrize(
    ("host", "path", "site", "origin", "is_in"),
    [
        ("127.0.0.1:4200", "/api/flows/", None, None, True),  # Prefect's client
        ("127.0.0.1:4200", "/api/flows/", "same-origin", "http://127.0.0.1:4200", True),
        ("localhost:8080", "/api/flows/", None, "http://localhost:8080", True),  # forwarded
        ("[::1]:4200", "/api/flows/", None, "http://[::1]:4200", True),
        ("127.0.0.1:4200", "/api/health", "none", None, True),  # typed by a person
        ("127.0.0.1:4200", "/runs", "cross-site", None, True),  # a link to a page
        ("127.0.0.1:4200", "/api/flows/", "cross-site", "https://evil.example", False),
        ("127.0.0.1:4200", "/api/flows/", "same-site", "http://127.0.0.1:8000", False),
        ("127.0.0.1:4200", "/api/flows/", None, "https://evil.example", False),
        ("127.0.0.1:4200", "/api/flows/", None, "null", False),
        ("127.0.0.1:4200", "/api/flows/", None, "http://127.0.0.1:8000", False),
        ("127.0.0.1:4200", "/api", None, "https://evil.example", False),
        ("evil.example:4200", "/api/flows/", "same-origin", "http://evil.example:4200", False),  # DNS rebinding
        ("evil.example", "/", None, None, False),
        ("localhost.evil.example:4200", "/", None, None, False),
        ("127.0.0.1.evil.example:4200", "/", None, None, False),
        ("", "/api/flows/", None, None, False),
    ],
)
def test_who_is_let_in(host: str, path: str, site: str | None, origin: str | None, is_in: bool) -> None:
    """is_allowed() follows its table."""
    given = {b"host": host, b"sec-fetch-site": site, b"origin": origin}
    assert is_allowed(path, {name: value.encode() for name, value in given.items() if value is not None}) is is_in


@pytest.mark.slow
def test_other_sites_read_and_write_nothing(prefect_local: LocalServer) -> None:
    """A preflight and a direct request of another site are both refused."""

    def ask(method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", prefect_local.port, timeout=10)
        try:
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    blind = json.dumps({"name": "written by another site"}).encode()
    evil = {"Origin": "https://evil.example"}
    assert ask("GET", "/api/health") == (200, b"true")
    assert ask("GET", "/api/health", {"Host": "evil.example"})[0] == 403
    assert ask("GET", "/api/health", evil)[0] == 403
    assert ask("OPTIONS", "/api/block_documents/filter", {"Access-Control-Request-Method": "POST", **evil})[0] == 403
    assert ask("POST", "/api/flows/", evil, blind)[0] == 403
    own = {"Origin": f"http://127.0.0.1:{prefect_local.port}", "Content-Type": "application/json"}
    status, found = ask("POST", "/api/flows/filter", own, b"{}")
    assert status == 200
    assert b"written by another site" not in found
