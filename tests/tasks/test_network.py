"""The job's `network` with what the environment adds: proxies, NO_PROXY, bundles, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ferry.core import UserError
from ferry.http import Network, Proxy, proxy_for
from ferry.job import Job
from tasks import job_file, secrets
from tests.support.certificates import CertificateAuthority
from tests.support.helpers import make_job

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "aws_ca_bundle", "requests_ca_bundle")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def network_of(**given: Any) -> Network:
    return secrets.network(make_job(network=given, source={}))


@pytest.mark.parametrize(
    ("given", "variables", "expected"),
    [
        ({}, {}, ("", "", ())),
        ({}, {"HTTP_PROXY": "http://a:1", "HTTPS_PROXY": "http://b:2"}, ("http://a:1", "http://b:2", ())),
        ({}, {"http_proxy": "http://a:1", "HTTP_PROXY": "http://b:2"}, ("http://a:1", "", ())),
        ({}, {"ALL_PROXY": "a:1", "HTTPS_PROXY": "http://b:2"}, ("a:1", "http://b:2", ())),
        ({}, {"HTTP_PROXY": "a:1", "NO_PROXY": "old.example, .corp ,,10.0.0.0/8"},
         ("a:1", "", ("old.example", ".corp", "10.0.0.0/8"))),
        ({"proxy": "none"}, {"HTTP_PROXY": "http://a:1", "ALL_PROXY": "x"}, ("", "", ())),
        ({"proxy": "env:LAB"}, {"LAB": "http://me:pw@c:3", "HTTP_PROXY": "http://a:1", "NO_PROXY": "x"},
         ("http://me:pw@c:3", "http://me:pw@c:3", ("x",))),
    ],
)  # fmt: skip
def test_where_the_proxies_come_from(
    given: dict[str, Any], variables: dict[str, str], expected: tuple[str, str, tuple[str, ...]],
    environment: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Variables in upper and lower case, one that the job names, or none."""
    for name, value in variables.items():
        environment.setenv(name, value)
    found = network_of(**given)
    assert (found.http_proxy, found.https_proxy, found.no_proxy) == expected


def test_what_the_job_allows_is_direct(environment: pytest.MonkeyPatch) -> None:
    """Hosts of `source.allow_private_addresses` have no proxy; source and destination have the same network."""
    environment.setenv("HTTP_PROXY", "http://p:1")
    job = make_job(source={"allow_private_addresses": ["img.internal"]}, network={"proxy_names": "local"})
    found = secrets.network(job)
    assert found.local_names
    assert proxy_for(found, "http", "img.internal", 80) is None
    assert proxy_for(found, "http", "img.old.example", 80) == Proxy("p", 1)
    assert [access.network for access in secrets.accesses(job)] == [found, found]
    assert secrets.destination_access(job).network == found


@pytest.mark.parametrize(
    ("given", "variables", "words"),
    [
        ({}, {"HTTPS_PROXY": "socks5://me:topsecret@p:1080"}, "network.proxy: HTTPS_PROXY names a proxy with another"),
        ({}, {"ALL_PROXY": "http://me:topsecret@p:x"}, "network.proxy: ALL_PROXY names no proxy that Ferry can use"),
        ({"proxy": "env:LAB"}, {}, "network.proxy: the environment variable LAB is not set"),
        ({"proxy": "env:LAB"}, {"LAB": "https://me:topsecret@p"}, "network.proxy: LAB names a proxy with another"),
        ({}, {"AWS_CA_BUNDLE": "/missing.pem"}, "network: the CA bundle /missing.pem does not exist"),
        ({"ca_bundle": "/missing.pem"}, {}, "network: the CA bundle /missing.pem does not exist"),
        ({"client_certificate": {"certificate": "/missing.pem", "hosts": ["h"]}}, {},
         "network: the client certificate /missing.pem does not exist"),
    ],
)  # fmt: skip
def test_mistakes(
    given: dict[str, Any], variables: dict[str, str], words: str, environment: pytest.MonkeyPatch
) -> None:
    """Each is an error before anything moves, which names the setting and no secret."""
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(UserError) as caught:
        network_of(**given)
    assert str(caught.value).startswith(words)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"proxy": "http://p:3128"}, "is neither `env`, `none` nor `env:NAME`"),
        ({"proxy": "http://me:topsecret@p:3128"}, "holds a user name or password, but a job must not hold secrets"),
        ({"proxy": "me:topsecret@p:3128"}, "holds a user name or password, but a job must not hold secrets"),
        ({"proxy": "env:"}, "is neither `env`, `none` nor `env:NAME`"),
        ({"proxy_names": "both"}, "proxy_names"),
        ({"ca_bundle": "https://ca.example/ca.pem"}, "is not the path of a file"),
        ({"client_certificate": {"certificate": "c.pem", "hosts": []}}, "hosts"),
        ({"client_certificate": {"certificate": "c.pem"}}, "hosts"),
        ({"client_certificate": {"certificate": "c.pem", "hosts": ["https://h/x"]}}, "an entry of hosts is a host"),
        ({"proxies": "env"}, "did you mean `proxy"),
    ],
)
def test_mistakes_of_the_block(given: dict[str, Any], words: str) -> None:
    """The model refuses them, without repeating a password."""
    with pytest.raises(UserError, match="network") as caught:
        job_file.parse_job({"name": "a", "manifest": "m.csv", "destination": "s3://b/", "network": given}, "job.yaml")
    assert words in str(caught.value)
    assert "topsecret" not in str(caught.value)


def test_certificates(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """Paths count from the job file; the job's bundle comes before those of the environment."""
    ca = CertificateAuthority(tmp_path)
    certificate, key = ca.issue("client")
    environment.setenv("REQUESTS_CA_BUNDLE", str(ca.file))
    assert network_of().ca_bundle == str(ca.file)
    environment.setenv("AWS_CA_BUNDLE", str(certificate))
    assert network_of().ca_bundle == str(certificate)
    (tmp_path / "job.yaml").write_text(
        f"name: a\nmanifest: m.csv\ndestination: s3://b/\nnetwork:\n  ca_bundle: {ca.file.name}\n  client_certificate: "
        f"{{certificate: {certificate.name}, key: {key.name}, hosts: [img.old.example]}}\n"
    )
    job: Job = job_file.load_job(tmp_path / "job.yaml")
    found = secrets.network(job)
    assert (found.ca_bundle, found.certificate, found.key) == (str(ca.file), str(certificate), str(key))
    assert found.certificate_hosts == ("img.old.example",)


def test_it_changes_no_results() -> None:
    """Other network settings plan no row again."""
    assert make_job().fingerprint() == make_job(network={"proxy": "none", "ca_bundle": "x"}).fingerprint()
