"""One SeaweedFS and one Prefect server for all processes of a test run (pytest-xdist), started by the first of them."""

from __future__ import annotations

import contextlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from demo.s3 import S3Server
from flows.server.local import LocalServer


@dataclass(frozen=True, slots=True)
class Addresses:
    """How a process of the test run reaches the servers; plain values, to be handed to it."""

    s3_url: str
    s3_keys: list[str]
    prefect_port: int
    prefect_home: str

    @property
    def s3(self) -> S3Server:
        """The S3 server of the run: every test has a bucket of its own there, and none may stop it."""
        server = S3Server.__new__(S3Server)
        server.endpoint_url = self.s3_url
        server.access_key, server.secret_key, server.reader_key, server.reader_secret = self.s3_keys
        server._admin = None
        return server

    @property
    def prefect(self) -> LocalServer:
        """The Prefect server of the run; the names of jobs are a test's own."""
        return LocalServer(Path(self.prefect_home), self.prefect_port)


class Servers:
    """Both servers. They start beside the collection of the tests, and end with the run."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ferry-tests-")))
        self._s3, self._prefect = S3Server(folder / "s3"), LocalServer(folder / "prefect")
        self._pool = ThreadPoolExecutor(2)
        self._started = [self._pool.submit(self._start_s3), self._pool.submit(self._start_prefect)]

    def _start_s3(self) -> None:
        self._s3.start()
        self._stack.callback(self._s3.stop, within_s=0)

    def _start_prefect(self) -> None:
        self._stack.enter_context(self._prefect)

    def addresses(self) -> dict[str, object]:
        """Waits until both answer."""
        for started in self._started:
            started.result(120)
        keys = [self._s3.access_key, self._s3.secret_key, self._s3.reader_key, self._s3.reader_secret]
        return asdict(Addresses(self._s3.endpoint_url, keys, self._prefect.port, str(self._prefect.home)))

    def stop(self) -> None:
        self._pool.shutdown()
        self._stack.close()
