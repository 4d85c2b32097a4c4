"""The local Prefect server: a child process for commands without PREFECT_API_URL (docs/decisions/0005).

Prefect's own ephemeral server loses records at the end, dies first on a Ctrl-C, and outlives a killed run. This one has
its own session and a parent-death signal, and is stopped last. Nothing here imports Prefect: the address must be known
before that.
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
SLOW_START_S, LONGEST_START_S = 60.0, 600.0  # a busy machine takes minutes, above all in a new environment
# In the virtual environment, one file per version of Prefect: each version migrates its own database.
TEMPLATE = Path(sys.prefix, "share", "ferry", f"prefect-{VERSION}.db")
STOP_S = 10.0
MOST_RESTARTS, RESTART_S = 3, 0.5
# The server writes task runs in batches of 50, or after a second: 200 cached chunks take 1 s instead of 3.5 s. With few
# tasks, that second would take longer than writing them one by one.
MANY_TASKS = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
# The environment variables that the server inherits: none with credentials. It runs with -P in its home directory, so
# that it neither imports code nor reads settings from the user's working directory.
INHERITED = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
    "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8",
}  # fmt: skip
# On a database that a server of the same version has prepared, skip this: it saves one second of four.
PREPARED = {"PREFECT_API_DATABASE_MIGRATE_ON_START": "false", "PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}


def quiet_environment(home: Path) -> dict[str, str]:
    """Returns Prefect's settings for local runs: a home of their own, no telemetry, no requests to other hosts."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLIENT_METRICS_ENABLED": "false",
        # The pages find the API beside themselves, on whatever port they are served or forwarded. The default is 4200.
        "PREFECT_UI_API_URL": "/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }


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


class LocalServer:
    """A Prefect server with its database in ``home``: ``with LocalServer(home) as server: ...``."""

    def __init__(
        self, home: Path, port: int | None = None, *, many_tasks: bool = False, restarts: bool = False
    ) -> None:
        """With ``restarts``, a server that dies (of lack of memory, for example) is started again on the same port."""
        self.home = home.absolute()
        self._restarts = restarts
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._settings = MANY_TASKS if many_tasks else {}
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._database = self.home / "prefect.db"
        self._prepared_by = self.home / "prepared-by"  # holds the version of the last server that became ready here
        self._is_new = False

    def start(self) -> None:
        """Start the server without waiting; :meth:`ready` waits."""
        if not self._restarts:
            self._spawn()
            return
        self._stopped.clear()
        started: Future[None] = Future()
        threading.Thread(target=self._supervise, args=(started,), name="ferry-prefect", daemon=True).start()
        started.result()

    def _supervise(self, started: Future[None]) -> None:
        """Start the server, and restart it when it dies. The server also dies with this thread, which forked it."""
        try:
            process = self._spawn()
        except BaseException as error:  # noqa: BLE001 - start() raises it
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
        environment |= quiet_environment(self.home) | (PREPARED if prepared else {}) | self._settings
        with (self.home / "server.log").open("ab") as output:
            process = self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _STARTER, str(ROOT), "flows.server.localhost_guard", str(self.port)],
                cwd=self.home,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True,
            )  # fmt: skip
        return process

    def _make_home(self) -> None:
        """Create the home and its files for the owner alone: they hold saved blocks and the key to them.

        SQLite gives its other files the mode of the database. A umask would also apply to the pages that Prefect
        unpacks beside its own code, which other users of the installation must read.
        """
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.home == Path("/") or self.home.stat().st_mode & stat.S_ISVTX:
            raise UserError(
                f"{self.home} is shared with other users, and Ferry makes Prefect's home private (chmod 0700). Set "
                "PREFECT_HOME to a folder of your own"
            )
        try:
            self.home.chmod(0o700)  # it may have existed
        except OSError as exc:
            raise UserError(
                f"{self.home} holds the secrets of saved blocks, but cannot be made private (chmod 0700: "
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
        """Wait until the server answers.

        Raises UserError with the end of its log if it exits or needs over ten minutes.
        """
        assert self._process is not None
        began, warned = time.monotonic(), False
        while (waited_s := time.monotonic() - began) < LONGEST_START_S and self._process.poll() is None:
            with contextlib.suppress(OSError), _WITHOUT_PROXY.open(f"{self.url}/api/health", timeout=2):
                self._prepared_by.write_text(VERSION)
                self._keep_template()
                return
            if waited_s >= SLOW_START_S and not warned:
                warned = True
                print("the local Prefect server is still starting; this machine is slow or busy", file=sys.stderr)
            time.sleep(0.05)
        log = self.home / "server.log"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:]) or "(empty)"
        ended = self._process.poll()
        what = f"did not answer in {waited_s:.0f} s" if ended is None else f"exited with {ended} before it answered"
        self.stop()
        raise UserError(
            f"the local Prefect server {what}. Try again, or use another server (PREFECT_API_URL). Last lines of "
            f"{log}:\n{tail}"
        )

    def _keep_template(self) -> None:
        """Keep a copy of a new, migrated database: the next new home then starts seconds sooner."""
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
        """Stop the server. Safe to call twice."""
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


_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this server

# Runs a module as `python -m` does, after asking for the parent-death signal: a preexec_fn is not safe with threads.
# Checks the parent again, since it may have died in between. Fewer garbage collections save a seventh of the import
# time.
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
    """Set no_proxy, so that this process and its children connect to the local server directly."""
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in ("127.0.0.1", "localhost", "::1") if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


@contextlib.contextmanager
def prefect_server(home: Path, meanwhile: Callable[[], None], *, many_tasks: bool = False) -> Iterator[str]:
    """Provide the address of a Prefect API: the user's, from the environment or a profile, else a local server's.

    Leaves the working directory and sets the environment that `import prefect` reads. Calls ``meanwhile`` while the
    local server starts.
    """
    home, given = home.absolute(), given_url()
    working_directory.leave()
    if given:
        check_reachable(given)
        yield given
        return
    server = LocalServer(home, many_tasks=many_tasks, restarts=True)
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
