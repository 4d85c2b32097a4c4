"""The access rules of the local Prefect server, which asks for no password: programs of its owner, and its own pages.

Other users of the machine: the kernel says whose socket is at the other end of a connection. The token in an address
that Jupyter uses would have to reach Prefect's client, every worker and each page.

Other sites: a browser says of each request where it comes from, and the Host header tells a name that its owner has
pointed at 127.0.0.1 (DNS rebinding). The server listens there alone, so an address or `localhost` is all that a client
needs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import struct
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

REFUSED = b"this Prefect server is for its own pages, at 127.0.0.1 or localhost\n"
STRANGER = b"this Prefect server is for the user who started it\n"
# No other site shows these pages in a frame of its own, where a click would be the owner's (RFC 7034, CSP level 3).
NOT_IN_FRAMES = [(b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'")]
TCP_TABLE = Path("/proc/net/tcp")  # proc(5)


class OwnersConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type, unused-ignore]
    """A connection of HTTP, or one that becomes a WebSocket; closed at once where it is another user's."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if TCP_TABLE.exists() and not self._is_owners(transport):
            cast("asyncio.Transport", transport).write(
                b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(STRANGER), STRANGER)
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
    """The user whose socket has these two ends, by the lines of /proc/net/tcp; None where no process has it.

    | the line | owner |
    |---|---|
    | of both ends, of a socket that a process holds | its uid |
    | of both ends, inode 0: closed, and still in the table | None: the kernel writes 0 for its uid, which is root's |
    | no such line | None |
    """
    ends = [_in_hex(*local[:2]), _in_hex(*remote[:2])]
    for line in table:
        fields = line.split(None, 10)
        if fields[1:3] == ends:
            return int(fields[7]) if fields[9] != "0" else None
    return None


def _in_hex(host: str, port: int) -> str:
    """An end of a connection as /proc/net/tcp writes it: the address as a number of the machine's byte order."""
    (number,) = struct.unpack("=I", ipaddress.IPv4Address(host).packed)
    return f"{number:08X}:{port:04X}"


def create_app() -> App:
    """What uvicorn serves."""
    from prefect.server.api.server import create_app as prefects

    return behind(prefects())


def behind(app: App) -> App:
    async def gate(scope: Message, receive: Receive, send: Send) -> None:
        async def send_for_no_frame(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *NOT_IN_FRAMES]
            await send(message)

        if scope["type"] == "lifespan" or is_allowed(scope["path"], dict(scope["headers"])):
            await app(scope, receive, send_for_no_frame)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(REFUSED)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSED})

    return gate


def is_allowed(path: str, headers: dict[bytes, bytes]) -> bool:
    """
    | Host | path | Sec-Fetch-Site | Origin | in |
    |---|---|---|---|---|
    | a name other than localhost | any | any | any | no |
    | an address, localhost | a page | any | any | yes: one may follow a link to it |
    | likewise | the API | same-origin, none | any | yes |
    | likewise | the API | same-site, cross-site | any | no |
    | likewise | the API | (an older browser, or no browser) | of this host, or none | yes |
    | likewise | the API | likewise | another | no |
    """
    host = headers.get(b"host", b"").decode("latin-1").lower()
    if not _is_here(host):
        return False
    if path != "/api" and not path.startswith("/api/"):
        return True
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is None or origin.decode("latin-1").lower().partition("://")[2] == host


def _is_here(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def main() -> None:
    """Serves on the port of 127.0.0.1 that the first argument names."""
    uvicorn.run(
        create_app, factory=True, host="127.0.0.1", port=int(sys.argv[1]), http=OwnersConnection,
        timeout_keep_alive=60, access_log=False, log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main()
