# ruff: noqa: E501  (tables of words)
"""Fuzz tests of parsers for network input: addresses and their filter, redirects, Retry-After, images."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import random
import socket
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from yarl import URL

from ferry.core.errors import AddressBlocked, ObjectError
from ferry.core.records import ErrorClass
from ferry.core.redaction import escaped, redact
from ferry.http.address_filter import AddressFilter, FilteringResolver, Resolved
from ferry.http.retry_after import MAX_RETRY_AFTER_S, parse_retry_after
from ferry.http.urls import Target, Targets
from ferry.job.templates import key_problem
from ferry.manifest.sources import key_or_problem, normal_roots
from tests.faults.amount import some
from tests.faults.fuzzing import Fuzzer, try_all
from tests.faults.malformed import MALFORMED
from tests.ferry.images.test_check import VALID, body
from tests.ferry.images.test_fuzz import survives

Tried = Callable[..., None]

PRIVATE = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1", "127.0.0.1.", "localhost",
    "169.254.169.254", "2852039166", "0xa9fea9fe", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "[::1]", "[::]",
    "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[2002:7f00:1::]", "[fe80::1%25eth0]", "10.0.0.1",
    "172.16.0.1", "192.168.1.1", "0.0.0.0", "0", "224.0.0.1", "255.255.255.255", "[ff02::1]", "[::127.0.0.1]",
    "[2001:0:7f00:1::]", "100.64.0.1", "[fec0::1]", "①②⑦.⓪.⓪.①", "127。0。0。1", "１２７.0.0.1",
]  # fmt: skip
PUBLIC = [
    "img.example",
    "a.b.example:8080",
    "93.184.216.34",
    "[2606:2800:220:1::]",
    "xn--bcher-kva.example",
    "bücher.example",
]
ADDRESSES = [
    f"{scheme}://{host}{rest}"
    for scheme in ("http", "https", "HTTP")
    for host in (*PRIVATE, *PUBLIC)
    for rest in ("/a/b.jpg", ":80/x?sig=topsecret1", "/a%2Fb c.jpg#x")
] + [text.replace("PW", "topsecret1") for text in MALFORMED.values()]
WORDS = [
    "//", "/", "\\", "@", ":", "?", "#", "[", "]", "%", ".", "..", "。", "．", "%2e", "%2f", "%00", "%40", "\t", "\n", "\r",
    "\0", " ", "::", "ffff:", "0x", "0", "00", "127", "127.0.0.1", "169.254.169.254", "localhost", ".localhost", "xn--",
    "user:pw@", ":80", ":0", ":65536", ":٣", "http://", "https:", "file://", "s3://", "gopher://", "%25eth0", "①", "ⓛ",
    "／", "？", "＠", "\u200b", "\u00ad", "\ud800", "\U000e0041", "é", "e\u0301", "ſ", "K", "ß", "١٢٧", "0x7f.0x0.0x0.0x1",
    "1.1.1.1", "4294967297",
]  # fmt: skip


def private(host: str) -> str | None:
    """Returns the private address that this machine's resolver reads from a host, without a look-up; None for others."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), 80, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return next((str(one[4][0]) for one in found if is_private(str(one[4][0]))), None)


def is_private(text: str) -> bool:
    """Returns whether an address is private, by the standard library's tables, and for IPv6 also by the IPv4 address inside."""
    ip = ipaddress.ip_address(text)
    if isinstance(ip, ipaddress.IPv6Address):
        number = int(ip)
        inside = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if number >> 32 == 0 or ip in ipaddress.ip_network("64:ff9b::/96"):
            inside.append(ipaddress.IPv4Address(number & 0xFFFFFFFF))
        if any(inner is not None and is_private(str(inner)) for inner in inside):
            return True
        if ip.ipv4_mapped is not None:
            return False
        if ip.scope_id is not None:
            return True
    return not ip.is_global or ip.is_multicast


def test_addresses(tried: Tried) -> None:
    """Any source is refused with a reason or leads to a public address; its query is in no message."""
    fuzzer = Fuzzer(401, ADDRESSES, WORDS)
    targets = Targets(AddressFilter())
    roots = normal_roots(["s3://bucket/p/", "file:///srv/images/"])

    def judge(text: str) -> None:
        key, why = key_or_problem(text, roots)
        assert (key is None) != (why is None)
        messages = [redact(text), why or ""]
        if key is not None:
            key_problem(key, for_directory=True, prefix="p")
        try:
            target = targets.read(text)
        except ObjectError as error:
            assert error.error_class in (ErrorClass.BAD_URL, ErrorClass.BLOCKED_ADDRESS)
            messages.append(error.message)
        else:
            public(target)
        assert escaped(messages[1]) == messages[1]
        secret = text.partition("#")[0].partition("?")[2]
        if len(secret) >= 10 and text.count(secret) == 1:  # a text that is also in the path is not a secret
            assert not any(secret in line for line in messages)

    tried("fuzzing: addresses", try_all(some(6_000, 450_000), fuzzer.text, judge, KNOWN_ADDRESSES))


# Inputs that once failed.
KNOWN_ADDRESSES = [
    "http://[me:topsecret1@h.example/x.jpg]",
    "HTTP://[fe80::1%25\th0]:80/x?sig=topsecret1", "http://[fe80::1%25\x1b[2J]/",
    "http://[::ffff:127.0.0.1%25eth0]/", "http://127.0.0.1%2f@img.example/", "http://img.example\\@127.0.0.1/",
    "http://me\ud800:\ttopsecret1@h.example/x.jpg", "\x0ehttp://[2002:7f:\0:7f00:①1\x04:]/x", "http://0x7f.0.0.0x1./", "http://①②⑦.1/", "http://[64:ff9b::127.0.0.1]/", "http://user:topsecret1@[::1]:80/?topsecret1",
]  # fmt: skip


def public(target: Target) -> None:
    host = target.site[1]
    found = private(host)
    assert found is None, f"{host} is {found}"
    assert target.url.raw_host is not None
    assert private(target.url.raw_host) is None


def test_redirects(tried: Tried) -> None:
    """Any Location is refused with a reason or leads to a public address, and no secret is in the message."""
    fuzzer = Fuzzer(402, [*ADDRESSES, "/a.jpg", "../x", "//img.example/y", "?z", "", "x:y", "//127.0.0.1/"], WORDS)
    targets = Targets(AddressFilter())
    bases = [URL("http://img.example/a/b.jpg"), URL("https://93.184.216.34:8080/x?y=1")]

    def judge(text: str) -> None:
        try:
            target = targets.redirected(fuzzer.rng.choice(bases), text, 302)
        except ObjectError as error:
            assert error.error_class in (ErrorClass.BAD_URL, ErrorClass.BLOCKED_ADDRESS)
            assert escaped(error.message) == error.message
            assert "topsecret1" not in error.message
        else:
            public(target)

    tried("fuzzing: redirects", try_all(some(2_000, 150_000), fuzzer.text, judge, KNOWN_ADDRESSES))


class FixedResolver:
    """A resolver whose answer the test sets."""

    def __init__(self) -> None:
        self.answer: list[Resolved] = []

    async def resolve(self, host: str, port: int = 0) -> list[Resolved]:
        return self.answer


def test_resolved_addresses(tried: Tried) -> None:
    """Of any answer to a look-up only public addresses are kept, and no socket is opened for other ones."""
    rng = random.Random(403)
    fixed = FixedResolver()
    resolver = FilteringResolver(AddressFilter(), fixed)
    loop = asyncio.new_event_loop()

    def make() -> list[str]:
        return [_any_address(rng) for _ in range(rng.randint(1, 4))]

    def judge(found: list[str]) -> None:
        fixed.answer = [
            Resolved(host=ip, port=80, family=socket.AF_INET6 if ":" in ip else socket.AF_INET) for ip in found
        ]
        try:
            kept = loop.run_until_complete(resolver.resolve("img.example", 80))
        except AddressBlocked:
            kept = []
        assert not [one["host"] for one in kept if is_private(one["host"])]
        for ip in found:
            family = socket.AF_INET6 if ":" in ip else socket.AF_INET
            if is_private(ip):
                with pytest.raises(AddressBlocked):
                    resolver.open_socket((family, socket.SOCK_STREAM, 6, "", (ip, 80)))

    try:
        tried("fuzzing: answers of resolvers", try_all(some(1_000, 40_000), make, judge))
    finally:
        loop.close()


def _any_address(rng: random.Random) -> str:
    four = ipaddress.IPv4Address(
        rng.choice((rng.getrandbits(32), 0x7F000001, 0xA9FEA9FE, 0x0A000000 + rng.getrandbits(24), 0xC0A80101, 0))
    )
    if rng.random() < 0.4:
        return str(four)
    high = rng.choice((
        0, 0xFFFF << 32, 0x0064FF9B << 96, 0x2002 << 112 | int(four) << 80, 0x20010000 << 96, 0xFE80 << 112,
        0xFC00 << 112, 0xFF02 << 112, 0x20010DB8 << 96, 0x2606 << 112, 0xFD00 << 112, rng.getrandbits(96) << 32,
    ))  # fmt: skip
    return str(ipaddress.IPv6Address(high | int(four)))


def test_retry_after(tried: Tried) -> None:
    """Any Retry-After is a number of seconds from 0 to the limit, or None."""
    words = ["GMT", "UTC", "-0000", "+9999", "+2400", ",", ":", " ", "-", "Sun", "Feb", "30", "99999", "0", "1e9", ".",
             "inf", "nan", "\0", "١", "１", "24:00:00", "60", "\t", "(", ")", "\ud800", "9" * 400, "Z", "J"]  # fmt: skip
    corpus = [
        "120", "0", "1.5", "-1", "Wed, 21 Oct 2026 07:28:00 GMT", "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 -2359", "", "soon", "1, 2",
    ]  # fmt: skip
    fuzzer = Fuzzer(404, corpus, words)
    now = datetime(2026, 1, 2, tzinfo=UTC)

    def judge(text: str) -> None:
        delay = parse_retry_after(text, now)
        assert delay is None or (math.isfinite(delay) and 0 <= delay <= MAX_RETRY_AFTER_S)

    known = [
        "9" * 60_000,
        "," * 60_000,
        "(" * 60_000,
        "Sun, 06 Nov 1994 08:49:37 +" + "9" * 5000,
        " " * 60_000,
        "1" + "0" * 400 + ".5",
    ]
    tried("fuzzing: Retry-After", try_all(some(4_000, 300_000), fuzzer.text, judge, known))


@pytest.mark.slow
def test_images(tried: Tried) -> None:
    """Damaged images get a verdict at both levels: a known kind, or an ObjectError with a printable message.

    A header may give any image 250 million pixels, which are in the memory of decoder processes, not of this one.
    """
    names = sorted(name for name in VALID if len(body(name)) < 20_000)
    markup = [
        "<svg",
        "<?xml",
        "<!DOCTYPE",
        "<!ENTITY a '&b;'>",
        "&a;",
        "-->",
        "<![CDATA[",
        "\ufeff",
        "RIFF",
        "ftyp",
        "IHDR",
        "Exif\0\0",
    ]
    fuzzer = Fuzzer(405, [body(name) for name in names], markup)
    tried("fuzzing: images", try_all(some(300, 30_000), fuzzer.data, survives))
