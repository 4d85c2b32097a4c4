"""The address filter: a list of URLs must not reach what only this machine can reach.

It stands in three places, since each alone can be passed by: literals are judged before each request
and each redirect, the resolver drops what names resolve to, and the socket of each connection is
judged by the very address that it is for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

from tasks.engine.errors import AddressBlocked, UserError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Where clouds serve credentials to whoever asks from inside. No allowed name and no wide network opens these.
METADATA: dict[Address, str] = {
    ipaddress.ip_address(address): what
    for address, what in (
        ("169.254.169.254", "AWS, Google Cloud, Azure and others"),
        ("169.254.170.2", "AWS ECS"),
        ("169.254.170.23", "AWS EKS"),
        ("fd00:ec2::254", "AWS"),
        ("fd00:ec2::23", "AWS EKS"),
        ("fd20:ce::254", "Google Cloud"),
        ("168.63.129.16", "Azure"),
        ("100.100.100.200", "Alibaba Cloud"),
        ("192.0.0.192", "Oracle Cloud"),
    )
}
_METADATA_LEAST_PREFIX = {4: 16, 6: 32}  # a network no wider than this names them explicitly

# IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890): all that is not plain global unicast.
_SPECIAL_4 = [
    (ipaddress.IPv4Network(network), what)
    for network, what in (
        ("255.255.255.255/32", "the broadcast address"),
        ("127.0.0.0/8", "a loopback address"),
        ("10.0.0.0/8", "a private address"),
        ("172.16.0.0/12", "a private address"),
        ("192.168.0.0/16", "a private address"),
        ("169.254.0.0/16", "a link-local address"),
        ("100.64.0.0/10", "an address of carrier-grade NAT"),
        ("0.0.0.0/8", "an unspecified address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("192.0.0.0/24", "a reserved address"),
        ("192.88.99.0/24", "a reserved address"),
        ("198.18.0.0/15", "an address for benchmarks"),
        ("192.0.2.0/24", "an address for documentation"),
        ("198.51.100.0/24", "an address for documentation"),
        ("203.0.113.0/24", "an address for documentation"),
    )
]
_SPECIAL_6 = [
    (ipaddress.IPv6Network(network), what)
    for network, what in (
        ("::/128", "the unspecified address"),
        ("::1/128", "the loopback address"),
        ("::/96", "an IPv4-compatible address"),
        ("64:ff9b:1::/48", "an address of local NAT64"),
        ("2002::/16", "an address of the 6to4 tunnel"),
        ("2001::/32", "an address of the Teredo tunnel"),
        ("2001::/23", "a reserved address"),
        ("2001:db8::/32", "an address for documentation"),
        ("3fff::/20", "an address for documentation"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a site-local address"),
        ("ff00::/8", "a multicast address"),
    )
]
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")  # lower case, no trailing dot
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")


def parse_literal(host: str) -> Address | None:
    """The address that a URL's host spells, or None for a name.

    Takes every spelling that some resolver takes: `2130706433`, `0x7f.1`, `017700000001`, `127.1`, full-width
    digits, a trailing dot, brackets and zone ids (WHATWG URL standard, section 3.5, "IPv4 parser").
    Raises ValueError for what ends in a number or stands in brackets and is no address.
    """
    if not host.isascii():
        host = unicodedata.normalize("NFKC", host).replace("\u3002", ".")
    if host.startswith("[") or ":" in host:
        if host.startswith("[") != host.endswith("]"):
            raise ValueError("unbalanced brackets")
        return ipaddress.IPv6Address(host.strip("[]").replace("%25", "%", 1))
    parts = host.removesuffix(".").split(".")
    if not _NUMBER.fullmatch(parts[-1]):
        return None
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) and len(part) <= 40 for part in parts):
        raise ValueError("it ends in a number and is no IPv4 address")
    numbers = [_number(part) for part in parts]
    if any(number > 255 for number in numbers[:-1]) or numbers[-1] >= 256 ** (5 - len(numbers)):
        raise ValueError("no IPv4 address is that large")
    value = numbers[-1]
    for place, number in enumerate(numbers[:-1]):
        value += number << (8 * (3 - place))
    return ipaddress.IPv4Address(value)


def _number(text: str) -> int:
    if text[:2] in ("0x", "0X"):
        return int(text[2:] or "0", 16)
    return int(text, 8 if len(text) > 1 and text[0] == "0" else 10)


class AddressFilter:
    """What may be connected to: global unicast addresses, and what the job allows by name or network.

    ``allow`` holds host names, addresses and networks (`source.allow_private_addresses`). A name opens
    that host whatever it resolves to; a network opens its addresses under any name. Metadata addresses
    open only to a network no wider than a /16 (IPv6: a /32). Raises UserError for other entries.
    """

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self._hosts: set[str] = set()
        self._networks: list[Network] = []
        for entry in allow:
            parsed = _entry(entry)
            if isinstance(parsed, str):
                self._hosts.add(parsed)
            else:
                self._networks.append(parsed)

    def allows_name(self, host: str) -> bool:
        return _plain(host) in self._hosts

    def verdict(self, host: str, ip: str | Address) -> str | None:
        """None if ``ip``, which ``host`` is or resolves to, may be connected to; else a sentence why not.

        | address | allowed by network | host allowed by name | verdict |
        |---|---|---|---|
        | metadata | by one that names it | any | None |
        | metadata | no, or only by a wide one | any | blocked |
        | special | yes | any | None |
        | special | no | yes | None |
        | special | no | no | blocked |
        | global unicast | any | any | None |

        An IPv4-mapped address is the IPv4 address in it; one of NAT64 is judged by the address in it too.
        """
        try:
            address = _unmapped(ipaddress.ip_address(ip))
        except ValueError:
            return f"{_shown(host)} resolves to something that is no address"
        by = [
            network
            for network in self._networks
            if network.version == address.version and _unscoped(address) in network
        ]
        for inner in (address, *_inside(address)):
            cloud = METADATA.get(_unscoped(inner))
            if cloud and not any(network.prefixlen >= _METADATA_LEAST_PREFIX[network.version] for network in by):
                return (
                    f"{_at(host, address)} is a metadata address ({cloud}), which hands out credentials; "
                    "it is not fetched from"
                )
        what = _special(address)
        if what is None or by or self.allows_name(host):
            return None
        return (
            f"{_at(host, address)} is {what}; addresses that are not public are fetched from only if "
            "`source.allow_private_addresses` names the host or its network"
        )


def _entry(text: str) -> str | Network:
    """One entry of the allow list. Raises UserError with what to write instead."""
    where = f"source.allow_private_addresses: `{text}`"
    bare = text.strip()
    try:
        if "/" in bare and "://" not in bare:
            try:
                return ipaddress.ip_network(bare)
            except ValueError:
                loose = ipaddress.ip_network(bare, strict=False)  # raises too where it is no network
                raise UserError(f"{where} has bits set beyond its prefix; write `{loose}`") from None
        literal = parse_literal(bare)
        if literal is not None:
            return ipaddress.ip_network(_unmapped(_unscoped(literal)))
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
            return name
    raise UserError(
        f"{where} is neither a host (`img.internal`, without scheme, port or path) nor a network (`10.1.0.0/16`)"
    )


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def _unscoped(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return ipaddress.IPv6Address(int(address))
    return address


def _unmapped(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _inside(address: Address) -> list[Address]:
    """IPv4 addresses that an IPv6 address carries through a tunnel or a translator."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address] = []
    if address in _NAT64 or int(address) >> 32 == 0:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found.extend(address.teredo)
    return found


def _special(address: Address) -> str | None:
    """What kind of address this is, if it is not plain global unicast."""
    if isinstance(address, ipaddress.IPv4Address):
        return next((what for network, what in _SPECIAL_4 if address in network), None)
    if address.scope_id is not None:
        return "an address with a zone"
    if address in _NAT64:
        inner = _special(_inside(address)[0])
        return None if inner is None else f"NAT64 for {inner}"
    for network, what in _SPECIAL_6:
        if address in network:
            return what
    return None if address in _GLOBAL_6 else "a reserved address"


def _shown(host: str) -> str:
    return host if len(host) <= 253 else host[:250] + "..."


def _at(host: str, address: Address) -> str:
    name = _plain(host).strip("[]")
    return f"the address {address}" if name in ("", str(address)) else f"{_shown(host)} ({address})"


class Resolved(TypedDict):
    """One address of a name."""

    host: str
    port: int
    family: int


class Resolver(Protocol):
    """Who looks names up. Raises socket.gaierror."""

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]: ...


class SystemResolver:
    """getaddrinfo, in a thread."""

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
        loop = asyncio.get_running_loop()
        # Only families that this machine has; its own loopback does not count as one, so not for localhost.
        flags = 0 if host.rpartition(".")[2] == "localhost" else socket.AI_ADDRCONFIG
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        resolved: list[Resolved] = []
        for family, _, _, _, address in found:
            text = str(address[0])
            if family == socket.AF_INET6 and len(address) == 4 and address[3] and "%" not in text:
                text += f"%{address[3]}"  # link-local: of an interface
            resolved.append(Resolved(host=text, port=port, family=family))
        return resolved


class FilteringResolver:
    """A resolver that leaves out blocked addresses, and the maker of the sockets to those it let through.

    Nobody is asked about literal addresses: those are for the caller to judge first. ``timeout_s`` bounds one look-up.
    """

    def __init__(self, address_filter: AddressFilter, inner: Resolver | None = None, timeout_s: float = 15.0) -> None:
        self._filter = address_filter
        self._inner = inner or SystemResolver()
        self._timeout_s = timeout_s
        self._opened_by_name: set[str] = set()

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
        """Raises AddressBlocked when no address is left; what the inner resolver raises passes."""
        async with asyncio.timeout(self._timeout_s):
            results = await self._inner.resolve(host, port)
        kept: list[Resolved] = []
        why: str | None = None
        for result in results:
            blocked = self._filter.verdict(host, result["host"])
            if blocked is not None:
                why = why or blocked
                continue
            kept.append(result)
            if self._filter.verdict("", result["host"]) is not None:
                self._opened_by_name.add(result["host"])
        if why is not None and not kept:
            raise AddressBlocked(why)
        return kept

    def open_socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        """A socket for exactly this address. Raises AddressBlocked, before one is made."""
        family, kind, protocol, _, sockaddr = addr_info
        why = self._filter.verdict("", sockaddr[0])
        if why is not None and sockaddr[0] not in self._opened_by_name:
            raise AddressBlocked(why)
        return socket.socket(family=family, type=kind, proto=protocol)
