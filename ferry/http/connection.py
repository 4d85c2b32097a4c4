"""One HTTP/1.1 connection in the thread of the event loop: a request, and its response.

httptools parses (llhttp, the parser of Node.js). pool.py does pooling, address checks and timeouts. A request and its
response cost a third of what they cost in a general client (docs/decisions/0010).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from typing import TYPE_CHECKING, Protocol, cast

import httptools
from multidict import CIMultiDict

from ferry.core import BodyCut, Disconnected, NotHttp
from ferry.http.low_speed import LowSpeedGuard
from ferry.http.unsent import unsent_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER_BYTES = 16 * 1024  # limit on the name of one header field, and on its value
HEADERS_BYTES = 64 * 1024  # limit on all header fields together
FIELDS = 500  # limit on the number of header fields
INTERIM = 20  # limit on interim responses (1xx) before the final response
_NO_BODY_BYTES = 2 * HEADERS_BYTES  # limit on all bytes outside the body, unfinished and ignored lines included
_CHUNK_BYTES = 32  # added to that limit for each chunk of a chunked body: its length and line ends
_HIGH_BYTES = 512 * 1024  # limit on unread body in memory; above it, the connection stops reading
_PART_BYTES = 64  # memory that each piece takes in addition to its bytes
_NO_BODY = frozenset({204, 304})


class Upload(Protocol):
    """A request body that is read while it is sent, and from the start again if the request is repeated."""

    def __len__(self) -> int: ...

    async def read(self, offset: int) -> bytes:
        """Return the next bytes from ``offset`` on; not empty before the end."""


class Response:
    """A response with a complete header. The caller reads the body with the methods below, or closes the response."""

    __slots__ = ("_connection", "chunked", "headers", "length", "sent_twice", "status")

    def __init__(self, connection: Http1Connection, status: int, headers: CIMultiDict[str]) -> None:
        self._connection = connection
        self.status = status
        self.headers = headers
        self.chunked = "Transfer-Encoding" in headers
        self.sent_twice = False  # True: the request was sent before, on a connection that ended without a response
        length = headers.get("Content-Length")
        self.length = int(length) if length is not None and not self.chunked else None  # the parser has validated it

    async def read_chunk(self) -> bytes:
        """Wait for the next bytes of the body; return b"" at its end. Raises BodyCut, NotHttp, TimeoutError."""
        return await self._connection.read_chunk()

    async def read(self) -> bytes:
        """Return the rest of the body. Without a size limit: for bodies whose length was checked."""
        return await self._connection.read()

    @property
    def ended(self) -> bool:
        """Whether the whole response was read and its connection released."""
        return self._connection.idle

    def close(self) -> None:
        """Close the connection, unless the response was read to its end."""
        if not self._connection.idle:
            self._connection.close()


class Http1Connection(asyncio.Protocol):
    """One connection, for one request at a time. It calls ``on_release`` when it is idle again, or closed."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_release: Callable[[Http1Connection], None], low_speed: LowSpeedGuard
    ) -> None:
        self._loop = loop
        self._on_release = on_release
        self._low_speed = low_speed
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._waiting_bytes = 0
        self._headers: CIMultiDict[str] = CIMultiDict()
        self._headers_bytes = 0
        self._fields = 0
        self._interim = 0
        self._received_bytes = 0  # since the request was sent
        self._body_bytes = 0
        self._chunks = 0
        self._status = 0
        self._header_complete = False  # the header of the response is complete
        self._ended = True  # the response is complete; True between requests
        self._until_eof = False
        self._eof = False
        self._keep = False
        self._read_paused = False
        self._write_paused = False  # the write buffer is full
        self._upload_cut = False  # a response arrived before the whole request was written
        self._is_head = False
        self._has_surplus = False  # the server sent more than one response
        self._unsent_bytes = 0  # bytes of the request that were unacknowledged at the last check
        self._error: Exception | None = None
        self.idle = True
        self.closed = False
        self.keeps_after_head = False  # servers of stores send no body after a HEAD; others may, and it comes later
        self.may_be_slow = False  # for a response that is empty for a while, such as that to a copy on the server
        self.last_byte_at = 0.0
        self.deadline = self.read_s = 0.0
        self.idle_since = 0.0

    # --- one request

    async def request(self, head: bytes, body: bytes | Upload | None, *, is_head: bool = False) -> Response:
        """Send a request and wait for the header of its response.

        Raises Disconnected, NotHttp, TimeoutError, OSError.
        """
        assert self._transport is not None
        if self.closed:
            raise Disconnected("the connection was already closed")
        self._headers = CIMultiDict()
        self._headers_bytes = self._fields = self._interim = 0
        self._received_bytes = self._body_bytes = self._chunks = 0
        self._low_speed.begin()
        self._header_complete = self._ended = self._until_eof = self._upload_cut = self.idle = False
        self._is_head = is_head
        self.last_byte_at = self._loop.time()
        self._unsent_bytes = sys.maxsize if body else 0
        if isinstance(body, bytes):
            self._transport.writelines((head, body))
        else:
            self._transport.write(head)
        try:
            if body is not None and not isinstance(body, bytes):
                await self._upload(body)
            while not self._header_complete:
                await self._wait()
        except BaseException:
            self.close()
            raise
        response = Response(self, self._status, self._headers)
        if self._ended and not self._parts:
            self._done()
        return response

    async def _upload(self, body: Upload) -> None:
        """Send a body as fast as the server reads it; stop when the response begins."""
        sent = 0
        while sent < len(body) and not self._header_complete:
            piece = await body.read(sent)
            if not self.closed:
                cast("asyncio.Transport", self._transport).write(piece)
                self._unsent_bytes = sys.maxsize
            sent += len(piece)
            while not self._header_complete and (self._write_paused or self.closed or self._error is not None):
                await self._wait()
        self._upload_cut = sent < len(body)
        self.last_byte_at = self._loop.time()  # reading the body may have taken long

    async def read_chunk(self) -> bytes:
        """Wait for the next bytes of the body; return b"" at its end."""
        while not self._parts:
            if self._ended:
                self._done()
                return b""
            await self._wait()
        return self._take()

    async def read(self) -> bytes:
        """Return the rest of the body, without a size limit."""
        chunks: list[bytes] = []
        while True:
            if self._parts:
                chunks.append(self._take())
            if self._ended:
                self._done()
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
            await self._wait()

    def _take(self) -> bytes:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._waiting_bytes = 0
        if self._read_paused and not self.closed:
            self._read_paused = False
            cast("asyncio.Transport", self._transport).resume_reading()
            self.last_byte_at = self._loop.time()
        return data

    async def _wait(self) -> None:
        if self._error is not None or self.closed:
            error = self._error or self._at_end()
            self.close()
            raise error
        if self._header_complete:
            self._low_speed.wait(self._loop.time())
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _at_end(self) -> Exception:
        """Return the error for a connection that ended before the response did."""
        if self._header_complete:
            return BodyCut("the body ended before it was complete")
        return Disconnected("the connection ended before the response")

    def _done(self) -> None:
        """Release the connection after a complete response, or close it if it cannot be used again."""
        if self.idle:
            return
        self.idle = True
        after_head = self._is_head and (not self.keeps_after_head or self._body_bytes > 0)
        if not self._keep or self._has_surplus or self._until_eof or after_head or self._error or self._unsent():
            self.close()
        else:
            if self._is_head:
                self._parser = httptools.HttpResponseParser(self)  # the old one expects a body
            self.idle_since = self._loop.time()
            self._on_release(self)

    def _unsent(self) -> bool:
        """Return whether the connection is closed, or unsent bytes of this request would precede the next one."""
        return self.closed or self._upload_cut or cast("asyncio.Transport", self._transport).get_write_buffer_size() > 0

    def fail(self, error: Exception) -> None:
        """End the response with an error, such as a timeout or invalid HTTP."""
        if self._error is None:
            self._error = error
        self._wake()

    def close(self) -> None:
        """Close the connection at once. Safe to call twice."""
        self.idle = True
        if not self.closed:
            self.closed = True
            if self._transport is not None:
                self._transport.abort()
            self._on_release(self)

    @property
    def is_waiting(self) -> bool:
        """Whether a task waits for bytes from this connection."""
        return self._waiter is not None

    def is_too_slow(self, now: float) -> bool:
        """Return whether the body of the response arrives too slowly."""
        slow = self._header_complete and not self._ended and not self.may_be_slow
        return slow and self._low_speed.is_too_slow(now)

    def note_sent(self, now: float) -> None:
        """Restart the read timeout if the server has taken more of the request since the last call."""
        if self._unsent_bytes and not self._header_complete and not self.closed:
            left = unsent_bytes(cast("asyncio.Transport", self._transport))
            if left < self._unsent_bytes:
                self._unsent_bytes, self.last_byte_at = left, now

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self.last_byte_at = self._loop.time()
        self._wake()

    def data_received(self, data: bytes) -> None:
        self.last_byte_at = self._loop.time()
        if self._ended:  # these bytes belong to no request
            self._keep = False
            if self.idle:
                self.close()
            return
        if self._error is not None:  # the task that waits for the response raises this error and closes the connection
            return
        self._received_bytes += len(data)
        try:
            self._parser.feed_data(data)
            not_body = self._received_bytes - self._body_bytes
            if not_body > _NO_BODY_BYTES + self._chunks * _CHUNK_BYTES and not self._ended:
                raise NotHttp("the header of the response is too long")
        except NotHttp as exc:
            self.fail(exc)
        except httptools.HttpParserCallbackError as exc:
            inner = exc.__context__ or exc.__cause__
            self.fail(inner if isinstance(inner, NotHttp) else NotHttp("the response is not valid HTTP"))
        except httptools.HttpParserUpgrade:
            self.fail(NotHttp("the response changes the protocol"))
        except httptools.HttpParserError:
            self.fail(NotHttp("the response is not valid HTTP"))

    def eof_received(self) -> bool:
        """Note that the server ended the connection, and whether the end is authentic.

        Over TLS, only an end with close_notify is: any host on the way can forge a FIN (RFC 9112 section 9.8).
        """
        secure = cast("asyncio.Transport", self._transport).get_extra_info("ssl_object")
        self._eof = secure is None or _was_closed(secure)
        return False  # asyncio then closes the transport

    def connection_lost(self, exc: Exception | None) -> None:
        was_closed, self.closed = self.closed, True
        if not self._ended:
            if self._until_eof and self._eof and exc is None and self._error is None:
                self._ended = True
            elif self._error is None:
                self._error = self._at_end()
        self._wake()
        if not was_closed:
            self._on_release(self)

    # --- httptools' callbacks

    def on_message_begin(self) -> None:
        # A second response belongs to no request: the connection will be closed.
        self._has_surplus = self._header_complete and self._ended

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name) + len(value)
        self._headers_bytes += size
        self._fields += 1
        too_long = len(name) > HEADER_BYTES or len(value) > HEADER_BYTES or self._headers_bytes > HEADERS_BYTES
        if too_long or self._fields > FIELDS:
            raise NotHttp("the header of the response is too long")
        if not self._header_complete:  # trailer fields after a chunked body are ignored
            self._headers.add(name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))

    def on_headers_complete(self) -> None:
        if self._has_surplus:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._interim += 1
            if self._interim > INTERIM:
                raise NotHttp("there are too many interim responses (1xx)")
            self._headers = CIMultiDict()
            return
        self._status = status
        self._header_complete = True
        self._keep = self._parser.should_keep_alive()
        headers = self._headers
        coded = headers.getall("Transfer-Encoding", ())
        if coded and {value.strip().lower() for value in coded} != {"chunked"}:
            # The bytes of the body would not be those of the object.
            raise NotHttp("the response has a transfer coding that Ferry did not ask for")
        delimited = "Transfer-Encoding" in headers or "Content-Length" in headers or status in _NO_BODY
        self._until_eof = not delimited and not self._is_head
        if self._is_head:
            self._ended = True
        self._wake()

    def on_chunk_header(self) -> None:
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        if self._has_surplus:
            return
        size = len(body)
        self._body_bytes += size
        self._low_speed.received(self.last_byte_at, size)
        self._parts.append(body)
        self._waiting_bytes += size + _PART_BYTES
        if self._waiting_bytes > _HIGH_BYTES and not self._read_paused:
            self._read_paused = True
            with contextlib.suppress(RuntimeError):
                cast("asyncio.Transport", self._transport).pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._header_complete:
            self._ended = True
            self._wake()


def _was_closed(secure: ssl.SSLObject) -> bool:
    """Return whether close_notify was received, which asyncio does not report: then a read is empty, else an error."""
    try:
        return not secure.read(1)
    except ssl.SSLError:
        return False
