"""The local Prefect server: a child of ours, started when no PREFECT_API_URL is given.

FACTS that made it so: the ephemeral server of the library loses records at the end, dies first on
Ctrl-C, and is left behind by a killed run. Ours has its own session and a parent-death signal, and is
stopped last. Nothing here imports prefect: the address must be known before that happens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

from ferry.core import UserError
from flows.server import working_directory
from flows.server.api_address import VERSION, check_reachable, given_url

ROOT = Path(__file__).resolve().parents[2]
SLOW_START_S, LONGEST_START_S = 60.0, 600.0  # a busy machine takes minutes, in a new environment above all
# In the virtual environment, and named for the version: another one migrates for itself.
TEMPLATE = Path(sys.prefix, "share", "ferry", f"prefect-{VERSION}.db")
STOP_S = 10.0
MOST_RESTARTS, RESTART_S = 3, 0.5
# Task runs are written 50 events at a time, or after a second, and not one by one: 200 cached chunks take 1 s and not
# 3.5 s. Where there are few, that second would be longer than they take.
MANY_TASKS = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
# What the server is given of the environment: nothing that opens another service. It runs with -P, in its home: it
# imports nothing from the user's working directory, and reads no settings there.
INHERITED = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
    "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8",
}  # fmt: skip
# What a server need not do on a database that one of its version has been on: a second of four.
PREPARED = {"PREFECT_API_DATABASE_MIGRATE_ON_START": "false", "PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}


def quiet_environment(home: Path) -> dict[str, str]:
    """Prefect's settings for local runs: its own home, no telemetry, nothing sent anywhere."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLIENT_METRICS_ENABLED": "false",
        # Where the pages find the API: beside themselves, whatever port they are served or forwarded on. The default
        # is port 4200.
        "PREFECT_UI_API_URL": "/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:``port`` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT of an earlier server is no obstacle
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return port > 0


class LocalServer:
    """``with LocalServer(home) as server:`` a Prefect server with its database in ``home``."""

    def __init__(self, home: Path, port: int | None = None, *, many_tasks: bool = False, keep_up: bool = False) -> None:
        """With ``keep_up`` a server that dies (for want of memory, say) is started again, on the same port."""
        self.home = home.absolute()
        self._keep_up = keep_up
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._more = MANY_TASKS if many_tasks else {}
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._database = self.home / "prefect.db"
        self._prepared_by = self.home / "prepared-by"  # the version of the last server here, once it was ready
        self._is_new = False

    def start(self) -> None:
        """Starts it without waiting; :meth:`ready` waits."""
        if not self._keep_up:
            self._spawn()
            return
        self._stopped.clear()
        started: Future[None] = Future()
        threading.Thread(target=self._keep, args=(started,), name="ferry-prefect", daemon=True).start()
        started.result()

    def _keep(self, started: Future[None]) -> None:
        """Starts it, and starts it again. It dies with the thread that forked it: so that one stays."""
        try:
            process = self._spawn()
        except BaseException as error:  # noqa: BLE001 - whatever it is: raised by start()
            started.set_exception(error)
            return
        started.set_result(None)
        for _ in range(MOST_RESTARTS):
            process.wait()
            if self._stopped.wait(RESTART_S):
                return
            with self._lock:
                if self._stopped.is_set():
                    return
                process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._make_home()
        prepared = self._prepared_by.exists() and self._prepared_by.read_text() == VERSION
        environment = {name: value for name, value in os.environ.items() if name in INHERITED}
        environment |= quiet_environment(self.home) | (PREPARED if prepared else {}) | self._more
        with (self.home / "server.log").open("ab") as output:
            process = self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _STARTER, str(ROOT), "flows.server.localhost_guard", str(self.port)],
                cwd=self.home,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True,
            )  # fmt: skip
        return process

    def _make_home(self) -> None:
        """Makes the home and its files, for the owner alone: saved blocks are there, and the key to them.

        SQLite gives its other files the mode of the database. A umask in the server would also cover the pages that
        Prefect unpacks beside its own code, where other users of an installation need them.
        """
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.home == Path("/") or self.home.stat().st_mode & stat.S_ISVTX:
            raise UserError(
                f"{self.home} is a folder that other users share, and Prefect's home is made private (chmod 0700): set "
                "PREFECT_HOME to a folder of its own"
            )
        try:
            self.home.chmod(0o700)  # it may have been there
        except OSError as exc:
            raise UserError(
                f"{self.home} keeps the secrets of saved blocks and cannot be made private (chmod 0700: "
                f"{exc.strerror}). Set PREFECT_HOME to a folder of your own"
            ) from None
        self._is_new = not self._database.exists()
        if self._is_new:
            self._prepared_by.unlink(missing_ok=True)
        for name in ("prefect.db", "server.log"):
            path = self.home / name
            path.touch(mode=0o600)
            path.chmod(0o600)
        if self._is_new and TEMPLATE.exists():
            shutil.copyfile(TEMPLATE, self._database)
            self._prepared_by.write_text(VERSION)

    def ready(self) -> None:
        """Waits until it answers, as long as its process lives. Raises UserError with the end of its log where it ends,
        or answers nothing for ten minutes."""
        assert self._process is not None
        began, told = time.monotonic(), False
        while (waited_s := time.monotonic() - began) < LONGEST_START_S and self._process.poll() is None:
            with contextlib.suppress(OSError), _DIRECTLY.open(f"{self.url}/api/health", timeout=2):
                self._prepared_by.write_text(VERSION)
                self._keep_template()
                return
            if waited_s >= SLOW_START_S and not told:
                told = True
                print("the local Prefect server is still starting: this machine is slow or busy", file=sys.stderr)
            time.sleep(0.05)
        log = self.home / "server.log"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:]) or "(it is empty)"
        ended = self._process.poll()
        what = f"does not answer after {waited_s:.0f} s" if ended is None else f"ended with {ended} before it answered"
        self.stop()
        raise UserError(
            f"the local Prefect server {what}. Try again, or use another server (PREFECT_API_URL). The end of "
            f"{log}:\n{tail}"
        )

    def _keep_template(self) -> None:
        """Keeps a copy of a database that is new and migrated: the next new home starts seconds sooner."""
        if not self._is_new or TEMPLATE.exists() or sys.prefix == sys.base_prefix:
            return
        with contextlib.suppress(OSError, sqlite3.Error):
            TEMPLATE.parent.mkdir(parents=True, exist_ok=True)
            part = TEMPLATE.with_suffix(f".{os.getpid()}")
            with (
                contextlib.closing(sqlite3.connect(self._database)) as source,
                contextlib.closing(sqlite3.connect(part)) as copy,
            ):
                source.backup(copy)
            part.replace(TEMPLATE)

    def stop(self) -> None:
        """Ends it; safe to call twice."""
        with self._lock:
            self._stopped.set()
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


_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy has a way to this server

# Runs a module, as `python -m` would, after asking for the parent-death signal: a preexec_fn is not
# safe beside threads. The parent is checked once more, since it may have died in between. The collector looks for
# cycles less often: a seventh of the time that the imports take.
_STARTER = """
import ctypes, gc, os, runpy, sys
gc.set_threshold(50_000, 20, 100)
parent = os.getppid()
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != parent:
        sys.exit(1)
sys.path.append(sys.argv[1])  # for flows.server.localhost_guard
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def without_proxy() -> None:
    """Has this process and its children ask this machine's own server without a proxy."""
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in ("127.0.0.1", "localhost", "::1") if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


@contextlib.contextmanager
def prefect_server(home: Path, meanwhile: Callable[[], None], *, many_tasks: bool = False) -> Iterator[str]:
    """The Prefect API's address: the user's own where the environment or a profile names one, else a local server's.

    Leaves the working directory, sets the environment that `import prefect` reads, then calls ``meanwhile`` while the
    local server starts.
    """
    home, given = home.absolute(), given_url()
    working_directory.leave()
    if given:
        check_reachable(given)
        yield given
        return
    server = LocalServer(home, many_tasks=many_tasks, keep_up=True)
    os.environ.update(quiet_environment(server.home))
    without_proxy()
    try:
        server.start()
        os.environ["PREFECT_API_URL"] = f"{server.url}/api"
        meanwhile()
        server.ready()
        yield os.environ["PREFECT_API_URL"]
    finally:
        server.stop()
        os.environ.pop("PREFECT_API_URL", None)
