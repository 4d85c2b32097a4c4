"""The process of a local Prefect server: `python -m flows.server.serve PORT LOCK HOME LIFE`."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path

import uvicorn

from ferry.core import die_with_parent
from flows.server.local import Running
from flows.server.localhost_guard import App, Message, OwnerOnlyConnection, Receive, Send, guarded

CHECK_S = 15.0
LAST_RECORDS_S = 3.0  # a command that has ended just now sent its last records just before
STOP_S = 8.0


class Idleness:
    """Ends this process once no request came for ``idle_s``, and no command has a lock on ``in-use.lock``.

    It also ends when its home was deleted.

    A command locks it before it looks for a server. So it either finds one that stays, or waits until this one is gone.
    The time of the last request is the time of ``server.json``, for `ferry server status`.
    """

    def __init__(self, home: Path, idle_s: float) -> None:
        self._home, self._idle_s = home, max(idle_s, LAST_RECORDS_S)
        self._last = time.monotonic()

    def counting(self, app: App) -> App:
        """Returns ``app`` with each request counted as use, except those for its health."""

        async def counted(scope: Message, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan" and scope["path"] != "/api/health":
                self._last = time.monotonic()
            await app(scope, receive, send)

        return counted

    def watch(self) -> None:
        """Checks until the process is to end."""
        lock = os.open(self._home / "in-use.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            time.sleep(min(CHECK_S, self._idle_s / 4))
            idle_s = time.monotonic() - self._last
            used_at = time.time() - idle_s
            if not self._mark(used_at) or (idle_s >= self._idle_s and _locked(lock)):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(STOP_S)
                os._exit(1)  # it hangs, and commands wait for its lock

    def _mark(self, used_at: float) -> bool:
        """Sets the time of `server.json`. Returns False if it is gone, as the whole home may be."""
        try:
            os.utime(self._home / "server.json", (used_at, used_at))
        except FileNotFoundError:
            return False
        return True


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def prefect_app() -> App:
    """Returns Prefect's server, which takes seconds to load."""
    from prefect.server.api.server import create_app

    return create_app()


def main() -> None:
    """Serve on 127.0.0.1 at a port, with the lock on the home's database that the starter passed on.

    LIFE is `parent:PID` for a server that ends with that process, or `idle:SECONDS` for one that ends unused.
    """
    port, lock, home, life = sys.argv[1:]
    kind, _, number = life.partition(":")
    if kind == "parent":
        die_with_parent()
        if os.getppid() != int(number):  # it ended before die_with_parent() took effect
            return
    os.set_inheritable(int(lock), False)
    idle_s = float(number) if kind == "idle" else None
    Running.of(os.getpid(), int(port), idle_s).write(Path(home))
    idleness = None if idle_s is None else Idleness(Path(home), idle_s)

    def create_app() -> App:
        if idleness is None:
            return guarded(prefect_app())
        threading.Thread(target=idleness.watch, name="ferry-idleness", daemon=True).start()
        return guarded(idleness.counting(prefect_app()))

    uvicorn.run(
        create_app, factory=True, host="127.0.0.1", port=int(port), http=OwnerOnlyConnection,
        timeout_keep_alive=60, timeout_graceful_shutdown=5, access_log=False, log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main()
