"""The door of the local Prefect server. Its API asks nobody who they are, so it is for this machine's own programs and
pages: not for pages of other sites, which its owner's browser may show meanwhile.

A browser says of each request where it comes from. A name that a stranger has pointed at 127.0.0.1 (DNS rebinding) is
told by the Host header: nobody needs more than an address or `localhost` to reach a server that listens there alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

REFUSED = b"this Prefect server is for its own pages, at 127.0.0.1 or localhost\n"


def create_app() -> App:
    """What uvicorn serves."""
    from prefect.server.api.server import create_app as prefects

    return behind(prefects())


def behind(app: App) -> App:
    async def gate(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or lets_in(scope["path"], dict(scope["headers"])):
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(REFUSED)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSED})

    return gate


def lets_in(path: str, headers: dict[bytes, bytes]) -> bool:
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
