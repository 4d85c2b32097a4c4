"""Processor time of one PUT of 40 KB by each provider's client, against a server that takes it and answers as the
provider does: `python -m benchmarks.providers`. The clients run in turn, in one process.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import cast

import uvloop

from benchmarks.turns import ROUNDS, Took, at_once, show
from ferry.core.body import Body, small_body
from ferry.storage.azure import AzureContainer, SharedKey
from ferry.storage.gcs import Gcs, GoogleTokens
from ferry.storage.object_info import checksum_of
from ferry.storage.provider import Digests
from ferry.storage.s3 import S3, Keys, StaticCredentials

BYTES, OBJECTS = 40_000, 8_000
ATTRIBUTES = {"Content-Type": "image/jpeg"}
LIMITS = {"timeout_s": 60.0, "read_s": 30.0, "connections": 64}

Put = Callable[[int, Body], Awaitable[object]]


class Null(asyncio.Protocol):
    """Answers each request with a fixed response, by the first letter of its path, once its body has arrived."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._head = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self._path = head.partition(b" /")[2][:1]
            self._head, data = b"", body
        self._left -= len(data)
        if not self._left:
            self._transport.write(self._answers[self._path])


def answers(body: Body) -> dict[bytes, bytes]:
    """What the providers answer to this body, by the first letter of their paths.

    S3 is below /s, Google Cloud Storage below /u (upload), Azure Blob Storage below /a (the account).
    """
    md5 = base64.b64encode(bytes.fromhex(body.md5)).decode()
    resource = json.dumps({"md5Hash": md5, "etag": "CJ+0ru7e8ZEDEAE=", "generation": "1764547200000000"})
    s3 = f'200 OK\r\nETag: "{body.md5}"\r\nx-amz-checksum-sha256: {checksum_of(body.sha256)}\r\n'
    gcs = "200 OK\r\ncontent-type: application/json\r\n"
    azure = f'201 Created\r\nETag: "0x8D0123456789ABC"\r\nContent-MD5: {md5}\r\n'
    said = ((b"s", s3, ""), (b"u", gcs, resource), (b"a", azure, ""))
    return {name: f"HTTP/1.1 {head}content-length: {len(text)}\r\n\r\n{text}".encode() for name, head, text in said}


async def serve(data: bytes) -> None:
    said = answers(small_body(data))
    server = await asyncio.get_running_loop().create_server(lambda: Null(said), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Held:
    """Credentials of google-auth with a token that lasts."""

    token, expiry = "t" * 200, None

    def refresh(self, request: object) -> None:
        pass


async def measure(url: str, data: bytes) -> dict[str, list[Took]]:
    s3 = S3(url, "s", "us-east-1", StaticCredentials(Keys("k", "s", None)), **LIMITS)  # type: ignore[arg-type]
    gcs = Gcs(url, "b", GoogleTokens(Held), **LIMITS)  # type: ignore[arg-type]

    key = SharedKey("account", "a2V5" * 16)
    azure = AzureContainer("account", "box", key, endpoint_url=f"{url}/account", **LIMITS)  # type: ignore[arg-type]

    async def put_s3(number: int, body: Body) -> None:
        digests = Digests(body.md5, body.sha256)
        sent = await s3.put(f"images/{number}.jpg", data, digests, ATTRIBUTES, create=True)
        assert sent.sha256 == body.sha256

    async def put_gcs(number: int, body: Body) -> None:
        digests = Digests(body.md5, body.sha256)
        sent = await gcs.put(f"images/{number}.jpg", data, digests, ATTRIBUTES, create=True)
        assert sent.md5 == body.md5

    async def put_azure(number: int, body: Body) -> None:
        digests = Digests(body.md5, body.sha256)
        sent = await azure.put(f"images/{number}.jpg", data, digests, ATTRIBUTES, create=True)
        assert sent.md5 == body.md5

    async def only_hashed(number: int, body: Body) -> None:
        await asyncio.sleep(0)

    ways: dict[str, Put] = {
        "MD5 and SHA-256 alone": only_hashed,
        "S3": put_s3,
        "Google Cloud Storage": put_gcs,
        "Azure Blob Storage": put_azure,
    }

    async def one(put: Put, number: int) -> None:
        await put(number, small_body(data))

    took: dict[str, list[Took]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, put in ways.items():
            found = await at_once(one(put, number) for number in range(OBJECTS if turn else 500))
            if turn:  # the first one opens the connections
                took[name].append(found)
    await s3.close()
    await gcs.close()
    await azure.close()
    return took


def main() -> None:
    data = bytes(range(256)) * (BYTES // 256)
    if sys.argv[1:] == ["serve"]:
        uvloop.run(serve(data))
        return
    with subprocess.Popen([sys.executable, "-m", "benchmarks.providers", "serve"], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        took = uvloop.run(measure(f"http://127.0.0.1:{int(server.stdout.readline())}", data))
        server.terminate()
    show(took, OBJECTS)
    alone, s3, *others = [statistics.median(cpu for _, cpu in times) for times in took.values()]
    for name, used in zip(list(took)[2:], others, strict=True):
        print(
            f"{name}: {used / s3:.2f} of S3's processor time; without the digests {(used - alone) / (s3 - alone):.2f}"
        )


if __name__ == "__main__":
    main()
