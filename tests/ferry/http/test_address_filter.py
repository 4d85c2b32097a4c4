"""The address filter, without any connection or lookup on the network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.core.errors import AddressBlocked, UserError
from ferry.http import address_filter
from ferry.http.address_filter import AddressFilter, FilteringResolver, Resolved, SystemResolver, parse_literal
from ferry.http.address_ranges import METADATA

BLOCKED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "169.254.0.23",
    "169.254.42.42",
    "100.100.100.200",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "::8.8.8.8",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "2002:7f00:1::",
    "2002:808:808::",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "3fff::1",
    "fc00::1",
    "fd00::1",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:42::42",
    "fe80::a9fe:a9fe",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "4000::1",
    "5f00::1",
    "e000::1",
    "100::1",
    "2606:4700::1%eth0",
]
OPEN = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "100.63.255.255",
    "100.128.0.1",
    "172.32.0.1",
    "223.255.255.255",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2606:4700::1",
    "2a00:1450::1",
]


@pytest.mark.parametrize("ip", BLOCKED)
def test_special_addresses_are_blocked(ip: str) -> None:
    """Every address that is not global unicast is blocked, with a message that says which kind it is."""
    why = AddressFilter([]).verdict("evil.example", ip)
    assert why is not None
    assert "evil.example" in why
    assert "address" in why or "NAT64" in why


@pytest.mark.parametrize("ip", OPEN)
def test_global_addresses_are_open(ip: str) -> None:
    """Global unicast addresses pass, also as IPv4-mapped or NAT64 addresses."""
    assert AddressFilter([]).verdict("img.example", ip) is None


@given(st.ip_addresses())
def test_never_wider_than_the_standard_library(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Every address that the standard library calls private, multicast or reserved is blocked."""
    if AddressFilter([]).verdict("h", ip) is None:
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in ipaddress.ip_network("64:ff9b::/96") else ip
        assert inner.is_global or ip in ipaddress.ip_network("::ffff:0:0/96")
        assert not inner.is_multicast


@given(st.ip_addresses(v=4))
def test_mapped_is_judged_as_ipv4(ip: ipaddress.IPv4Address) -> None:
    """An IPv4-mapped or NAT64 address has the verdict of the IPv4 address in it."""
    address_filter = AddressFilter([])
    blocked = address_filter.verdict("h", ip) is not None
    assert (address_filter.verdict("h", f"::ffff:{ip}") is not None) is blocked
    assert (address_filter.verdict("h", f"64:ff9b::{ip}") is not None) is blocked


@pytest.mark.parametrize(
    ("allow", "host", "ip", "opened"),
    [
        (["img.internal"], "img.internal", "10.0.0.5", True),
        (["IMG.internal."], "img.INTERNAL", "10.0.0.5", True),
        (["img.internal"], "img.internal.", "127.0.0.1", True),
        (["img.internal"], "other.internal", "10.0.0.5", False),
        (["img.internal"], "x.img.internal", "10.0.0.5", False),
        (["img.internal"], "img.internal", "169.254.169.254", False),
        (["img.internal"], "img.internal", "fd00:ec2::254", False),
        (["img.internal"], "img.internal", "::ffff:169.254.169.254", False),
        (["img.internal"], "img.internal", "64:ff9b::169.254.169.254", False),
        (["img.internal"], "img.internal", "2002:a9fe:a9fe::", False),
        (["img.internal"], "img.internal", "::169.254.169.254", False),
        (["localhost"], "localhost", "::1", True),
        (["10.1.0.0/16"], "any.example", "10.1.2.3", True),
        (["10.1.0.0/16"], "any.example", "::ffff:10.1.2.3", True),
        (["10.1.0.0/16"], "any.example", "10.2.0.1", False),
        (["127.0.0.1"], "127.0.0.1", "127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.2", "127.0.0.2", False),
        (["[::1]"], "x", "::1", True),
        (["::1"], "x", "127.0.0.1", False),
        (["fd00::/8"], "x", "fd12::1", True),
        (["fd00::/8"], "x", "fd00:ec2::254", False),
        (["fd00:ec2::/32"], "x", "fd00:ec2::254", False),
        (["fd00:ec2::/127"], "x", "fd00:ec2::254", False),
        (["fd00:ec2::254"], "x", "fd00:ec2::254", True),
        (["fd00:ec2::254/128"], "x", "fd00:ec2::254", True),
        (["::/0"], "x", "fe80::a9fe:a9fe", False),
        (["100.64.0.0/10"], "x", "100.100.100.200", False),
        (["100.100.100.200"], "x", "100.100.100.200", True),
        (["0.0.0.0/0"], "x", "10.0.0.1", True),
        (["0.0.0.0/0"], "x", "169.254.169.254", False),
        (["169.254.0.0/16"], "x", "169.254.169.254", False),
        (["169.254.0.0/16"], "x", "169.254.1.1", True),
        (["169.254.169.254/31"], "x", "169.254.169.254", False),
        (["169.254.169.254"], "x", "64:ff9b::169.254.169.254", False),
        (["169.254.169.254"], "x", "::ffff:169.254.169.254", True),
        (["64:ff9b::/96"], "x", "64:ff9b::10.0.0.1", True),
        (["64:ff9b::/96"], "x", "64:ff9b::169.254.169.254", False),
        (["64:ff9b:1::/48"], "x", "64:ff9b:1::10.0.0.1", True),
        (["64:ff9b:1::/48"], "x", "64:ff9b:1::169.254.169.254", False),
        (["64:ff9b:1::/48"], "x", "64:ff9b:1:a9fe:a9:fe00::", False),
        (["64:ff9b:1::/48"], "x", "64:ff9b:1:a9:fe:a9fe::", False),
        (["64:ff9b:1::/48"], "x", "64:ff9b:1:0:a9:fea9:fe00:0", False),
        (["2002::/16"], "x", "2002:a9fe:a9fe::1", False),
        (["2001::/32"], "x", "2001:0:1:2:3:4:5601:5601", False),
        (["169.254.169.254"], "x", "169.254.169.254", True),
        (["fe80::/10"], "x", "fe80::1%eth0", True),
        (["bücher.internal"], "xn--bcher-kva.internal", "10.0.0.1", True),
    ],
)
def test_what_the_job_allows(allow: list[str], host: str, ip: str, opened: bool) -> None:
    """A name allows its host, a network its addresses, and only the exact address allows a metadata address."""
    assert (AddressFilter(allow).verdict(host, ip) is None) is opened


@pytest.mark.parametrize(
    ("allow", "host", "ip", "opened"),
    [
        ("img.internal:8080", "img.internal", "10.0.0.5", {8080}),
        ("IMG.internal.:8080", "img.internal", "10.0.0.5", {8080}),
        ("img.internal:8080", "other.internal", "10.0.0.5", set()),
        ("img.internal:8080", "img.internal", "169.254.169.254", set()),
        ("10.0.0.5:8080", "any.example", "10.0.0.5", {8080}),
        ("10.0.0.5:8080", "any.example", "::ffff:10.0.0.5", {8080}),
        ("10.0.0.5:8080", "any.example", "10.0.0.6", set()),
        ("[fd00::5]:8080", "any.example", "fd00::5", {8080}),
        ("img.internal:1", "img.internal", "10.0.0.5", {1}),
        ("img.internal:65535", "img.internal", "10.0.0.5", {65535}),
        ("169.254.169.254:80", "any.example", "169.254.169.254", {80}),
    ],
)
def test_an_entry_with_a_port_opens_that_port_alone(allow: str, host: str, ip: str, opened: set[int]) -> None:
    """An entry with a port allows that port only, not other services of the same machine."""
    address_filter = AddressFilter([allow])
    assert {port for port in (0, 1, 80, 443, 8080, 65535) if address_filter.verdict(host, ip, port) is None} == opened


def test_ports_of_other_services() -> None:
    """Ports of other services are blocked, also on allowed hosts, unless an entry names host and port."""
    address_filter = AddressFilter(["img.internal", "10.0.0.0/8", "scan.internal:6566", "10.0.0.9:515", "[fd00::9]:22"])
    for port in (22, 25, 110, 143, 515, 587, 993, 2049, 2375, 6000, 6379, 6566, 6667, 9200, 10080, 10250, 11211):
        for host in ("img.example", "img.internal", "10.0.0.1", "[fd00::1]"):
            why = address_filter.port_verdict(host, port)
            assert why is not None
            assert f"{host}:{port}" in why
    for host, port in (("scan.internal", 6566), ("SCAN.internal.", 6566), ("10.0.0.9", 515), ("[fd00::9]", 22)):
        assert address_filter.port_verdict(host, port) is None
    for port in (80, 443, 8000, 8080, 8443, 9000, 32768, 65535):
        assert address_filter.port_verdict("img.example", port) is None


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "http://img.internal",
        "http://img.internal/x",
        "img.internal:0",
        "img.internal:70000",
        "img.internal:8080/x",
        "http://img.internal:8080",
        "10.1.0.0/16:8080",
        "img.internal:8080:1",
        "::1:x",
        "*",
        "*.internal",
        "10.0.0.0/33",
        "10.0.0",
        "300.1.1.1",
        "a b",
        "img_internal/24",
        "10.1.2.3/16",
        "[::1",
        "::1/x",
        "-" * 70,
        "a..b",
        "user@host",
    ],
)
def test_nonsense_is_the_users_error(entry: str) -> None:
    """An entry that is neither a host nor a network is a UserError that names the setting."""
    if entry == "10.0.0":  # an old spelling of 10.0.0.0, and therefore valid
        assert AddressFilter([entry]).verdict("x", "10.0.0.0") is None
        return
    with pytest.raises(UserError, match="allow_private_addresses"):
        AddressFilter([entry])


def test_bits_beyond_the_prefix_name_the_remedy() -> None:
    """A network with bits set beyond its prefix is rejected with the corrected network."""
    with pytest.raises(UserError, match=r"write `10\.7\.0\.0/16`"):
        AddressFilter(["10.7.2.3/16"])


@pytest.mark.parametrize(
    ("host", "ip"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0X7F000001", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("0x", "0.0.0.0"),
        ("0xa9fea9fe", "169.254.169.254"),
        ("169.254.43518", "169.254.169.254"),
        ("1.2.3", "1.2.0.3"),
        ("①②⑦.⓪.⓪.①", "127.0.0.1"),
        ("127。0。0。1", "127.0.0.1"),
        ("127．0.0.1", "127.0.0.1"),
        ("0x7F.0X0.0.0x1", "127.0.0.1"),
        ("00000000177.0.0.1", "127.0.0.1"),
        ("0" * 37 + "177.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1"),
        ("[fe80::1%25eth0]", "fe80::1%eth0"),
        ("[fe80::1%eth0]", "fe80::1%eth0"),
    ],
)
def test_spellings_of_literals(host: str, ip: str) -> None:
    """Each spelling that some resolver accepts as an address is parsed as that address."""
    assert parse_literal(host) == ipaddress.ip_address(ip)


@pytest.mark.parametrize(
    "host", ["img.example", "1.example", "0xgg", "a.0xzz", "localhost", "", "x", "1.2.3.4.example", "0x7f.1.de"]
)
def test_names_are_no_literals(host: str) -> None:
    """A host whose last label is not a number is a name."""
    assert parse_literal(host) is None


@pytest.mark.parametrize(
    "host",
    [
        "256.1.1.1",
        "1.256.1.1",
        "1.2.3.256",
        "1.2.65536",
        "1.16777216",
        "1.2.3.4.5",
        "4294967296",
        "08.1.1.1",
        "1..1",
        "a.1",
        "[127.0.0.1]",
        "[::1",
        "::g",
        "127.0.0.1x.1",
        "0x7f.0.0.0x1g.1",
        "9" * 5000,
        "0x" + "f" * 50,
        "0" * 38 + "177.0.0.1",  # 41 digits
        "1_0.1",
        "-1.1",
        "+1.1",
        " 1.1",
    ],
)
def test_broken_literals(host: str) -> None:
    """A host that ends in a number but is not an address is rejected without a lookup."""
    with pytest.raises(ValueError, match=r"."):
        parse_literal(host)


@given(st.ip_addresses(v=4))
def test_spellings_agree_with_libc(ip: ipaddress.IPv4Address) -> None:
    """Decimal, octal and hexadecimal spellings give the same address as libc's inet_aton."""
    n = int(ip)
    for text in (
        str(n),
        hex(n),
        f"0{n:o}" if n else "0",
        f"{n >> 24}.{n & 0xFFFFFF}",
        f"0x{n >> 24:x}.{n >> 16 & 255}.{n & 0xFFFF}",
    ):
        assert parse_literal(text) == ip == ipaddress.ip_address(socket.inet_aton(text))


class FixedResolver:
    """A resolver that answers from a dictionary and records the names."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names, self.asked = names, list[str]()

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
        self.asked.append(host)
        return [
            Resolved(
                host=ip,
                port=port,
                family=socket.AF_INET6 if ":" in ip else socket.AF_INET,
            )
            for ip in self.names[host]
        ]

    async def close(self) -> None: ...


def resolver(names: dict[str, list[str]], allow: list[str]) -> FilteringResolver:
    return FilteringResolver(AddressFilter(allow), FixedResolver(names))


def info(ip: str, port: int = 80) -> tuple[object, ...]:
    v6 = ":" in ip
    address = (ip, port, 0, 0) if v6 else (ip, port)
    return (socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)


def test_resolver_drops_blocked_addresses() -> None:
    """The resolver returns only the allowed addresses of a name."""

    async def scenario() -> list[str]:
        found = await resolver({"mixed.example": ["127.0.0.1", "8.8.8.8", "fd00::1"]}, []).resolve("mixed.example", 80)
        return [one["host"] for one in found]

    assert asyncio.run(scenario()) == ["8.8.8.8"]


@pytest.mark.parametrize("ip", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "fd00:ec2::254", "::ffff:127.0.0.1"])
def test_resolver_refuses_a_name_without_open_addresses(ip: str) -> None:
    """A name that resolves only to blocked addresses raises AddressBlocked with the name."""
    with pytest.raises(AddressBlocked, match=r"evil\.example"):
        asyncio.run(resolver({"evil.example": [ip]}, []).resolve("evil.example", 80))


def test_resolver_gives_up_a_look_up_that_hangs() -> None:
    """A lookup that does not end raises TimeoutError."""

    class Hanging(FixedResolver):
        async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(TimeoutError):
        asyncio.run(FilteringResolver(AddressFilter([]), Hanging({}), 0.02).resolve("slow.example"))


@pytest.fixture
def no_socket(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Record each socket that would have been made."""
    made: list[object] = []

    def make(**kwargs: object) -> str:
        made.append(kwargs)
        return "a socket"

    monkeypatch.setattr(address_filter, "socket", SimpleNamespace(socket=make))  # asyncio keeps its own
    return made


@pytest.mark.parametrize(
    "ip", [*(str(ip) for ip in METADATA), "127.0.0.1", "10.0.0.1", "::1", "::ffff:10.0.0.1", "nonsense"]
)
def test_no_socket_for_a_blocked_address(ip: str, no_socket: list[object]) -> None:
    """The socket factory rejects a blocked address before it makes a socket, whatever earlier checks decided."""
    with pytest.raises(AddressBlocked):
        resolver({}, []).open_socket(info(ip))
    assert no_socket == []


def test_sockets_for_what_was_let_through(no_socket: list[object]) -> None:
    """An allowed name's private address gets a socket after the lookup, an allowed network's at any time."""

    async def scenario() -> FilteringResolver:
        guarded = resolver({"img.internal": ["10.0.0.5"]}, ["img.internal", "192.168.1.0/24"])
        with pytest.raises(AddressBlocked):
            guarded.open_socket(info("10.0.0.5"))
        await guarded.resolve("img.internal", 80)
        return guarded

    guarded = asyncio.run(scenario())
    for ip in ("10.0.0.5", "192.168.1.7", "8.8.8.8", "2606:4700::1"):
        assert str(guarded.open_socket(info(ip))) == "a socket"
    for ip in ("10.0.0.6", "192.168.2.1"):
        with pytest.raises(AddressBlocked):
            guarded.open_socket(info(ip))
    assert len(no_socket) == 4


def test_a_socket_for_one_port_is_none_for_another(no_socket: list[object]) -> None:
    """An entry with a port allows a socket for no other port of that name or address."""

    async def scenario() -> None:
        guarded = resolver({"img.internal": ["10.0.0.5"]}, ["img.internal:8080", "10.0.0.7:9000"])
        await guarded.resolve("img.internal", 8080)
        with pytest.raises(AddressBlocked):
            await guarded.resolve("img.internal", 8081)
        for ip, port in (("10.0.0.5", 8080), ("10.0.0.7", 9000)):
            assert str(guarded.open_socket(info(ip, port))) == "a socket"
            with pytest.raises(AddressBlocked):
                guarded.open_socket(info(ip, port + 1))

    asyncio.run(scenario())
    assert len(no_socket) == 2


def test_a_host_is_shown_as_long_as_a_name_may_be() -> None:
    """A message shows a host of up to 253 characters in full and truncates a longer one."""
    for length, shown in ((253, "h" * 253), (254, "h" * 250 + "...")):
        why = AddressFilter([]).verdict("h" * length, "10.0.0.1")
        assert why is not None
        assert why.startswith(f"{shown} (10.0.0.1)")


@pytest.mark.parametrize(
    ("family", "found", "host"),
    [
        (socket.AF_INET6, ("fe80::1", 80, 0, 3), "fe80::1%3"),
        (socket.AF_INET6, ("fe80::1%eth0", 80, 0, 3), "fe80::1%eth0"),
        (socket.AF_INET6, ("2606:4700::1", 80, 0, 0), "2606:4700::1"),
        (socket.AF_INET, ("8.8.8.8", 80), "8.8.8.8"),
    ],
)
def test_the_interface_of_a_link_local_address_is_kept(
    family: socket.AddressFamily, found: tuple[object, ...], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver keeps the interface of a link-local address as its zone."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(family, socket.SOCK_STREAM, 6, "", found)])
    assert asyncio.run(SystemResolver().resolve("h.example", 80)) == [Resolved(host=host, port=80, family=family)]


def test_the_system_s_resolver() -> None:
    """The system resolver resolves localhost to loopback addresses with the requested port."""

    async def work() -> None:
        found = await SystemResolver().resolve("localhost", 80)
        assert found
        assert {entry["host"] for entry in found} <= {"127.0.0.1", "::1"}
        assert {entry["port"] for entry in found} == {80}

    asyncio.run(work())


def test_look_ups_that_hang_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred hanging lookups delay neither another lookup nor asyncio's own threads."""
    over = threading.Event()

    def lookup(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host.startswith("hangs"):
            over.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)

    async def go() -> None:
        resolver = FilteringResolver(AddressFilter(), timeout_s=5.0)
        hanging = [asyncio.create_task(resolver.resolve(f"hangs-{n}.example", 80)) for n in range(100)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(2):
            assert [one["host"] for one in await resolver.resolve("img.example", 80)] == ["93.184.216.34"]
            await asyncio.to_thread(int)
        over.set()
        await asyncio.gather(*hanging, return_exceptions=True)

    try:
        asyncio.run(go())
    finally:
        over.set()
