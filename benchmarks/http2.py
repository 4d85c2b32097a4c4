"""HTTP/2 and HTTP/1.1 at an origin with both: `python -m benchmarks.http2`. See docs/decisions/0013."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvloop

from benchmarks import nginx
from benchmarks.images import images
from benchmarks.place import BENCH, work_folders
from benchmarks.turns import AT_ONCE, ROUNDS, Took, at_once, show
from demo.ports import free_ports
from ferry.http.dial import AnyAddress
from ferry.http.pool import Connections

OBJECTS = 2_000
_CONF = """
daemon off;
{user}
worker_processes 2;
pid {run}/nginx.pid;
error_log {run}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  keepalive_requests 100000000;
  client_body_temp_path {run}/body; proxy_temp_path {run}/proxy; fastcgi_temp_path {run}/fastcgi;
  uwsgi_temp_path {run}/uwsgi; scgi_temp_path {run}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl http2;
    ssl_certificate {run}/cert.pem;
    ssl_certificate_key {run}/key.pem;
    root {root};
  }}
}}
"""

Get = Callable[[str], Awaitable[int]]


@contextlib.contextmanager
def origin(run: Path, root: Path) -> Iterator[tuple[int, ssl.SSLContext]]:
    """Starts nginx with TLS and a new certificate. Yields its port, and a context that trusts it."""
    (port,) = free_ports(1)
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=run, check=True, capture_output=True)
    user = "user root;" if os.geteuid() == 0 else ""
    (run / "nginx.conf").write_text(_CONF.format(run=run, root=root, port=port, user=user))
    program = [str(nginx.program()), "-p", str(run), "-c", str(run / "nginx.conf"), "-e", str(run / "error.log")]
    process = subprocess.Popen(program, stdin=subprocess.DEVNULL)
    try:
        yield port, ssl.create_default_context(cafile=str(run / "cert.pem"))
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def ferrys(port: int, trust: ssl.SSLContext) -> AsyncIterator[Get]:
    """Yields a GET with Ferry's client."""
    loop = asyncio.get_running_loop()
    connections = Connections(AnyAddress(), limit=AT_ONCE, connect_s=5, read_s=30, context=trust)

    async def get(path: str) -> int:
        head = f"GET /{path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode()
        answer = await connections.request(("https", "127.0.0.1", port), head, deadline=loop.time() + 30)
        return len(await answer.read())

    yield get
    await connections.close()


@asynccontextmanager
async def httpxs(port: int, trust: ssl.SSLContext, *, http2: bool) -> AsyncIterator[Get]:
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(http2=http2, http1=not http2, verify=trust, limits=limits, trust_env=False) as client:

        async def get(path: str) -> int:
            return len((await client.get(f"https://127.0.0.1:{port}/{path}")).content)

        yield get


async def measure(port: int, trust: ssl.SSLContext) -> None:
    clients: dict[str, Callable[[], contextlib.AbstractAsyncContextManager[Get]]] = {
        f"Ferry's HTTP/1.1, {AT_ONCE} connections": lambda: ferrys(port, trust),
        "httpx over HTTP/2 (`h2`, `hpack`), one connection": lambda: httpxs(port, trust, http2=True),
        "httpx over HTTP/1.1": lambda: httpxs(port, trust, http2=False),
    }
    _, entries = images(BENCH, OBJECTS)
    took: dict[str, list[Took]] = {name: [] for name in clients}
    for _ in range(ROUNDS):
        for name, client in clients.items():
            sizes: list[int] = []

            async def one(get: Get, path: str, sizes: list[int] = sizes) -> None:
                sizes.append(await get(path))

            async with client() as get:
                took[name].append(await at_once(one(get, path) for path, _, _ in entries))
            assert sum(sizes) == sum(size for _, _, size in entries)
    show(took, OBJECTS)


def main() -> None:
    nginx.install()
    pool, _ = images(BENCH, OBJECTS)
    with work_folders(keep=False, room=0) as (_, folder), origin(folder, pool) as (port, trust):
        time.sleep(0.5)
        uvloop.run(measure(port, trust))


if __name__ == "__main__":
    main()
