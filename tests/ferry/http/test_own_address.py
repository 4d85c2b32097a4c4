"""Addresses that look public but reach this machine or its network: its own addresses, NAT64, ISATAP."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import shutil
import socket
import subprocess
import sys
from typing import Any, cast

import pytest

from ferry.core.errors import AddressBlocked
from ferry.http import address_filter
from ferry.http.address_filter import AddressFilter, FilteringResolver
from ferry.http.address_ranges import special, translators
from tests.ferry.http.test_address_filter import FixedResolver

PREFIX = "2a00:1450:64::"  # the NAT64 prefix of the network in these tests
OWN = "93.184.216.34"


class Connected:
    """A connected socket with these local and remote addresses."""

    def __init__(self, here: str, there: str) -> None:
        v6 = ":" in there
        self.family = socket.AF_INET6 if v6 else socket.AF_INET
        self._ends = [(ip, port, 0, 0) if v6 else (ip, port) for ip, port in ((here, 50_000), (there, 80))]

    def getsockname(self) -> tuple[Any, ...]:
        return self._ends[0]

    def getpeername(self) -> tuple[Any, ...]:
        return self._ends[1]


def judged(names: FixedResolver, here: str, there: str, allow: list[str], host: str = "", times: int = 1) -> bool:
    """Return whether a connection between these addresses may be used, after a lookup of ``host``."""

    async def scenario() -> bool:
        resolver = FilteringResolver(AddressFilter(allow), names)
        if host:
            await resolver.resolve(host, 80)
        try:
            for _ in range(times):
                await resolver.check_connection(cast("socket.socket", Connected(here, there)))
        except AddressBlocked:
            return False
        return True

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("here", "there", "allow", "is_open"),
    [
        (OWN, OWN, [], False),
        (OWN, "93.184.216.35", [], True),
        (OWN, OWN, ["93.184.216.0/24"], True),
        (OWN, OWN, [f"{OWN}:80"], True),
        (OWN, OWN, [f"{OWN}:81"], False),
        (OWN, OWN, ["img.example"], True),
        (OWN, OWN, ["img.example:80"], True),
        (OWN, OWN, ["other.example"], False),
        ("2a00:1450:4001::99", "2a00:1450:4001::99", [], False),
        ("2a00:1450:4001::99", "2a00:1450:4001::98", [], True),
    ],
)
def test_this_machine_s_public_addresses(here: str, there: str, allow: list[str], is_open: bool) -> None:
    """A connection to an own public address is blocked unless an entry allows the address."""
    names = FixedResolver({"img.example": [there], "ipv4only.arpa": []})
    assert judged(names, here, there, allow, host="img.example") is is_open


@pytest.mark.parametrize(
    ("there", "allow", "is_open"),
    [
        (f"{PREFIX}a9fe:a9fe", [], False),  # 169.254.169.254
        (f"{PREFIX}a00:1", [], False),  # 10.0.0.1
        (f"{PREFIX}808:808", [], True),  # 8.8.8.8
        (f"{PREFIX}a00:1", ["2a00:1450:64::/96"], True),
        ("2a00:1450:65::a00:1", [], True),  # outside the NAT64 prefix
    ],
)
def test_what_a_translator_of_the_network_reaches(there: str, allow: list[str], is_open: bool) -> None:
    """The NAT64 prefix of the network is looked up once (RFC 7050), and the IPv4 address behind it is checked."""
    names = FixedResolver({"ipv4only.arpa": ["192.0.0.170", "192.0.0.171", f"{PREFIX}c000:aa", f"{PREFIX}c000:ab"]})
    assert judged(names, "2a00:1450:4001::99", there, allow, times=3) is is_open
    assert len(names.asked) <= 1


def test_a_network_without_a_translator() -> None:
    """A failed lookup of ipv4only.arpa means no NAT64, and IPv4 connections need no lookup."""

    class NoSuchName(FixedResolver):
        async def resolve(self, host: str, port: int = 0) -> Any:
            self.asked.append(host)
            raise socket.gaierror(socket.EAI_NONAME, "unknown")

    names = NoSuchName({})
    assert judged(names, "2a00:1450:4001::99", f"{PREFIX}a00:1", [], times=3)
    assert names.asked == ["ipv4only.arpa"]
    assert judged(names, "93.184.216.35", OWN, [])
    assert names.asked == ["ipv4only.arpa"]


class Slow(FixedResolver):
    """Answers after some turns of the event loop, or never."""

    turns = 20.0

    async def resolve(self, host: str, port: int = 0) -> Any:
        found = await super().resolve(host, port)
        while self.turns:
            self.turns -= 1
            await asyncio.sleep(0)
        return found


def test_connections_that_are_made_at_once_wait_for_one_look_up() -> None:
    """Concurrent connections wait for one shared NAT64 lookup, and a cancelled one does not end it."""
    names = Slow({"ipv4only.arpa": [f"{PREFIX}c000:aa"]})

    async def scenario() -> list[Any]:
        resolver = FilteringResolver(AddressFilter(), names)
        sock = cast("socket.socket", Connected("2a00:1450:4001::99", f"{PREFIX}a00:1"))
        given_up = asyncio.create_task(resolver.check_connection(sock))
        await asyncio.sleep(0)
        given_up.cancel()
        return await asyncio.gather(*(resolver.check_connection(sock) for _ in range(8)), return_exceptions=True)

    assert [type(one) for one in asyncio.run(scenario())] == [AddressBlocked] * 8
    assert names.asked == ["ipv4only.arpa"]


def test_a_look_up_that_hangs_holds_up_no_origin_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NAT64 lookup that hangs ends after its timeout, and later connections do not wait for it."""
    monkeypatch.setattr(address_filter, "NAT64_TIMEOUT_S", 0.05)
    names = Slow({"ipv4only.arpa": []})
    names.turns = math.inf
    assert judged(names, "2a00:1450:4001::99", f"{PREFIX}a00:1", [], times=3)
    assert names.asked == ["ipv4only.arpa"]


@pytest.mark.parametrize("bits", [32, 40, 48, 56, 64, 96])
def test_prefixes_of_each_length(bits: int) -> None:
    """The IPv4 address is found for each prefix length of RFC 6052 section 2.2."""
    address = int(ipaddress.IPv6Address("2a00:1450:6400::")) >> (128 - bits) << (128 - bits)
    ip = int(ipaddress.IPv4Address("192.0.0.171"))
    if bits == 96:
        answer = address | ip
    else:  # around bits 64 to 71
        after = max(0, bits + 32 - 64) if bits < 64 else 32
        answer = address | (ip >> after) << 64 | (ip & (1 << after) - 1) << (56 - after)
    assert translators([ipaddress.IPv6Address(answer)]) == {ipaddress.IPv6Network((address, bits))}


@pytest.mark.parametrize(
    ("ip", "kind"),
    [
        ("2001:470:1::5efe:10.0.0.1", "ISATAP for a private address"),
        ("2001:470:1::200:5efe:127.0.0.1", "ISATAP for a loopback address"),
        ("2001:470:1::5efe:169.254.169.254", "ISATAP for a link-local address"),
        ("2001:470:1::5efe:8.8.8.8", None),
        ("2001:470:1::5eff:10.0.0.1", None),
    ],
)
def test_isatap(ip: str, kind: str | None) -> None:
    """The IPv4 address in an ISATAP address is checked (RFC 5214)."""
    assert special(ipaddress.ip_address(ip)) == kind
    assert (AddressFilter().verdict("", ip) is None) is (kind is None)


INSIDE = """
import asyncio, subprocess, sys, tempfile
from pathlib import Path
from ferry.http.address_filter import AddressFilter
from ferry.core.errors import FerryError
from ferry.http.exchange import OriginOptions
from ferry.http.origin import Origin
from tests.ferry.http.test_address_filter import FixedResolver
for command in ("addr add 93.184.216.34/24 dev lo", "addr add 93.184.216.35/24 dev lo", "link set lo up"):
    subprocess.run(["ip", *command.split()], check=True)
async def main():
    asked = []
    async def serve(reader, writer):
        try:
            asked.append(await reader.readuntil(b"\\r\\n\\r\\n"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 6\\r\\n\\r\\nsecret")
    server = await asyncio.start_server(serve, "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    for allow in ([], ["93.184.216.34", "93.184.216.35"]):
        options = OriginOptions({}, [], connect_s=20, read_s=20, total_s=30, max_bytes=1000)
        origin = Origin(options, AddressFilter(allow), Path(tempfile.mkdtemp()),
            resolver=FixedResolver({"own.example": ["93.184.216.34"], "second.example": ["93.184.216.35"]}))
        for host in ("own.example", "93.184.216.34", "second.example", "93.184.216.35"):
            try:
                await origin.get(f"http://{host}:{port}/a")
                print("fetched", end=" ")
            except Exception as error:
                print(getattr(error, "error_class", type(error).__name__), end=" ")
        await origin.close()
    print(len(asked))
asyncio.run(main())
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"),
    reason="only root can make a network namespace, with unshare and ip",
)
def test_a_service_at_this_machine_s_public_address() -> None:
    """A service at an own public address gets no request, by name or literal, until the job allows the address.

    The test covers a second address in the same network, for which Linux uses the first one as local address.
    """
    ended = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", INSIDE], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout.split() == ["blocked_address"] * 4 + ["fetched"] * 4 + ["4"], ended.stderr


def test_where_sockets_may_have_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `ip_nonlocal_bind`, where a socket binds to any address, no address counts as an own one."""
    assert address_filter.is_own("127.0.0.1", socket.AF_INET)
    assert not address_filter.is_own("93.184.216.34", socket.AF_INET)
    monkeypatch.setattr(address_filter, "_binds", lambda *_: True)
    assert not address_filter.is_own("93.184.216.34", socket.AF_INET)
