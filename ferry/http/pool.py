"""A pool of HTTP connections, with limits, reuse and timeouts."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from typing import Any

from ferry.core import PART_BYTES, LowSpeed
from ferry.http.connection import Http1Connection, Response, Upload
from ferry.http.dial import Dialer, ForwardedConnection, Guard, Site
from ferry.http.low_speed import MESSAGE, LowSpeedGuard
from ferry.http.network import Network, Proxy, context_for

IDLE_S = 15.0  # shorter than the idle timeout of most servers, so that requests seldom meet a closed connection
_CHECK_EVERY_S = (0.02, 1.0)  # minimum and maximum


class Connections:
    """Pools of connections by site, for one event loop. Close it at the end.

    ``limit`` is the maximum of connections over all sites. ``connect_s`` limits the time to open one. ``read_s`` limits
    the time in which no byte of the request is sent and no byte of the response arrives. The deadline of a response
    comes with its request, and low_speed.py limits how slowly a body may arrive. One timer checks all connections, so a
    timeout may come an eighth later. ``context`` takes the place of the network's certificates.
    ``keeps_after_head`` is for servers that are known to send no body after a HEAD.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        limit: int,
        connect_s: float,
        read_s: float,
        network: Network = Network(),
        context: ssl.SSLContext | None = None,
        keeps_after_head: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._network = network
        self._keeps_after_head = keeps_after_head
        self._dialer = Dialer(guard, network, connect_s)
        self._limit = limit
        self._connect_s = connect_s
        self._read_s = read_s
        self._context = context
        self._check_every_s = min(max(min(connect_s, read_s) / 8, _CHECK_EVERY_S[0]), _CHECK_EVERY_S[1])
        self._sites: dict[Http1Connection, Site] = {}
        self._idle: dict[Site, list[Http1Connection]] = {}
        self._busy: set[Http1Connection] = set()
        self._opening = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._next_check_at = 0.0
        self.connections_opened = 0

    async def request(
        self,
        site: Site,
        head: bytes,
        body: bytes | Upload | None = None,
        *,
        deadline: float,
        read_s: float | None = None,
        is_head: bool = False,
        fresh: bool = False,
    ) -> Response:
        """Send a request and return its response, with the body unread.

        ``deadline`` is the time of the event loop at which the response is abandoned. Each PART_BYTES of its body add
        as much time again as there was for the whole. ``read_s`` replaces the read timeout of the pool. With ``fresh``,
        no idle connection is used.
        Raises TimeoutError, Disconnected, NotHttp, OSError, ssl.SSLError, AddressBlocked, ProxyError, ProxyUnusable.
        """
        given_s = deadline - self._loop.time()
        connection = None if fresh else self._kept(site)
        if connection is None:
            connection = await self._open(site, deadline)
        connection.deadline = deadline
        connection.read_s = read_s or self._read_s
        connection.may_be_slow = connection.read_s > self._read_s
        connection.keeps_after_head = self._keeps_after_head
        self._busy.add(connection)
        if self._timer is None or deadline < self._next_check_at:
            self._schedule_check(min(self._check_every_s, max(0.001, deadline - self._loop.time())))
        response = await connection.request(head, body, is_head=is_head)
        connection.deadline += given_s * ((response.length or 0) // PART_BYTES)
        return response

    async def close(self) -> None:
        """Close all connections."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._sites):
            connection.close()
        await asyncio.sleep(0)  # transports close in the next turn of the event loop

    def _kept(self, site: Site) -> Http1Connection | None:
        connections = self._idle.get(site)
        if not connections:
            return None
        connection = connections.pop()
        if not connections:
            del self._idle[site]
        return connection

    async def _open(self, site: Site, deadline: float) -> Http1Connection:
        scheme, host, port = site
        left_s = min(self._connect_s, deadline - self._loop.time())
        async with asyncio.timeout(left_s):
            while len(self._sites) + self._opening >= self._limit and not self._make_room():
                await self._wait_for_room()
            self._opening += 1
            try:
                sock = await self._dialer.dial(site)
                try:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    secure: dict[str, Any] = {}
                    if scheme == "https":
                        secure["ssl"] = self._context or context_for(self._network, host, port)
                        secure["server_hostname"] = host.rstrip(".").strip("[]")
                    _, connection = await self._loop.create_connection(
                        lambda: self._connection(site), sock=sock, **secure
                    )
                except BaseException:
                    sock.close()
                    raise
            finally:
                self._opening -= 1
                self._one_may_go()
        self.connections_opened += 1
        self._sites[connection] = site
        return connection

    def _connection(self, site: Site) -> Http1Connection:
        given = self._loop, self._on_release, LowSpeedGuard(self._read_s)
        proxy = self._dialer.forwarder_of(site)
        return Http1Connection(*given) if proxy is None else ForwardedConnection(proxy, site, *given)

    def forwarder_of(self, site: Site) -> Proxy | None:
        """Return the proxy that forwards requests to a site and may answer them itself, or None."""
        return self._dialer.forwarder_of(site)

    # --- limit on connections

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest; return False if none is idle."""
        idle = [connection for connections in self._idle.values() for connection in connections]
        if not idle:
            return False
        min(idle, key=lambda connection: connection.idle_since).close()
        return True

    async def _wait_for_room(self) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._one_may_go()
            raise

    def _one_may_go(self) -> None:
        while self._waiters:
            future = self._waiters.popleft()
            if not future.done():
                future.set_result(None)
                return

    def _on_release(self, connection: Http1Connection) -> None:
        self._busy.discard(connection)
        site = self._sites.get(connection)
        if connection.closed:
            self._sites.pop(connection, None)
            connections = self._idle.get(site) if site is not None else None
            if connections is not None and site is not None and connection in connections:
                connections.remove(connection)
                if not connections:
                    del self._idle[site]
        elif site is not None:
            self._idle.setdefault(site, []).append(connection)
        if self._waiters:
            self._one_may_go()

    # --- timeouts

    def _check_timeouts(self) -> None:
        self._timer = None
        now = self._loop.time()
        for connection in list(self._busy):
            connection.note_sent(now)
            if now >= connection.deadline or (
                connection.is_waiting and now - connection.last_byte_at >= connection.read_s
            ):
                connection.fail(TimeoutError())
            elif connection.is_too_slow(now):
                connection.fail(LowSpeed(MESSAGE))
        for connections in list(self._idle.values()):
            for connection in [connection for connection in connections if now - connection.idle_since >= IDLE_S]:
                connection.close()
        if self._sites:
            soonest = min((connection.deadline for connection in self._busy), default=now + self._check_every_s)
            self._schedule_check(min(self._check_every_s, max(0.001, soonest - now)))

    def _schedule_check(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_check_at = self._loop.time() + delay_s
        self._timer = self._loop.call_later(delay_s, self._check_timeouts)
