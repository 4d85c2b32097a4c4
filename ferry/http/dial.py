"""Sockets for the pool: to an address that the guard allows, or through a proxy."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any, Protocol

import aiohappyeyeballs

from ferry.core import AddressBlocked, ProxyError, ProxyUnusable, errno_name
from ferry.http.address_filter import Resolved, SystemResolver
from ferry.http.connection import Http1Connection, Response, Upload
from ferry.http.network import Network, Proxy, in_authority, proxy_for

DNS_KEPT_S = 60.0
NAMES_KEPT = 1_000
MOST_ADDRESSES = 4  # of a name, for which a proxy is asked one after the other
PROXY_S = 10.0  # to connect to a proxy; less than the time for an origin, so that the error names the proxy
FIRST_S, ENDS_S = 15.0, 120.0  # silence of a proxy that ends the run: if it has never answered, and otherwise
_EYEBALLS_S = 0.25  # delay before the next address is tried (RFC 8305 section 5)
_MAX_ANSWER = 16 * 1024
_ANSWER = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_AUTHENTICATION_REQUIRED = 407

Site = tuple[str, str, int]  # scheme, host, port


class Guard(Protocol):
    """Resolves names, makes sockets and checks connections: where an address filter applies."""

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]: ...

    def open_socket(self, addr_info: tuple[Any, ...]) -> socket.socket: ...

    async def check_connection(self, sock: socket.socket) -> None:
        """Raise AddressBlocked if nothing may be sent on this open connection."""
        ...

    def check_name(self, host: str) -> None:
        """Raise AddressBlocked if a proxy must not be asked for this host."""
        ...


class AnyAddress(SystemResolver):
    """A guard that allows every address: of proxies and endpoints, which the user configures."""

    def open_socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        return socket.socket(family=addr_info[0], type=addr_info[1], proto=addr_info[2])

    async def check_connection(self, sock: socket.socket) -> None:
        pass

    def check_name(self, host: str) -> None:
        pass


class Dialer:
    """Connects to sites, for one event loop."""

    def __init__(self, guard: Guard, network: Network, connect_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._guard = guard
        self._network = network
        self._connect_s = connect_s
        self._any_address = AnyAddress()
        self._known: dict[tuple[Guard, str, int], tuple[float, asyncio.Future[list[Any]]]] = {}
        self._silent_since: dict[Proxy, float] = {}
        self._answered: set[Proxy] = set()

    def forwarder_of(self, site: Site) -> Proxy | None:
        """Return the proxy that forwards requests to a site and may answer them itself, or None."""
        proxy = proxy_for(self._network, *site)
        return proxy if site[0] == "http" and not self._network.local_names else None

    async def dial(self, site: Site) -> socket.socket:
        """Return an open connection to a site, or to the proxy that forwards its requests.

        | proxy | `proxy_names` | scheme | the proxy is asked for | judged here |
        |---|---|---|---|---|
        | none | | | | each address of the name, the socket, the connection |
        | one | proxy | http | nothing yet: it forwards requests | the name |
        | one | proxy | https | CONNECT to the name | the name |
        | one | local | both | CONNECT to an address of the name | each address of the name |

        The caller has judged a literal address. Raises AddressBlocked, ProxyError, ProxyUnusable, OSError.
        """
        _, host, port = site
        proxy = proxy_for(self._network, *site)
        if proxy is None:
            sock = await self._connect(self._guard, host, port)
            try:
                await self._guard.check_connection(sock)
            except BaseException:
                sock.close()
                raise
            return sock
        if not self._network.local_names:
            self._guard.check_name(host)
            return await (self._to_proxy(proxy) if self.forwarder_of(site) else self._tunnel(proxy, host, port))
        refused: ProxyError | None = None
        for address in (await self._addresses(self._guard, host, port))[:MOST_ADDRESSES]:
            try:
                return await self._tunnel(proxy, address[4][0], port)
            except ProxyError as exc:
                if exc.away:
                    raise
                refused = exc
        raise refused or OSError("the name has no address")

    async def _tunnel(self, proxy: Proxy, host: str, port: int) -> socket.socket:
        """Return a connection to a host through the proxy (CONNECT: RFC 9110 section 9.3.6)."""
        sock = await self._to_proxy(proxy)
        authority = f"{in_authority(host)}:{port}"
        try:
            async with asyncio.timeout(0.9 * self._connect_s):  # less than the pool's, so that the error says more
                await self._ask_for_tunnel(sock, proxy, authority)
        except (ConnectionError, TimeoutError) as exc:
            sock.close()
            raise ProxyError(f"the proxy {proxy} does not connect to {authority} ({_why(exc)})") from None
        except BaseException:
            sock.close()
            raise
        return sock

    async def _ask_for_tunnel(self, sock: socket.socket, proxy: Proxy, authority: str) -> None:
        host = authority.encode()
        await self._loop.sock_sendall(sock, b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (host, host, proxy.header))
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = await self._loop.sock_recv(sock, 4096)
            answer += piece
            if not piece or len(answer) > _MAX_ANSWER:
                raise refusal(proxy, 0, authority)
        found = _ANSWER.match(answer)
        status = int(found[1]) if found else 0
        connected = 200 <= status < 300
        if not connected or not answer.endswith(b"\r\n\r\n"):  # the origin sends nothing before it is asked
            raise refusal(proxy, 0 if connected else status, authority)

    async def _to_proxy(self, proxy: Proxy) -> socket.socket:
        """Return a connection to the proxy. Raises ProxyError, or ProxyUnusable if it has been silent for too long.

        | the proxy | silent for | |
        |---|---|---|
        | has answered before | less than 120 s | ProxyError |
        | has never answered | less than 15 s | ProxyError |
        | | longer | ProxyUnusable |
        """
        try:
            async with asyncio.timeout(min(PROXY_S, 0.8 * self._connect_s)):
                sock = await self._connect(self._any_address, proxy.host, proxy.port)
        except OSError as exc:
            now = self._loop.time()
            since = self._silent_since.setdefault(proxy, now)
            text = f"the proxy {proxy} does not answer ({_why(exc)})"
            if now - since >= (ENDS_S if proxy in self._answered else FIRST_S):
                raise ProxyUnusable(
                    f"{text}. Check `network.proxy`, or HTTP_PROXY and HTTPS_PROXY, then run the job again"
                ) from None
            raise ProxyError(text, away=True) from None
        self._silent_since.pop(proxy, None)
        self._answered.add(proxy)
        return sock

    async def _connect(self, guard: Guard, host: str, port: int) -> socket.socket:
        """Return a socket that is connected to the first address that answers (RFC 8305).

        Raises AddressBlocked, OSError.
        """
        blocked: list[AddressBlocked] = []

        def open_socket(addr_info: tuple[Any, ...]) -> socket.socket:
            try:
                return guard.open_socket(addr_info)
            except AddressBlocked as exc:
                blocked.append(exc)
                raise

        try:
            return await aiohappyeyeballs.start_connection(
                await self._addresses(guard, host, port),
                happy_eyeballs_delay=_EYEBALLS_S,
                loop=self._loop,
                socket_factory=open_socket,
            )
        except OSError:  # aiohappyeyeballs joins the errors of several addresses into one text
            if blocked:
                raise blocked[0] from None
            raise

    async def _addresses(self, guard: Guard, host: str, port: int) -> list[Any]:
        """Return the addresses to connect to. A literal address is used as it is: the caller has checked it."""
        if ":" in host or host.replace(".", "").isdigit():
            return [_info(socket.AF_INET6 if ":" in host else socket.AF_INET, host.strip("[]"), port)]
        key = guard, host, port
        known = self._known.get(key)
        if known is None or known[0] < self._loop.time():
            if len(self._known) >= NAMES_KEPT:
                self._known.clear()
            lookup = self._loop.create_task(guard.resolve(host, port))
            known = self._known[key] = (self._loop.time() + DNS_KEPT_S, lookup)
        try:
            found = await asyncio.shield(known[1])
        except BaseException:
            if self._known.get(key) is known:
                del self._known[key]
            raise
        return [_info(result["family"], result["host"], result["port"]) for result in found]


class ForwardedConnection(Http1Connection):
    """A connection to a proxy that forwards requests to one host (absolute-form: RFC 9112 section 3.2.2)."""

    def __init__(self, proxy: Proxy, site: Site, *given: Any) -> None:
        super().__init__(*given)
        _, host, port = site
        self._proxy = proxy
        self._prefix = f"http://{in_authority(host)}{'' if port == 80 else f':{port}'}".encode()

    async def request(self, head: bytes, body: bytes | Upload | None, *, is_head: bool = False) -> Response:
        method, _, rest = head.partition(b" ")
        line, _, fields = rest.partition(b"\r\n")
        absolute = b"%b %b%b\r\n%b%b" % (method, self._prefix, line, self._proxy.header, fields)
        response = await super().request(absolute, body, is_head=is_head)
        if response.status == _AUTHENTICATION_REQUIRED:
            response.close()
            raise refusal(self._proxy, response.status, "")
        return response


def refusal(proxy: Proxy, status: int, authority: str) -> ProxyError | ProxyUnusable:
    """Return the error for a status other than 2xx of a proxy.

    | status | error |
    |---|---|
    | 407 | ProxyUnusable: it concerns all requests |
    | any other | ProxyError: it concerns the host |
    """
    if status == _AUTHENTICATION_REQUIRED:
        what = "refuses the user name or the password" if proxy.credentials else "asks for a user name and a password"
        return ProxyUnusable(
            f"the proxy {proxy} {what} (HTTP 407). Put its URL with both into an environment variable, as "
            "http://user:password@host:port, and name the variable: `network: {proxy: env:NAME}`"
        )
    if not status:
        return ProxyError(f"the proxy {proxy} does not connect to {authority} (its answer is not that of a proxy)")
    return ProxyError(f"the proxy {proxy} does not connect to {authority} (HTTP {status})", status)


def _why(exc: OSError) -> str:
    if isinstance(exc, TimeoutError):
        return "not in time"
    return "its host name does not resolve" if isinstance(exc, socket.gaierror) else errno_name(exc)


def _info(family: int, host: str, port: int) -> tuple[Any, ...]:
    """Return an address in the form of socket.getaddrinfo."""
    address: tuple[Any, ...] = (host, port)
    if family == socket.AF_INET6:
        plain, _, scope = host.partition("%")
        address = (plain, port, 0, int(scope) if scope.isdigit() else socket.if_nametoindex(scope) if scope else 0)
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)
