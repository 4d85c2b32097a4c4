"""Tables of special IP address ranges, and extraction of IPv4 addresses embedded in IPv6 addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Addresses where clouds serve credentials to any process on a machine. No allowed name or network covers these.
METADATA: dict[Address, str] = {
    ipaddress.ip_address(address): what
    for address, what in (
        ("169.254.169.254", "AWS, Google Cloud, Azure and others"),
        ("169.254.0.23", "Tencent Cloud"),
        ("169.254.42.42", "Scaleway"),
        ("169.254.170.2", "AWS ECS"),
        ("169.254.170.23", "AWS EKS"),
        ("fd00:ec2::254", "AWS"),
        ("fd00:ec2::23", "AWS EKS"),
        ("fd00:42::42", "Scaleway"),
        ("fd20:ce::254", "Google Cloud"),
        ("fe80::a9fe:a9fe", "OpenStack"),
        ("168.63.129.16", "Azure"),
        ("100.100.100.200", "Alibaba Cloud"),
        ("192.0.0.192", "Oracle Cloud"),
        ("fd00:c1::a9fe:a9fe", "Oracle Cloud"),
        ("fd00:a9fe:a9fe::1", "Akamai"),
        ("fd00:100::100:200", "Alibaba Cloud"),
    )
}

# Names that resolvers inside these clouds have for such addresses.
METADATA_NAMES: dict[str, str] = {
    "metadata": "Google Cloud",
    "metadata.google.internal": "Google Cloud",
    "metadata.goog": "Google Cloud",
    "instance-data": "AWS",
    "instance-data.ec2.internal": "AWS",
    "metadata.tencentyun.com": "Tencent Cloud",
}

# IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890): all addresses that are not plain global unicast.
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
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
# RFC 6052 section 2.2: prefix length -> (first bit, number of bits) of the IPv4 address, which skips bits 64 to 71.
_EMBEDDED = {
    32: ((32, 32),), 40: ((40, 24), (72, 8)), 48: ((48, 16), (72, 16)), 56: ((56, 8), (72, 24)), 64: ((72, 32),),
    96: ((96, 32),),
}  # fmt: skip
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214 section 6.1: bits 64 to 95; the IPv4 address follows
# The addresses of ipv4only.arpa (RFC 7050).
_PROBED = (ipaddress.IPv4Address("192.0.0.170"), ipaddress.IPv4Address("192.0.0.171"))


def unscoped(address: Address) -> Address:
    """Return the address without its zone."""
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return ipaddress.IPv6Address(int(address))
    return address


def unmapped(address: Address) -> Address:
    """Return the IPv4 address in an IPv4-mapped IPv6 address, and any other address unchanged."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def inside(address: Address) -> list[Address]:
    """Return the IPv4 addresses that a tunnel or a NAT64 translator finds in an IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address] = []
    if address in _NAT64 or int(address) >> 32 == 0:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address in _LOCAL_NAT64:
        found.extend(_embedded(int(address), parts) for bits, parts in _EMBEDDED.items() if bits >= 48)
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found.extend(address.teredo)
    return found


def translators(answers: Iterable[Address]) -> set[ipaddress.IPv6Network]:
    """Return the NAT64 prefixes of the network from its answers for ipv4only.arpa (RFC 7050 section 3)."""
    return {
        ipaddress.IPv6Network((int(answer) >> (128 - bits) << (128 - bits), bits))
        for answer in answers
        if isinstance(answer, ipaddress.IPv6Address)
        for bits, parts in _EMBEDDED.items()
        if _embedded(int(answer), parts) in _PROBED
    }


def translated(address: Address, prefixes: Iterable[ipaddress.IPv6Network]) -> list[Address]:
    """Return the IPv4 addresses that translators with these prefixes connect to for an IPv6 address."""
    return [_embedded(int(address), _EMBEDDED[prefix.prefixlen]) for prefix in prefixes if address in prefix]


def _embedded(address: int, parts: Iterable[tuple[int, int]]) -> ipaddress.IPv4Address:
    """Return the IPv4 address in these (first bit, number of bits) parts of an IPv6 address."""
    value = 0
    for first, bits in parts:
        value = value << bits | address >> (128 - first - bits) & (1 << bits) - 1
    return ipaddress.IPv4Address(value)


def special(address: Address) -> str | None:
    """Return None for plain global unicast, else a phrase for the kind of address."""
    if isinstance(address, ipaddress.IPv4Address):
        return next((what for network, what in _SPECIAL_4 if address in network), None)
    if address.scope_id is not None:
        return "an address with a zone"
    if address in _NAT64:
        inner = special(inside(address)[0])
        return None if inner is None else f"NAT64 for {inner}"
    for network, what in _SPECIAL_6:
        if address in network:
            return what
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP and (kind := special(inside(address)[-1])):
        return f"ISATAP for {kind}"
    return None if address in _GLOBAL_6 else "a reserved address"
