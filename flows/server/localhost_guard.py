"""Access control of the local Prefect server, which has no password: only its owner's programs and its own pages.

Other users of the machine are recognised by the owner of the client's socket, which the kernel knows. A token in the
address, as Jupyter has it, would have to reach Prefect's client, every worker and each page.

Other sites are recognised by the headers with which a browser names the origin of a request, and by the Host header: a
DNS name that points to 127.0.0.1 is refused (DNS rebinding). The server listens only there, so clients need only an
address or `localhost`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import struct
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

REFUSED = b"this Prefect server accepts only its own pages, at 127.0.0.1 or localhost\n"
OTHER_USER = b"this Prefect server accepts only the user who started it\n"
# No other site may show these pages in a frame and so receive the owner's clicks (RFC 7034, CSP level 3).
NOT_IN_FRAMES = [(b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'")]
TCP_TABLE = Path("/proc/net/tcp")  # proc(5)


class OwnerOnlyConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type, unused-ignore]
    """An HTTP connection, or one that becomes a WebSocket; refused with 403 if the client is another user."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if TCP_TABLE.exists() and not self._is_owners(transport):
            cast("asyncio.Transport", transport).write(
                b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(OTHER_USER), OTHER_USER)
            )
            cast("asyncio.Transport", transport).close()

    @staticmethod
    def _is_owners(transport: asyncio.BaseTransport) -> bool:
        here, there = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        if not here or not there:
            return False
        with TCP_TABLE.open() as table:
            return owner_of(table, there, here) in (os.geteuid(), 0)


def owner_of(table: Iterable[str], local: tuple[str, int], remote: tuple[str, int]) -> int | None:
    """Returns the uid that owns the socket with these two ends, from /proc/net/tcp; None if no process holds it.

    | line of the table | owner |
    |---|---|
    | with both ends, and an inode | its uid |
    | with both ends, inode 0: closed, but still listed | None: the kernel writes uid 0, which is root's |
    | none with both ends | None |
    """
    ends = [_in_hex(*local[:2]), _in_hex(*remote[:2])]
    for line in table:
        fields = line.split(None, 10)
        if fields[1:3] == ends:
            return int(fields[7]) if fields[9] != "0" else None
    return None


def _in_hex(host: str, port: int) -> str:
    """Returns an end as /proc/net/tcp writes it: the address is a number in the machine's byte order."""
    (number,) = struct.unpack("=I", ipaddress.IPv4Address(host).packed)
    return f"{number:08X}:{port:04X}"


def guarded(app: App) -> App:
    """Returns ``app`` behind the access rules of :func:`is_allowed`."""

    async def guard(scope: Message, receive: Receive, send: Send) -> None:
        async def send_without_frames(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *NOT_IN_FRAMES]
            await send(message)

        if scope["type"] == "lifespan" or is_allowed(scope["path"], dict(scope["headers"])):
            await app(scope, receive, send_without_frames)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(REFUSED)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSED})

    return guard


def is_allowed(path: str, headers: dict[bytes, bytes]) -> bool:
    """Returns whether a request may reach the server.

    | Host | path | Sec-Fetch-Site | Origin | allowed |
    |---|---|---|---|---|
    | a name other than localhost | any | any | any | no |
    | an address, localhost | a page | any | any | yes: links from other sites work |
    | an address, localhost | the API | same-origin, none | any | yes |
    | an address, localhost | the API | same-site, cross-site | any | no |
    | an address, localhost | the API | (absent: an old browser, or a program) | this host, or absent | yes |
    | an address, localhost | the API | (absent) | another | no |
    """
    host = headers.get(b"host", b"").decode("latin-1").lower()
    if not _is_local(host):
        return False
    if path != "/api" and not path.startswith("/api/"):
        return True
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is None or origin.decode("latin-1").lower().partition("://")[2] == host


def _is_local(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
