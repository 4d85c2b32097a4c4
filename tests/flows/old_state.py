"""A job at fixed addresses, so that today's Ferry can continue a state that an earlier version wrote.

`python -m tests.flows.old_state CHECKOUT` lets the Ferry of that folder write a state (tests/flows/data/README.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from demo.origin import Origin, Trouble
from demo.s3 import S3Server
from flows.server.home import quiet_environment
from tests.flows.project import wait_for

HOST = "127.83.70.1"  # of this machine, as all of 127.0.0.0/8; nobody else listens there
ORIGIN_PORT, STORE_PORT = 8083, 8084
BUCKET, NAME = "ferry-old-state", "library"
ARCHIVE = Path(__file__).parent / "data" / "state-schema-1.tar.gz"
GOOD, MISSING = 20, 2


@dataclass(frozen=True, slots=True)
class Place:
    """The folder, the servers and the objects of the job."""

    folder: Path
    origin: Origin
    s3: S3Server
    bodies: dict[str, bytes]

    def job(self, **more: object) -> None:
        settings = {
            "name": NAME,
            "manifest": "list.csv",
            "destination": {"uri": f"s3://{BUCKET}/p/", "endpoint_url": f"http://{HOST}:{STORE_PORT}"},
            "source": {"allow_private_addresses": [HOST]},
            "checks": "length",
            "chunk_rows": 8,
            "failure_budget": "100%",
            **more,
        }
        (self.folder / "job.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))

    def list(self, *keys: str) -> None:
        """Write the manifest: one line for each key, the first one twice."""
        lines = [f"{key},http://{HOST}:{ORIGIN_PORT}/{key}" for key in (keys[0], *keys)]
        (self.folder / "list.csv").write_text("\n".join(["sku,url", *lines]) + "\n")

    def put(self, key: str, body: bytes) -> None:
        self.bodies[key] = body
        self.origin.add(f"/{key}", body)

    @property
    def environment(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": self.s3.access_key, "AWS_SECRET_ACCESS_KEY": self.s3.secret_key}
        return {**keys, "AWS_EC2_METADATA_DISABLED": "true"}


@contextlib.contextmanager
def place(folder: Path, s3: S3Server) -> Iterator[Place]:
    """Provide origin and store at the fixed addresses, with 20 objects and two missing ones."""
    s3.make_bucket(BUCKET)
    with Origin() as origin, at(ORIGIN_PORT, origin.base_url), at(STORE_PORT, s3.endpoint_url):
        made = Place(folder, origin, s3, {})
        for number in range(GOOD):
            made.put(f"{number:02d}.bin", f"object {number} ".encode() * (number + 1))
        gone = [f"gone-{number}.bin" for number in range(MISSING)]
        for key in gone:
            origin.add(f"/{key}", b"", fault=Trouble.NOT_FOUND)
        made.job()
        made.list(*made.bodies, *gone)
        yield made


@contextlib.contextmanager
def at(port: int, url: str) -> Iterator[None]:
    """Forward connections to HOST:port to a server of this machine, byte for byte."""
    to = urlsplit(url)
    loop = asyncio.new_event_loop()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(to.hostname, to.port)
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    def listen() -> asyncio.Server | None:
        with contextlib.suppress(OSError):  # a run of these tests in another folder is at it
            return asyncio.run_coroutine_threadsafe(asyncio.start_server(passed_on, HOST, port), loop).result(10)
        return None

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server: asyncio.Server = wait_for(f"{HOST}:{port} to be free", listen, 120, every_s=0.5)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def make(checkout: Path) -> None:
    """Let the Ferry of ``checkout`` run the job, first in part and then completely, and keep its state."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        s3 = S3Server(folder / "s3")
        s3.start()
        try:
            with place(folder, s3) as made:
                environment = {
                    "PATH": os.environ["PATH"], "HOME": work, "PYTHONPATH": str(checkout), **made.environment,
                    **quiet_environment(folder / "prefect"),
                }  # fmt: skip
                for more in (["--limit", "11"], []):
                    ferry = [sys.executable, "-m", "flows", "run", "job.yaml", "--json", *more]
                    subprocess.run(ferry, cwd=folder, env=environment, check=True)
                with tarfile.open(ARCHIVE, "w:gz") as archive:
                    archive.add(folder / ".ferry" / NAME, NAME, filter=_nobodys)
        finally:
            s3.stop(within_s=0)


def _nobodys(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Returns an archive entry without the user's name and number."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
