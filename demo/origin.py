"""A small HTTP origin with injected faults, such as real origins have.

It is a plain asyncio protocol, not a web framework: a framework refuses to send half of these faults (a reset, a
truncated body, a chunked body without its last chunk).
"""

from __future__ import annotations

import asyncio
import collections
import email.utils
import gzip
import hashlib
import json
import math
import re
import socket
import struct
import threading
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, cast

import uvloop

from demo import validators
from demo.ports import free_ports
from demo.validators import LAST_MODIFIED, Validators

_MAX_HEAD_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024


class Trouble(StrEnum):
    """The kinds of faults of an origin."""

    NOT_FOUND = "not_found"  # 404
    GONE = "gone"  # 410
    FORBIDDEN = "forbidden"  # 403
    SERVER_ERROR = "server_error"  # 500, always
    FLAKY = "flaky"  # 500 twice, then the object
    RATE_LIMITED = "rate_limited"  # 429 with Retry-After once, then the object
    HTML_200 = "html_200"  # an HTML page with status 200 and the image's Content-Type
    JSON_200 = "json_200"  # a JSON error with status 200
    TRUNCATED_LENGTH = "truncated_length"  # shorter than its Content-Length
    TRUNCATED_CHUNKED = "truncated_chunked"  # chunked, without the last chunk
    TRUNCATED_CLOSE = "truncated_close"  # ends with the connection: only the image itself shows that it is truncated
    EMPTY = "empty"  # 200 with an empty body
    SLOW = "slow"  # complete, but it takes `seconds`
    STALL = "stall"  # half of the body, then silence until the client disconnects
    REDIRECT = "redirect"  # 302 to another path, which serves the object
    REDIRECT_LOOP = "redirect_loop"  # 302 to a path that redirects back
    RESET = "reset"  # a connection reset instead of an answer
    CHUNKED = "chunked"  # complete, without Content-Length (Transfer-Encoding: chunked)
    GZIP = "gzip"  # Content-Encoding: gzip, whatever the request accepts
    WRONG_TYPE = "wrong_type"  # the image as text/plain
    ENDLESS = "endless"  # bytes until the client disconnects
    CHANGES = "changes"  # half of the body with the full Content-Length; after that, another object at the path


# faults of the body only: a HEAD gets a normal answer
_OF_BODIES = {
    Trouble.TRUNCATED_LENGTH,
    Trouble.TRUNCATED_CHUNKED,
    Trouble.TRUNCATED_CLOSE,
    Trouble.SLOW,
    Trouble.CHUNKED,
    Trouble.STALL,
    Trouble.ENDLESS,
    Trouble.CHANGES,
}
_TIMES = {Trouble.FLAKY: 2, Trouble.RATE_LIMITED: 1}


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault and its parameters."""

    kind: Trouble
    times: int | None = None
    """The number of requests with the fault; None: all requests (flaky: 2, rate_limited: 1)."""
    seconds: float = 1.0
    """rate_limited: the Retry-After (sent as whole seconds, rounded up). slow: the duration of the body."""
    http_date: bool = False
    """rate_limited: Retry-After is a date, not a number (RFC 9110 section 10.2.3)."""
    target: str | None = None
    """redirect: the Location; None: another path, which serves the body."""
    keep: float = 0.5
    """truncated, stall and changes: the share of the body that is sent."""
    then: bytes = b""
    """changes: the other object."""
    chunked: bool = False
    """slow: chunked, without Content-Length."""


@dataclass(slots=True)
class _Object:
    body: bytes
    content_type: str
    fault: Fault | None
    etag: str
    validators: Validators
    modified: str
    more: Mapping[str, str] = field(default_factory=dict)  # further headers
    met: int = 0  # requests that had the fault

    def next_fault(self) -> Fault | None:
        """Returns the fault of this request, or None. Only for the event loop's thread."""
        fault = self.fault
        if fault is None:
            return None
        times = fault.times if fault.times is not None else _TIMES.get(fault.kind)
        if times is not None and self.met >= times:
            return None
        self.met += 1
        return fault


class Origin:
    """The server, with its own thread and event loop. Its methods may be called from any thread.

    Paths are raw request targets with their query, matched byte for byte: a target that a client has encoded again is
    a 404. Healthy answers have ETag and Last-Modified, and honour If-None-Match.
    """

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        """Seconds before each answer. May be set at any time."""
        self.requests: collections.Counter[str] = collections.Counter()
        """Requests per path."""
        self.bodies: collections.Counter[str] = collections.Counter()
        """Requests per path that were answered with the whole object."""
        self.bytes_sent: collections.Counter[str] = collections.Counter()
        """Bytes of bodies per path, in answers without a fault."""
        self.sends_ranges = False
        """Whether a Range is honoured, and an If-Match with it. May be set at any time."""
        self.last_headers: dict[str, dict[str, str]] = {}
        """The headers of each path's last request, names in lower case."""
        self.total = 0
        """The total of requests."""
        self.times: list[float] = []
        """The time of each request (time.monotonic)."""
        self.at_once = self.most_at_once = 0
        """Requests delayed by `latency_s`: now, and the highest number so far, which may be reset."""
        self.port = free_ports(1)[0]
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.trouble: Fault | None = None
        """The fault of every request, in place of the path's own. May be set at any time."""
        self._objects: dict[str, _Object] = {}
        self._connections: set[_Connection] = set()
        self._server: asyncio.AbstractServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def last_at(self) -> float:
        """The time of the last request (time.monotonic)."""
        return self.times[-1] if self.times else 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start listening. Does nothing if already started."""
        if self._loop is None:
            self._loop = uvloop.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="origin", daemon=True)
            self._thread.start()
        self.up()

    def stop(self) -> None:
        """Stop listening and end the thread. Safe to call twice."""
        if self._loop is None or self._thread is None:
            return
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._loop = self._thread = None

    def down(self) -> None:
        """Begin an outage: reset connections and refuse new ones, until ``up``."""
        self._run(self._down())

    def up(self) -> None:
        """End an outage: listen again on the same port."""
        self._run(self._up())

    def add(
        self,
        path: str,
        body: bytes,
        content_type: str = "image/jpeg",
        fault: Fault | Trouble | None = None,
        *,
        kind: Validators = Validators.BOTH,
        modified: str = LAST_MODIFIED,
        more: Mapping[str, str] = {},
    ) -> str:
        """Serve ``body`` at ``path`` (with its query, percent-encoded) and return its URL.

        A Trouble as ``fault`` is a Fault with its defaults. ``kind``: the validators (ETag, Last-Modified) of its
        answers, ``more``: their further headers. Replaces an earlier object at this path. Raises ValueError for a path
        that is not a request target.
        """
        if not path.startswith("/") or any(not 0x21 <= ord(char) <= 0x7E for char in path) or "#" in path:
            raise ValueError(f"`{path}` is not a percent-encoded request target")
        if isinstance(fault, Trouble):
            fault = Fault(fault)
        self._objects[path] = _new_object(body, content_type, fault, kind, modified, more)
        if fault is not None and fault.kind is Trouble.REDIRECT and fault.target is None:
            self._objects["/-moved" + path] = _new_object(body, content_type, None)
        if fault is not None and fault.kind is Trouble.REDIRECT_LOOP:
            self._objects["/-loop" + path] = _new_object(b"", content_type, Fault(Trouble.REDIRECT, target=path))
        return self.url(path)

    def remove(self, path: str) -> None:
        """Remove the object at ``path``."""
        self._objects.pop(path, None)

    def mend(self, path: str) -> None:
        """Remove the fault of ``path``. Raises KeyError for an unknown path."""
        self._objects[path].fault = None

    def url(self, path: str) -> str:
        """Returns the URL of a path."""
        return self.base_url + path

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if self._loop is None:
            coroutine.close()
            raise RuntimeError("the origin is not started")
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _up(self) -> None:
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(
                lambda: _Connection(self), "127.0.0.1", self.port, backlog=1024, reuse_address=True
            )

    async def _down(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.reset()
        await self._server.wait_closed()
        self._server = None


def _new_object(
    body: bytes,
    content_type: str,
    fault: Fault | None,
    kind: Validators = Validators.BOTH,
    modified: str = LAST_MODIFIED,
    more: Mapping[str, str] = {},
) -> _Object:
    etag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
    return _Object(body, content_type, fault, etag, kind, modified, more)


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Connection(asyncio.Protocol):
    """One connection, which handles requests in order and stays open until the client closes it."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._buffer = bytearray()
        self._keep_alive = True
        self._busy = False  # an answer is being sent; later requests wait in the buffer
        self._task: asyncio.Task[None] | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._origin._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        self._origin._connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def reset(self) -> None:
        """Close with RST, which drops unsent data (SO_LINGER of 0 s)."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and not self._transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _advance(self) -> None:
        while not self._busy and not self._transport.is_closing():
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_HEAD_BYTES:
                    self.reset()
                return
            head = self._buffer[:end].decode("latin-1")
            del self._buffer[: end + 4]
            self._request(head)

    def _request(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        method, _, rest = first.partition(" ")
        target, _, version = rest.rpartition(" ")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        origin = self._origin
        origin.requests[target] += 1
        origin.total += 1
        origin.times.append(time.monotonic())
        origin.last_headers[target] = headers
        keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        if origin.latency_s > 0:
            self._busy = True
            origin.at_once += 1
            origin.most_at_once = max(origin.most_at_once, origin.at_once)
            loop = asyncio.get_running_loop()
            loop.call_later(origin.latency_s, self._answer_late, method, target, headers, keep_alive)
        else:
            self._answer(method, target, headers, keep_alive)

    def _answer_late(self, method: str, target: str, headers: dict[str, str], keep_alive: bool) -> None:
        self._busy = False
        self._origin.at_once -= 1
        if not self._transport.is_closing():
            self._answer(method, target, headers, keep_alive)
            self._advance()

    def _answer(self, method: str, target: str, headers: dict[str, str], keep_alive: bool) -> None:
        found = self._origin._objects.get(target)
        self._keep_alive = keep_alive
        if method not in ("GET", "HEAD"):
            self._send(405, {"Content-Type": "text/plain", "Allow": "GET, HEAD"}, b"GET and HEAD only\n")
            self._keep_alive = False  # a body may follow, which is not read
        elif found is None:
            self._send(404, {"Content-Type": "text/plain"}, b"no such object\n", method)
        elif (fault := self._origin.trouble or found.next_fault()) and not (
            method == "HEAD" and fault.kind in _OF_BODIES
        ):
            self._misbehave(fault, found, target, method)
        elif validators.unchanged(found.validators, headers, said := self._said(found)):
            self._transport.write(_head(304, said))
        else:
            self._send_object(method, target, found, headers, said)
        if not self._keep_alive and not self._busy:
            self._transport.close()

    def _send_object(
        self, method: str, target: str, found: _Object, asked: dict[str, str], said: dict[str, str]
    ) -> None:
        origin, headers, body, status = self._origin, self._headers(found, said), found.body, 200
        if origin.sends_ranges and (ranged := re.fullmatch(r"bytes=(\d+)-(\d*)", asked.get("range", ""))):
            if asked.get("if-match", found.etag) != said.get("ETag"):  # RFC 9110 section 13.1.1: strong ones only
                self._send(412, {"Content-Type": "text/plain"}, b"another version\n", method)
                return
            start, size = int(ranged[1]), len(body)
            body, status = body[start : int(ranged[2] or size) + 1], 206
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{size}"
            headers["Content-Length"] = str(len(body))
        origin.bodies[target] += method == "GET" and status == 200
        origin.bytes_sent[target] += len(body) if method == "GET" else 0
        head = _head(status, headers)
        self._transport.write(head + body if method == "GET" else head)

    def _said(self, found: _Object) -> dict[str, str]:
        return validators.headers(found.validators, found.etag, found.modified, self._origin.total)

    def _headers(self, found: _Object, said: dict[str, str]) -> dict[str, str]:
        return {"Content-Type": found.content_type, "Content-Length": str(len(found.body)), **said, **found.more}

    def _send(self, status: int, headers: dict[str, str], body: bytes, method: str = "GET") -> None:
        head = _head(status, {**headers, "Content-Length": str(len(body))})
        self._transport.write(head + body if method == "GET" else head)

    def _misbehave(self, fault: Fault, found: _Object, path: str, method: str) -> None:
        body, kept = found.body, found.body[: int(len(found.body) * fault.keep)]
        typed = {"Content-Type": found.content_type}
        whole = self._headers(found, self._said(found))
        without_length = {name: value for name, value in whole.items() if name != "Content-Length"}
        match fault.kind:
            case Trouble.NOT_FOUND:
                self._send(404, {"Content-Type": "text/html"}, _page("404 Not Found", path), method)
            case Trouble.GONE:
                self._send(410, {"Content-Type": "text/html"}, _page("410 Gone", path), method)
            case Trouble.FORBIDDEN:
                self._send(403, {"Content-Type": "text/html"}, _page("403 Forbidden", path), method)
            case Trouble.SERVER_ERROR | Trouble.FLAKY:
                self._send(500, {"Content-Type": "text/html"}, _page("500 Internal Server Error", path), method)
            case Trouble.RATE_LIMITED:
                wait_s = math.ceil(fault.seconds)
                date = email.utils.formatdate(math.ceil(time.time() + fault.seconds), usegmt=True)
                self._send(429, {"Retry-After": date if fault.http_date else str(wait_s)}, b"slow down\n", method)
            case Trouble.HTML_200:
                self._send(200, typed, _page("Sign in to continue", path), method)
            case Trouble.JSON_200:
                error = json.dumps({"error": "NotFound", "path": path}).encode()
                self._send(200, {"Content-Type": "application/json"}, error, method)
            case Trouble.TRUNCATED_LENGTH:
                self._transport.write(_head(200, whole) + kept)
                self._transport.close()
            case Trouble.TRUNCATED_CHUNKED:
                chunk = _chunk(kept) if kept else b""  # an empty chunk would be the last one
                self._transport.write(_head(200, {**typed, "Transfer-Encoding": "chunked"}) + chunk)
                self._transport.close()
            case Trouble.TRUNCATED_CLOSE:
                self._transport.write(_head(200, {**typed, "Connection": "close"}) + kept)
                self._transport.close()
            case Trouble.CHANGES:
                self._origin._objects[path] = _new_object(fault.then, found.content_type, None)
                self._transport.write(_head(200, whole) + kept)
                self._transport.close()
            case Trouble.EMPTY:
                self._send(200, typed, b"", method)
            case Trouble.CHUNKED:
                self._origin.bodies[path] += 1
                pieces = [body[at : at + _PIECE_BYTES] for at in range(0, len(body), _PIECE_BYTES)]
                chunks = b"".join(_chunk(piece) for piece in [*pieces, b""])
                self._transport.write(_head(200, {**without_length, "Transfer-Encoding": "chunked"}) + chunks)
            case Trouble.SLOW:
                headers = {**without_length, "Transfer-Encoding": "chunked"} if fault.chunked else whole
                self._transport.write(_head(200, headers))
                self._start(self._send_slowly(body, fault.seconds, fault.chunked))
            case Trouble.STALL:
                self._busy = True
                self._transport.write(_head(200, whole) + kept)
            case Trouble.REDIRECT:
                self._send(302, {"Location": fault.target or "/-moved" + path}, b"", method)
            case Trouble.REDIRECT_LOOP:
                self._send(302, {"Location": "/-loop" + path}, b"", method)
            case Trouble.RESET:
                self.reset()
            case Trouble.GZIP:
                self._send(200, {**typed, "Content-Encoding": "gzip"}, gzip.compress(body, mtime=0), method)
            case Trouble.WRONG_TYPE:
                self._send(200, {**whole, "Content-Type": "text/plain"}, body, method)
            case Trouble.ENDLESS:
                self._transport.write(_head(200, {**typed, "Connection": "close"}) + body)
                self._start(self._send_endlessly())

    def _start(self, answer: Coroutine[Any, Any, None]) -> None:
        self._busy = True
        self._task = asyncio.get_running_loop().create_task(answer)

    async def _send_slowly(self, body: bytes, seconds: float, chunked: bool) -> None:
        """Send the body evenly over ``seconds``, in at least 20 pieces and at least one per second."""
        pieces = max(20, math.ceil(seconds))
        step = max(1, math.ceil(len(body) / pieces))
        for start in range(0, len(body), step):
            await asyncio.sleep(seconds / pieces)
            piece = body[start : start + step]
            self._transport.write(_chunk(piece) if chunked else piece)
        if chunked:
            self._transport.write(_chunk(b""))
        self._task, self._busy = None, False
        if not self._keep_alive:
            self._transport.close()
        self._advance()

    async def _send_endlessly(self) -> None:
        """Send bytes, as fast as the client reads, until the connection closes and cancels this task."""
        piece = bytes(_PIECE_BYTES)
        while True:
            await self._can_write.wait()
            self._transport.write(piece)
            await asyncio.sleep(0)


def _chunk(piece: bytes) -> bytes:
    """Returns a chunk of a chunked body (RFC 9112 section 7.1); an empty one ends the body."""
    return f"{len(piece):x}\r\n".encode() + piece + b"\r\n"


def _page(title: str, path: str) -> bytes:
    """Returns a page with its path: many identical pages would look like a site under maintenance."""
    head = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head>"
    return f"{head}<body><h1>{title}</h1>{path}</body></html>\n".encode()
