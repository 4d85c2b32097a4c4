"""Ferry on this machine as deployments/systemd/ installs it: PostgreSQL, server and worker."""

from __future__ import annotations

import contextlib
import os
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from demo.ports import free_ports
from tests.flows.project import ROOT, wait_for
from tests.support.postgres import APT_LINE, Postgres, find_programs
from tests.support.units import Unit

UNITS = ROOT / "deployments" / "systemd"


def unit(name: str, here: Mapping[str, str], log: Path) -> Unit:
    return Unit(UNITS / f"ferry-{name}.service", here, log)


def needs_postgresql() -> None:
    """Skip if PostgreSQL is missing and only root may install it. As root, `make test` has installed it."""
    if find_programs() is None:
        if os.geteuid() == 0:
            pytest.fail(f"PostgreSQL is not installed: {APT_LINE}")
        pytest.skip(f"PostgreSQL is not installed. As root: {APT_LINE}")


class Site:
    """A server and a worker with the commands and environments of their unit files; ``url`` is the server's."""

    def __init__(self, folder: Path, auth: str, worker: dict[str, str]) -> None:
        """``auth`` is the API's user and password; ``worker`` has the variables to which its jobs refer."""
        self.home = folder / "prefect"
        self.homes = [self.home, folder / "ferry"]
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = Postgres()
        self.journal = [folder / "server.log", folder / "worker.log"]
        for home in (*self.homes, folder / "ferry" / "tmp"):
            home.mkdir()
        here = {"/opt/ferry/.venv/bin": str(Path(sys.executable).parent), "4200": str(self.port)}
        self.server = unit(
            "server",
            {
                **here,
                "/run/postgresql": f"{self.database.sockets}&port={self.database.port}",
                "/var/lib/prefect": str(folder / "prefect"),
                "/var/cache/prefect": str(folder / "cache"),
                "/etc/ferry/server.env": str(write(folder / "server.env", PREFECT_SERVER_API_AUTH_STRING=auth)),
            },
            self.journal[0],
        )
        of_the_tests = {"PYTHONPATH": str(ROOT), "PREFECT_WORKER_QUERY_SECONDS": "1"}
        self.worker = unit(
            "worker",
            {
                **here,
                "/opt/ferry": str(ROOT),
                "/var/lib/ferry": str(folder / "ferry"),
                "/etc/ferry/worker.env": str(
                    write(folder / "worker.env", PREFECT_API_AUTH_STRING=auth, **of_the_tests, **worker)
                ),
            },
            self.journal[1],
        )

    def ready(self) -> None:
        """Wait until the server answers."""
        wait_for(f"the server to answer; its log is {self.journal[0]}", self._answers, 60)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/api/health", timeout=2):
            return True
        return False

    def __enter__(self) -> Self:
        self.database.__enter__()
        try:
            self.server.start()
            self.ready()
            self.worker.start()
            wait_for("the worker", lambda: " started!" in self.journal[1].read_text(), 60)  # it has made the pool
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.worker.kill()
        self.server.kill()
        self.database.__exit__(kind, error, trace)


def write(path: Path, **variables: str) -> Path:
    path.touch(mode=0o600)
    path.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    return path
