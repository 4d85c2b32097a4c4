"""A store's server: its processes, which end with this one, and a client that is not Ferry."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from demo.ports import free_ports
from ferry.storage import Access, S3Access
from tests.servers.stores.known import Known
from tests.support.servers import Address

ROOT = Path(__file__).parents[3]
INSTALLED = ROOT / ".venv-stores"  # `make stores`
START_WITHIN_S = 60.0  # most start within a second, but a loaded machine takes longer
REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class StoreServer(ABC):
    """A server with free loopback ports and a temporary folder. ``with`` starts it, and ends it with all that it has.

    A subclass says how it is started, and gives the rest of the suite's words: ``uri`` and ``access`` for Ferry, and a
    client of its own that is not Ferry (``make_bucket``, ``put``, ``get``, ``keys``).
    """

    name: ClassVar[str]
    scheme: ClassVar[str]
    known: ClassVar[Known] = Known()
    certificate: Path | None = None  # where it speaks https: its own, which signs itself

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix=f"ferry-{self.scheme}-")
        self.folder = Path(self._temporary.name)
        self.port = free_ports(1)[0]
        self.endpoint_url = f"http://127.0.0.1:{self.port}"
        self._processes: list[subprocess.Popen[bytes]] = []

    # --- how it is started

    @classmethod
    def missing(cls) -> str | None:
        """Returns why it cannot be started on this machine, as a sentence, or None if it can."""
        found = shutil.which(cls.program()[0])
        return None if found else f"{cls.name} is not installed. Run `make stores`"

    @classmethod
    def program(cls) -> Sequence[str]:
        """Returns the program and its first arguments. What starts in another way replaces `missing` and `start`."""
        raise NotImplementedError(f"{cls.name} starts in its own way")

    def options(self) -> Sequence[str]:
        """Returns the program's further arguments."""
        return ()

    def environment(self) -> dict[str, str]:
        """Returns what is added to an environment that has nothing of this user's."""
        return {}

    def prepare(self) -> None:  # noqa: B027 - most servers need nothing
        """Does what must be done before the program starts."""

    def is_ready(self) -> bool:
        """Returns whether the server answers."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask("GET", "/", timeout_s=5.0).status != 503
        return False

    def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] = {},
        body: bytes | None = None,
        timeout_s: float = 30.0,
    ) -> Answer:
        """Sends one request, its target as it is. Raises OSError and http.client's HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        if self.certificate is not None:
            trusts = ssl.create_default_context(cafile=self.certificate)
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout_s, context=trusts)
        try:
            connection.request(method, target, body, dict(headers))
            response = connection.getresponse()
            return Answer(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def start(self) -> None:
        """Starts the server and waits until it answers. Raises RuntimeError with the end of its log otherwise."""
        self.prepare()
        self.launch([*self.program(), *self.options()])
        self.wait_until_ready()

    def launch(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Starts a program in a process group of its own, which ends with this process.

        The kernel ends it with the thread that started it: call this in one that lasts.
        """
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment(),
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def call(self, command: Sequence[str], timeout_s: float = START_WITHIN_S) -> str:
        """Runs a program to its end and returns what it prints. Raises RuntimeError if it fails."""
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment(), timeout=timeout_s, check=False,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        while not self.is_ready():
            ended = [process.poll() for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                self.stop()
                what = f"exited with {ended[0]}" if ended else f"did not answer within {START_WITHIN_S:.0f} s"
                raise RuntimeError(f"{self.name} {what}. The end of its log:\n{self._log_tail()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends the processes at once: nothing of theirs is to be kept. Safe to call twice."""
        for process in reversed(self._processes):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes.clear()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._temporary.cleanup()

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{INSTALLED / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            **self.environment(),
        }

    def _log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-20:]) or "(empty)"

    # --- how Ferry reaches it

    def uri(self, bucket: str, prefix: str = "p") -> str:
        """Returns the address of a prefix, as a job has it."""
        return f"{self.scheme}://{bucket}/{prefix}/"

    def state_uri(self, bucket: str) -> str:
        """Returns the address of a state, as a job has it."""
        return self.uri(bucket, "state")

    def access(self) -> Access:
        """Returns endpoint and credentials with all rights."""
        return Access(self.endpoint_url)

    def wrong_access(self, bucket: str) -> Mapping[str, Access]:
        """Returns credentials that the server must refuse for a bucket, by what is wrong with them."""
        return {}

    # --- another client than Ferry

    @abstractmethod
    def make_bucket(self, name: str) -> None: ...

    @abstractmethod
    def put(self, bucket: str, key: str, data: bytes) -> None: ...

    @abstractmethod
    def get(self, bucket: str, key: str) -> bytes | None:
        """Returns an object's bytes, or None if there is none."""

    @abstractmethod
    def keys(self, bucket: str) -> list[str]: ...

    @abstractmethod
    def attributes(self, bucket: str, key: str) -> dict[str, str]:
        """Returns an object's attributes under the names of :data:`ATTRIBUTES`, metadata names in lower case."""

    @abstractmethod
    def open_uploads(self, bucket: str) -> list[str]:
        """Returns the keys with an upload in parts that has not ended."""


_HEADERS = {
    "ContentType": "Content-Type",
    "CacheControl": "Cache-Control",
    "ContentDisposition": "Content-Disposition",
    "ContentLanguage": "Content-Language",
    "ContentEncoding": "Content-Encoding",
}


class S3StoreServer(StoreServer):
    """A server that speaks S3. The other client is boto3."""

    scheme = "s3"
    access_key, secret_key = "AKIAFERRYTEST", "ferry-test-secret-key"

    def __init__(self) -> None:
        super().__init__()
        keys = [self.access_key, self.secret_key] * 2
        self.s3 = Address(self.endpoint_url, keys).s3  # for helpers that take the tests' SeaweedFS

    def access(self) -> Access:
        return S3Access(self.endpoint_url, REGION, keys=(self.s3.access_key, self.s3.secret_key, None))

    def wrong_access(self, bucket: str) -> Mapping[str, Access]:
        key, secret = self.s3.access_key, self.s3.secret_key
        wrong = {"secret": (key, secret[::-1], None), "key ID": ("AKIANOTHERE", secret, None)}
        return {what: S3Access(self.endpoint_url, REGION, keys=keys) for what, keys in wrong.items()}

    def make_bucket(self, name: str) -> None:
        self.s3.make_bucket(name)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.s3.client().put_object(Bucket=bucket, Key=key, Body=data)

    def get(self, bucket: str, key: str) -> bytes | None:
        client = self.s3.client()
        try:
            return client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except client.exceptions.NoSuchKey:
            return None

    def keys(self, bucket: str) -> list[str]:
        pages = self.s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def attributes(self, bucket: str, key: str) -> dict[str, str]:
        found = self.s3.client().head_object(Bucket=bucket, Key=key)
        metadata = {name.lower(): value for name, value in found["Metadata"].items()}
        fields: Mapping[str, object] = {**found}
        return {header: str(fields[name]) for name, header in _HEADERS.items() if name in fields} | metadata

    def open_uploads(self, bucket: str) -> list[str]:
        client = self.s3.client()
        try:
            return [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]
        except client.exceptions.NoSuchUpload:  # rclone, where there is none
            return []
