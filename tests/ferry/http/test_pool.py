"""The connection pool: reuse, limits, timeouts, and one response for each request, whatever the server sends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ferry.core.errors import BodyCut, Disconnected, NotHttp
from ferry.core.memory_budget import PART_BYTES
from ferry.http.address_filter import Resolved
from ferry.http.connection import Upload
from ferry.http.pool import Connections

pytestmark = pytest.mark.matrix

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Loopback:
    """A resolver that resolves every name to 127.0.0.1."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
        self.asked.append(host)
        return [Resolved(host="127.0.0.1", port=port, family=socket.AF_INET)]

    def open_socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        assert addr_info[4][0] == "127.0.0.1"
        return socket.socket(addr_info[0], addr_info[1])

    async def check_connection(self, sock: socket.socket) -> None:
        assert sock.getpeername()[0] == "127.0.0.1"

    def check_name(self, host: str) -> None:
        pass


class World:
    """A server and a pool that connects to it."""

    def __init__(self, port: int, connections: Connections, names: Loopback) -> None:
        self.port, self.connections, self.names = port, connections, names

    async def ask(self, body: bytes | Upload | None = None, host: str = "h.test", **given: Any) -> bytes:
        head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        if body is not None:
            head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        deadline = asyncio.get_running_loop().time() + given.pop("total_s", 5.0)
        answer = await self.connections.request(("http", host, self.port), head, body, deadline=deadline, **given)
        return await answer.read()


@asynccontextmanager
async def world(handler: Handler, **given: Any) -> AsyncIterator[World]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    names = Loopback()
    settings: dict[str, Any] = {"limit": 10, "connect_s": 2.0, "read_s": 2.0, **given}
    connections = Connections(names, **settings)
    try:
        yield World(server.sockets[0].getsockname()[1], connections, names)
    finally:
        await connections.close()
        server.close()


def always(raw: bytes, *, then_close: bool = False) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(raw)
            if then_close:
                writer.close()
                return

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return quietly


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


def test_a_connection_is_used_again() -> None:
    """A hundred sequential requests use one connection and one lookup."""

    async def test() -> None:
        async with world(always(OK)) as w:
            for _ in range(100):
                assert await w.ask() == b"ok"
            assert (w.connections.connections_opened, w.names.asked) == (1, ["h.test"])

    run(test)


def test_no_more_connections_than_allowed() -> None:
    """Twenty concurrent requests over three connections all succeed, and idle connections are closed for others."""

    async def test() -> None:
        async with world(always(OK), limit=3) as w:
            assert await asyncio.gather(*(w.ask(host=f"h{n}.test") for n in range(20))) == [b"ok"] * 20
            assert len(w.connections._sites) <= 3

    run(test)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
    ],
)
def test_a_connection_that_ends_is_not_used_again(raw: bytes) -> None:
    """A response that ends its connection is not followed by another request on it."""

    async def test() -> None:
        async with world(always(raw, then_close=True)) as w:
            assert [await w.ask(), await w.ask()] == [b"ok", b"ok"]
            assert w.connections.connections_opened == 2

    run(test)


def test_answers_before_the_answer_are_passed_over() -> None:
    """Interim responses (100, 103) with headers of their own are skipped."""

    async def test() -> None:
        raw = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n" + OK
        async with world(always(raw)) as w:
            assert [await w.ask(), await w.ask()] == [b"ok", b"ok"]
            assert w.connections.connections_opened == 1

    run(test)


def test_a_head_has_no_body() -> None:
    """The response to a HEAD has no body, whatever its Content-Length."""

    async def test() -> None:
        async with world(always(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")) as w:
            assert await w.ask(is_head=True) == b""

    run(test)


def test_surplus_bytes_do_not_become_the_next_response() -> None:
    """Surplus bytes close the connection, and the next request gets its own response."""

    async def test() -> None:
        async with world(always(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")) as w:
            for _ in range(5):
                assert await w.ask() == b"ok"
                await asyncio.sleep(0.01)

    run(test)


def test_an_answer_before_the_request_is_sent_ends_the_connection() -> None:
    """A response before the end of the upload closes the connection, so the rest is not read as a request."""
    seen: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.sleep(0.5)
        writer.close()

    async def test() -> None:
        async with world(refuse) as w:
            for body in (b"x" * 30_000_000, Bytes(b"x" * 30_000_000), None):
                assert await w.ask(body) == b"no"
            assert w.connections.connections_opened == 3

    run(test)
    assert [head[:4] for head in seen] == [b"PUT "] * 2 + [b"GET "]


class Bytes:
    """An upload that is read piece by piece and records how far it was read."""

    def __init__(self, data: bytes, piece: int = 100_000) -> None:
        self.data, self.piece = data, piece
        self.read_to = 0

    def __len__(self) -> int:
        return len(self.data)

    async def read(self, offset: int) -> bytes:
        await asyncio.sleep(0)
        self.read_to = min(offset + self.piece, len(self.data))
        return self.data[offset : self.read_to]


def counting(taken: list[int], *, pause_s: float = 0.0, stop_after: int | None = None) -> Handler:
    """Return a handler that records the size of each body, and aborts the first one after ``stop_after`` bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length, received = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]), 0
                while received < length and (piece := await reader.read(length - received)):
                    received += len(piece)
                    if stop_after is not None and received >= stop_after and not taken:
                        taken.append(received)
                        return writer.transport.abort()
                    await asyncio.sleep(pause_s)
                taken.append(received)
                writer.write(OK)
        return None

    return handle


def test_a_body_is_read_as_it_is_sent() -> None:
    """Uploads of any size arrive complete over one connection."""
    taken: list[int] = []

    async def test() -> None:
        async with world(counting(taken)) as w:
            for size in (1, 100_000, 25_000_001):
                assert await w.ask(Bytes(b"x" * size)) == b"ok"
            assert w.connections.connections_opened == 1

    run(test)
    assert taken == [1, 100_000, 25_000_001]


def test_an_upload_that_the_server_does_not_read_is_not_read_to_its_end() -> None:
    """An upload that the server does not read is read only as far as the sockets buffer, and times out."""
    body = Bytes(b"x" * 60_000_000)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def test() -> None:
        async with world(silent, read_s=0.3) as w:
            with pytest.raises(TimeoutError):
                await w.ask(body)
            assert not w.connections._sites

    run(test)
    assert body.read_to < 30_000_000


@pytest.mark.parametrize("body", [Bytes(b"x" * 30_000_000), b"x" * 30_000_000], ids=["read while it is sent", "whole"])
def test_a_slow_taker_is_waited_for(body: bytes | Upload) -> None:
    """An upload slower than `read_s` succeeds as long as the server keeps reading."""
    taken: list[int] = []

    async def test() -> None:
        async with world(counting(taken, pause_s=0.02), read_s=1.5) as w:
            began = asyncio.get_running_loop().time()
            assert await w.ask(body, total_s=60.0) == b"ok"
            assert asyncio.get_running_loop().time() - began > 1.5  # otherwise the test proves nothing

    run(test)
    assert taken == [30_000_000]


@pytest.mark.parametrize("size", [2 * PART_BYTES, PART_BYTES - 1])
def test_a_large_body_has_more_time(size: int) -> None:
    """Each 8 MiB of a body add as much time again as there was for the response."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(15):
            writer.write(bytes(size // 15))
            await asyncio.sleep(0.1)
        writer.write(bytes(size % 15))

    async def test() -> None:
        async with world(slow) as w:
            if size >= PART_BYTES:
                assert len(await w.ask(total_s=1.0)) == size
            else:
                with pytest.raises(TimeoutError):
                    await w.ask(total_s=1.0)

    run(test)


@pytest.mark.parametrize("body", [None, b"x" * 1000, b"x" * 3_000_000, Bytes(b"x" * 3_000_000)])
def test_silence_after_the_whole_request_ends_it(body: bytes | Upload | None) -> None:
    """A complete request without a response times out after `read_s`, long before the deadline."""

    async def taking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 20):
            pass

    async def test() -> None:
        async with world(taking, read_s=0.5) as w:
            began = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError):
                await w.ask(body, total_s=3600.0)
            assert asyncio.get_running_loop().time() - began < 60

    run(test)


def test_a_connection_that_breaks_under_a_body_says_so() -> None:
    """A connection that breaks during an upload raises an error, and the upload can be repeated from its start."""
    taken: list[int] = []

    async def test() -> None:
        async with world(counting(taken, stop_after=1_000_000)) as w:
            body = Bytes(b"x" * 20_000_000)
            with pytest.raises((Disconnected, ConnectionError)):
                await w.ask(body)
            assert body.read_to < 20_000_000
            assert await w.ask(body) == b"ok"

    run(test)
    assert taken[1] == 20_000_000


def test_a_body_that_cannot_be_read_ends_its_connection() -> None:
    """An upload that fails to read closes its connection, so its bytes do not become part of another request."""
    taken: list[int] = []

    class Broken(Bytes):
        async def read(self, offset: int) -> bytes:
            if offset > 500_000:
                raise RuntimeError("disk")
            return await super().read(offset)

    async def test() -> None:
        async with world(counting(taken)) as w:
            with pytest.raises(RuntimeError):
                await w.ask(Broken(b"x" * 1_000_000))
            assert not w.connections._sites
            assert await w.ask(b"x") == b"ok"

    run(test)
    assert taken[-1] == 1


def test_timeouts() -> None:
    """A silent server times out after `read_s` or at the deadline, and a slow body at the deadline."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x")
            await asyncio.sleep(0.05)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def test() -> None:
        for handler, total_s in ((silent, 5.0), (silent, 0.1), (slow, 0.3)):
            async with world(handler, read_s=0.2) as w:
                with pytest.raises(TimeoutError):
                    await w.ask(total_s=total_s)
                assert not w.connections._sites

    run(test)


def test_ends_in_the_middle() -> None:
    """An end before the response is Disconnected, an end in the body is BodyCut, and invalid HTTP is NotHttp."""

    async def test() -> None:
        for raw, error in (
            (b"", Disconnected),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", BodyCut),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", BodyCut),
            (b"SMTP ready\r\n\r\n", NotHttp),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", NotHttp),
            # Ferry does not decode other transfer codings
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", NotHttp),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", NotHttp),
        ):
            async with world(always(raw, then_close=True)) as w:
                with pytest.raises(error):
                    await w.ask()

    run(test)


def test_an_unread_body_stops_the_server() -> None:
    """A body that its reader does not read stops the server: backpressure, without a timeout."""
    sent = 0

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while sent < 1_000_000_000:
                writer.write(b"x" * 100_000)
                await writer.drain()
                sent += 100_000
        except ConnectionError:
            pass

    async def test() -> None:
        async with world(send, read_s=0.3) as w:
            deadline = asyncio.get_running_loop().time() + 10
            head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            answer = await w.connections.request(("http", "h.test", w.port), head, deadline=deadline)
            await asyncio.sleep(0.6)  # longer than read_s, which must not apply while no task waits
            held = sent
            assert held < 50_000_000
            assert await answer.read_chunk()
            answer.close()

    run(test)


def test_cancelled_requests_give_everything_back() -> None:
    """Requests that are cancelled in any phase leave no connection and no count behind."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def test() -> None:
        async with world(silent, limit=2) as w:
            tasks = [asyncio.create_task(w.ask()) for _ in range(6)]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (len(w.connections._sites), w.connections._opening, len(w.connections._busy)) == (0, 0, 0)

    run(test)


def test_a_name_that_does_not_resolve_is_asked_again() -> None:
    """A failed lookup is not cached, and concurrent requests share one lookup."""

    async def test() -> None:
        async with world(always(OK)) as w:
            resolve, fails = w.names.resolve, [True]

            async def sometimes(host: str, port: int = 0) -> list[Resolved]:
                await asyncio.sleep(0.01)
                if fails[0]:
                    w.names.asked.append(host)
                    raise socket.gaierror(socket.EAI_NONAME, "unknown")
                return await resolve(host, port)

            w.names.resolve = sometimes  # type: ignore[method-assign]
            ends = await asyncio.gather(*(w.ask() for _ in range(5)), return_exceptions=True)
            assert all(isinstance(end, socket.gaierror) for end in ends)
            assert len(w.names.asked) == 1
            fails[0] = False
            assert await w.ask() == b"ok"

    run(test)
