"""The process of a local Prefect server, and a server that ends with the process that started it.

Prefect's own ephemeral server loses records at the end, dies first on a Ctrl-C, and outlives a killed run. Commands use
:mod:`flows.server.shared`. Nothing here imports Prefect: the address must be known before that.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ferry.core import UserError, boot_id, process_start
from flows.server.api_address import VERSION
from flows.server.home import PrefectHome

ROOT = Path(__file__).resolve().parents[2]
SERVER = "flows.server.serve"  # the module that the process runs
SLOW_START_S, LONGEST_START_S = 60.0, 600.0  # a busy machine takes minutes, above all in a new environment
STOP_S = 10.0
WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this server


def free_port() -> int:
    """Returns a port of 127.0.0.1 that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Returns whether a server could listen on 127.0.0.1:``port`` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore TIME_WAIT of an earlier server
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return port > 0


def try_lock(path: Path, how: int = fcntl.LOCK_EX) -> int | None:
    """Returns the descriptor of a file locked by flock(2), or None if another process has it locked.

    The lock lasts until all copies of the descriptor are closed, those of child processes included. Raises UserError
    for a file system without locks, and FileNotFoundError without the folder.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as exc:
        os.close(lock)
        raise UserError(
            f"{path} cannot be locked ({exc.strerror}). Set PREFECT_HOME to a folder on a local disk"
        ) from None
    return lock


def lock_database(home: Path) -> int | None:
    """Returns the lock that the server of ``home`` holds for its life, or None if a server has it."""
    return try_lock(home / "server.lock")


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs or ran, as the file `server.json` of its home describes it."""

    pid: int
    port: int
    version: str  # of Prefect
    idle_s: float | None  # it ends when it was unused for this long; None: with the process that started it
    started_at: float  # seconds since 1970
    boot_id: str = ""  # these two tell the process from another one with its number
    process_start: str = ""

    @staticmethod
    def of(pid: int, port: int, idle_s: float | None) -> Running:
        """Returns the description of a server process of this version, which is starting."""
        return Running(pid, port, VERSION, idle_s, time.time(), boot_id(), process_start(pid) or "")

    def is_here(self) -> bool:
        """Returns whether the process lives on this machine, in this container. True where that cannot be known."""
        return self.boot_id == boot_id() and process_start(self.pid) == self.process_start

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @staticmethod
    def read(home: Path) -> Running | None:
        """Returns the last server of ``home``; None if there was none, or its file is damaged."""
        try:
            return Running(**json.loads((home / "server.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, home: Path) -> None:
        part = home / f"server.json.{os.getpid()}"
        part.touch(mode=0o600)
        part.write_text(json.dumps(asdict(self)))
        part.replace(home / "server.json")


def spawn(
    home: PrefectHome, environment: dict[str, str], port: int, lock: int, idle_s: float | None = None
) -> tuple[Running, subprocess.Popen[bytes]]:
    """Starts a server, which takes over ``lock``. Without ``idle_s`` it ends with the thread that calls this."""
    life = f"parent:{os.getpid()}" if idle_s is None else f"idle:{idle_s}"
    try:
        with home.log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _STARTER, str(ROOT), SERVER,
                 str(port), str(lock), str(home.path), life],
                cwd=home.path, pass_fds=[lock], env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
    finally:
        os.close(lock)
    running = Running.of(process.pid, port, idle_s)
    running.write(home.path)  # as the process does itself, for the case that this one is killed here
    return running, process


# Runs a module as `python -m` does. Fewer garbage collections save a seventh of the import time.
_STARTER = """
import gc, runpy, sys
gc.set_threshold(50_000, 20, 100)
sys.path.append(sys.argv[1])  # for flows.server.serve
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def wait_until_ready(home: PrefectHome, url: str, problem: Callable[[], str]) -> None:
    """Wait until the server answers. Raises UserError with the end of its log if ``problem`` returns one, or if it
    needs more than ten minutes.
    """
    began, warned = time.monotonic(), False
    while not (found := problem()):
        with contextlib.suppress(OSError), WITHOUT_PROXY.open(f"{url}/api/health", timeout=2):
            home.ready()
            return
        waited_s = time.monotonic() - began
        if waited_s >= LONGEST_START_S:
            found = f"did not answer in {waited_s:.0f} s"
            break
        if waited_s >= SLOW_START_S and not warned:
            warned = True
            print("the local Prefect server is still starting; this machine is slow or busy", file=sys.stderr)
        time.sleep(0.05)
    raise UserError(
        f"the local Prefect server {found}. Try again, or use another server (PREFECT_API_URL). Last lines of "
        f"{home.log}:\n{home.end_of_log()}"
    )


class LocalServer:
    """A Prefect server of this process, with its database in ``home``: ``with LocalServer(home) as server: ...``."""

    def __init__(self, home: Path, port: int | None = None) -> None:
        self.home = home.absolute()
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._files = PrefectHome(home)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server without waiting; :meth:`ready` waits. It also ends with the thread that calls this.

        Raises UserError if another server uses the database.
        """
        self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._files.make()
        if (lock := lock_database(self.home)) is None:
            raise UserError(f"another Prefect server uses {self.home}. Stop it, or name another folder")
        self._files.prepare()
        return spawn(self._files, self._environment(), self.port, lock)[1]

    def _environment(self) -> dict[str, str]:
        return self._files.environment()

    def ready(self) -> None:
        """Wait until the server answers. Raises UserError as :func:`wait_until_ready`."""
        process = self._process
        assert process is not None

        def problem() -> str:
            return "" if (code := process.poll()) is None else f"exited with {code} before it answered"

        try:
            wait_until_ready(self._files, self.url, problem)
        except UserError:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server. Safe to call twice."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> LocalServer:
        self.start()
        try:
            self.ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
