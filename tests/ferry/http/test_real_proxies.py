"""tinyproxy, squid, and an nginx that asks for client certificates, as Debian has them."""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from demo.origin import Origin as DemoOrigin
from demo.ports import free_ports
from ferry.core import ErrorClass, ObjectError, ProxyUnusable
from ferry.http import Network
from tests.ferry.http.test_proxies import DATA, get
from tests.servers.lab_proxy import LabProxy
from tests.servers.tls_origin import IMAGE, TlsOrigin
from tests.support.certificates import CertificateAuthority
from tests.support.proxies import Program, Squid, StrictNginx, Tinyproxy, find, missing

pytestmark = pytest.mark.slow

NAME, GONE, USER = "img.shop.example", "gone.shop.example", "me:pass-word"


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


@pytest.fixture
def world(ca: CertificateAuthority) -> Iterator[tuple[DemoOrigin, TlsOrigin]]:
    with DemoOrigin() as plain, TlsOrigin(ca.issue(NAME)) as secure:
        plain.add("/a.bin", DATA, "application/octet-stream")
        yield plain, secure


def started(stack: ExitStack, kind: str, folder: Path, plain: DemoOrigin, secure: TlsOrigin, user: str) -> Program:
    if find(kind) is None:
        pytest.skip(missing(kind))
    if kind == "tinyproxy":
        lab = stack.enter_context(LabProxy({NAME: secure.port, f"{NAME}:{plain.port}": plain.port}))
        return stack.enter_context(Tinyproxy(folder, lab.port, user))
    name, _, password = user.partition(":")
    asked = ["openssl", "passwd", "-apr1", password]
    digest = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() if user else ""
    public = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ferry-squid-")))  # squid changes its user
    return stack.enter_context(Squid(public, [NAME, GONE], name, digest))


@pytest.mark.parametrize("user", ["", USER])
@pytest.mark.parametrize("kind", ["tinyproxy", "squid"])
def test_a_real_proxy(
    kind: str, user: str, world: tuple[DemoOrigin, TlsOrigin], ca: CertificateAuthority, tmp_path: Path
) -> None:
    """Objects come over http and https, with user and password; hosts that it cannot reach are errors of the host."""
    plain, secure = world
    with ExitStack() as stack:
        proxy = started(stack, kind, tmp_path / kind, plain, secure, user)
        url = f"http://{user}{'@' if user else ''}127.0.0.1:{proxy.port}"
        network = Network(url, url, ca_bundle=str(ca.file))
        urls = [f"http://{NAME}:{plain.port}/a.bin", f"https://{NAME}:{secure.port}/a.jpg"]
        assert get(network, tmp_path, *urls, *urls) == [DATA, IMAGE] * 2
        closed = free_ports(1)[0]  # squid knows the name, and asks no name server
        gone = get(network, tmp_path, f"http://{GONE}:{closed}/", f"https://{GONE}:{closed}/")
        for error in gone:
            assert isinstance(error, ObjectError)
            assert error.error_class in (ErrorClass.SERVER_ERROR, ErrorClass.CONNECTION), error.message
            assert f"the proxy http://127.0.0.1:{proxy.port}" in error.message
        if user:
            other = f"http://127.0.0.1:{proxy.port}"
            bare = dataclasses.replace(network, http_proxy=other, https_proxy=other)
            for error in get(bare, tmp_path, *urls):
                assert isinstance(error, ProxyUnusable), error
    assert plain.last_headers["/a.bin"]["host"] == f"{NAME}:{plain.port}"


@pytest.mark.skipif(find("nginx") is None, reason=missing("nginx"))
def test_an_nginx_that_asks_for_a_certificate(ca: CertificateAuthority, tmp_path: Path) -> None:
    """`ssl_verify_client on`: the object with the certificate, HTTP 400 without it or with one of another CA."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.jpg").write_bytes(IMAGE)
    certificate, key = ca.issue("client")
    stranger, stranger_key = CertificateAuthority(tmp_path, "Other CA").issue("stranger")
    with StrictNginx(tmp_path / "nginx", tmp_path / "root", ca.issue("127.0.0.1"), ca.file) as server:
        url, allow = f"https://127.0.0.1:{server.port}/a.jpg", ["127.0.0.1"]
        none = Network(ca_bundle=str(ca.file))
        mine = dataclasses.replace(
            none, certificate=str(certificate), key=str(key), certificate_hosts=(f"127.0.0.1:{server.port}",)
        )
        theirs = dataclasses.replace(mine, certificate=str(stranger), key=str(stranger_key))
        assert get(mine, tmp_path, url, allow=allow) == [IMAGE]
        for network in (none, theirs, dataclasses.replace(mine, certificate_hosts=("img.old.example",))):
            (error,) = get(network, tmp_path, url, allow=allow)
            assert isinstance(error, ObjectError)
            assert (error.error_class, error.status_code) == (ErrorClass.CLIENT_ERROR, 400)
