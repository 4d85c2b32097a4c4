"""The HTTP client for origins, against raw servers on 127.0.0.1, without other network access."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import ipaddress
import os
import socket
import ssl
import struct
import traceback
import zlib
from asyncio import selector_events
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ferry.core import body as body_module
from ferry.core import memory_budget as budget_module
from ferry.core.errors import AddressBlocked, BodyCut, Disconnected, Fatal, NotHttp, ObjectError, UserError
from ferry.core.records import ErrorClass
from ferry.http import dial, low_speed
from ferry.http.address_filter import AddressFilter, Resolved
from ferry.http.content_encoding import decoded, decoders
from ferry.http.errors import from_origin
from ferry.http.exchange import Downloaded, Fetched, OriginOptions
from ferry.http.origin import Origin
from ferry.job.retries import Timeouts

LOCAL = ["127.0.0.0/8"]
EVERY_SITE = ["http://*"]
DATA = os.urandom(40_000)
NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record each address that a test connects to, and reject all but loopback."""
    seen: list[str] = []
    connect = selector_events.BaseSelectorEventLoop.sock_connect

    async def only_loopback(self: Any, sock: socket.socket, address: Any) -> None:
        seen.append(address[0])
        if not ipaddress.ip_address(address[0]).is_loopback:
            raise OSError(f"a test tried to connect to {address[0]}")
        await connect(self, sock, address)

    monkeypatch.setattr(selector_events.BaseSelectorEventLoop, "sock_connect", only_loopback)
    return seen


class NamesResolver:
    """A resolver with fixed names and addresses."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names, self.asked = names, list[str]()

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
        self.asked.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [
            Resolved(
                host=ip,
                port=port,
                family=socket.AF_INET6 if ":" in ip else socket.AF_INET,
            )
            for ip in self.names[host]
        ]

    async def close(self) -> None: ...


class Request:
    """One request as the server received it."""

    def __init__(self, head: bytes, port: int) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.line = lines[0]
        self.target = lines[0].split(" ")[1]
        self.port = port
        self.headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:] if line)}


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[bool | None]]


class Server:
    """A raw server. ``answer`` writes the response and returns True to keep the connection."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.requests, self.connections, self.open = answer, list[Request](), 0, 0
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                request = Request(await reader.readuntil(b"\r\n\r\n"), self.port)
                self.requests.append(request)
                if not await self.answer(request, writer):
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Server]:
    server = Server(answer)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


def reply(body: bytes = b"", status: str = "200 OK", *headers: str, length: int | None = -1) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers]
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length < 0 else length}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def always(raw: bytes, keep: bool = False) -> Answer:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> bool:
        writer.write(raw)
        return keep

    return answer


def by_path(answers: dict[str, bytes]) -> Answer:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> bool:
        writer.write(answers[request.target])
        return True

    return answer


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def client(spool: Path, **kwargs: Any) -> Origin:
    names, allow = kwargs.pop("names", {}), kwargs.pop("allow", LOCAL)
    timeouts = kwargs.pop("timeouts", Timeouts(connect_s=2, read_s=2, total_s=5))
    options: dict[str, Any] = {
        "headers": {},
        "recipients": EVERY_SITE,
        "user_agent": "ferry-test",
        "max_bytes": 1_000_000,
    }
    options.update((name, kwargs.pop(name)) for name in list(options) if name in kwargs)
    given: dict[str, Any] = {"resolver": NamesResolver(names), "now": lambda: NOW} | kwargs
    return Origin(OriginOptions(**options, **timeouts.model_dump()), AddressFilter(allow), spool, **given)


def fetch(
    answer: Answer, spool: Path, path: str = "/a.jpg", times: int = 1, **kwargs: Any
) -> tuple[list[Fetched | ObjectError | Fatal], Server]:
    """Fetch ``path`` from a server ``times`` times with one client; return the results and the server."""

    async def scenario() -> tuple[list[Fetched | ObjectError | Fatal], Server]:
        results: list[Fetched | ObjectError | Fatal] = []
        async with serving(answer) as server:
            origin = client(spool, **kwargs)
            for _ in range(times):
                try:
                    results.append(await origin.get(path if "://" in path else f"http://127.0.0.1:{server.port}{path}"))
                except (ObjectError, Fatal) as exc:
                    results.append(exc)
            await origin.close()
            return results, server

    return asyncio.run(scenario())


def got(answer: Answer, spool: Path, path: str = "/a.jpg", **kwargs: Any) -> Fetched:
    (result,), _ = fetch(answer, spool, path, **kwargs)
    assert isinstance(result, Fetched), result
    return result


def refused(answer: Answer, spool: Path, path: str = "/a.jpg", **kwargs: Any) -> ObjectError:
    (result,), _ = fetch(answer, spool, path, **kwargs)
    assert isinstance(result, ObjectError), result
    assert list(spool.glob("*")) == []
    return result


def content(fetched: Fetched) -> bytes:
    with fetched.body.buffer() as data:
        return bytes(data)


# --- objects ---


def test_an_object_with_what_its_origin_says(spool: Path) -> None:
    """A 200 gives body, digests, status and validators in one request with Ferry's User-Agent."""
    raw = reply(DATA, "200 OK", "Content-Type: image/jpeg", 'ETag: "x"', "Last-Modified: yesterday", "Set-Cookie: a=b")
    (first, second), server = fetch(always(raw, keep=True), spool, times=2)
    assert isinstance(first, Fetched)
    assert isinstance(second, Fetched)
    assert content(first) == DATA
    assert first.body.md5 == hashlib.md5(DATA).hexdigest()
    assert first.body.sha256 == hashlib.sha256(DATA).hexdigest()
    assert (first.status, first.content_type, first.etag) == (200, "image/jpeg", '"x"')
    assert (first.last_modified, first.requests) == ("yesterday", 1)
    assert server.connections == 1  # the connection was used again
    sent = server.requests[1].headers
    assert sent["accept-encoding"] == "identity"
    assert sent["user-agent"] == "ferry-test"
    assert "cookie" not in sent


@pytest.mark.parametrize(
    "raw",
    [
        reply(DATA),
        reply(DATA, "203 Non-Authoritative Information"),
        reply(DATA, length=None),
        reply(DATA, "200 OK", "Content-Encoding: identity"),
        b"HTTP/1.0 200 OK\r\n\r\n" + DATA,
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + reply(DATA),
        reply(b"9c40\r\n" + DATA + b"\r\n0\r\n\r\n", "200 OK", "Transfer-Encoding: chunked", length=None),
    ],
)
def test_every_way_to_send_a_body(raw: bytes, spool: Path) -> None:
    """A body arrives intact with a length, in chunks, or ended by the end of the connection."""
    assert content(got(always(raw), spool)) == DATA


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (b'"plain"', '"plain"'),
        ('"ä"'.encode(), '"ä"'),
        ('"ä"'.encode("latin-1"), '"ä"'),
        (b"\xff\xfe", "\u00ff\u00fe"),
        (b"\x9b2J", None),
        (b"a\tb", None),
        (b"x" * 1024, "x" * 1024),
        (b"x" * 1025, None),
    ],
)
def test_what_an_origin_says_is_text_that_can_be_kept(raw: bytes, kept: str | None, spool: Path) -> None:
    """Validators for the ledger hold no surrogates, no control characters and at most 1,024 characters."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nETag: %b\r\nLast-Modified: %b\r\nContent-Type: %b\r\n\r\nx"
    fetched = got(always(head % (raw, raw, raw)), spool)
    assert fetched.etag == fetched.last_modified == kept
    assert fetched.content_type == (kept if kept and kept.isascii() else None)


def test_an_empty_object(spool: Path) -> None:
    """An empty body is an object; the image check decides about it later."""
    assert content(got(always(reply(b"")), spool)) == b""
    assert content(got(always(reply(b"", "200 OK", "Content-Encoding: gzip")), spool)) == b""


def test_large_objects_are_spooled(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body above the spool limit is in a file, with the right bytes and digests."""
    monkeypatch.setattr(budget_module, "SPOOL_OVER_BYTES", 1000)
    fetched = got(always(reply(DATA)), spool)
    assert fetched.body.path is not None
    assert content(fetched) == DATA
    assert fetched.body.sha256 == hashlib.sha256(DATA).hexdigest()
    fetched.body.discard()
    assert list(spool.glob("*")) == []


# --- encodings ---

TEXT = b"hello " * 10_000
BARE = zlib.compressobj(wbits=-15)
RAW_DEFLATE = BARE.compress(TEXT) + BARE.flush()


@pytest.mark.parametrize(
    ("encoding", "encoded"),
    [
        ("gzip", gzip.compress(TEXT, mtime=0)),
        ("X-GZIP", gzip.compress(TEXT, mtime=0)),
        (
            "gzip",
            gzip.compress(TEXT[:7000], mtime=0) + gzip.compress(b"", mtime=0) + gzip.compress(TEXT[7000:], mtime=0),
        ),
        ("gzip", gzip.compress(TEXT, mtime=0) + b"\0" * 100),
        ("gzip", gzip.compress(TEXT[:7000], mtime=0) + b"\0" * 512 + gzip.compress(TEXT[7000:], mtime=0)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", RAW_DEFLATE),
        ("gzip, identity", gzip.compress(TEXT, mtime=0)),
        ("gzip, deflate", zlib.compress(gzip.compress(TEXT, mtime=0))),
        ("deflate,gzip", gzip.compress(zlib.compress(TEXT), mtime=0)),
    ],
)
@pytest.mark.parametrize("piece", [None, 1, 3])
def test_encodings_that_come_anyway_are_undone(encoding: str, encoded: bytes, piece: int | None, spool: Path) -> None:
    """gzip and deflate in all forms, also stacked, are decoded however the network splits them."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", "200 OK", f"Content-Encoding: {encoding}", length=len(encoded)))
        for at in range(0, len(encoded), piece or len(encoded)):
            writer.write(encoded[at : at + (piece or len(encoded))])
            await asyncio.sleep(0)

    assert content(got(answer, spool)) == TEXT


@pytest.mark.parametrize("cut", [None, 1, 5, 10, 11, 17, 60])
def test_decoders_do_not_care_where_pieces_end(cut: int | None) -> None:
    """A decoder gives the same output however its input is split."""
    encoded = gzip.compress(b"one", mtime=0) + b"\0\0" + gzip.compress(b"two", mtime=0) + gzip.compress(b"", mtime=0)
    (decoder,) = decoders(["gzip"], 1000)
    pieces = [encoded] if cut is None else [encoded[at : at + cut] for at in range(0, len(encoded), cut)]
    assert b"".join(plain for piece in pieces for plain in decoder.feed(piece)) == b"onetwo"
    decoder.finish()


GZ = gzip.compress(TEXT, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "encoded", "expected"),
    [
        ("gzip", GZ[:-5], ErrorClass.TRUNCATED),
        ("gzip", GZ[:4], ErrorClass.TRUNCATED),
        ("gzip", GZ + GZ[:12], ErrorClass.TRUNCATED),
        ("deflate", zlib.compress(TEXT)[:-1], ErrorClass.TRUNCATED),
        ("deflate", b"x", ErrorClass.TRUNCATED),
        ("gzip", GZ[:-8] + b"\0\0\0\0" + GZ[-4:], ErrorClass.BAD_ENCODING),
        ("gzip", GZ[:30] + b"\xff" * 20 + GZ[50:], ErrorClass.BAD_ENCODING),
        ("gzip", TEXT, ErrorClass.BAD_ENCODING),
        ("gzip", GZ + b"garbage", ErrorClass.BAD_ENCODING),
        ("deflate", zlib.compress(TEXT) + b"x", ErrorClass.BAD_ENCODING),
        ("br", b"whatever", ErrorClass.BAD_ENCODING),
        ("zstd", b"whatever", ErrorClass.BAD_ENCODING),
        ("gzip, br", b"whatever", ErrorClass.BAD_ENCODING),
        ("gzip," * 5, b"whatever", ErrorClass.BAD_ENCODING),
        ("gzip, gzip", gzip.compress(GZ[:-5], mtime=0), ErrorClass.TRUNCATED),
    ],
)
def test_encodings_that_cannot_be_undone(encoding: str, encoded: bytes, expected: ErrorClass, spool: Path) -> None:
    """Incomplete encoded data is truncated; corrupt data or an unknown encoding is bad_encoding."""
    raw = reply(encoded, "200 OK", f"Content-Encoding: {encoding}")
    assert refused(always(raw), spool).error_class is expected


@pytest.mark.parametrize("layers", [1, 2])
def test_a_decompression_bomb_is_too_large(layers: int, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that decodes to more than max_bytes is too_large; decoding stops there, and no spool file stays."""
    monkeypatch.setattr(budget_module, "SPOOL_OVER_BYTES", 1000)
    written: list[int] = []
    write = body_module.BodyWriter.write

    def note(self: body_module.BodyWriter, piece: bytes) -> None:
        written.append(len(piece))
        write(self, piece)

    monkeypatch.setattr(body_module.BodyWriter, "write", note)
    bomb = bytes(50_000_000)
    for _ in range(layers):
        bomb = gzip.compress(bomb, mtime=0)
    raw = reply(bomb, "200 OK", "Content-Encoding: " + ", ".join(["gzip"] * layers))
    error = refused(always(raw), spool)
    assert error.error_class is ErrorClass.TOO_LARGE
    assert sum(written) <= 1_000_000


EMPTY_MEMBER = gzip.compress(b"", mtime=0)


@pytest.mark.parametrize(
    ("inside", "encoding", "expected"),
    [
        (gzip.compress(b"x", mtime=0) + bytes(50_000_000), "gzip, gzip", ErrorClass.TOO_LARGE),
        (zlib.compress(gzip.compress(b"x", mtime=0) + bytes(50_000_000)), "gzip, deflate, gzip", ErrorClass.TOO_LARGE),
        (EMPTY_MEMBER * 60_000, "gzip, gzip", ErrorClass.TOO_LARGE),
        (EMPTY_MEMBER * 40_000, "gzip, gzip", None),
    ],
)
def test_a_bomb_whose_last_layer_gives_nothing(
    inside: bytes, encoding: str, expected: ErrorClass | None, spool: Path
) -> None:
    """Each layer has the size limit, also if it decodes to padding or empty members."""
    raw = reply(gzip.compress(inside, mtime=0), "200 OK", f"Content-Encoding: {encoding}")
    if expected is None:
        assert content(got(always(raw), spool)) == b""
    else:
        assert refused(always(raw), spool).error_class is expected


def test_members_without_end(spool: Path) -> None:
    """A gzip stream with more than 100,000 members is bad_encoding, whatever max_bytes allows."""
    raw = reply(EMPTY_MEMBER * 110_000, "200 OK", "Content-Encoding: gzip")
    error = refused(always(raw), spool, max_bytes=10_000_000)
    assert error.error_class is ErrorClass.BAD_ENCODING
    assert "members" in error.message


@pytest.mark.parametrize(
    ("inside", "steps"),
    [
        (gzip.compress(b"x", mtime=0) + bytes(20_000_000), 20_000_000 // 262_144),
        (EMPTY_MEMBER * 50_000, 50_000 // 1000),
    ],
)
def test_undoing_an_encoding_lets_others_have_their_turn(inside: bytes, steps: int) -> None:
    """Decoding yields after each 256 KiB or 1,000 members, so that other tasks can run."""
    undo = decoders(["gzip, gzip"], 2**40)
    turns = list(decoded(undo, gzip.compress(inside, mtime=0)))
    assert len(turns) >= steps
    assert max(map(len, turns)) <= 262_144


# --- bodies that go wrong ---


def test_too_large_by_its_length_is_not_read(spool: Path) -> None:
    """A Content-Length above max_bytes is too_large before any of the body is read."""
    error = refused(always(reply(b"x", length=1_000_001), keep=True), spool)
    assert error.error_class is ErrorClass.TOO_LARGE
    assert "1,000,000" in error.message


def test_exactly_max_bytes_is_taken(spool: Path) -> None:
    """A body of exactly max_bytes is accepted, with and without a length."""
    assert got(always(reply(DATA)), spool, max_bytes=40_000).body.size == 40_000
    assert got(always(reply(DATA, length=None)), spool, max_bytes=40_000).body.size == 40_000
    assert refused(always(reply(DATA, length=None)), spool, max_bytes=39_999).error_class is ErrorClass.TOO_LARGE


@pytest.mark.parametrize("chunked", [True, False])
def test_an_endless_body_ends_at_max_bytes(chunked: bool, spool: Path) -> None:
    """An endless body without a length is too_large."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", "200 OK", *(["Transfer-Encoding: chunked"] if chunked else []), length=None))
        while True:
            writer.write(b"ffff\r\n" + b"x" * 65535 + b"\r\n" if chunked else b"x" * 65535)
            await writer.drain()

    assert refused(answer, spool).error_class is ErrorClass.TOO_LARGE


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize(
    "head",
    [
        reply(b"x" * 100, length=40_000),
        reply(b"x" * 100, length=20_000_000),
        reply(b"x" * 100, "200 OK", "Content-Encoding: gzip", length=40_000),
        reply(b"9c40\r\nxxx", "200 OK", "Transfer-Encoding: chunked", length=None),
        reply(b"3\r\nxxx\r\n", "200 OK", "Transfer-Encoding: chunked", length=None),
    ],
)
@pytest.mark.parametrize("by_reset", [False, True])
def test_a_body_that_stops_early_is_truncated(head: bytes, by_reset: bool, spool: Path) -> None:
    """A body shorter than announced is truncated, whether the connection ends by FIN or by a reset."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await asyncio.sleep(0.02)
        if by_reset:
            reset(writer)

    error = refused(answer, spool, max_bytes=30_000_000)
    assert error.error_class in (ErrorClass.TRUNCATED, ErrorClass.BAD_ENCODING if b"gzip" in head else None)
    assert error.requests == 1


def test_a_reset_does_not_end_a_body_without_a_length(spool: Path) -> None:
    """A body that only the end of the connection delimits is truncated if that end is a reset."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"x" * 100, length=None))
        await writer.drain()
        await asyncio.sleep(0.05)
        reset(writer)

    assert refused(answer, spool).error_class is ErrorClass.TRUNCATED


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: " % n + b"x" * 8_000 + b"\r\n" for n in range(9)) + b"\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 21 + reply(b""),
        b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nhello",
    ],
)
def test_answers_that_are_not_http(raw: bytes, spool: Path) -> None:
    """Invalid HTTP, endless headers and contradictory lengths are error class connection."""
    assert refused(always(raw), spool).error_class is ErrorClass.CONNECTION


ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "status line": (b"HTTP/1.1 200 ", b"x" * 1000),
    "header name": (b"HTTP/1.1 200 OK\r\n", b"x" * 1000),
    "header line": (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 1000),
    "header lines": (b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 1000 + b"\r\n"),
    "header lines without a value": (b"HTTP/1.1 200 OK\r\n", b"X:\r\n" * 200),
    "empty lines": (b"", b"\r\n" * 500),
    "interim responses": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunk's extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=", b"x" * 1000),
    "chunk's length": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0" * 1000),
    "trailer": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: ", b"x" * 1000),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X: " + b"x" * 99 + b"\r\n"),
    "hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * 4000 + b"\r\n\r\n"),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_does_not_end_and_is_no_body(what: str, spool: Path) -> None:
    """All bytes of a response outside its body are limited, also in lines that do not end."""
    start, more = ENDLESS[what]
    sent = 0

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(start)
        while sent < 50_000_000:
            writer.write(more)
            sent += len(more)
            await writer.drain()

    error = refused(answer, spool, timeouts=Timeouts(connect_s=2, read_s=20, total_s=30))
    assert error.error_class is ErrorClass.CONNECTION
    assert "header is too long" in error.message
    assert sent < 20_000_000  # part of it is in the buffers of the sockets


def test_broken_chunks(spool: Path) -> None:
    """A chunk size that is not a number is truncated or a connection error."""
    raw = reply(b"zz\r\nhello\r\n0\r\n\r\n", "200 OK", "Transfer-Encoding: chunked", length=None)
    assert refused(always(raw), spool).error_class in (ErrorClass.TRUNCATED, ErrorClass.CONNECTION)


def silent(head: bytes) -> Answer:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await asyncio.sleep(0.6)

    return answer


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200", reply(b"x", length=100), reply(b"x", length=None)])
def test_silence_is_a_timeout(head: bytes, spool: Path) -> None:
    """Silence for read_s, before or within the response, is a timeout."""
    error = refused(silent(head), spool, timeouts=Timeouts(connect_s=2, read_s=0.05, total_s=5))
    assert error.error_class is ErrorClass.TIMEOUT
    assert error.requests == 1


@pytest.mark.parametrize("endless_header", [False, True])
def test_total_s_ends_a_slow_response(endless_header: bool, spool: Path) -> None:
    """A response that avoids read_s with single bytes ends after total_s."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: " if endless_header else reply(b"", length=10_000))
        for _ in range(50):
            writer.write(b"x")
            await asyncio.sleep(0.01)

    error = refused(answer, spool, timeouts=Timeouts(connect_s=2, read_s=1, total_s=0.1))
    assert error.error_class is ErrorClass.TIMEOUT


def test_a_slow_body_ends_long_before_total_s(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow body ends by the rule of low_speed.py, which does not apply to a slow header."""
    monkeypatch.setattr(low_speed, "WINDOW_S", 0.5)

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        for byte in reply(b"", length=100_000):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    error = refused(answer, spool, timeouts=Timeouts(connect_s=2, read_s=0.5, total_s=60))
    assert error.error_class is ErrorClass.TIMEOUT
    assert error.message == low_speed.MESSAGE


def test_the_total_covers_all_hops(spool: Path) -> None:
    """total_s covers all redirects of a fetch together."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(0.8)
        writer.write(reply(DATA) if request.target == "/b" else reply(b"", "302 Found", "Location: /b"))
        return True

    (error,), server = fetch(answer, spool, timeouts=Timeouts(connect_s=5, read_s=5, total_s=1.5))
    assert isinstance(error, ObjectError)
    assert error.error_class is ErrorClass.TIMEOUT
    assert len(server.requests) == 2


def test_cancelling_passes_and_cleans_up(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled fetch raises CancelledError, removes its spool file and closes its connection."""
    monkeypatch.setattr(budget_module, "SPOOL_OVER_BYTES", 10)
    monkeypatch.setattr(body_module, "BATCH_BYTES", 10)

    async def scenario() -> None:
        async with serving(silent(reply(b"x" * 1000, length=None))) as server:
            origin = client(spool)
            task = asyncio.ensure_future(origin.get(f"http://127.0.0.1:{server.port}/"))
            while not list(spool.glob("*")):
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert list(spool.glob("*")) == []
            assert not origin._connections._busy
            await origin.close()

    asyncio.run(scenario())


def test_a_full_spool_disk_is_fatal(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write to the spool is Fatal and leaves no file, even if closing the file also fails."""
    monkeypatch.setattr(budget_module, "SPOOL_OVER_BYTES", 10)
    monkeypatch.setattr(body_module, "BATCH_BYTES", 10)
    real = os.fdopen

    def full(fd: int, mode: str) -> Any:
        os.close(fd)
        return real(os.open("/dev/full", os.O_WRONLY), mode)

    monkeypatch.setattr(os, "fdopen", full)
    for raw in (reply(DATA, length=None), reply(b"x" * 100, length=None)):
        (result,), _ = fetch(always(raw), spool)
        assert isinstance(result, Fatal)
        assert "no space left" in str(result)
        assert list(spool.glob("*")) == []

    async def cut(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"x" * 100, length=None))
        await writer.drain()
        await asyncio.sleep(0.02)
        reset(writer)

    assert (
        refused(cut, spool).error_class is ErrorClass.TRUNCATED
    )  # nothing was written yet, so the full disk does not matter


# --- statuses ---


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("204 No Content", ErrorClass.CLIENT_ERROR),
        ("206 Partial Content", ErrorClass.CLIENT_ERROR),
        ("300 Multiple Choices", ErrorClass.CLIENT_ERROR),
        ("304 Not Modified", ErrorClass.CLIENT_ERROR),
        ("400 Bad Request", ErrorClass.CLIENT_ERROR),
        ("401 Unauthorized", ErrorClass.FORBIDDEN),
        ("403 Forbidden", ErrorClass.FORBIDDEN),
        ("404 Not Found", ErrorClass.NOT_FOUND),
        ("410 Gone", ErrorClass.GONE),
        ("429 Too Many Requests", ErrorClass.RATE_LIMITED),
        ("500 Oh", ErrorClass.SERVER_ERROR),
        ("503 Oh", ErrorClass.SERVER_ERROR),
    ],
)
def test_statuses(status: str, expected: ErrorClass, spool: Path) -> None:
    """A status other than 200 and 203 gives an error of its class with the status."""
    body = b"" if status[:3] in ("204", "304") else b"{}"
    error = refused(always(reply(body, status)), spool)
    assert error.error_class is expected
    assert error.status_code == int(status[:3])
    assert error.requests == 1


@pytest.mark.parametrize(
    ("value", "expected"), [("7", 7.0), ("Fri, 20 Nov 2026 12:01:00 GMT", 60.0), ("whenever", None)]
)
def test_retry_after_is_passed_on(value: str, expected: float | None, spool: Path) -> None:
    """The error carries Retry-After in seconds, whether it was seconds or a date."""
    for status in ("429 Slow", "503 Busy"):
        assert refused(always(reply(b"", status, f"Retry-After: {value}")), spool).retry_after_s == expected


@pytest.mark.parametrize(("size", "connections"), [(10_000, 1), (200_000, 3)])
def test_refusals_keep_the_connection_if_they_are_short(size: int, connections: int, spool: Path) -> None:
    """A short error page is read so that its connection is used again; a long one closes the connection."""
    results, server = fetch(always(reply(b"x" * size, "404 Not Found"), keep=True), spool, times=3)
    assert all(isinstance(one, ObjectError) and one.error_class is ErrorClass.NOT_FOUND for one in results)
    assert server.connections == connections


def test_nothing_of_a_failed_answer_reaches_the_next(spool: Path) -> None:
    """After a body that was abandoned half-way, the next object is intact."""
    answers = {"/big": reply(b"x" * 900_000, length=900_000), "/a": reply(DATA)}

    async def scenario() -> None:
        async with serving(by_path(answers)) as server:
            origin = client(spool, max_bytes=100_000)
            for _ in range(3):
                with pytest.raises(ObjectError, match="max_bytes"):
                    await origin.get(f"http://127.0.0.1:{server.port}/big")
                assert content(await origin.get(f"http://127.0.0.1:{server.port}/a")) == DATA
            await origin.close()

    asyncio.run(scenario())


def test_a_dead_connection_is_tried_once_more_and_counted(spool: Path) -> None:
    """If the origin closed an idle connection, the request is sent again, and both requests are counted."""
    count = 0

    async def answer(request: Request, writer: asyncio.StreamWriter) -> bool:
        nonlocal count
        count += 1
        if count == 2:
            return False
        writer.write(reply(DATA))
        return True

    (first, second), server = fetch(answer, spool, times=2)
    assert isinstance(first, Fetched)
    assert isinstance(second, Fetched)
    assert (first.requests, second.requests, len(server.requests)) == (1, 2, 3)


def test_a_host_that_always_hangs_up(spool: Path) -> None:
    """A host that closes every connection gets two requests, and the error is of class connection."""
    (error,), server = fetch(always(b""), spool)
    assert isinstance(error, ObjectError)
    assert (error.error_class, error.requests, len(server.requests)) == (ErrorClass.CONNECTION, 2, 2)


# --- redirects ---


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
def test_redirects_are_followed(status: str, spool: Path) -> None:
    """Each redirect status is followed to the object, and every request is counted."""
    answers = {"/a.jpg": reply(b"moved", f"{status} Moved", "Location: /b%2fc?d=%20+"), "/b%2fc?d=%20+": reply(DATA)}
    fetched = got(by_path(answers), spool)
    assert content(fetched) == DATA
    assert fetched.requests == 2


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/x", "/x"),
        ("y.jpg", "/d/y.jpg"),
        ("../z", "/z"),
        ("?q=1", "/d/a.jpg?q=1"),
        ("//127.0.0.1:{port}/n", "/n"),
        ("http://127.0.0.1:{port}/%7Eabs?x=%2F#frag", "/%7Eabs?x=%2F"),
        ("http://127.0.0.1:{port}", "/"),
        ("/é", "/%C3%A9"),
        ("/a b", "/a%20b"),
    ],
)
def test_locations(location: str, target: str, spool: Path) -> None:
    """Relative, absolute and slightly malformed Locations lead to the same target as in a browser."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> bool:
        if request.target == "/d/a.jpg":
            where = location.format(port=request.port).encode()
            writer.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + where + b"\r\n\r\n")
        else:
            writer.write(reply(DATA))
        return True

    (result,), server = fetch(answer, spool, "/d/a.jpg")
    assert isinstance(result, Fetched), result
    assert server.requests[-1].target == target


def test_a_location_in_latin_1_keeps_its_bytes(spool: Path) -> None:
    """Bytes in a Location that are not UTF-8 are escaped unchanged."""
    answers = {"/a.jpg": reply(b"", "302 Found", "Location: /\xe9"), "/%E9": reply(DATA)}
    assert content(got(by_path(answers), spool)) == DATA


def test_ten_hops_and_no_more(spool: Path) -> None:
    """Ten redirects are followed; an eleventh, or a URL seen before, is redirect_loop."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> bool:
        left = int(request.target[1:])
        writer.write(reply(DATA) if not left else reply(b"", "302 Found", f"Location: /{left - 1}"))
        return True

    assert got(answer, spool, "/10").requests == 11
    error = refused(answer, spool, "/11")
    assert (error.error_class, error.requests) == (ErrorClass.REDIRECT_LOOP, 11)
    error = refused(always(reply(b"", "302 Found", "Location: /a.jpg"), keep=True), spool)
    assert (error.error_class, error.requests) == (ErrorClass.REDIRECT_LOOP, 1)


def test_a_redirect_to_nowhere(spool: Path) -> None:
    """A redirect without a Location is client_error."""
    error = refused(always(reply(b"", "302 Found")), spool)
    assert error.error_class is ErrorClass.CLIENT_ERROR
    assert "302" in error.message


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("file:///etc/passwd", ErrorClass.BAD_URL),
        ("ftp://127.0.0.1/x", ErrorClass.BAD_URL),
        ("http://", ErrorClass.BAD_URL),
        ("http://127.0.0.1:99999/", ErrorClass.BAD_URL),
        ("http://169.254.169.254/latest/meta-data/", ErrorClass.BLOCKED_ADDRESS),
        ("http://[::ffff:a9fe:a9fe]/", ErrorClass.BLOCKED_ADDRESS),
        ("http://2852039166/", ErrorClass.BLOCKED_ADDRESS),
        ("//10.0.0.1/", ErrorClass.BLOCKED_ADDRESS),
        ("http://metadata.example/", ErrorClass.BLOCKED_ADDRESS),
        ("https://rebind.example/", ErrorClass.BLOCKED_ADDRESS),
    ],
)
def test_redirects_pass_the_filter(location: str, expected: ErrorClass, spool: Path, connected: list[str]) -> None:
    """A redirect to a blocked address or an invalid URL fails without a connection."""
    names = {"metadata.example": ["169.254.169.254"], "rebind.example": ["10.0.0.1", "fd00::1"]}
    error = refused(always(reply(b"", "302 Found", f"Location: {location}")), spool, names=names)
    assert error.error_class is expected
    assert set(connected) == {"127.0.0.1"}


def test_secrets_stay_with_their_site(spool: Path) -> None:
    """Secret headers go to the row's site only, and not after a redirect away and back; open headers always go."""
    headers = {
        "Authorization": "Bearer s3cret",
        "Cookie": "c=1",
        "X-Api-Key": "k",
        "Accept": "image/*",
        "accept-language": "de",
        "Referer": "https://shop.example/",
    }

    async def scenario() -> tuple[Server, Server]:
        async with serving(always(b"")) as one, serving(always(b"")) as other:
            home, away = f"http://home.test:{one.port}", f"http://home.test:{other.port}"
            one.answer = by_path(
                {
                    "/a": reply(b"", "302 Found", "Location: /b"),
                    "/b": reply(b"", "307 Go", f"Location: {away}/c"),
                    "/d": reply(DATA),
                }
            )
            other.answer = by_path({"/c": reply(b"", "302 Found", f"Location: http://user:pw@home.test:{one.port}/d")})
            origin = client(spool, headers=headers, names={"home.test": ["127.0.0.1"]})
            assert (await origin.get(f"{home}/a")).requests == 4
            assert (await origin.get(f"{home}/d")).requests == 1
            await origin.close()
            return one, other

    one, other = asyncio.run(scenario())
    secret = {"authorization", "cookie", "x-api-key"}
    for request in (one.requests[0], one.requests[1], one.requests[3]):
        assert secret <= set(request.headers)
    for request in (other.requests[0], one.requests[2]):
        assert not secret & set(request.headers)
        assert request.headers["accept"] == "image/*"
        assert request.headers["accept-language"] == "de"
        assert request.headers["referer"] == "https://shop.example/"
        assert request.headers["user-agent"] == "ferry-test"
        assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("recipients", "sent"),
    [
        (["http://home.test:{port}"], True),
        (["http://HOME.test.:{port}"], True),
        (["http://*.test:{port}"], True),
        (["http://*"], True),
        ([], False),
        (["*", "home.test", "home.test:{port}", "https://home.test:{port}", "*.test:{port}"], False),  # plain HTTP
        (["http://home.test", "http://*.test"], False),  # another port
        (["http://test:{port}", "http://*.home.test:{port}", "http://ome.test:{port}", "http://home.test:1"], False),
    ],
)
def test_secrets_are_for_the_hosts_that_the_job_names(recipients: list[str], sent: bool, spool: Path) -> None:
    """Only sites in `headers_for` get secret headers, also if a URL has user info; a refusal elsewhere says so."""
    headers = {"Authorization": "Bearer s3cret", "X-Api-Key": "k", "Accept": "image/*"}

    async def scenario() -> tuple[Server, str]:
        async with serving(always(reply(b"", "403 Forbidden"))) as server:
            named = [entry.format(port=server.port) for entry in recipients]
            origin = client(spool, headers=headers, recipients=named, names={"home.test": ["127.0.0.1"]})
            with pytest.raises(ObjectError) as caught:
                await origin.get(f"http://home.test:{server.port}/a")
            with pytest.raises(ObjectError):
                await origin.get(f"http://me:pw@home.test:{server.port}/a")
            await origin.close()
            return server, caught.value.message

    server, message = asyncio.run(scenario())
    plain, with_user = (request.headers for request in server.requests)
    assert ("source.headers_for" in message) is not sent
    assert ({"authorization", "x-api-key"} <= set(plain)) is sent
    assert ("x-api-key" in with_user) is sent
    assert with_user["authorization"].startswith("Basic ")
    assert plain["accept"] == with_user["accept"] == "image/*"


def test_no_cookies_are_kept(spool: Path) -> None:
    """A cookie set by a redirect is not sent with the next request."""
    answers = {"/a": reply(b"", "302 Found", "Location: /b", "Set-Cookie: s=1; Path=/"), "/b": reply(DATA)}

    async def scenario() -> None:
        async with serving(by_path(answers)) as server:
            origin = client(spool, names={"home.test": ["127.0.0.1"]})  # cookie jars refuse those of bare addresses
            assert (await origin.get(f"http://home.test:{server.port}/a")).requests == 2
            await origin.close()
            assert "cookie" not in server.requests[1].headers

    asyncio.run(scenario())


# --- addresses ---


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/a%2Fb%2fc%C3%A9%zz", "/a%2Fb%2fc%C3%A9%zz"),
        ("/a+b?x=a+b&y=%20&sig=AbC%2B%3D&", "/a+b?x=a+b&y=%20&sig=AbC%2B%3D&"),
        ("//a/../b/./c", "//a/../b/./c"),
        ('/"<>\\^`{|}', '/"<>\\^`{|}'),
        ("/;a=b;c@d:e!$&'()*,", "/;a=b;c@d:e!$&'()*,"),
        ("/a b", "/a%20b"),
        ("/ä?q=ö b", "/%C3%A4?q=%C3%B6%20b"),
        ("/%c3%a4ä", "/%c3%a4%C3%A4"),
        ("/nbsp\u00a0", "/nbsp%C2%A0"),
        ("/a#b", "/a"),
        ("?a=b", "/?a=b"),
        ("", "/"),
    ],
)
def test_addresses_are_sent_byte_for_byte(path: str, target: str, spool: Path) -> None:
    """Legal characters of a URL are sent unchanged, others are escaped as UTF-8, and the fragment is not sent."""

    async def scenario() -> str:
        async with serving(always(reply(DATA))) as server:
            origin = client(spool)
            await origin.get(f"http://127.0.0.1:{server.port}{path}")
            await origin.close()
            return server.requests[0].target

    assert asyncio.run(scenario()) == target


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("bücher.test", "xn--bcher-kva.test"),
        ("IMG.Test", "img.test"),
        ("under_score.test", "under_score.test"),
        ("dot.test.", "dot.test."),
    ],
)
def test_host_names(host: str, asked: str, spool: Path) -> None:
    """Host names are lower case and IDNA for the resolver and in Host."""

    async def scenario() -> None:
        async with serving(always(reply(DATA))) as server:
            resolver = NamesResolver({asked: ["127.0.0.1"]})
            origin = client(spool, resolver=resolver)
            await origin.get(f"HTTP://{host}:{server.port}/")
            await origin.close()
            assert resolver.asked == [asked]
            assert server.requests[0].headers["host"] == f"{asked.removesuffix('.')}:{server.port}"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "spelling", ["127.0.0.1", "2130706433", "0x7f.1", "017700000001", "127.1", "①②⑦.1", "127.0.0.1."]
)
def test_allowed_literals_in_any_spelling(spelling: str, spool: Path) -> None:
    """An allowed literal address in any spelling is fetched under its usual spelling."""

    async def scenario() -> None:
        async with serving(always(reply(DATA))) as server:
            origin = client(spool)
            await origin.get(f"http://{spelling}:{server.port}/")
            await origin.close()
            assert server.requests[0].headers["host"] == f"127.0.0.1:{server.port}"

    asyncio.run(scenario())


def test_user_info_is_sent_as_basic_and_to_its_site_only(spool: Path) -> None:
    """User info in a URL becomes an Authorization header, in place of the job's."""

    async def scenario() -> None:
        async with serving(always(reply(DATA))) as server:
            origin = client(spool, headers={"authorization": "Bearer x"})
            await origin.get(f"http://al%40x:p%3Aw@127.0.0.1:{server.port}/")
            await origin.close()
            assert server.requests[0].headers["authorization"] == "Basic YWxAeDpwOnc="

    asyncio.run(scenario())


NOWHERE = always(b"")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h.test/",
        "file:///etc/passwd",
        "data:,x",
        "http:///x",
        "http://",
        "http:h.test",
        "://h",
        "http://h.test:0/",
        "http://h.test:70000/",
        "http://h.test:x/",
        "http://h..test/",
        "http://-/%00\x00",
        "http://h.test/a\nb",
        "http://h.test/a\r\nX: y",
        "http://h.test/\x7f",
        "http://h.test/\ud800",
        "http://h\u0000.test/",
        "http://h test/",
        "http://%31.test/",
        "http://a\\@b.test/x y\t",
        "http://[::1/",
        "http://[x]/",
        "http://1.2.3.4.5/",
        "http://256.1.1.1/",
        "http://" + "a" * 64 + ".test/",
        "http://h.test\\@127.0.0.1/",
        "  http://h.test/",
        "javascript://h.test/%0a",
    ],
)
def test_addresses_that_cannot_be_fetched(url: str, spool: Path, connected: list[str]) -> None:
    """A URL that is not a valid http or https URL is bad_url, without a request."""
    error = refused(NOWHERE, spool, url)
    assert (error.error_class, error.requests) == (ErrorClass.BAD_URL, 0)
    assert connected == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1./",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://017700000001/",
        "http://127.1/",
        "http://0/",
        "http://①②⑦.0.0.1/",
        "http://127。0。0。1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]:8080/",
        "http://[::7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[fd00:ec2::254]/",
        "http://169.254.169.254/latest/",
        "https://169.254.169.254/",
        "http://user:pw@169.254.169.254/",
        "http://0xa9fea9fe/",
        "http://10.0.0.1:8080/",
        "http://100.64.0.1/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://private.test/",
        "http://metadata.test/",
        "http://both.test/",
        "http://metadata.test./",
        "https://v6.test/",
    ],
)
def test_no_connection_to_blocked_addresses(url: str, spool: Path, connected: list[str]) -> None:
    """Blocked literals in every spelling, and names of blocked addresses, fail without a connection."""
    names = {
        "private.test": ["10.0.0.1"],
        "metadata.test": ["169.254.169.254"],
        "metadata.test.": ["169.254.169.254"],
        "both.test": ["127.0.0.1", "::1"],
        "v6.test": ["fd00::1"],
    }
    error = refused(NOWHERE, spool, url, allow=[], names=names)
    assert error.error_class is ErrorClass.BLOCKED_ADDRESS, error.message
    assert connected == []
    assert "pw" not in error.message


@pytest.mark.parametrize("redirected", [False, True])
@pytest.mark.parametrize("name", ["private.test", "metadata.test", "metadata.test.", "v6.test", "mapped.test"])
def test_manifests_pass_the_filter(name: str, redirected: bool, spool: Path, connected: list[str]) -> None:
    """The address filter applies to the URL of a manifest and to its redirects, as for objects."""
    names = {
        "private.test": ["10.0.0.1"],
        "metadata.test": ["169.254.169.254"],
        "metadata.test.": ["169.254.169.254"],
        "v6.test": ["fd00::1", "fd00:ec2::254"],
        "mapped.test": ["::ffff:10.0.0.1"],
    }

    async def scenario() -> ObjectError:
        async with serving(always(reply(b"", "302 Found", f"Location: http://{name}/list.csv"))) as server:
            origin = client(spool, names=names)
            url = f"http://127.0.0.1:{server.port}/list.csv" if redirected else f"http://{name}/list.csv"
            with pytest.raises(ObjectError) as caught:
                await origin.download(url, {}, io.BytesIO(), 1000)
            await origin.close()
            return caught.value

    assert asyncio.run(scenario()).error_class is ErrorClass.BLOCKED_ADDRESS
    assert connected == (["127.0.0.1"] if redirected else [])


def test_a_name_that_resolves_to_something_else_later(
    spool: Path, connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After DNS rebinding, each lookup is checked, and Ferry connects only to the addresses that passed."""
    monkeypatch.setattr(dial, "DNS_KEPT_S", 0.0)

    async def scenario() -> None:
        async with serving(always(reply(DATA))) as server:
            resolver = NamesResolver({"img.test": ["127.0.0.1"]})
            origin = client(spool, allow=["127.0.0.0/8"], resolver=resolver)
            url = f"http://img.test:{server.port}/"
            assert content(await origin.get(url)) == DATA
            for evil in ("169.254.169.254", "10.0.0.1", "::1", "fd00:ec2::254", "::ffff:169.254.169.254"):
                resolver.names["img.test"] = [evil]
                with pytest.raises(ObjectError) as caught:
                    await origin.get(url)
                assert caught.value.error_class is ErrorClass.BLOCKED_ADDRESS
            resolver.names["img.test"] = ["10.0.0.1", "127.0.0.1"]  # only the allowed one of several is used
            assert content(await origin.get(url)) == DATA
            await origin.close()

    asyncio.run(scenario())
    assert set(connected) == {"127.0.0.1"}


def test_metadata_stays_blocked_for_an_allowed_name(spool: Path, connected: list[str]) -> None:
    """A host that is allowed by name stays blocked if it resolves to a metadata address."""
    names = {"img.internal": ["169.254.169.254", "fd00:ec2::254"]}
    error = refused(NOWHERE, spool, "http://img.internal/", allow=["img.internal"], names=names)
    assert error.error_class is ErrorClass.BLOCKED_ADDRESS
    assert connected == []


def test_the_last_check_is_at_the_socket(spool: Path, connected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """If both earlier checks are bypassed, the socket factory still blocks the address."""
    names = {"evil.test": ["169.254.169.254"], "evils.test": ["10.0.0.1", "fd00::1", "127.0.0.1"]}

    async def scenario(url: str) -> ObjectError:
        origin = client(spool, allow=[])
        monkeypatch.setattr(origin._resolver, "resolve", NamesResolver(names).resolve)
        monkeypatch.setattr(origin._targets, "_check_host", lambda host, port: (host, None))
        with pytest.raises(ObjectError) as caught:
            await origin.get(url)
        await origin.close()
        return caught.value

    for url in ("http://169.254.169.254/", "http://evil.test/", "http://evils.test/", "http://[::1]/"):
        assert asyncio.run(scenario(url)).error_class is ErrorClass.BLOCKED_ADDRESS
    assert connected == []


def test_the_same_under_uvloop(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under uvloop, which runs use, objects, resets, timeouts and blocked sockets give the same results."""

    async def cut(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"x" * 100, length=None))
        await writer.drain()
        await asyncio.sleep(0.05)
        reset(writer)

    async def failing(answer: Answer, origin: Origin) -> ErrorClass:
        async with serving(answer) as server:
            with pytest.raises(ObjectError) as caught:
                await origin.get(f"http://evil.test:{server.port}/")
            return caught.value.error_class

    async def scenario() -> None:
        names = {"evil.test": ["127.0.0.1", "127.0.0.2"]}
        origin = client(spool, names=names, timeouts=Timeouts(connect_s=2, read_s=0.1, total_s=5))
        async with serving(always(reply(DATA))) as server:
            assert content(await origin.get(f"http://127.0.0.1:{server.port}/")) == DATA
        assert await failing(cut, origin) is ErrorClass.TRUNCATED
        assert await failing(silent(reply(b"x", length=9)), origin) is ErrorClass.TIMEOUT
        assert await failing(always(reply(b"x", length=9)), origin) is ErrorClass.TRUNCATED
        await origin.close()
        shut = client(spool, allow=[])
        monkeypatch.setattr(shut._resolver, "resolve", NamesResolver(names).resolve)
        assert await failing(always(reply(DATA)), shut) is ErrorClass.BLOCKED_ADDRESS
        await shut.close()

    uvloop.run(scenario())


def test_a_name_is_allowed_by_itself_only(spool: Path) -> None:
    """An allowed name is fetched at its private address, and another name at that address is blocked."""

    async def scenario() -> None:
        async with serving(always(reply(DATA), keep=True)) as server:
            names = {"img.internal": ["127.0.0.1"], "evil.test": ["127.0.0.1"]}
            origin = client(spool, allow=["img.internal"], names=names)
            assert (await origin.get(f"http://img.internal:{server.port}/")).requests == 1
            for host in ("evil.test", "127.0.0.1"):
                with pytest.raises(ObjectError) as caught:
                    await origin.get(f"http://{host}:{server.port}/")
                assert caught.value.error_class is ErrorClass.BLOCKED_ADDRESS
            await origin.close()
            assert server.connections == 1

    asyncio.run(scenario())


def test_unknown_names_are_dns(spool: Path) -> None:
    """A name that does not resolve is error class dns."""
    assert refused(NOWHERE, spool, "http://nobody.test/").error_class is ErrorClass.DNS


def test_a_closed_port_is_connection(spool: Path) -> None:
    """A closed port is error class connection, with ECONNREFUSED in the message."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        error = refused(NOWHERE, spool, f"http://127.0.0.1:{sock.getsockname()[1]}/")
    assert error.error_class is ErrorClass.CONNECTION
    assert "ECONNREFUSED" in error.message
    assert error.requests == 1


def test_tls_that_is_none(spool: Path) -> None:
    """https to a port with plain HTTP is error class tls."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(reply(b"what?", "400 Bad Request"))
        writer.close()

    async def raw() -> ObjectError:
        listener = await asyncio.start_server(plain, "127.0.0.1", 0)
        origin = client(spool)
        with pytest.raises(ObjectError) as caught:
            await origin.get(f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/")
        await origin.close()
        listener.close()
        return caught.value

    assert asyncio.run(raw()).error_class is ErrorClass.TLS


def test_no_secret_in_any_error(spool: Path) -> None:
    """No error text or printed traceback contains a query or a password."""

    async def scenario(url: str) -> str:
        origin = client(spool, timeouts=Timeouts(connect_s=1, read_s=0.05, total_s=1))
        try:
            await origin.get(url)
        except ObjectError as exc:
            return "".join(traceback.format_exception(exc)) + str(exc)
        finally:
            await origin.close()
        raise AssertionError

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        for url in (
            f"http://127.0.0.1:{port}/a?sig=s3cret",
            "http://u:s3cret@nobody.test/?s3cret",
            "http://h.test:0/?s3cret",
        ):
            assert "s3cret" not in asyncio.run(scenario(url))

    async def nonsense() -> str:
        async with serving(always(b"HTTP/1.1 what?\r\n\r\n")) as server:
            return await scenario(f"http://127.0.0.1:{server.port}/a?sig=s3cret")

    assert "s3cret" not in asyncio.run(nonsense())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "v1\r\nX-B: c"),
        ("X A", "v1"),
        ("X-A", "v1\0"),
        ("", "v1"),
        ("Range", "bytes=0-9"),
        ("Content-Length", "9"),
    ],
)
def test_headers_that_cannot_be_sent(name: str, value: str, spool: Path) -> None:
    """A header that would break or change requests is a UserError at once, without its value in the message."""

    async def scenario() -> None:
        client(spool, headers={name: value})

    with pytest.raises(UserError, match=r"source\.headers") as caught:
        asyncio.run(scenario())
    assert value not in str(caught.value)


def test_the_jobs_own_user_agent_and_never_its_accept_encoding(spool: Path) -> None:
    """The job's User-Agent header takes precedence, and Accept-Encoding stays identity."""
    headers = {"user-agent": "me", "accept-encoding": "br"}
    _, server = fetch(always(reply(DATA)), spool, headers=headers)
    assert server.requests[0].headers["user-agent"] == "me"
    assert server.requests[0].headers["accept-encoding"] == "identity"


# --- download ---


def download(answer: Answer, spool: Path, max_bytes: int = 1_000_000) -> tuple[Downloaded, bytes]:
    into = io.BytesIO()

    async def scenario() -> Downloaded:
        async with serving(answer) as server:
            origin = client(spool)
            try:
                return await origin.download(f"http://127.0.0.1:{server.port}/list.csv", {}, into, max_bytes)
            finally:
                await origin.close()

    return asyncio.run(scenario()), into.getvalue()


def test_download_writes_a_file(spool: Path) -> None:
    """download follows redirects, decodes the content and returns its URL and headers."""
    answers = {
        "/list.csv": reply(b"", "302 Found", "Location: /b", "Content-Type: text/html"),
        "/b": reply(GZ, "200 OK", "Content-Encoding: gzip", "Content-Type: text/csv"),
    }
    done, body = download(by_path(answers), spool)
    assert (body, done.headers["Content-Type"], done.status) == (TEXT, "text/csv", 200)
    assert done.url.endswith("/b")
    assert download(always(reply(b"")), spool)[1] == b""


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (reply(DATA), ErrorClass.TOO_LARGE),
        (reply(DATA, length=None), ErrorClass.TOO_LARGE),
        (reply(b"x", length=9), ErrorClass.TRUNCATED),
        (reply(b"", "404 No"), ErrorClass.NOT_FOUND),
        (reply(b"x", "200 OK", "Content-Encoding: br"), ErrorClass.BAD_ENCODING),
    ],
)
def test_a_download_that_fails(raw: bytes, expected: ErrorClass, spool: Path) -> None:
    """A download has the errors of an object."""
    with pytest.raises(ObjectError) as caught:
        download(always(raw), spool, 1000)
    assert caught.value.error_class is expected


# --- the mapping of foreign exceptions ---


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (NotHttp("x"), ErrorClass.CONNECTION),
        (Disconnected("x"), ErrorClass.CONNECTION),
        (BodyCut("x"), ErrorClass.TRUNCATED),
        (AddressBlocked("no"), ErrorClass.BLOCKED_ADDRESS),
        (TimeoutError(), ErrorClass.TIMEOUT),
        (ssl.SSLError(1, "x"), ErrorClass.TLS),
        (socket.gaierror(-2, "x"), ErrorClass.DNS),
        (ConnectionResetError(104, "x"), ErrorClass.CONNECTION),
        (RuntimeError("http://h/?s3cret"), ErrorClass.INTERNAL),
    ],
)
def test_where_other_errors_go(exc: BaseException, expected: ErrorClass) -> None:
    """Each exception maps to its class; an unknown one is internal, without its text."""
    error = from_origin(exc)
    assert isinstance(error, ObjectError)
    assert error.error_class is expected
    assert "s3cret" not in error.message
