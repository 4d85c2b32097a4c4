"""The address filter, which keeps the URLs of a manifest from reaching services that only this machine can reach.

It checks at four points, because each alone can be bypassed. Ferry checks literal addresses before each request and
redirect. The resolver drops blocked addresses of a name. The socket factory checks the address of each connection. An
open connection shows whether it leads to this machine itself or through NAT64.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import math
import re
import socket
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypedDict

from ferry.core import AddressBlocked, UserError, escaped, short
from ferry.http.address_ranges import (
    METADATA,
    METADATA_NAMES,
    Address,
    inside,
    special,
    translated,
    translators,
    unmapped,
    unscoped,
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")  # lower case, no trailing dot
MAX_LOOKUPS = 256  # concurrent lookups: one for each object in flight by default
NAT64_TIMEOUT_S, NAT64_RETRY_S = 5.0, 60.0  # for one lookup of the prefix; until the next one after a failure
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")


def parse_literal(host: str) -> Address | None:
    """Return the IP address that the host of a URL spells, or None if the host is a name.

    Accepts every spelling that some resolver accepts: `2130706433`, `0x7f.1`, `017700000001`, `127.1`, full-width
    digits, a trailing dot, brackets and zone IDs (WHATWG URL standard, section 3.5, "IPv4 parser").
    Raises ValueError if the host ends in a number or is in brackets, but is not an address.
    """
    if not host.isascii():
        host = unicodedata.normalize("NFKC", host).replace("\u3002", ".")
    if host.startswith("[") or ":" in host:
        if host.startswith("[") != host.endswith("]"):
            raise ValueError("unbalanced brackets")
        try:
            return ipaddress.IPv6Address(host.strip("[]").replace("%25", "%", 1))
        except ValueError:  # the text of the original error quotes the host, which may be a password
            raise ValueError("it is not an IPv6 address") from None
    parts = host.removesuffix(".").split(".")
    if not _NUMBER.fullmatch(parts[-1]):
        return None
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) and len(part) <= 40 for part in parts):
        raise ValueError("it ends in a number but is not an IPv4 address")
    numbers = [_number(part) for part in parts]
    if any(number > 255 for number in numbers[:-1]) or numbers[-1] >= 256 ** (5 - len(numbers)):
        raise ValueError("a part of the IPv4 address is too large")
    value = numbers[-1]
    for position, number in enumerate(numbers[:-1]):
        value += number << (8 * (3 - position))
    return ipaddress.IPv4Address(value)


def _number(text: str) -> int:
    if text[:2] in ("0x", "0X"):
        return int(text[2:] or "0", 16)
    return int(text, 8 if len(text) > 1 and text[0] == "0" else 10)


class AddressFilter:
    """Decides which addresses Ferry may connect to: global unicast, and those that the job allows.

    ``allow`` holds host names, addresses and networks (`source.allow_private_addresses`). A name allows that host,
    whatever it resolves to. A network allows its addresses under any name. An entry with a port allows that port alone.
    Metadata addresses need an entry that is exactly this address. Raises UserError for malformed entries.
    """

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self._hosts: set[str] = set()
        self._networks: list[Network] = []
        self._endpoints: set[tuple[str | Address, int]] = set()
        for entry in allow:
            parsed, port = _entry(entry)
            if port is not None:
                self._endpoints.add((parsed if isinstance(parsed, str) else parsed.network_address, port))
            elif isinstance(parsed, str):
                self._hosts.add(parsed)
            else:
                self._networks.append(parsed)

    def verdict(self, host: str, ip: str | Address, port: int = 0) -> str | None:
        """Return None if Ferry may connect to ``ip`` for ``host``, else a sentence that says why not.

        | address | allowed by network, or address with port | host allowed by name, with this port or any | verdict |
        |---|---|---|---|
        | metadata | by exactly this address | any | None |
        | metadata | no, or by a network around it | any | blocked |
        | special | yes | any | None |
        | special | no | yes | None |
        | special | no | no | blocked |
        | global unicast | any | any | None |

        An IPv4-mapped address is checked as the IPv4 address in it, and so is a NAT64 address.
        """
        try:
            address = unmapped(ipaddress.ip_address(ip))
        except ValueError:
            return f"{_shown(host)} resolves to something that is not an IP address"
        plain, name = unscoped(address), _plain(host)
        by = [network for network in self._networks if network.version == address.version and plain in network]
        with_port = (plain, port) in self._endpoints
        exactly = with_port or any(network.prefixlen == network.max_prefixlen for network in by)
        for inner in (address, *inside(address)):
            cloud = METADATA.get(unscoped(inner))
            if cloud and not exactly:
                return (
                    f"{_at(host, address)} is a metadata address ({cloud}), which serves credentials; "
                    "Ferry does not connect to it"
                )
        what = special(address)
        if what is None or by or with_port or name in self._hosts or (name, port) in self._endpoints:
            return None
        return (
            f"{_at(host, address)} is {what}; Ferry connects to addresses that are not public only if "
            "`source.allow_private_addresses` lists the host or its network"
        )

    def allows_explicitly(self, host: str, ip: str, port: int) -> bool:
        """Return whether an entry of the job allows this host or this address."""
        address, name = unscoped(unmapped(ipaddress.ip_address(ip))), _plain(host)
        endpoints: set[tuple[str | Address, int]] = {(name, port), (address, port)}
        by_network = any(address in network for network in self._networks if network.version == address.version)
        return by_network or name in self._hosts or not endpoints.isdisjoint(self._endpoints)

    def allows_host(self, host: str, port: int) -> bool:
        """Return whether an entry of the job allows this host, by its name or by the address that it spells."""
        try:
            literal = parse_literal(host)
        except ValueError:
            return False
        if literal is not None:
            return self.allows_explicitly("", str(literal), port)
        return _plain(host) in self._hosts or (_plain(host), port) in self._endpoints

    def name_verdict(self, host: str) -> str | None:
        """Return None if a proxy may be asked for a host, else a sentence that says why not.

        | host | verdict |
        |---|---|
        | a name of a metadata service | blocked |
        | any other name: what it resolves to is the proxy's knowledge | None |
        | a literal address, which :meth:`verdict` judges | None |
        """
        cloud = METADATA_NAMES.get(_plain(host))
        if cloud is None:
            return None
        return f"{_shown(host)} is a metadata service ({cloud}), which serves credentials; Ferry does not request it"

    def port_verdict(self, host: str, port: int) -> str | None:
        """Return None if Ferry may send HTTP to this port, else a sentence that says why not.

        ``host`` is a name or a literal address.

        | port | an entry `host:port` | verdict |
        |---|---|---|
        | of another service | no | blocked, also if the host is allowed without its port |
        | of another service | yes | None |
        | any other | any | None |
        """
        if port not in OTHER_SERVICES:
            return None
        name = _plain(host).strip("[]")
        try:
            endpoint: str | Address = unmapped(unscoped(ipaddress.ip_address(name)))
        except ValueError:
            endpoint = name
        if (endpoint, port) in self._endpoints:
            return None
        return (
            f"port {port} is not for HTTP ({OTHER_SERVICES[port]}); if an HTTP server uses it, "
            f"add `{_shown(host)}:{port}` to `source.allow_private_addresses`"
        )


_WITH_PORT = re.compile(r"(\[[^\[\]]+\]|[^:/\[\]]+):([0-9]{1,5})")


def _entry(text: str) -> tuple[str | Network, int | None]:
    """Return the host or network of one entry, and its port. Raises UserError that says what to write instead."""
    where = f"source.allow_private_addresses: `{short(text)}`"
    bare, port = text.strip(), None
    if (found := _WITH_PORT.fullmatch(bare)) and 0 < int(found[2]) < 65536:
        bare, port = found[1], int(found[2])
    try:
        if "/" in bare and "://" not in bare:
            try:
                return ipaddress.ip_network(bare), None
            except ValueError:
                loose = ipaddress.ip_network(bare, strict=False)  # also raises ValueError if it is not a network
                raise UserError(f"{where} has bits set beyond its prefix; write `{loose}`") from None
        literal = parse_literal(bare)
        if literal is not None:
            return ipaddress.ip_network(unmapped(unscoped(literal))), port
    except ValueError:
        pass
    else:
        name = _plain(bare)
        if not name.isascii():
            try:
                name = name.encode("idna").decode("ascii")
            except UnicodeError:
                name = ""
        if HOST_NAME.fullmatch(name):
            return name, port
    raise UserError(
        f"{where} is neither a host (`img.internal`, `img.internal:8080`, without scheme or path) nor a network "
        "(`10.1.0.0/16`)"
    )


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def _shown(host: str) -> str:
    # Escaped, because the zone of an IPv6 address may contain any characters.
    return escaped(host if len(host) <= 253 else host[:250] + "...")


def _at(host: str, address: Address) -> str:
    name = _plain(host).strip("[]")
    shown = _shown(str(address))
    return f"the address {shown}" if name in ("", str(address)) else f"{_shown(host)} ({shown})"


class Resolved(TypedDict):
    """One IP address that a name resolves to."""

    host: str
    port: int
    family: int


class Resolver(Protocol):
    """Resolves host names. Raises socket.gaierror."""

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]: ...


@functools.cache
def _lookup_threads() -> ThreadPoolExecutor:
    """Return the threads for lookups.

    A lookup without an answer occupies its thread for a minute, even after a timeout. In asyncio's few default threads,
    hostile names in a manifest would block lookups of other names, and all other work.
    """
    return ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="ferry-lookup")


class SystemResolver:
    """The resolver of the system: getaddrinfo in a thread."""

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
        loop = asyncio.get_running_loop()
        # Return only families that this machine has. AI_ADDRCONFIG ignores loopback addresses, so not for localhost.
        flags = 0 if host.rpartition(".")[2] == "localhost" else socket.AI_ADDRCONFIG
        lookup = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, flags=flags)
        found = await loop.run_in_executor(_lookup_threads(), lookup)
        resolved: list[Resolved] = []
        for family, _, _, _, address in found:
            text = str(address[0])
            if family == socket.AF_INET6 and len(address) == 4 and address[3] and "%" not in text:
                text += f"%{address[3]}"  # a link-local address belongs to an interface
            resolved.append(Resolved(host=text, port=port, family=family))
        return resolved


class FilteringResolver:
    """Resolves names without their blocked addresses, and makes the sockets for the allowed ones.

    Literal addresses are not resolved, so the caller checks them. ``timeout_s`` limits one lookup.
    """

    def __init__(self, address_filter: AddressFilter, inner: Resolver | None = None, timeout_s: float = 15.0) -> None:
        self._filter = address_filter
        self._inner = inner or SystemResolver()
        self._timeout_s = timeout_s
        self._opened_by_name: set[tuple[str, int]] = set()
        self._nat64_lookup: asyncio.Task[set[ipaddress.IPv6Network]] | None = None
        self._nat64_retry_at = math.inf

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
        """Return the allowed addresses of a name. Raises AddressBlocked if all are blocked, or the inner error."""
        async with asyncio.timeout(self._timeout_s):
            results = await self._inner.resolve(host, port)
        kept: list[Resolved] = []
        why: str | None = None
        for result in results:
            blocked = self._filter.verdict(host, result["host"], port)
            if blocked is not None:
                why = why or blocked
                continue
            kept.append(result)
            if self._filter.allows_explicitly(host, result["host"], port):
                self._opened_by_name.add((result["host"], port))
        if why is not None and not kept:
            raise AddressBlocked(why)
        return kept

    def open_socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        """Return a socket for exactly this address. Raises AddressBlocked before a socket is made."""
        family, kind, protocol, _, sockaddr = addr_info
        why = self._filter.verdict("", *sockaddr[:2])
        if why is not None and sockaddr[:2] not in self._opened_by_name:
            raise AddressBlocked(why)
        return socket.socket(family=family, type=kind, proto=protocol)

    def check_name(self, host: str) -> None:
        """Check a host before a proxy is asked for it. Raises AddressBlocked."""
        if why := self._filter.name_verdict(host):
            raise AddressBlocked(why)

    async def check_connection(self, sock: socket.socket) -> None:
        """Check an open connection before anything is sent on it. Raises AddressBlocked.

        | remote address | allowed by an entry | verdict |
        |---|---|---|
        | the local address of the connection, or another one of this machine | no | blocked |
        | translated by this network's NAT64 to a blocked IPv4 address | no | blocked |
        | either | yes | open |
        | any other | any | open |
        """
        here, there = sock.getsockname()[0], sock.getpeername()[:2]
        if there in self._opened_by_name or self._filter.allows_explicitly("", *there):
            return
        if here == there[0] or is_own(there[0], sock.family):
            raise AddressBlocked(
                f"the address {_shown(there[0])} belongs to this machine; Ferry connects to it only if "
                "`source.allow_private_addresses` lists the host or its network"
            )
        if sock.family == socket.AF_INET6:
            for inner in translated(ipaddress.ip_address(there[0]), await self._nat64()):
                if why := self._filter.verdict("", inner):
                    raise AddressBlocked(f"{_shown(there[0])} is a NAT64 address of this network: {why}")

    async def _nat64(self) -> set[ipaddress.IPv6Network]:
        """Return the NAT64 prefixes of the network.

        Concurrent callers wait for one lookup, and a cancelled caller does not end it.
        """
        loop = asyncio.get_running_loop()
        if self._nat64_lookup is None or (self._nat64_lookup.done() and loop.time() >= self._nat64_retry_at):
            self._nat64_lookup = loop.create_task(self._find_nat64())
        return await asyncio.shield(self._nat64_lookup)

    async def _find_nat64(self) -> set[ipaddress.IPv6Network]:
        """Look up the NAT64 prefixes. After a failure, the next lookup waits a minute."""
        try:
            async with asyncio.timeout(NAT64_TIMEOUT_S):
                found = await self._inner.resolve("ipv4only.arpa")
        except (OSError, TimeoutError):  # no such name: the network has no NAT64
            self._nat64_retry_at = asyncio.get_running_loop().time() + NAT64_RETRY_S
            return set()
        return translators(ipaddress.ip_address(one["host"]) for one in found)


# Addresses for documentation, which no machine has (RFC 5737, RFC 3849).
_DOCUMENTATION = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def is_own(address: str, family: int) -> bool:
    """Return whether this machine has this address, tested by binding a socket to it.

    A connection to an own address may have another local address: for a second address in the same network, Linux uses
    the first one. Where sockets can bind to any address (`ip_nonlocal_bind`), this test proves nothing, and the answer
    is False.
    """
    return _binds(address, family) and not _binds(_DOCUMENTATION[socket.AddressFamily(family)], family)


def _binds(address: str, family: int) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


OTHER_SERVICES: dict[int, str] = {
    0: "no port", 1: "tcpmux", 7: "echo", 9: "discard", 11: "systat", 13: "daytime", 15: "netstat", 17: "qotd",
    19: "chargen", 20: "ftp-data", 21: "ftp", 22: "ssh", 23: "telnet", 25: "smtp", 37: "time", 42: "name",
    43: "nicname", 53: "domain", 69: "tftp", 77: "rje", 79: "finger", 87: "link", 95: "supdup", 101: "hostname",
    102: "iso-tsap", 103: "gppitnp", 104: "acr-nema", 109: "pop2", 110: "pop3", 111: "sunrpc", 113: "auth",
    115: "sftp", 117: "uucp-path", 119: "nntp", 123: "ntp", 135: "epmap", 137: "netbios-ns", 139: "netbios-ssn",
    143: "imap", 161: "snmp", 179: "bgp", 389: "ldap", 427: "svrloc", 465: "submissions", 512: "exec", 513: "login",
    514: "shell", 515: "printer", 526: "tempo", 530: "courier", 531: "chat", 532: "netnews", 540: "uucp", 548: "afp",
    554: "rtsp", 556: "remotefs", 563: "nntps", 587: "submission", 601: "syslog-conn", 636: "ldaps", 989: "ftps-data",
    990: "ftps", 993: "imaps", 995: "pop3s", 1719: "h323gatestat", 1720: "h323hostcall", 1723: "pptp", 2049: "nfs",
    3659: "apple-sasl", 4045: "npp", 4190: "sieve", 5060: "sip", 5061: "sips", 6000: "x11", 6566: "sane-port",
    6665: "ircu", 6666: "ircu", 6667: "ircu", 6668: "ircu", 6669: "ircu", 6679: "osaut", 6697: "ircs-u",
    10080: "amanda", 2375: "docker", 2376: "docker", 2379: "etcd", 2380: "etcd", 3306: "mysql", 5432: "postgresql",
    5984: "couchdb", 6379: "redis", 8500: "consul", 9200: "elasticsearch", 9300: "elasticsearch", 10250: "kubelet",
    10255: "kubelet", 11211: "memcached", 27017: "mongodb",
}  # fmt: skip
