"""TLS as runs use it: uvloop, a real handshake, certificates that are trusted and others."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tasks.engine.bucket_http import AnyAddress
from tasks.engine.connections import Connections
from tasks.engine.errors import from_origin
from tasks.engine.objects import ErrorClass
from tests.engine.test_connections import Bytes

BODY = bytes(range(256)) * 80_000  # 20 MB


def certificate(folder: Path, *, days: int = 2, address: str = "127.0.0.1") -> Path:
    """A key and a certificate that signs itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "cert.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return file


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A GET gets BODY; of what is sent the digest is told."""
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
    answer = await connections.ask(("https", "127.0.0.1", port), head, body, deadline=deadline)
    return await answer.body()


def test_bodies_arrive_both_ways(tmp_path: Path) -> None:
    """Down, up in one piece and up piece by piece, over one connection and one handshake."""

    async def test(connections: Connections, port: int) -> None:
        for body in (b"x", Bytes(BODY), BODY, Bytes(b"y")):
            data = body if isinstance(body, bytes) else body.data
            assert await ask(connections, port, body) == hashlib.md5(data).hexdigest().encode()
            assert await ask(connections, port) == BODY
        assert connections.handshakes == 1

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
    """Unknown, expired, of another host: nothing is asked, and the row says why."""

    async def test(connections: Connections, port: int) -> None:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await ask(connections, port)
        error = from_origin(caught.value)
        assert getattr(error, "error_class", None) is ErrorClass.TLS
        assert words in str(error)
        assert connections.handshakes == 0

    at_a_server(certificate(tmp_path, days=days, address=address), test, trusted=trusted)
