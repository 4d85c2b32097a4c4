"""An HTTP proxy that alone knows the addresses of its hosts. It has CONNECT and requests in absolute form."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import threading
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from demo.ports import free_ports

_CREDENTIALS = re.compile(rb"\r\nproxy-authorization: Basic ([A-Za-z0-9+/=]+)\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_LOOPBACK = re.compile(r"127\.|localhost\Z|\[?::1\]?\Z")
_ENDED = (OSError, asyncio.IncompleteReadError, ValueError)


class LabProxy:
    """The proxy, on a port of 127.0.0.1. ``names`` has the ports of this machine by host, or by `host:port`.

    It answers 502 for other hosts, 403 for loopback addresses, and 407 without ``user`` (`name:password`). A host that
    is an address is looked up by its `address:port` in ``names``, so that nothing leaves this machine.
    """

    def __init__(self, names: Mapping[str, int] = {}, user: str = "") -> None:
        self.names = dict(names)
        self.user = user
        self.status = 0  # of every answer, in place of the right one
        self.connects: Counter[str] = Counter()  # `host:port` of requests for a tunnel
        self.absolute: Counter[str] = Counter()  # `host:port` of requests in absolute form
        self.refused: Counter[int] = Counter()  # the proxy's own answers by status
        self.heads: list[bytes] = []  # the headers of all requests
        self.port = free_ports(1)[0]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.AbstractServer | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://{self.user}{'@' if self.user else ''}127.0.0.1:{self.port}"

    @property
    def shown(self) -> str:
        """The URL without user and password."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def up(self) -> None:
        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

        asyncio.run_coroutine_threadsafe(start(), self._loop).result()

    def down(self) -> None:
        """End all connections, and refuse new ones until ``up``."""

        async def stop() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            for writer in list(self._writers):
                writer.transport.abort()
            await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except _ENDED:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request. Returns whether the connection can have another one."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        is_tunnel = method == "CONNECT"
        authority, _, path = (target if is_tunnel else target.removeprefix("http://")).partition("/")
        if not is_tunnel and not target.startswith("http://"):
            return self._refuse(writer, 400)
        host, colon, port_text = authority.rpartition(":")
        host, port = (host, int(port_text)) if colon and port_text.isdigit() else (authority, 80)
        (self.connects if is_tunnel else self.absolute)[f"{host}:{port}"] += 1
        found = _CREDENTIALS.search(head)
        if self.user and (found is None or base64.b64decode(found[1]).decode() != self.user):
            return self._refuse(writer, 407)
        if self.status:
            return self._refuse(writer, self.status)
        at = self.names.get(f"{host}:{port}", self.names.get(host))
        if at is None:
            return self._refuse(writer, 403 if _LOOPBACK.match(host) else 502)
        there, back = await asyncio.open_connection("127.0.0.1", at)
        self._writers.add(back)
        try:
            if is_tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(_pump(reader, back), _pump(there, writer))
                return False
            fields = head.split(b"\r\n", 1)[1]
            sent = re.sub(rb"(?im)^(proxy-authorization|connection):.*\r\n", b"", fields)
            back.write(f"{method} /{path} HTTP/1.1\r\n".encode() + b"Connection: close\r\n" + sent)
            await _copy(reader, back, _length(head) or 0)
            answer = await there.readuntil(b"\r\n\r\n")
            length = 0 if method == "HEAD" or answer[9:12] in (b"204", b"304") else _length(answer)
            writer.write(re.sub(rb"(?im)^connection:.*\r\n", b"", answer))
            await _copy(there, writer, length)
            return length is not None
        finally:
            self._writers.discard(back)
            back.close()

    def _refuse(self, writer: asyncio.StreamWriter, status: int) -> bool:
        self.refused[status] += 1
        more = 'Proxy-Authenticate: Basic realm="lab"\r\n' if status == 407 else ""
        writer.write(f"HTTP/1.1 {status} Refused\r\n{more}Content-Length: 5\r\n\r\nno...".encode())
        return False


def _length(head: bytes) -> int | None:
    found = _LENGTH.search(head)
    return int(found[1]) if found else None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int | None) -> None:
    """Copy a body with this length, or all that comes."""
    while length is None or length > 0:
        piece = await reader.read(65536 if length is None else min(65536, length))
        if not piece:
            return
        length = None if length is None else length - len(piece)
        writer.write(piece)
        await writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(*_ENDED):
        await _copy(reader, writer, None)
    writer.close()
