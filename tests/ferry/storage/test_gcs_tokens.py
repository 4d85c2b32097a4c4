"""Credentials for Google Cloud Storage: google-auth at a token server on loopback. No test asks a metadata server."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ferry.core.body import small_body
from ferry.core.errors import Fatal, FerryError, ObjectError, UserError
from ferry.core.records import ErrorClass
from ferry.http import Network
from ferry.storage.access import GoogleAccess
from ferry.storage.gcs import Anonymous, Gcs, GoogleTokens, endpoint_of, tokens_for
from ferry.storage.gcs.tokens import ENDPOINT, load
from ferry.storage.provider import Digests
from tests.servers.loopback import Answer
from tests.servers.odd_gcs import Fault, OddGcs, error

pytestmark = pytest.mark.usefixtures("_no_environment")
BODY = small_body(b"x")


@pytest.fixture
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's credentials, and no metadata server."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)


@pytest.fixture
def server() -> Iterator[OddGcs]:
    with OddGcs() as running:
        running.tokens = set()
        yield running


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


@pytest.fixture
def account(server: OddGcs, private_key: str) -> dict[str, Any]:
    """The content of a service account's key file."""
    return {
        "type": "service_account",
        "client_email": "ferry@project.iam.gserviceaccount.com",
        "private_key": private_key,
        "private_key_id": "1",
        "token_uri": f"{server.url}/token",
    }


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


async def put(gcs: Gcs, key: str = "a") -> None:
    await gcs.put(key, b"x", Digests(BODY.md5, BODY.sha256), {}, create=False)


def with_tokens(server: OddGcs, access: GoogleAccess, work: Any = put) -> None:
    async def scenario() -> None:
        gcs = Gcs(server.url, "b", tokens_for(access), timeout_s=60, read_s=30)
        try:
            await work(gcs)
        finally:
            await gcs.close()

    asyncio.run(scenario())


def issued(server: OddGcs) -> int:
    return server.count("token")


def test_a_service_account(server: OddGcs, account: dict[str, Any], tmp_path: Path) -> None:
    """Its key in a file or as it is; one token serves many requests."""
    path = tmp_path / "key.json"
    path.write_text(json.dumps(account))
    for access in (GoogleAccess(key_file=str(path)), GoogleAccess(info=account)):
        before = issued(server)

        async def go(gcs: Gcs) -> None:
            await asyncio.gather(*[put(gcs, str(n)) for n in range(20)])

        with_tokens(server, access, go)
        assert issued(server) == before + 1
    assert account["private_key"] not in repr(GoogleAccess(info=account))


def test_application_default_credentials(
    server: OddGcs, account: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that the environment names comes before gcloud's."""
    user = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    gcloud = tmp_path / "gcloud" / "application_default_credentials.json"
    gcloud.parent.mkdir()
    gcloud.write_text(json.dumps({**user, "quota_project_id": "p"}))
    assert type(load(GoogleAccess())).__module__ == "google.oauth2.credentials"
    path = tmp_path / "key.json"
    path.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with_tokens(server, GoogleAccess())
    assert issued(server) == 1


def test_workload_identity_federation(server: OddGcs, tmp_path: Path) -> None:
    """A token of another provider is exchanged, and impersonates a service account; no project is looked up."""
    (tmp_path / "subject").write_text("their token")
    info = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{server.url}/sts",
        "credential_source": {"file": str(tmp_path / "subject")},
        "service_account_impersonation_url": f"{server.url}/v1/serviceAccounts/f@p:generateAccessToken",
    }
    with_tokens(server, GoogleAccess(info=info))
    asked = [one.target for one in server.asked if one.operation == "token"]
    assert asked == ["/sts", "/v1/serviceAccounts/f@p:generateAccessToken"]
    assert b"subject_token=their+token" in server.asked[0].body


@pytest.mark.parametrize(
    ("info", "module"),
    [
        ({"credential_source": {"executable": {"command": "x"}}}, "google.auth.pluggable"),
        (
            {
                "credential_source": {"environment_id": "aws1", "regional_cred_verification_url": "https://sts.x"},
                "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
            },
            "google.auth.aws",
        ),
    ],
)
def test_other_kinds_of_federation(info: dict[str, Any], module: str) -> None:
    """By a program, and by AWS."""
    common = {
        "type": "external_account", "audience": "//iam.googleapis.com/x", "token_url": "https://sts.googleapis.com/x",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    }  # fmt: skip
    assert type(load(GoogleAccess(info={**common, **info}))).__module__ == module


def test_impersonation(account: dict[str, Any]) -> None:
    """The account that the job names, by credentials that may use it; also from gcloud's file."""
    found = load(GoogleAccess(info=account, impersonate="other@p.iam.gserviceaccount.com"))
    url = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/third@p:generateAccessToken"
    info = {
        "type": "impersonated_service_account", "source_credentials": account, "service_account_impersonation_url": url,
    }  # fmt: skip
    principals = [each._target_principal for each in (found, load(GoogleAccess(info=info)))]
    assert principals == ["other@p.iam.gserviceaccount.com", "third@p"]


def test_a_token_is_renewed_before_it_ends(server: OddGcs, account: dict[str, Any]) -> None:
    """60 s before; while it is valid it serves, if another one cannot be had."""
    clock = Clock()

    async def go() -> None:
        credentials = load(GoogleAccess(info=account))
        tokens = GoogleTokens(lambda _: credentials, Network(), clock)
        first = await tokens.headers()
        ends = tokens._token._ends_at
        clock.now = ends - 61
        assert await tokens.headers() == first
        server.faults.append(Fault("token", Answer(404), times=99))
        clock.now = ends - 59
        assert await tokens.headers() == first
        clock.now = ends + 1
        with pytest.raises(ObjectError) as caught:
            await tokens.headers()
        assert caught.value.error_class is ErrorClass.STORE_ERROR
        server.faults.clear()
        with pytest.raises(ObjectError):  # not before a second has passed
            await tokens.headers()
        clock.now += 2
        assert await tokens.headers() != first

    asyncio.run(go())


def test_an_expired_token_is_renewed_once(server: OddGcs, account: dict[str, Any]) -> None:
    """After a 401 the request goes again with another token; if that is refused too, the token is not the cause."""

    async def go(gcs: Gcs) -> None:
        await put(gcs)
        assert server.tokens is not None
        server.tokens.clear()
        await asyncio.gather(*[put(gcs, str(n)) for n in range(8)])
        assert issued(server) == 2
        server.faults.append(Fault("insert", error(401, "authError", "Invalid Credentials"), times=99))
        with pytest.raises(Fatal, match=r"refuses the credentials \(HTTP 401 authError\)"):
            await put(gcs)
        assert issued(server) == 3
        with pytest.raises(Fatal):
            await put(gcs)
        assert issued(server) == 3

    with_tokens(server, GoogleAccess(info=account), go)


def test_the_event_loop_goes_on_meanwhile(server: OddGcs, account: dict[str, Any]) -> None:
    """google-auth is asked in a thread."""
    threads = []

    async def go() -> None:
        def loading(_: object) -> Any:
            threads.append(threading.current_thread())
            return load(GoogleAccess(info=account))

        await GoogleTokens(loading, Network()).headers()

    asyncio.run(go())
    assert threads != [threading.main_thread()]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(400, body=b'{"error": "invalid_grant", "error_description": "canary"}'), (Fatal, "invalid_grant")),
        (Answer(401, body=b'{"error": "unauthorized_client"}'), (Fatal, "unauthorized_client")),
        (Answer(404, body=b"<html>canary"), (ObjectError, "could not be renewed (RefreshError)")),
    ],
)
def test_what_a_token_server_refuses(
    answer: Answer, expected: tuple[type[FerryError], str], server: OddGcs, account: dict[str, Any]
) -> None:
    """A key that is no longer valid ends the run with OAuth's code; a server that fails is tried again."""
    server.faults.append(Fault("token", answer, times=99))
    with pytest.raises(FerryError) as caught:
        with_tokens(server, GoogleAccess(info=account))
    assert isinstance(caught.value, expected[0])
    assert expected[1] in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "access",
    [
        GoogleAccess(),
        GoogleAccess(key_file="/nowhere/key.json"),
        GoogleAccess(info={"type": "other"}),
        GoogleAccess(info={"type": "service_account", "canary": "canary"}),
        GoogleAccess(info={"canary": "x"}),
    ],
    ids=["none", "no file", "another type", "incomplete", "no type"],
)
def test_credentials_that_cannot_be_used(access: GoogleAccess, server: OddGcs) -> None:
    """One sentence that says what to set."""
    with pytest.raises(Fatal, match="no usable Google credentials were found") as caught:
        with_tokens(server, access)
    assert "canary" not in str(caught.value)


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that says what to install."""
    for name in [name for name in sys.modules if name == "google" or name.startswith("google.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(UserError, match=r"pip install 'image-ferry\[gcs\]'"):
        tokens_for(GoogleAccess())
    assert isinstance(tokens_for(GoogleAccess(anonymous=True)), Anonymous)


def test_a_token_is_encrypted(account: dict[str, Any]) -> None:
    """No token is sent to another machine over http; an emulator on this one has no certificate."""

    async def make(url: str) -> None:
        await Gcs(url, "b", tokens_for(GoogleAccess(info=account)), timeout_s=1, read_s=1).close()

    with pytest.raises(UserError, match="over https alone"):
        asyncio.run(make("http://storage.example"))
    for url in ("http://127.0.0.1:1", "https://storage.example"):
        asyncio.run(make(url))


def test_the_endpoint(monkeypatch: pytest.MonkeyPatch, account: dict[str, Any]) -> None:
    """The job's, else the emulator's that the environment names, which needs no credentials, else Google's."""
    assert endpoint_of(GoogleAccess()) == ENDPOINT
    for host in ("127.0.0.1:4443", "http://127.0.0.1:4443"):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
        assert endpoint_of(GoogleAccess()) == "http://127.0.0.1:4443"
        assert endpoint_of(GoogleAccess("https://x")) == "https://x"
        assert isinstance(tokens_for(GoogleAccess()), Anonymous)
        assert isinstance(tokens_for(GoogleAccess("https://x")), GoogleTokens)
        assert isinstance(tokens_for(GoogleAccess(info=account)), GoogleTokens)
