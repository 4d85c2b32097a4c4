"""One SeaweedFS for all processes of a test run (pytest-xdist), started by the first of them.

Each process has a Prefect server of its own: with SQLite one server for all loses events under their load, and alerts
do not come.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from demo.s3 import S3Server


@dataclass(frozen=True, slots=True)
class Address:
    """How a process of the test run reaches the S3 server; plain values, to be handed to it."""

    url: str
    keys: list[str]

    @property
    def s3(self) -> S3Server:
        """The S3 server of the run: every test has a bucket of its own there, and none may stop it."""
        server = S3Server.__new__(S3Server)
        server.endpoint_url = self.url
        server.access_key, server.secret_key, server.reader_key, server.reader_secret = self.keys
        server._admin = None
        return server


class SharedS3:
    """The server. It starts beside the collection of the tests, and ends with the run."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ferry-tests-")
        self._s3 = S3Server(Path(self._folder.name) / "s3")
        self._pool = ThreadPoolExecutor(1)
        self._started = self._pool.submit(self._s3.start)

    def address(self) -> dict[str, object]:
        """Waits until it answers."""
        self._started.result(120)
        keys = [self._s3.access_key, self._s3.secret_key, self._s3.reader_key, self._s3.reader_secret]
        return asdict(Address(self._s3.endpoint_url, keys))

    def stop(self) -> None:
        self._pool.shutdown()
        self._s3.stop(within_s=0)
        self._folder.cleanup()
