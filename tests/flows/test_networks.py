"""Whole runs through proxies that alone know the hosts, and to servers with a CA of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from demo.images import make_image
from demo.origin import Origin
from demo.ports import free_ports
from flows.server import shared
from tests.flows.project import Environment, Project, wait_for
from tests.servers.lab_proxy import LabProxy
from tests.servers.list_api import ListApi
from tests.servers.tls_origin import IMAGE, TlsOrigin
from tests.support.certificates import CertificateAuthority

pytestmark = pytest.mark.slow

NAME = "img.shop.example"
USER = "me:topsecret"
IMAGES = {f"{number}.jpg": make_image("jpeg", number) for number in range(12)}
LOCAL = "127.0.0.1,localhost"  # Prefect's server and the store of these tests


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        for name, image in IMAGES.items():
            server.add(f"/{name}", image)
        yield server


def rows(scheme: str = "http", names: Any = IMAGES) -> list[dict[str, str]]:
    return [{"id": name, "url": f"{scheme}://{NAME}/{name}"} for name in names]


def through(proxy: LabProxy, **more: str | None) -> Environment:
    return {"HTTP_PROXY": proxy.url, "HTTPS_PROXY": proxy.url, "NO_PROXY": LOCAL, **more}


def failures(project: Project) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for line in project.ledger().values():
        if line["status"] == "failed":
            found[line["error_class"]] = found.get(line["error_class"], 0) + 1
    return found


def test_http_with_a_server_of_its_own(project: Project, origin: Origin) -> None:
    """HTTP_PROXY without NO_PROXY: the run's own Prefect server is reached directly, all objects by the proxy."""
    project.manifest(rows())
    project.job(source={}, destination=(project.folder / "out").as_uri(), state="state")
    with LabProxy({NAME: origin.port}) as proxy:
        own: Environment = {
            "HTTP_PROXY": proxy.url, "HTTPS_PROXY": proxy.url, "http_proxy": proxy.url,
            "PREFECT_API_URL": None, "PREFECT_HOME": str(project.folder / "home"),
        }  # fmt: skip
        try:
            ended = project.ferry("run", "job.yaml", env=own).expect(0)
        finally:
            shared.stop(project.folder / "home")
        assert set(proxy.absolute) == {f"{NAME}:80"}, ended.text
        assert not proxy.connects
        assert {path.name: path.read_bytes() for path in (project.folder / "out").iterdir()} == IMAGES


def test_http_with_a_password(project: Project, origin: Origin, prefect_api: Any) -> None:
    """Two processes of a run use the proxy that `env:NAME` holds, and its password is written nowhere."""
    project.manifest(rows())
    project.job(source={}, network={"proxy": "env:LAB_PROXY"}, processes=2, chunk_rows=4)
    with LabProxy({NAME: origin.port}, USER) as proxy:
        env = {"LAB_PROXY": proxy.url, "NO_PROXY": LOCAL}
        plan = project.ferry("plan", "job.yaml", env=env).expect(0)
        assert (
            f"network: requests go through the proxy {proxy.shown}; host names are looked up by the proxy" in plan.text
        )
        check = project.ferry("check", "job.yaml", env=env).expect(0)
        assert f"requests go through the proxy {proxy.shown}" in check.text
        run = project.ferry("run", "job.yaml", env=env).expect(0)
        assert proxy.refused == {}
    assert project.stored() == IMAGES
    everything = (
        (plan.text + check.text + run.text).encode() + b"".join(project.files().values()) + prefect_api.database()
    )
    assert b"topsecret" not in everything
    assert b"bWU6dG9wc2VjcmV0" not in everything


def test_https_with_a_private_ca(project: Project, tmp_path: Path) -> None:
    """Objects come by CONNECT, with the bundle that the job names; without it each row says what to set."""
    ca = CertificateAuthority(tmp_path)
    project.manifest(rows("https"))
    with TlsOrigin(ca.issue(NAME)) as server, LabProxy({NAME: server.port}) as proxy:
        project.job(source={})
        project.ferry("run", "job.yaml", env=through(proxy)).expect(0)
        assert failures(project) == {"tls": len(IMAGES)}
        words = "the certificate is not trusted: unable to get local issuer certificate; set `network.ca_bundle`"
        assert {line["message"] for line in project.ledger().values()} == {words}
        assert not server.asked
        project.job(source={}, network={"ca_bundle": ca.file.name})
        project.ferry("run", "job.yaml", env=through(proxy)).expect(0)
        assert not proxy.absolute
        assert {host for host, _ in server.asked} == {NAME}
    assert project.stored() == dict.fromkeys(IMAGES, IMAGE)


def test_a_bucket_through_a_proxy(project: Project, origin: Origin) -> None:
    """Preflight, plan, uploads, the state in the bucket and verification reach a store that only the proxy knows."""
    port = int(project.cli.s3.endpoint_url.rpartition(":")[2])
    endpoint = f"http://s3.shop.example:{port}"
    project.manifest(rows())
    project.job(
        source={}, destination=project.destination(endpoint_url=endpoint), state=f"s3://{project.bucket}/state/"
    )
    with LabProxy({NAME: origin.port, "s3.shop.example": port}, USER) as proxy:
        project.ferry("run", "job.yaml", env=through(proxy)).expect(0)
        project.ferry("verify", "job.yaml", env=through(proxy)).expect(0)
        assert set(proxy.absolute) == {f"{NAME}:80", f"s3.shop.example:{port}"}
        assert proxy.refused == {}
    assert project.stored() == IMAGES


def test_a_list_through_a_proxy(project: Project) -> None:
    """The pages of an API and its objects come through the proxy; a proxy without credentials is exit 2."""
    with ListApi() as api, LabProxy({"pim.shop.example": api.port}, USER) as proxy:
        api.url = "http://pim.shop.example"
        project.job(
            manifest={
                "url": "http://pim.shop.example/link", "paginator": {"type": "header_link"}, "explode": "images",
                "fields": {"url": "_.href", "sku": "sku", "n": "_n"},
            },
            source={}, key="{sku}/{n}.jpg",
        )  # fmt: skip
        project.ferry("run", "job.yaml", env=through(proxy)).expect(0)
        assert len(project.stored()) == 40
        assert set(proxy.absolute) == {"pim.shop.example:80"}
        bare = {"HTTP_PROXY": proxy.shown, "NO_PROXY": LOCAL}
        ended = project.ferry("run", "job.yaml", env=bare).expect(2)
        assert f"the proxy {proxy.shown} asks for a user name and a password (HTTP 407)" in ended.text
        assert "Nothing was planned" in ended.text


@pytest.mark.parametrize("dead", [False, True])
def test_a_proxy_that_cannot_be_used(project: Project, origin: Origin, dead: bool) -> None:
    """407, or no proxy at all: the run ends with one error, no row fails, and the next run copies them."""
    project.manifest(rows())
    project.job(source={}, chunk_rows=4)
    with LabProxy({NAME: origin.port}, USER) as proxy:
        (port,) = free_ports(1)
        url = f"http://me:wrong@127.0.0.1:{port}" if dead else f"http://me:wrong@127.0.0.1:{proxy.port}"
        ended = project.ferry("run", "job.yaml", env=through(proxy, HTTP_PROXY=url)).expect(1)
        words = "does not answer (ECONNREFUSED)" if dead else "refuses the user name or the password (HTTP 407)"
        assert f"the proxy {url.replace('me:wrong@', '')} {words}" in ended.text
        assert "wrong" not in ended.text
        assert failures(project) == {}
        project.ferry("run", "job.yaml", env=through(proxy)).expect(0)
    assert project.stored() == IMAGES


def test_a_proxy_that_is_away_for_a_while(project: Project, origin: Origin) -> None:
    """Rows wait while the proxy is away, without a failed row or an attempt that counts."""
    project.manifest(rows())
    project.job(source={}, retries={"attempts": 1, "backoff_s": 0.05, "passes": 0, "chunk_attempts": 0})
    with LabProxy({NAME: origin.port}) as proxy:
        proxy.down()
        process = project.start("run", "job.yaml", env=through(proxy))
        wait_for("rows to wait", lambda: b"does not answer (ECONNREFUSED)" in b"".join(project.files().values()))
        time.sleep(1.0)  # longer than one try
        proxy.up()
        ended = project.cli.end(process, ["run", "job.yaml"]).expect(0)
    assert failures(project) == {}, ended.text
    assert project.stored() == IMAGES
