"""Requests through proxies: what they are asked, how they refuse, what stays blocked; certificates."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from demo.origin import Fault, Trouble
from demo.origin import Origin as DemoOrigin
from demo.ports import free_ports
from demo.s3 import S3Server
from ferry.core import ErrorClass, FerryError, ObjectError, ProxyError, ProxyUnusable, Tries
from ferry.http import AddressFilter, Auth, Fetched, Network, Origin, OriginOptions, Proxy, TokenRequest, dial
from ferry.http.address_filter import Resolved
from ferry.http.errors import from_origin
from ferry.storage import S3Access, open_control, open_store, run_preflight
from ferry.storage.errors import from_store_http
from ferry.storage.provider import Digests
from ferry.storage.s3 import S3, credentials_of, endpoint_of
from tests.servers.lab_proxy import LabProxy
from tests.servers.list_api import CLIENT, SECRET, ListApi
from tests.servers.tls_origin import IMAGE, TlsOrigin
from tests.support.certificates import CertificateAuthority

DATA = b"an object" * 3000


class NoLookups:
    """A resolver that fails the test: the proxy alone looks up names."""

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
        raise AssertionError(f"{host} was looked up here")


class Names:
    """A resolver with a few names, which records what it was asked."""

    def __init__(self, **names: Sequence[str]) -> None:
        self.names = {name.replace("_", "."): addresses for name, addresses in names.items()}
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
        self.asked.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        found = [(socket.AF_INET6 if ":" in each else socket.AF_INET, each) for each in self.names[host]]
        return [Resolved(host=each, port=port, family=family) for family, each in found]


def settings(network: Network, **given: Any) -> OriginOptions:
    times = {"connect_s": 5.0, "read_s": 5.0, "total_s": 10.0, "max_bytes": 10_000_000}
    return OriginOptions(**{"headers": {}, "recipients": ["http://*"], "network": network, **times, **given})


def with_origin(
    network: Network, spool: Path, work: Callable[[Origin], Awaitable[Any]], *,
    resolver: Any = None, allow: Sequence[str] = (), **given: Any,
) -> Any:  # fmt: skip
    async def go() -> Any:
        options = settings(network, **given)
        origin = Origin(options, AddressFilter(allow), spool, resolver=resolver or NoLookups())
        try:
            async with asyncio.timeout(20):
                return await work(origin)
        finally:
            await origin.close()

    return uvloop.run(go())


def get(network: Network, spool: Path, *urls: str, **given: Any) -> list[bytes | FerryError]:
    """Fetch the URLs one after the other; return their bytes or errors."""

    async def work(origin: Origin) -> list[bytes | FerryError]:
        found: list[bytes | FerryError] = []
        for url in urls:
            try:
                fetched = await origin.get(url)
            except FerryError as error:
                found.append(error)
            else:
                assert isinstance(fetched, Fetched)
                assert fetched.body.data is not None
                found.append(fetched.body.data)
        return found

    result: list[bytes | FerryError] = with_origin(network, spool, work, **given)
    return result


def through(proxy: LabProxy, **given: Any) -> Network:
    return Network(proxy.url, proxy.url, **given)


@pytest.fixture
def origin() -> Iterator[DemoOrigin]:
    with DemoOrigin() as server:
        server.add("/a.bin", DATA, "application/octet-stream")
        yield server


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


def test_plain_http_in_absolute_form(origin: DemoOrigin, tmp_path: Path) -> None:
    """The proxy alone looks up the name, gets credentials, and passes neither them nor its form on."""
    with LabProxy({"img.shop.example": origin.port}, user="me:p%40ss") as proxy:
        network = dataclasses.replace(through(proxy), http_proxy=f"http://me:p%2540ss@127.0.0.1:{proxy.port}")
        assert get(network, tmp_path, *["http://img.shop.example/a.bin"] * 3) == [DATA] * 3
        assert proxy.absolute == {"img.shop.example:80": 3}
        assert proxy.heads[0].startswith(b"GET http://img.shop.example/a.bin HTTP/1.1\r\n")
        assert b"\r\nHost: img.shop.example\r\n" in proxy.heads[0]
    assert origin.last_headers["/a.bin"]["host"] == "img.shop.example"
    assert "proxy-authorization" not in origin.last_headers["/a.bin"]


def test_a_port_and_a_query_reach_the_proxy_as_they_are(origin: DemoOrigin, tmp_path: Path) -> None:
    """The target is that of the URL, byte for byte, and so are redirects to another host."""
    path = "/a%2Fb;c=1?x=%C3%A4&y=~"
    origin.add(path, DATA, "application/octet-stream")
    with LabProxy({"img.shop.example:8080": origin.port}) as proxy:
        assert get(through(proxy), tmp_path, f"http://img.shop.example.:8080{path}#part") == [DATA]
        assert proxy.heads[0].startswith(f"GET http://img.shop.example:8080{path} HTTP/1.1\r\n".encode())
        assert proxy.absolute == {"img.shop.example:8080": 1}


def test_https_by_connect(ca: CertificateAuthority, tmp_path: Path) -> None:
    """TLS ends at the origin, by the name in the URL; credentials go to the proxy, in CONNECT alone."""
    with (
        TlsOrigin(ca.issue("img.shop.example")) as server,
        LabProxy({"img.shop.example": server.port}, "me:x") as proxy,
    ):
        network = through(proxy, ca_bundle=str(ca.file))
        assert get(network, tmp_path, *["https://img.shop.example/a.jpg"] * 3) == [IMAGE] * 3
        assert (proxy.connects, proxy.absolute) == ({"img.shop.example:443": 1}, {})
        assert server.names == ["img.shop.example"]
        assert server.asked == [("img.shop.example", "/a.jpg")] * 3
        assert [b"\r\nProxy-Authorization: Basic " in head for head in proxy.heads] == [True]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("user", ["", "me:wrong"])
def test_407(scheme: str, user: str, origin: DemoOrigin, tmp_path: Path) -> None:
    """A proxy that refuses the credentials is an error of the whole run, which names it without the password."""
    with LabProxy({"img.shop.example": origin.port}, user="me:topsecret") as proxy:
        url = f"http://{user}{'@' if user else ''}127.0.0.1:{proxy.port}"
        (error,) = get(Network(url, url), tmp_path, f"{scheme}://img.shop.example/a.bin")
        assert isinstance(error, ProxyUnusable)
        what = "refuses the user name or the password" if user else "asks for a user name and a password"
        assert str(error).startswith(f"the proxy {proxy.shown} {what} (HTTP 407). ")
        assert "`network: {proxy: env:NAME}`" in str(error)
        assert "wrong" not in str(error)
        assert proxy.refused == {407: 1}
    assert origin.total == 0


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [(403, ErrorClass.FORBIDDEN, 403), (502, ErrorClass.CONNECTION, None), (503, ErrorClass.CONNECTION, None)],
)
def test_connect_is_refused(status: int, expected: ErrorClass, code: int | None, tmp_path: Path) -> None:
    """Rules of the proxy are `forbidden`, what it cannot reach is `connection`; both name the proxy and the host."""
    with LabProxy() as proxy:
        proxy.status = status
        (error,) = get(through(proxy), tmp_path, "https://img.shop.example/")
    assert isinstance(error, ObjectError)
    assert (error.error_class, error.status_code, error.outage) == (expected, code, False)
    words = f"the proxy {proxy.shown} does not connect to img.shop.example:443 (HTTP {status})"
    assert error.message == words
    assert str(from_store_http(ProxyError(words, status), "destination")) == words


@pytest.mark.parametrize(("status", "told"), [(403, True), (502, True), (404, False)])
def test_what_a_proxy_may_have_answered_itself(status: int, told: bool, tmp_path: Path) -> None:
    """For http://, an answer that the proxy may have made says through which proxy it came."""
    with LabProxy() as proxy:
        proxy.status = status
        (error,) = get(through(proxy), tmp_path, "http://img.shop.example/")
    assert isinstance(error, ObjectError)
    assert error.status_code == status
    assert (f"; the answer came through the proxy {proxy.shown}, and may be its own" in error.message) is told


def test_a_proxy_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said as that, and does not count against the row or its host, until its time is over."""
    (port,) = free_ports(1)
    url = f"http://me:topsecret@127.0.0.1:{port}"
    words = f"the proxy http://127.0.0.1:{port} does not answer (ECONNREFUSED)"
    for scheme in ("http", "https"):
        (error,) = get(Network(url, url), tmp_path, f"{scheme}://img.shop.example/")
        assert isinstance(error, ObjectError)
        assert (error.error_class, error.message) == (ErrorClass.CONNECTION, words)
        assert (error.outage, error.no_response) == (True, False)
    monkeypatch.setattr(dial, "FIRST_S", 0.0)
    (fatal,) = get(Network(url, url), tmp_path, "http://img.shop.example/")
    assert isinstance(fatal, ProxyUnusable)
    assert str(fatal).startswith(words)
    assert "topsecret" not in str(fatal)


def test_a_proxy_that_answered_before_has_more_time(
    origin: DemoOrigin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage of a proxy ends the run after two minutes, and an answer ends the outage."""
    monkeypatch.setattr(dial, "FIRST_S", 0.0)
    monkeypatch.setattr(dial, "ENDS_S", 0.5)
    with LabProxy({"img.shop.example": origin.port, "cdn.shop.example": origin.port}) as proxy:

        async def work(client: Origin) -> list[str]:
            async def error(host: str) -> str:
                with pytest.raises(FerryError) as caught:
                    await client.get(f"http://{host}/a.bin")
                return type(caught.value).__name__

            (await client.get("http://img.shop.example/a.bin")).body.discard()
            await asyncio.to_thread(proxy.down)
            found = [await error("img.shop.example"), await error("img.shop.example")]
            await asyncio.to_thread(proxy.up)
            (await client.get("http://cdn.shop.example/a.bin")).body.discard()
            await asyncio.sleep(0.6)
            await asyncio.to_thread(proxy.down)
            found.append(await error("img.shop.example"))
            await asyncio.sleep(0.6)
            return [*found, await error("img.shop.example")]

        assert with_origin(through(proxy), tmp_path, work) == ["ObjectError"] * 3 + ["ProxyUnusable"]


async def _answering(answer: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"220 mail.shop.example ESMTP\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nsurplus", b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n", b"x" * 20_000,
    ],
)  # fmt: skip
def test_what_is_not_a_proxy(answer: bytes, tmp_path: Path) -> None:
    """Whatever answers CONNECT with something else is an error of the connection, and nothing is sent to it."""

    async def go() -> ObjectError:
        server = await _answering(answer)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        origin = Origin(settings(Network(url, url)), AddressFilter(), tmp_path, resolver=NoLookups())
        with pytest.raises(ObjectError) as caught:
            await origin.get("https://img.shop.example/")
        await origin.close()
        server.close()
        return caught.value

    error = asyncio.run(go())
    assert error.error_class is ErrorClass.CONNECTION
    assert error.message.startswith("the proxy http://127.0.0.1:")


def test_a_proxy_that_never_answers_connect(tmp_path: Path) -> None:
    """It is an error of the connection that names the proxy and the host, before the origin's time is over."""

    async def go() -> ObjectError:
        server = await asyncio.start_server(lambda *_: asyncio.sleep(10), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        origin = Origin(settings(Network(url, url), connect_s=0.5), AddressFilter(), tmp_path, resolver=NoLookups())
        with pytest.raises(ObjectError) as caught:
            await origin.get("https://img.shop.example/")
        await origin.close()
        server.close()
        return caught.value

    error = asyncio.run(go())
    assert (error.error_class, error.outage) == (ErrorClass.CONNECTION, False)
    assert error.message.endswith("does not connect to img.shop.example:443 (not in time)")


# --- the address filter

BLOCKED = [
    ("http://127.0.0.1/", "a loopback address"),
    ("http://[::1]/", "loopback"),
    ("http://10.1.2.3/", "a private address"),
    ("https://192.168.1.1/", "a private address"),
    ("http://0x0a010203/", "a private address"),
    ("http://169.254.169.254/latest/", "metadata address"),
    ("http://[fd00:ec2::254]/", "metadata address"),
    ("http://metadata.google.internal/", "metadata service"),
    ("https://METADATA.google.internal./", "metadata service"),
    ("http://metadata/", "metadata service"),
    ("http://instance-data/latest/", "metadata service"),
    ("http://img.shop.example:22/", "port 22 is not for HTTP"),
    ("https://img.shop.example:6379/", "port 6379 is not for HTTP"),
]


@pytest.mark.parametrize(("url", "why"), BLOCKED)
@pytest.mark.parametrize("local", [False, True])
def test_what_a_proxy_is_never_asked(url: str, why: str, local: bool, tmp_path: Path) -> None:
    """Literal addresses, names of metadata services and ports of other services are blocked as without a proxy."""
    names = Names(metadata=["169.254.169.254"], metadata_google_internal=["169.254.169.254"])
    names.names |= {"metadata.google.internal.": ["169.254.169.254"], "instance-data": ["169.254.169.254"]}
    with LabProxy() as proxy:
        (error,) = get(through(proxy, local_names=local), tmp_path, url, resolver=names)
        assert isinstance(error, ObjectError)
        assert error.error_class is ErrorClass.BLOCKED_ADDRESS
        assert why in error.message or (local and "metadata address" in error.message)
        assert (proxy.heads, names.asked == [] or local) == ([], True)


def test_localhost_goes_through_no_proxy_and_is_blocked(origin: DemoOrigin, tmp_path: Path) -> None:
    """Also where NO_PROXY does not name it, and a redirect leads there."""
    names = Names(localhost=["127.0.0.1"])
    with LabProxy({"img.shop.example": origin.port}) as proxy:
        origin.add("/r", DATA, "x/y", Fault(Trouble.REDIRECT, target=f"http://localhost:{origin.port}/a.bin"))
        urls = [f"http://localhost:{origin.port}/a.bin", "http://img.shop.example/r"]
        for error in get(through(proxy), tmp_path, *urls, resolver=names):
            assert isinstance(error, ObjectError)
            assert error.error_class is ErrorClass.BLOCKED_ADDRESS
        assert proxy.absolute == {"img.shop.example:80": 1}


def test_hosts_without_a_proxy_are_filtered_as_ever(origin: DemoOrigin, tmp_path: Path) -> None:
    """NO_PROXY and `allow_private_addresses` are direct: the first blocked where it leads to private addresses."""
    names = Names(cdn_corp=["127.0.0.1"], img_internal=["127.0.0.1"])
    url = f"http://img.internal:{origin.port}/a.bin"
    with LabProxy({"img.shop.example": origin.port}) as proxy:
        network = through(proxy, no_proxy=(".corp",), direct=("img.internal",))
        found = get(
            network, tmp_path, f"http://cdn.corp:{origin.port}/a.bin", url, "http://img.shop.example/a.bin",
            resolver=names, allow=["img.internal"],
        )  # fmt: skip
        assert isinstance(found[0], ObjectError)
        assert found[0].error_class is ErrorClass.BLOCKED_ADDRESS
        assert found[1:] == [DATA, DATA]
        assert proxy.absolute == {"img.shop.example:80": 1}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_names_looked_up_here(scheme: str, origin: DemoOrigin, ca: CertificateAuthority, tmp_path: Path) -> None:
    """`proxy_names: local`: CONNECT to an address that was judged, with the name in SNI and Host."""
    names = Names(img_shop_example=["10.1.2.3", "1.2.3.4", "1.2.3.5"], intranet=["10.1.2.3"])
    with TlsOrigin(ca.issue("img.shop.example")) as server:
        port = origin.port if scheme == "http" else server.port
        number = 80 if scheme == "http" else 443
        with LabProxy({f"1.2.3.5:{number}": port}) as proxy:
            network = through(proxy, local_names=True, ca_bundle=str(ca.file))
            urls = [f"{scheme}://img.shop.example/a.bin", f"{scheme}://intranet/", f"{scheme}://gone.example/"]
            found = get(network, tmp_path, *urls, resolver=names)
            assert found[0] == (DATA if scheme == "http" else IMAGE)
            assert [error.error_class for error in found[1:] if isinstance(error, ObjectError)] == [
                ErrorClass.BLOCKED_ADDRESS, ErrorClass.DNS,
            ]  # fmt: skip
            assert proxy.connects == {f"1.2.3.4:{number}": 1, f"1.2.3.5:{number}": 1}
        if scheme == "https":
            assert (server.names, server.asked) == (["img.shop.example"], [("img.shop.example", "/a.bin")])
        else:
            assert origin.last_headers["/a.bin"]["host"] == "img.shop.example"


def test_a_proxy_that_is_away_is_asked_for_one_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With names looked up here, it is not asked for each address: its silence would outlast the request's time."""
    (port,) = free_ports(1)
    asked: list[str] = []
    to_proxy = dial.Dialer._to_proxy

    async def counted(self: dial.Dialer, proxy: Proxy) -> socket.socket:
        asked.append(str(proxy))
        return await to_proxy(self, proxy)

    monkeypatch.setattr(dial.Dialer, "_to_proxy", counted)
    network = Network(http_proxy=f"http://127.0.0.1:{port}", local_names=True)
    names = Names(img_shop_example=["1.2.3.4", "1.2.3.5"])
    (error,) = get(network, tmp_path, "http://img.shop.example/", resolver=names)
    assert "does not answer (ECONNREFUSED)" in str(error)
    assert len(asked) == 1


# --- certificates


def client(bucket: str, access: S3Access) -> S3:
    keys, network = credentials_of(access), access.network
    return S3(endpoint_of(access), bucket, "us-east-1", keys, timeout_s=60, read_s=30, network=network)


def digests(data: bytes) -> Digests:
    return Digests(hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest())


async def put(access: S3Access) -> None:
    http = client("bucket", access)
    try:
        await http.put("a", b"x", digests(b"x"), {}, create=False)
    finally:
        await http.close()


def test_a_private_ca_is_trusted_by_the_bundle(ca: CertificateAuthority, tmp_path: Path) -> None:
    """Without the bundle the error says what to set, in the same words for an origin and for a store."""
    words = "the certificate is not trusted: unable to get local issuer certificate; set `network.ca_bundle`"
    with TlsOrigin(ca.issue("127.0.0.1")) as server:
        url = f"https://127.0.0.1:{server.port}/a.jpg"
        (error,) = get(Network(), tmp_path, url, allow=["127.0.0.1"])
        assert isinstance(error, ObjectError)
        assert (error.error_class, error.message) == (ErrorClass.TLS, words)
        assert get(Network(ca_bundle=str(ca.file)), tmp_path, url, allow=["127.0.0.1"]) == [IMAGE]
        access = S3Access(f"https://127.0.0.1:{server.port}", "us-east-1", keys=("id", "secret", None))
        there = open_control("s3://bucket", access)
        there._tries = Tries(attempts=1)
        with pytest.raises(ObjectError) as caught:
            there.refusal("", writing=False)
        assert caught.value.message == words

        with pytest.raises(ObjectError) as refused:
            asyncio.run(put(access))
        assert (refused.value.error_class, refused.value.message) == (ErrorClass.STORE_ERROR, words)


def test_words_of_certificates_and_names() -> None:
    """An expired certificate is not a matter of the bundle; DNS errors are said as such on both sides."""
    expired = ssl.SSLCertVerificationError(1, "x")
    expired.verify_code, expired.verify_message = 10, "certificate has expired"
    assert str(from_origin(expired)) == "the certificate is not trusted: certificate has expired"
    assert str(from_store_http(expired, "destination")) == str(from_origin(expired))
    words = "the state's host name does not resolve. Check `endpoint_url` and DNS"
    assert str(from_store_http(socket.gaierror(), "state")) == words


def test_a_client_certificate_goes_to_its_hosts(ca: CertificateAuthority, tmp_path: Path) -> None:
    """A server that asks for one gets it if the job names the host; other servers do not get it."""
    certificate, key = ca.issue("client")
    with TlsOrigin(ca.issue("127.0.0.1"), client_ca=ca.file) as server:
        named = Network(
            ca_bundle=str(ca.file), certificate=str(certificate), key=str(key),
            certificate_hosts=(f"127.0.0.1:{server.port}",),
        )  # fmt: skip
        url, allow = f"https://127.0.0.1:{server.port}/a.jpg", ["127.0.0.1"]
        assert get(named, tmp_path, url, allow=allow) == [IMAGE]
        (error,) = get(dataclasses.replace(named, certificate_hosts=("other.example",)), tmp_path, url, allow=allow)
        assert isinstance(error, ObjectError)
        assert len(server.asked) == 1


# --- other clients


def test_tokens_come_through_the_proxy(tmp_path: Path) -> None:
    """A request for a token has the proxy of the job, as objects have."""
    with ListApi() as api, LabProxy({"id.shop.example": api.port, "pim.shop.example": api.port}) as proxy:
        api.protected = True
        auth = Auth(["http://pim.shop.example"], token=TokenRequest("http://id.shop.example/token", CLIENT, SECRET))

        async def work(origin: Origin) -> None:
            await origin.download("http://pim.shop.example/single", {}, io.BytesIO(), 1 << 20)

        with_origin(through(proxy), tmp_path, work, auth=auth)
        assert proxy.absolute == {"id.shop.example:80": 1, "pim.shop.example:80": 1}


@pytest.mark.parametrize("user", ["", "me:x"])
def test_a_bucket_through_a_proxy(user: str, s3: S3Server, tmp_path: Path) -> None:
    """Preflight, uploads, listing and deletion go through the proxy, which alone knows the store."""
    port = int(s3.endpoint_url.rpartition(":")[2])
    bucket = f"proxied-{free_ports(1)[0]}"
    s3.client().create_bucket(Bucket=bucket)
    with LabProxy({"s3.shop.example": port}, user) as proxy:
        keys = (s3.access_key, s3.secret_key, None)
        access = S3Access(f"http://s3.shop.example:{port}", s3.region, keys=keys, network=through(proxy))
        run_preflight(f"s3://{bucket}/p/", access)

        async def work() -> list[bytes]:
            http, store = client(bucket, access), open_store(f"s3://{bucket}/p/", access, tmp_path)
            for key, data in (("p/a", b"one"), ("p/b", DATA)):
                sent = await http.put(key, data, digests(data), {}, create=False)
                assert sent.etag == f'"{hashlib.md5(data).hexdigest()}"'
            found = [await (await http.get(key, "source")).response.read() for key in ("p/a", "p/b")]
            assert (await store.head("a")) is not None
            await store.delete("a")
            await store.close()
            await http.close()
            return found

        assert uvloop.run(work()) == [b"one", DATA]
        listed = [info.key for page in open_store(f"s3://{bucket}/p/", access, tmp_path).list() for info in page]
        assert listed == ["b"]
        assert set(proxy.absolute) == {f"s3.shop.example:{port}"}
        assert proxy.absolute.total() >= 8


def test_a_dead_proxy_before_a_bucket(tmp_path: Path) -> None:
    """It is said as that, and not as the store's failure."""
    (port,) = free_ports(1)
    access = S3Access(
        "http://s3.shop.example", "r", keys=("i", "s", None), network=Network(f"http://127.0.0.1:{port}", "")
    )

    with pytest.raises(ObjectError) as caught:
        asyncio.run(put(access))
    assert caught.value.error_class is ErrorClass.STORE_ERROR
    assert caught.value.message == f"the proxy http://127.0.0.1:{port} does not answer (ECONNREFUSED)"
