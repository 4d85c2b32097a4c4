"""Requests to the endpoint of a store, for the modules of the providers: sent, read and mapped to Ferry's errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from yarl import URL

from ferry.core import PART_BYTES, ErrorClass, ObjectError, Tries
from ferry.http import AnyAddress, Connections, Network, Response, Upload, closed_before_response
from ferry.storage.errors import from_store_http

CONNECT_S = 15.0
_DELETES = 16  # requests at once, where each object needs its own
COPY_BYTES_PER_S = 16 << 20  # assumed speed of a store that copies or joins bytes and sends nothing meanwhile
MAX_RESPONSE_BYTES = 64 << 20  # for responses that are not objects: a listing of 5,000 keys has 10 MB at most


def encoded(key: str) -> str:
    """Returns a key for a request's path: each byte except `/` and the unreserved ones is %XX (RFC 3986 2.3)."""
    return quote(key, safe="/~")


async def delete_each(delete: Callable[[str], Awaitable[None]], keys: Sequence[str]) -> None:
    """Deletes objects by a request each, 16 at once.

    Of several keys each has tries of its own, since errors of a thousand requests would add up. For a single one the
    caller tries again, as for any other request.
    """
    if len(keys) == 1:
        await delete(keys[0])
        return
    for first in range(0, len(keys), _DELETES):
        some = keys[first : first + _DELETES]
        await asyncio.gather(*[Tries().call_async(partial(delete, key)) for key in some])


class Endpoint:
    """One site. Create it inside the event loop that uses it, and close it at the end."""

    def __init__(
        self, url: str, *, timeout_s: float, read_s: float, connections: int, network: Network = Network()
    ) -> None:
        """Creates the client.

        ``timeout_s`` limits a request; each PART_BYTES of its body add as much again. ``read_s`` limits the time in
        which the store neither takes a byte of the request nor sends one of the response.
        """
        base = URL(url)
        port = "" if base.port in (None, {"http": 80, "https": 443}.get(base.scheme)) else f":{base.port}"
        self.url = url
        self.scheme = base.scheme
        self.origin = f"{base.scheme}://{base.host_subcomponent}{port}"
        self.path = base.raw_path.rstrip("/")
        self.read_s = read_s
        self._site = (base.scheme, base.raw_host or "", base.port or 443)
        self.host = f"{base.host_subcomponent}{port}"  # an IPv6 address in brackets
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._connections = Connections(
            AnyAddress(), limit=connections, connect_s=CONNECT_S, read_s=read_s, network=network, keeps_after_head=True
        )

    async def close(self) -> None:
        await self._connections.close()

    @property
    def connections_opened(self) -> int:
        """Returns the number of connections opened so far."""
        return self._connections.connections_opened

    async def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        data: bytes | Upload | None,
        side: str,
        *,
        extra_read_s: float = 0.0,
        again: bool = True,
    ) -> Response:
        """Sends a request and returns its response, the body unread. Raises ObjectError and Fatal.

        ``target`` is percent-encoded. ``extra_read_s`` is added to ``read_s``. If the store had closed the idle
        connection, the request is sent again unless ``again`` is False, and the response has ``sent_twice`` set.
        """
        length = f"content-length: {len(data or b'')}\r\n" if data is not None or method == "POST" else ""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {target} HTTP/1.1\r\nhost: {self.host}\r\n{length}{lines}\r\n".encode()
        # A large body has as much time as its parts would have one after the other.
        deadline = self._loop.time() + self._timeout_s * (1 + len(data or b"") // PART_BYTES) + extra_read_s
        options: dict[str, Any] = {
            "deadline": deadline,
            "is_head": method == "HEAD",
            "read_s": self.read_s + extra_read_s,
        }
        try:
            try:
                return await self._connections.request(self._site, head, data, **options)
            except Exception as exc:
                if not again or not closed_before_response(exc):
                    raise
            # A request with the same bytes may be sent again (RFC 9110 section 9.2.2).
            response = await self._connections.request(self._site, head, data, fresh=True, **options)
            response.sent_twice = True
            return response
        except Exception as exc:  # noqa: BLE001 - errors.py knows them
            raise from_store_http(exc, side) from None

    async def read(self, response: Response, side: str) -> bytes:
        """Returns the complete body of a response that is not an object. Raises ObjectError and Fatal."""
        body = bytearray()
        try:
            while piece := await response.read_chunk():
                body += piece
                if len(body) > MAX_RESPONSE_BYTES:
                    text = f"a response of the {side} exceeds {MAX_RESPONSE_BYTES:,} bytes; please report it"
                    raise ObjectError(ErrorClass.INTERNAL, text)
        except Exception as exc:  # noqa: BLE001 - errors.py knows them
            raise from_store_http(exc, side) from None
        finally:
            response.close()
        return bytes(body)
