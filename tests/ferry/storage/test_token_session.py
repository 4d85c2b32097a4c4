"""Requests for tokens leave by the job's `network`, as all others do: proxies, certificates, and no environment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ferry.http import Network
from ferry.storage.access import GoogleAccess, S3Access
from ferry.storage.azure import Tokens, service_principal
from ferry.storage.gcs import tokens_for
from ferry.storage.s3 import credentials_of
from ferry.storage.token_session import proxies_of
from tests.ferry.storage.test_azure_tokens import Entra
from tests.ferry.storage.test_gcs_tokens import account, private_key, server  # noqa: F401 - fixtures
from tests.servers.lab_proxy import LabProxy
from tests.servers.loopback import Answer, LoopbackServer
from tests.servers.odd_gcs import OddGcs
from tests.support.certificates import CertificateAuthority

PROXY = "http://proxy.example:3128"
USER = "ferry:canary-secret"


@pytest.fixture(autouse=True)
def useless_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies of the environment at which nothing listens: the job's network has been resolved from it already."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("url", "through"),
    [
        ("https://oauth2.googleapis.com/token", True),
        ("http://login.example/tenant", True),
        ("http://169.254.169.254/metadata/identity/oauth2/token", False),
        ("http://metadata.google.internal/computeMetadata/v1/", False),
        ("http://127.0.0.1:8080/token", False),
        ("https://login.inside.example/tenant", False),
    ],
)
def test_which_requests_take_the_proxy(url: str, through: bool) -> None:
    """All but those to the machine's metadata service, to this machine, and to the entries of NO_PROXY."""
    network = Network(http_proxy=PROXY, https_proxy=PROXY, no_proxy=("inside.example",))
    assert dict(proxies_of(network, url)) == ({url.partition(":")[0]: PROXY} if through else {})
    assert dict(proxies_of(Network(), url)) == {}


def test_google(server: OddGcs, account: dict[str, str]) -> None:  # noqa: F811
    """The proxy alone knows the address of the token server."""
    with LabProxy({"oauth.example": int(server.url.rpartition(":")[2])}, USER) as proxy:
        info = {**account, "token_uri": "http://oauth.example/token"}
        access = GoogleAccess(info=info, network=Network(http_proxy=proxy.url))
        headers = asyncio.run(tokens_for(access).headers())
        assert headers["authorization"].removeprefix("Bearer ") in (server.tokens or ())
        assert dict(proxy.absolute) == {"oauth.example:80": 1}


def test_azure(tmp_path: Path) -> None:
    """Through a tunnel, with a certificate of the job's `ca_bundle`."""
    (tmp_path / "ca").mkdir()
    ca = CertificateAuthority(tmp_path / "ca")
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(path.read_bytes() for path in ca.issue("login.example")))
    with Entra(both) as entra, LabProxy({"login.example": int(entra.url.rpartition(":")[2])}, USER) as proxy:
        entra.url = "https://login.example"
        network = Network(https_proxy=proxy.url, ca_bundle=str(ca.file))
        identity = service_principal(
            network, "tenant", "client", "secret", authority=entra.url, disable_instance_discovery=True
        )
        headers: dict[str, str] = {}
        asyncio.run(Tokens(identity).authorize("GET", "/", {}, headers, 0))
        assert headers["authorization"].startswith("Bearer ey")
        assert set(proxy.connects) == {"login.example:443"}


class Sts(LoopbackServer):
    """AWS STS: temporary keys for the token of a pod (STS API, AssumeRoleWithWebIdentity)."""

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        assert b"AssumeRoleWithWebIdentity" in body
        keys = (
            "<AccessKeyId>ASIA1</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>"
            "<Expiration>2099-01-01T00:00:00Z</Expiration>"
        )
        result = f"<AssumeRoleWithWebIdentityResult><Credentials>{keys}</Credentials></AssumeRoleWithWebIdentityResult>"
        text = f"<AssumeRoleWithWebIdentityResponse>{result}</AssumeRoleWithWebIdentityResponse>"
        return Answer(200, {"Content-Type": "text/xml"}, text.encode())


def test_amazon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 asks STS through the job's proxy."""
    (tmp_path / "token").write_text("a pod's token")
    for name, value in {
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/ferry", "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "AWS_ENDPOINT_URL_STS": "http://sts.example", "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with Sts() as sts, LabProxy({"sts.example": int(sts.url.rpartition(":")[2])}, USER) as proxy:
        keys = asyncio.run(credentials_of(S3Access(network=Network(http_proxy=proxy.url))).current())
        assert keys is not None
        assert (keys.key_id, keys.token) == ("ASIA1", "t")
        assert dict(proxy.absolute) == {"sts.example:80": 1}
