"""HTTP/1.1 over bare connections: what one request and its answer are, in the loop's own thread.

httptools parses (llhttp, the parser of Node.js); pooling, addresses and patience are in pool.py. A request and
its answer cost a third of what a general client takes (docs/decisions/0010).
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

HEADER_BYTES = 16 * 1024  # one field's value, or its name
HEADERS_BYTES = 64 * 1024  # all of them
KEPT_HEADER_CHARS = 1024  # of a validator or a media type that is kept
FIELDS = 500  # how many there may be
INTERIM = 20  # answers before the answer (1xx)
_NO_BODY_BYTES = 2 * HEADERS_BYTES  # of all that is not the body: unfinished lines, and what is not kept, count too
_CHUNK_BYTES = 32  # of that for each chunk of a chunked body: its length, its line ends
_HIGH_BYTES = 512 * 1024  # of a body that nobody has taken yet: the connection is read no further
_PART_BYTES = 64  # what a piece of it takes beside its bytes
_NO_BODY = frozenset({204, 304})


class Upload(Protocol):
    """A request's body that is read while it is sent, from its beginning again if it is sent again."""

    def __len__(self) -> int: ...

    async def read(self, offset: int) -> bytes:
        """A piece from there on; never empty before the end."""


class Response:
    """An answer whose header is here; its body is taken with :meth:`body` or :meth:`piece`, or given up."""

    __slots__ = ("_connection", "chunked", "headers", "length", "sent_twice", "status")

    def __init__(self, connection: Http1Connection, status: int, headers: CIMultiDict[str]) -> None:
        self._connection = connection
        self.status = status
        self.headers = headers
        self.chunked = "Transfer-Encoding" in headers
        self.sent_twice = False  # was its request sent before, on a connection that died without an answer?
        length = headers.get("Content-Length")
        self.length = int(length) if length is not None and not self.chunked else None  # the parser has judged it

    async def read_chunk(self) -> bytes:
        """What came since; waits for more. Empty at the end. Raises BodyCut, TimeoutError."""
        return await self._connection.read_chunk()

    async def read(self) -> bytes:
        """All that is left of the body."""
        return await self._connection.read()

    @property
    def ended(self) -> bool:
        """The whole answer was taken, and its connection given back."""
        return self._connection.idle

    def close(self) -> None:
        """Gives up what is left, and the connection with it; nothing where the answer has ended."""
        if not self._connection.idle:
            self._connection.close()


class Http1Connection(asyncio.Protocol):
    """One connection; one request at a time. ``on_release`` is called when it may be used again, or has closed."""

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
        self._received_bytes = 0  # since the request
        self._body_bytes = 0
        self._chunks = 0
        self._status = 0
        self._header_complete = False  # the answer's header is complete
        self._ended = True  # the answer is complete; true between requests
        self._until_eof = False
        self._eof = False
        self._keep = False
        self._read_paused = False
        self._write_paused = False  # what was written has not been sent yet
        self._upload_cut = False  # an answer came before the whole request was written
        self._is_head = False
        self._has_surplus = False  # more came than one answer
        self._unsent_bytes = 0  # of the request, at the last look
        self._error: Exception | None = None
        self.idle = True
        self.closed = False
        self.last_byte_at = 0.0
        self.deadline = self.read_s = 0.0
        self.idle_since = 0.0

    # --- one request

    async def request(self, head: bytes, body: bytes | Upload | None, *, is_head: bool = False) -> Response:
        """Sends a request and waits for its answer's header. Raises Disconnected, NotHttp, TimeoutError, OSError."""
        assert self._transport is not None
        if self.closed:
            raise Disconnected("the connection had ended")
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
        answer = Response(self, self._status, self._headers)
        if self._ended and not self._parts:
            self._done()
        return answer

    async def _upload(self, body: Upload) -> None:
        """Sends a body as fast as it is taken, and no further once there is an answer."""
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
        self.last_byte_at = self._loop.time()  # reading it may have taken long

    async def read_chunk(self) -> bytes:
        while not self._parts:
            if self._ended:
                self._done()
                return b""
            await self._wait()
        return self._take()

    async def read(self) -> bytes:
        """Unbounded: for bodies whose length was judged before."""
        taken: list[bytes] = []
        while True:
            if self._parts:
                taken.append(self._take())
            if self._ended:
                self._done()
                return taken[0] if len(taken) == 1 else b"".join(taken)
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
        """What a connection that ended says of the answer."""
        return (
            BodyCut("the body ended before it was complete")
            if self._header_complete
            else Disconnected("no answer came")
        )

    def _done(self) -> None:
        """The answer was taken to its end."""
        if self.idle:
            return
        self.idle = True
        if not self._keep or self._has_surplus or self._until_eof or self._is_head or self._error or self._unsent():
            self.close()
        else:
            self.idle_since = self._loop.time()
            self._on_release(self)

    def _unsent(self) -> bool:
        """An answer that came before the request was all sent: the rest of it must not meet the next answer."""
        return self.closed or self._upload_cut or cast("asyncio.Transport", self._transport).get_write_buffer_size() > 0

    def fail(self, error: Exception) -> None:
        """Ends the answer with an error: patience is over, or what came is no HTTP."""
        if self._error is None:
            self._error = error
        self._wake()

    def close(self) -> None:
        self.idle = True
        if not self.closed:
            self.closed = True
            if self._transport is not None:
                self._transport.abort()
            self._on_release(self)

    @property
    def is_waiting(self) -> bool:
        """Somebody waits for bytes of it."""
        return self._waiter is not None

    def is_too_slow(self, now: float) -> bool:
        """Its body comes too slowly."""
        return self._header_complete and not self._ended and self._low_speed.is_too_slow(now)

    def note_sent(self, now: float) -> None:
        """Asked now and then: what was sent of the request since the last look is no silence."""
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
        if self._ended:  # bytes that belong to no request
            self._keep = False
            if self.idle:
                self.close()
            return
        if self._error is not None:  # whoever waits for the answer hears of it, and ends the connection
            return
        self._received_bytes += len(data)
        try:
            self._parser.feed_data(data)
            beside = self._received_bytes - self._body_bytes
            if beside > _NO_BODY_BYTES + self._chunks * _CHUNK_BYTES and not self._ended:
                raise NotHttp("the answer's header is too long")
        except NotHttp as exc:
            self.fail(exc)
        except httptools.HttpParserCallbackError as exc:
            inner = exc.__context__ or exc.__cause__
            self.fail(inner if isinstance(inner, NotHttp) else NotHttp("the answer is not HTTP"))
        except httptools.HttpParserUpgrade:
            self.fail(NotHttp("the answer changes the protocol"))
        except httptools.HttpParserError:
            self.fail(NotHttp("the answer is not HTTP"))

    def eof_received(self) -> bool:
        """The server ended its side: with FIN, and over TLS with close_notify before it. Without that, any host on the
        way can have ended it (RFC 9112 section 9.8)."""
        secure = cast("asyncio.Transport", self._transport).get_extra_info("ssl_object")
        self._eof = secure is None or _was_closed(secure)
        return False  # close

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
        self._has_surplus = (
            self._header_complete and self._ended
        )  # an answer that nobody asked for: the connection goes

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name) + len(value)
        self._headers_bytes += size
        self._fields += 1
        too_long = len(name) > HEADER_BYTES or len(value) > HEADER_BYTES or self._headers_bytes > HEADERS_BYTES
        if too_long or self._fields > FIELDS:
            raise NotHttp("the answer's header is too long")
        if not self._header_complete:  # what follows a chunked body is not for us
            self._headers.add(name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))

    def on_headers_complete(self) -> None:
        if self._has_surplus:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._interim += 1
            if self._interim > INTERIM:
                raise NotHttp("there are too many answers before the answer")
            self._headers = CIMultiDict()
            return
        self._status = status
        self._header_complete = True
        self._keep = self._parser.should_keep_alive()
        headers = self._headers
        coded = headers.getall("Transfer-Encoding", ())
        if coded and {value.strip().lower() for value in coded} != {"chunked"}:
            raise NotHttp("the answer comes in a transfer coding that was not asked for")  # its bytes are no object
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
    """Did close_notify come? Then a read is empty, and else an error: asyncio itself does not tell."""
    try:
        return not secure.read(1)
    except ssl.SSLError:
        return False


def printable_header(value: str | None) -> str | None:
    """A header's value that is kept, in a ledger of 100 million rows too: a short one line of text, else none.

    Bytes that are not UTF-8 are surrogates here, which no file holds. HTTP's own reading of them is Latin-1 (RFC 9110
    section 5.5).
    """
    if value is None or len(value) > KEPT_HEADER_CHARS:
        return None
    if not value.isprintable():
        value = value.encode("utf-8", "surrogateescape").decode("latin-1")
    return value if value.isprintable() else None


def media_type(value: str | None) -> str | None:
    """A Content-Type that may be passed on to a store: ASCII (RFC 9110 section 8.3.1)."""
    text = printable_header(value)
    return text if text is not None and text.isascii() else None
