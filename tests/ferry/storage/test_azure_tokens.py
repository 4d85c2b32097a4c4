"""Tokens for Azure: azure-identity asks a server of ours; when they are renewed, and what a refusal does."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ferry.core.errors import Fatal, ObjectError, UserError
from ferry.core.records import ErrorClass
from ferry.http import Network
from ferry.storage.azure import (
    AzureContainer,
    Tokens,
    managed_identity,
    service_principal,
    workload_identity,
)
from ferry.storage.azure.tokens import AccessToken, Identity
from tests.ferry.http.test_tls import certificate
from tests.ferry.storage.test_azure import DIGESTS, ETAG, MD5, in_container
from tests.servers.odd_azure import Answer, OddAzure, error


def jwt(life_s: float) -> str:
    """A token as Azurite checks it: its audience, its issuer and its times, not its signature."""
    now = int(time.time())
    claims = {
        "aud": "https://storage.azure.com", "iss": "https://sts.windows.net/tenant/", "iat": now - 9, "nbf": now - 9,
        "exp": now + int(life_s),
    }  # fmt: skip
    parts = ({"alg": "HS256", "typ": "JWT"}, claims)
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*coded, "c2ln"])


class Entra:
    """A server of tokens over https: Microsoft Entra's, and the endpoint of App Service for managed identities."""

    def __init__(self, pem: Path) -> None:
        self.life_s = 3600
        self.pem = pem
        self.asked: list[str] = []  # paths of requests for tokens, with what they hold
        self.fails = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Entra:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str, body: str) -> dict[str, object]:
        if path.endswith("openid-configuration"):
            base = f"{self.url}/tenant"
            return {
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "issuer": f"{base}/v2.0",
            }
        self.asked.append(f"{path} {body}")
        until = str(int(time.time()) + self.life_s)
        return {
            "token_type": "Bearer",
            "access_token": jwt(self.life_s),
            "expires_in": self.life_s,
            "expires_on": until,
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                answer = json.dumps(server._answer(self.path, body)).encode()
                self.send_response(401 if server.fails else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Entra]:
    """Starts the server, with a certificate of its own."""
    (folder / "entra").mkdir()
    with Entra(certificate(folder / "entra", common="entra")) as server:
        yield server


@pytest.fixture
def entra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Entra]:
    yield from started(tmp_path, monkeypatch)


def identities(entra: Entra, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Identity]]:
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{entra.url}/msi")
    monkeypatch.setenv("IDENTITY_HEADER", "local")
    (folder / "federated").write_text("a pod's token")
    network = Network(ca_bundle=str(entra.pem))
    here = {"authority": entra.url, "disable_instance_discovery": True}
    pod = {"tenant_id": "tenant", "client_id": "client", "token_file_path": str(folder / "federated")}
    return {
        "managed identity": managed_identity(network, client_id="client"),
        "workload identity": workload_identity(network, **pod, **here),
        "service principal": service_principal(network, "tenant", "client", "canary-secret", **here),
    }


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("managed identity", "resource=https"),
        ("workload identity", "client_assertion=a+pod%27s+token"),
        ("service principal", "client_secret=canary-secret"),
    ],
)
def test_an_identity_is_asked_once(
    kind: str, asked: str, entra: Entra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its token authorises requests, and the source of a copy (tests/stores/test_azure.py has Azurite take it)."""

    async def go() -> None:
        tokens, headers = Tokens(identities(entra, tmp_path, monkeypatch)[kind]), dict[str, str]()
        assert await tokens.authorize("GET", "/", {}, headers, 0) == ""
        assert await tokens.authorize_source("box/k", headers) == ""
        assert headers["authorization"].startswith("Bearer ey")
        assert headers["x-ms-copy-source-authorization"] == headers["authorization"]

    asyncio.run(go())
    assert len(entra.asked) == 1
    assert asked in entra.asked[0]


@dataclass
class Given:
    token: str
    expires_on: int


@dataclass
class Fixed:
    """A credential with one token, which lasts by its own account."""

    token: str
    until: float = 1e10

    def get_token(self, *scopes: str) -> AccessToken:
        assert scopes == ("https://storage.azure.com/.default",)
        return Given(self.token, int(self.until))


class OverHttp(Tokens):
    """As they are, for a server without TLS."""

    https_only = False


PUT = Answer(201, {**ETAG, **MD5})


def test_a_401_has_the_token_renewed_once() -> None:
    """By another credential; a second 401 is the answer, until a token is accepted."""
    expired = error(401, "InvalidAuthenticationInfo")
    made: list[str] = []

    def make() -> Identity:
        made.append(f"token-{len(made)}")
        return Fixed(made[-1])

    with OddAzure(expired, PUT, expired, PUT, expired, expired, expired) as server:

        async def test(container: AzureContainer) -> None:
            for _ in range(2):
                await container.put("k", b"abc", DIGESTS, {}, create=False)
            for requests in (6, 7):
                with pytest.raises(Fatal, match="HTTP 401 InvalidAuthenticationInfo"):
                    await container.put("k", b"abc", DIGESTS, {}, create=False)
                assert len(server.asked) == requests

        in_container(server, test, OverHttp(make))
        sent = [each.headers["authorization"] for each in server.asked]
        assert sent == [f"Bearer token-{number}" for number in (0, 1, 1, 2, 2, 3, 3)]


def test_a_token_is_renewed_before_its_end_and_in_a_thread() -> None:
    """60 s before; many requests wait for one renewal; while it fails, the old one serves until its end."""
    clock, asked, fails = [0.0], list[int](), [False]

    class Slow:
        def get_token(self, *scopes: str) -> AccessToken:
            assert threading.current_thread() is not threading.main_thread()
            asked.append(len(asked))
            if fails[0]:
                raise OSError("canary-secret")
            time.sleep(0.05)
            return Given(f"token-{len(asked)}", int(clock[0]) + 600)

    tokens = Tokens(Slow, now=lambda: clock[0])

    async def header() -> str:
        headers: dict[str, str] = {}
        await tokens.authorize("GET", "/", {}, headers, 0)
        return headers["authorization"]

    async def go() -> None:
        assert set(await asyncio.gather(*(header() for _ in range(20)))) == {"Bearer token-1"}
        clock[0] = 539
        assert await header() == "Bearer token-1"
        clock[0] = 540
        assert await header() == "Bearer token-2"
        fails[0], clock[0] = True, 540 + 599
        assert await header() == await header() == "Bearer token-2"
        assert len(asked) == 3
        clock[0] = 540 + 600
        with pytest.raises(ObjectError) as caught:
            await header()
        assert caught.value.error_class is ErrorClass.STORE_ERROR
        assert str(caught.value) == (
            "the Azure credentials could not be renewed (OSError). Check how this machine gets them"
        )

    asyncio.run(go())


def test_an_identity_that_gets_no_token(entra: Entra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request fails with the kind of the error, without its text."""
    entra.fails = True

    async def go() -> None:
        tokens = Tokens(identities(entra, tmp_path, monkeypatch)["service principal"])
        with pytest.raises(ObjectError) as caught:
            await tokens.authorize("GET", "/", {}, {}, 0)
        assert str(caught.value).startswith("the Azure credentials could not be renewed (ClientAuthenticationError).")

    asyncio.run(go())


def test_tokens_go_over_https_alone() -> None:
    """Another endpoint is refused before any request."""

    async def go() -> None:
        with pytest.raises(UserError, match="over https alone"):
            AzureContainer("account", "box", Tokens(lambda: Fixed("x")), endpoint_url="http://127.0.0.1:9/account")
        container = AzureContainer("account", "box", Tokens(lambda: Fixed("x")))
        assert container.endpoint == "https://account.blob.core.windows.net"
        await container.close()

    asyncio.run(go())


def test_a_missing_package_is_one_sentence() -> None:
    """Without azure-identity, keys and SAS work, and an identity says what to install."""
    code = (
        "import sys\n"
        "sys.modules['azure.identity'] = None\n"
        "from ferry.http import Network\n"
        "from ferry.storage.azure import SharedKey, managed_identity\n"
        "SharedKey('a', 'a2V5')\n"
        "managed_identity(Network())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ferry.core.errors.UserError: credentials: this identity of Azure needs the package azure-identity, which is "
        "not installed. Install it: pip install 'image-ferry[azure]'"
    )


def test_the_package_is_loaded_when_it_is_needed() -> None:
    """Its import takes most of a second."""
    code = "import sys, ferry.storage.azure; assert not {'azure', 'msal', 'requests'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
