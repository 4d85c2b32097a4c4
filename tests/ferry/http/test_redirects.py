"""Headers and blocked targets of redirects, with a fake connector and without network access."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass
from ferry.http.address_filter import AddressFilter
from ferry.http.connection import Http1Connection, Response
from ferry.http.dial import Site
from ferry.http.exchange import OriginOptions
from ferry.http.low_speed import LowSpeedGuard
from ferry.http.origin import Origin

HEADERS = {"Authorization": "Bearer s3cret", "Cookie": "s3cret", "X-Api-Key": "s3cret", "Accept-Language": "de"}


class Transport:
    """A transport that discards what is written to it."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_: 0


class Connector:
    """A replacement for ferry.http.pool that answers by site and target, through the real parser."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []  # URL, head

    async def request(
        self, site: Site, head: bytes, *, deadline: float, is_head: bool = False, fresh: bool = False
    ) -> Response:
        scheme, host, port = site
        url = f"{scheme}://{host}:{port}{head.split(b' ')[1].decode()}"
        self.asked.append((url, head.decode()))
        raw = self.answers[url]
        loop = asyncio.get_running_loop()
        connection = Http1Connection(loop, lambda _: None, LowSpeedGuard(60))
        connection.connection_made(cast("asyncio.BaseTransport", Transport()))
        loop.call_soon(lambda: connection.data_received(raw))
        return await connection.request(head, None)

    async def close(self) -> None: ...


def moved(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {to}\r\n\r\n".encode()


OBJECT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def follow(
    first: str, answers: dict[str, bytes], folder: Path, allow: list[str] = [], *, manifest: bool = False
) -> tuple[Connector, ObjectError | None]:
    """Fetch ``first`` as an object or a manifest; return the connector with its requests, and the error."""
    connector = Connector(answers)

    async def scenario() -> None:
        options = OriginOptions(HEADERS, ["http://*"], connect_s=15, read_s=30, total_s=600, max_bytes=1000)
        origin = Origin(options, AddressFilter(allow), folder)
        origin._connections = connector  # type: ignore[assignment]
        if manifest:
            await origin.download(first, HEADERS, io.BytesIO(), 1000)
        else:
            (await origin.get(first)).body.discard()

    try:
        asyncio.run(scenario())
    except ObjectError as error:
        return connector, error
    return connector, None


@pytest.mark.parametrize("manifest", [False, True])
@pytest.mark.parametrize(
    ("to", "stays"),
    [
        ("/b", True),
        ("https://img.example/b", True),
        ("https://img.example:443/b", True),
        ("https://IMG.example/b", True),
        ("//img.example/b", True),
        ("https://user:pw@img.example/b", True),
        ("http://img.example/b", False),  # plain HTTP shows the secret to the network
        ("http://img.example:443/b", False),
        ("https://img.example:8443/b", False),
        ("https://other.example/b", False),
        ("https://sub.img.example/b", False),
        ("https://example/b", False),
        ("https://img.example./b", False),
        ("https://img.example@other.example/b", False),
        ("//other.example/b", False),
    ],
)
def test_secrets_go_to_their_site_alone(to: str, stays: bool, manifest: bool, tmp_path: Path) -> None:
    """A redirect that changes scheme, host or port gets no header that may be secret."""
    answers = {"https://img.example:443/a": moved(to)}
    for site in (
        "https://img.example:443", "http://img.example:80", "http://img.example:443", "https://img.example:8443",
        "https://other.example:443", "https://sub.img.example:443", "https://example:443", "https://img.example.:443",
    ):  # fmt: skip
        answers[f"{site}/b"] = OBJECT
    connector, error = follow("https://img.example/a", answers, tmp_path, manifest=manifest)
    assert error is None
    (_, first), (url, second) = connector.asked
    assert first.count("s3cret") == 3
    assert second.count("s3cret") == (3 if stays else 0), url
    assert "Accept-Language: de" in second
    assert "dXNlcjpwdw" not in second, "user info in a Location must not be sent"


def test_user_info_of_an_address_goes_to_its_site_alone(tmp_path: Path) -> None:
    """The password in a row's URL is sent to the site of that URL, and not after a redirect to another site."""
    answers = {
        "https://img.example:443/a": moved("/b"),
        "https://img.example:443/b": moved("https://other.example/c"),
        "https://other.example:443/c": moved("https://img.example/d"),
        "https://img.example:443/d": OBJECT,
    }
    connector, error = follow("https://al:pw@img.example/a", answers, tmp_path)
    assert error is None
    assert ["Authorization: Basic YWw6cHc=" in head for _, head in connector.asked] == [True, True, False, False]


BLOCKED = [
    "http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://0177.1/", "http://127.1/", "http://127.0.0.1./",
    "http://[::1]/", "http://[::ffff:10.0.0.1]/", "http://[::ffff:a00:1]/", "http://[64:ff9b::a00:1]/",
    "http://[64:ff9b:1::a00:1]/", "http://[2002:a00:1::]/", "http://[2001:0:1:2:3:4:5601:5601]/",
    "http://[fe80::1%25eth0]/", "http://169.254.169.254/latest/", "http://[fd00:ec2::254]/latest/",
    "http://100.100.100.200/", "http://u:p@169.254.169.254/", "http://224.0.0.1/", "http://[ff02::1]/",
    "http://0.0.0.0/", "http://255.255.255.255/", "http://img.example:25/", "https://img.example:22/",
    "http://img.example:6667/", "http://1.1.1.1:53/", "http://[2606:4700::1]:110/",
]  # fmt: skip


@pytest.mark.parametrize("manifest", [False, True])
@pytest.mark.parametrize("url", BLOCKED)
def test_no_connection_is_asked_for(url: str, manifest: bool, tmp_path: Path) -> None:
    """A blocked URL opens no connection, neither as the URL of a row or manifest nor as a redirect target."""
    connector, error = follow(url, {}, tmp_path, manifest=manifest)
    assert error is not None
    assert error.error_class is ErrorClass.BLOCKED_ADDRESS
    assert connector.asked == []
    connector, error = follow("https://img.example/a", {"https://img.example:443/a": moved(url)}, tmp_path,
                              manifest=manifest)  # fmt: skip
    assert error is not None
    assert error.error_class is ErrorClass.BLOCKED_ADDRESS
    assert error.message.startswith("redirect target: ")
    assert len(connector.asked) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    [
        "http://" + "@" * 16_000 + "[",
        "http://" + "a@" * 8_000 + ":x",
        "http://" + "@[" * 8_000,
        "http://" + "\ufdfa" * 5_300 + "/",
        "http://a" + "\u30fb" * 5_300 + "\u6f22/",
        "http://[" + "1:" * 8_000 + "]/",
        "http://" + "1." * 8_000,
    ],
)
def test_no_address_takes_long_to_read(url: str, tmp_path: Path) -> None:
    """A hostile Location is parsed in less than 0.5 s of processor time, since parsing blocks the event loop."""
    answers = {"https://img.example:443/a": moved(url)}
    started = time.process_time()
    _, error = follow("https://img.example/a", answers, tmp_path)
    assert time.process_time() - started < 0.5
    assert error is not None
    assert error.error_class is ErrorClass.BAD_URL


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/", "http://[fd00:ec2::254]/", "http://100.100.100.200/", "http://[fd00:c1::a9fe:a9fe]/",
        "http://[fd00:a9fe:a9fe::1]/", "http://[fd00:100::100:200]/",
    ],
)  # fmt: skip
def test_metadata_is_not_opened_by_what_lies_around_it(url: str, tmp_path: Path) -> None:
    """A metadata address stays blocked, however large the networks that the job allows."""
    wide = ["0.0.0.0/0", "::/0", "169.254.0.0/16", "169.254.169.0/24", "fd00::/8", "100.64.0.0/10"]
    connector, error = follow(url, {}, tmp_path, wide)
    assert error is not None
    assert error.error_class is ErrorClass.BLOCKED_ADDRESS
    assert connector.asked == []


def test_a_port_of_another_service_that_the_job_names(tmp_path: Path) -> None:
    """An entry `host:port` allows that port at that host, and no other port or host."""
    allow = ["scan.internal:6566", "10.0.0.5:6000", "10.0.0.6"]
    answers = {"http://scan.internal:6566/a": OBJECT, "http://10.0.0.5:6000/a": OBJECT, "http://10.0.0.6:80/a": OBJECT}
    for url in answers:
        assert follow(url, answers, tmp_path, allow)[1] is None
    for url in ("http://scan.internal:6000/a", "http://10.0.0.5:80/a", "http://10.0.0.6:6000/a", "http://10.0.0.7/a"):
        connector, error = follow(url, {}, tmp_path, allow)
        assert error is not None, url
        assert error.error_class is ErrorClass.BLOCKED_ADDRESS
        assert connector.asked == []
