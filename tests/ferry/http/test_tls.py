"""TLS under uvloop with real handshakes, and trusted and untrusted certificates."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ferry.core.errors import BodyCut
from ferry.core.records import ErrorClass
from ferry.http.dial import AnyAddress
from ferry.http.errors import from_origin
from ferry.http.network import strict, tls
from ferry.http.pool import Connections
from tests.ferry.http.test_pool import Bytes

BODY = bytes(range(256)) * 80_000  # 20 MB


def certificate(folder: Path, *, days: int = 2, address: str = "127.0.0.1", common: str = "test") -> Path:
    """Write a key and a self-signed certificate to one file; without an address, it has no subjectAltName."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
    )
    if address:
        named = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        made = made.add_extension(named, critical=False)
    signed = made.sign(key, hashes.SHA256())
    file = folder / "cert.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return file


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a GET with BODY, and a PUT with the digest of its body."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            answer = BODY
            if head.startswith(b"PUT"):
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                answer = hashlib.md5(await reader.readexactly(length)).hexdigest().encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def at_a_server(file: Path, test: Callable[[Connections, int], Awaitable[None]], *, trusted: bool = True) -> None:
    async def go() -> None:
        ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        ours.load_cert_chain(file)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ours)
        theirs = ssl.create_default_context(cafile=str(file) if trusted else None)
        connections = Connections(AnyAddress(), limit=4, connect_s=5, read_s=5, context=theirs)
        try:
            async with asyncio.timeout(30):
                await test(connections, server.sockets[0].getsockname()[1])
        finally:
            await connections.close()
            server.close()

    uvloop.run(go())


async def ask(connections: Connections, port: int, body: Bytes | bytes | None = None) -> bytes:
    length = f"content-length: {len(body)}\r\n" if body is not None else ""
    head = f"{'GET' if body is None else 'PUT'} / HTTP/1.1\r\nhost: x\r\n{length}\r\n".encode()
    deadline = asyncio.get_running_loop().time() + 20
    answer = await connections.request(("https", "127.0.0.1", port), head, body, deadline=deadline)
    return await answer.read()


def test_bodies_arrive_both_ways(tmp_path: Path) -> None:
    """Downloads and uploads, whole or in pieces, arrive intact over one TLS connection."""

    async def test(connections: Connections, port: int) -> None:
        for body in (b"x", Bytes(BODY), BODY, Bytes(b"y")):
            data = body if isinstance(body, bytes) else body.data
            assert await ask(connections, port, body) == hashlib.md5(data).hexdigest().encode()
            assert await ask(connections, port) == BODY
        assert connections.connections_opened == 1

    at_a_server(certificate(tmp_path), test)


@pytest.mark.parametrize(
    ("trusted", "days", "address", "words"),
    [
        (False, 2, "127.0.0.1", "self-signed certificate"),
        (True, -1, "127.0.0.1", "certificate has expired"),
        (True, 2, "127.0.0.2", "IP address mismatch"),
    ],
)
def test_a_certificate_that_proves_nothing_is_refused(
    trusted: bool, days: int, address: str, words: str, tmp_path: Path
) -> None:
    """An untrusted, expired or mismatched certificate fails the connection with error class tls and the reason."""

    async def test(connections: Connections, port: int) -> None:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await ask(connections, port)
        error = from_origin(caught.value)
        assert getattr(error, "error_class", None) is ErrorClass.TLS
        assert words in str(error)
        assert connections.connections_opened == 0

    at_a_server(certificate(tmp_path, days=days, address=address), test, trusted=trusted)


class Endings:
    """A server that sends a body without a length, and ends the connection with or without close_notify."""

    def __init__(self, file: Path, notify: bool, family: int = socket.AF_INET) -> None:
        self._notify = notify
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(file)
        self._listening = socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with contextlib.suppress(OSError):
                    secure = self._context.wrap_socket(connection, server_side=True)
                    secure.recv(1000)
                    secure.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
                    if self._notify:
                        secure.settimeout(10)
                        secure.unwrap()
                    os.close(secure.detach())

    def close(self) -> None:
        self._listening.close()


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("notify", [True, False])
def test_a_body_without_a_length_is_whole_after_close_notify_alone(
    notify: bool, runner: Callable[..., None], tmp_path: Path
) -> None:
    """A body without a length is complete only after close_notify (RFC 9112 section 9.8)."""
    file = certificate(tmp_path)
    server = Endings(file, notify)

    async def go() -> None:
        theirs = strict(ssl.create_default_context(cafile=str(file)))
        connections = Connections(AnyAddress(), limit=4, connect_s=20, read_s=20, context=theirs)
        try:
            if notify:
                assert await ask(connections, server.port) == b"half of it"
            else:
                with pytest.raises(BodyCut):
                    await ask(connections, server.port)
        finally:
            await connections.close()

    try:
        runner(go())
    finally:
        server.close()


def test_the_contexts_of_runs_are_strict() -> None:
    """The TLS context requires a certificate, checks the host name and ignores the common name."""
    assert not tls().hostname_checks_common_name
    assert tls().verify_mode is ssl.CERT_REQUIRED
    assert tls().check_hostname


def test_a_literal_ipv6_address_is_compared_without_its_brackets(tmp_path: Path) -> None:
    """A certificate for ::1 is accepted for https://[::1]/."""
    file = certificate(tmp_path, address="::1")
    server = Endings(file, notify=True, family=socket.AF_INET6)

    async def go() -> bytes:
        theirs = strict(ssl.create_default_context(cafile=str(file)))
        connections = Connections(AnyAddress(), limit=4, connect_s=20, read_s=20, context=theirs)
        try:
            deadline = asyncio.get_running_loop().time() + 20
            answer = await connections.request(
                ("https", "[::1]", server.port), b"GET / HTTP/1.1\r\n\r\n", deadline=deadline
            )
            return await answer.read()
        finally:
            await connections.close()

    try:
        assert asyncio.run(go()) == b"half of it"
    finally:
        server.close()


def test_a_common_name_proves_no_host(tmp_path: Path) -> None:
    """A certificate that names the host only in its common name is rejected."""
    file = certificate(tmp_path, address="", common="localhost")

    async def go() -> None:
        theirs = strict(ssl.create_default_context(cafile=str(file)))
        connections = Connections(AnyAddress(), limit=4, connect_s=20, read_s=20, context=theirs)
        try:
            deadline = asyncio.get_running_loop().time() + 20
            with pytest.raises(ssl.SSLCertVerificationError):
                await connections.request(
                    ("https", "localhost", server.port), b"GET / HTTP/1.1\r\n\r\n", deadline=deadline
                )
        finally:
            await connections.close()

    server = Endings(file, notify=True)
    try:
        asyncio.run(go())
    finally:
        server.close()
