"""The local Prefect server of a PREFECT_HOME, for commands without PREFECT_API_URL (docs/decisions/0043).

The first command starts it, the next ones find it, and it ends when nothing has used it for half an hour.

| file in PREFECT_HOME | content |
|---|---|
| `server.lock` | locked by the server for its life: no second one uses the database |
| `server.json` | the server's process, port and version; after its end, the port that the next one takes |
| `start.lock` | locked by a command while it looks for a server, starts or stops one |
| `in-use.lock` | locked, shared, by each command until its process ends; the server does not end meanwhile |
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ferry.core import UserError
from flows.server import working_directory
from flows.server.api_address import VERSION, check_reachable, given_url
from flows.server.home import PrefectHome, quiet_environment
from flows.server.local import STOP_S, Running, free_port, is_free, lock_database, spawn, try_lock, wait_until_ready

IDLE = "FERRY_SERVER_IDLE"
IDLE_S = 30 * 60.0
CHECK_S = 0.5
MOST_RESTARTS = 3
HOLDER_S = 5.0
TOLD_S, LONGEST_WAIT_S = 10.0, 120.0
RECORDED_S = 3.0  # the server writes the records of task runs every second


def idle_setting(given: str | None = None) -> float:
    """Returns the seconds after which an unused server ends: ``given``, or that of the environment, or half an hour.

    Raises UserError for text that is not a duration.
    """
    from ferry.job import duration  # loads the models of a job, which `ferry --help` does not need

    name, text = ("--idle", given) if given is not None else (IDLE, os.environ.get(IDLE) or IDLE_S)
    try:
        return float(duration(text))
    except ValueError as exc:
        raise UserError(f"{name}: {exc}") from None


class SharedServer:
    """The server of ``home``, started if there is none: ``with SharedServer(home) as server: ...``.

    It is started again if it dies within the block. This process keeps it in use until it ends itself, since Prefect
    sends its last records when Python exits.
    """

    def __init__(self, home: Path, *, port: int | None = None, idle_s: float = IDLE_S) -> None:
        self.home = home.absolute()
        self._files = PrefectHome(home)
        self._port, self._idle_s = port, idle_s
        self._in_use: int | None = None
        self._done = threading.Event()
        self._running: Running | None = None

    @property
    def url(self) -> str:
        """The server's address, once it was found or started."""
        assert self._running is not None
        return self._running.url

    def start(self) -> None:
        """Find the server or start one, without waiting for it; :meth:`ready` waits.

        Raises UserError if a server of another version, or at another port than the one asked for, is in use.
        """
        self._files.make()
        with _starting(self.home):  # first, so that commands which wait for it do not count as users
            self._in_use = _lock(self.home / "in-use.lock", fcntl.LOCK_SH)
            try:
                self._find_or_spawn()
            except BaseException:
                os.close(self._in_use)
                raise
        threading.Thread(target=self._supervise, name="ferry-prefect", daemon=True).start()

    def _find_or_spawn(self) -> None:
        """Finds the server, or starts one: another one after its death has the same address."""
        lock, last = lock_database(self.home), Running.read(self.home)
        if lock is None:
            last = _holder(self.home)
            if last.version == VERSION and self._port in (None, last.port):
                self._running = last
                return
            lock = self._replace(last)
        before = self._running or last
        try:
            self._files.prepare()
            port = self._port
            if port is None and before is not None and (self._running or is_free(before.port)):
                port = before.port
            environment = self._files.environment()
        except BaseException:
            os.close(lock)
            raise
        self._running, process = spawn(self._files, environment, port or free_port(), lock, self._idle_s)
        # A process that is not waited for stays as a zombie.
        threading.Thread(target=process.wait, name="ferry-prefect-end", daemon=True).start()

    def _replace(self, other: Running) -> int:
        """Stops a server that this command cannot use. Returns the lock on the database."""
        assert self._in_use is not None
        try:
            fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _end(self.home, other)
        except BlockingIOError:
            wanted = f"port {self._port}" if other.version == VERSION else f"Prefect {VERSION}"
            raise UserError(
                f"a running command uses the local Prefect server of {self.home} (Prefect {other.version}, port "
                f"{other.port}), and this command needs one with {wanted}. Wait for the end of that command, or set "
                "PREFECT_HOME to another folder"
            ) from None
        finally:
            fcntl.flock(self._in_use, fcntl.LOCK_SH)

    def _supervise(self) -> None:
        restarts = 0
        while restarts < MOST_RESTARTS and not self._done.wait(CHECK_S):
            with contextlib.suppress(UserError, OSError):
                if not is_running(self.home):
                    restarts += 1
                    with _starting(self.home):
                        self._find_or_spawn()

    def ready(self) -> None:
        """Wait until the server answers. Raises UserError if it exits before, or needs more than ten minutes."""
        wait_until_ready(self._files, self.url, lambda: "" if is_running(self.home) else "ended before it answered")

    def close(self) -> None:
        """Leave the server to itself: it is not started again."""
        self._done.set()

    def __enter__(self) -> SharedServer:
        self.start()
        self.ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_running(home: Path) -> bool:
    """Returns whether a server uses the database of ``home``, or a command looks for one at this moment."""
    try:
        start = try_lock(home / "start.lock")
    except FileNotFoundError:
        return False
    if start is None:
        return True
    try:
        return _is_locked(home / "server.lock")
    finally:
        os.close(start)


def is_in_use(home: Path) -> bool:
    """Returns whether a command uses the server of ``home``."""
    return _is_locked(home / "in-use.lock")


def stop(home: Path) -> Running | None:
    """Stops the server of ``home``. Returns it, or None if none runs. Raises UserError if a command uses it."""
    if not home.is_dir():
        return None
    with _starting(home):
        server = Running.read(home)
        if server is None or not _is_locked(home / "server.lock"):
            return None
        if (in_use := try_lock(home / "in-use.lock")) is None:
            raise UserError(f"a running command uses the Prefect server at {server.url}. End that command first")
        try:
            os.close(_end(home, server))
        finally:
            os.close(in_use)
    return server


def _end(home: Path, server: Running) -> int:
    """Ends the holder of the lock on the database. Returns the lock."""
    if not server.is_here():
        raise UserError(f"{_elsewhere(home, server)}. Stop it there")
    for number, wait_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, number)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            if (lock := lock_database(home)) is not None:
                return lock
            time.sleep(0.05)
    raise UserError(f"the Prefect server of {home} (process {server.pid}) does not end. End it, and try again")


@contextlib.contextmanager
def _starting(home: Path) -> Iterator[None]:
    lock = _lock(home / "start.lock", fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def _holder(home: Path) -> Running:
    """Returns the server that has the lock on the database. Raises UserError if it is not on this machine."""
    deadline = time.monotonic() + HOLDER_S
    while (found := Running.read(home)) is None or not found.is_here():
        if time.monotonic() >= deadline:
            raise UserError(
                f"{_elsewhere(home, found)}. Stop it there, or set PREFECT_HOME to a folder of this machine"
            )
        time.sleep(0.05)  # its starter was killed, and it has not written its file yet
    return found


def _elsewhere(home: Path, server: Running | None) -> str:
    who = f"process {server.pid}" if server is not None else "a process"
    return f"the Prefect server of {home} runs on another machine or in another container ({who} there)"


def _lock(path: Path, how: int) -> int:
    """Returns the descriptor of a locked file, and waits for the lock. Raises UserError after two minutes."""
    began, told = time.monotonic(), False
    while (lock := try_lock(path, how)) is None:
        waited_s = time.monotonic() - began
        if waited_s >= LONGEST_WAIT_S:
            raise UserError(f"another ferry process has {path} locked for {waited_s:.0f} s. End it, and try again")
        if waited_s >= TOLD_S and not told:
            told = True
            print(f"waiting for another ferry process, which has {path} locked", file=sys.stderr)
        time.sleep(0.05)
    return lock


def _is_locked(path: Path) -> bool:
    if (lock := try_lock(path)) is not None:
        os.close(lock)
    return lock is None


@contextlib.contextmanager
def prefect_server(home: Path, meanwhile: Callable[[], None]) -> Iterator[str]:
    """Provide the address of a Prefect API: the user's, from the environment or a profile, else the local server's.

    Leaves the working directory and sets the environment that `import prefect` reads. Calls ``meanwhile`` while the
    local server starts.
    """
    home, given = home.absolute(), given_url()
    working_directory.leave()
    if given:
        check_reachable(given)
        yield given
        return
    if os.getpid() == 1:  # of a container, whose other processes end with this one
        atexit.register(time.sleep, RECORDED_S)  # first registered, last called: after Prefect has sent its records
    server = SharedServer(home, idle_s=idle_setting())
    os.environ.update(quiet_environment(server.home))
    without_proxy()
    server.start()
    try:
        os.environ["PREFECT_API_URL"] = f"{server.url}/api"
        meanwhile()
        server.ready()
        yield os.environ["PREFECT_API_URL"]
    finally:
        server.close()
        os.environ.pop("PREFECT_API_URL", None)


def without_proxy() -> None:
    """Set no_proxy, so that this process and its children connect to the local server directly."""
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in ("127.0.0.1", "localhost", "::1") if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
