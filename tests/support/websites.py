"""Websites of a cutover: nginx servers that reload their configuration under load, and visitors who record answers."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from tests.support.proxies import Program, find

VISITORS, MOST_REQUESTS, PAUSE_S = 4, 60_000, 0.015
TIMEOUT_S = RELOAD_WITHIN_S = 20.0
# A reload closes idle connections, perhaps while a request is on its way. Clients repeat it (RFC 9112, section 9.3.1).
CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class Website(Program):
    """An nginx on a port of 127.0.0.1 with ``server`` as its server block, and an access log in nginx's usual format.

    ``folder`` stands for /etc/nginx: files of its conf.d/ belong to the http block. Its bin/ has an `nginx` command.
    """

    def __init__(self, folder: Path, server: str) -> None:
        super().__init__(folder)
        self._server = server
        self.log = folder / "access.log"
        self.reloads_s: list[float] = []
        for name in ("conf.d", "bin"):
            (folder / name).mkdir()
        (folder / "bin" / "nginx").write_text(f'#!/bin/sh\nexec {find("nginx")} {" ".join(self._files())} "$@"\n')
        (folder / "bin" / "nginx").chmod(0o755)

    def _files(self) -> list[str]:
        return ["-p", str(self.folder), "-c", f"{self.folder}/nginx.conf", "-e", f"{self.folder}/error.log"]

    def command(self) -> Sequence[str]:
        folder = self.folder
        temporary = "".join(f"{name}_temp_path {folder}/{name};" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
        (folder / "nginx.conf").write_text(
            f"""
{"user root;" if os.geteuid() == 0 else ""} worker_processes 2; pid {folder}/pid; error_log {folder}/error.log notice;
events {{ worker_connections 512; }}
http {{
  types {{ image/jpeg jpg; image/png png; image/gif gif; image/webp webp; image/svg+xml svg; text/plain txt; }}
  client_body_temp_path {folder}/body; {temporary}
  access_log {folder}/access.log combined;
  include {folder}/conf.d/*.conf;
  server {{ listen 127.0.0.1:{self.port}; {self._server} }}
}}
"""
        )
        return [str(folder / "bin" / "nginx"), "-g", "daemon off;"]

    def shell(self, line: str, folder: Path) -> None:
        """Run a line of this server's operator in ``folder``. After a reload, wait for the end of former processes."""
        began, former = time.monotonic(), self._workers() if "-s reload" in line else set()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line.replace("/etc/nginx", str(self.folder))],
            cwd=folder, env={"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"},
            capture_output=True, text=True, timeout=RELOAD_WITHIN_S,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        while former & self._workers():
            assert time.monotonic() < began + RELOAD_WITHIN_S, (self.folder / "error.log").read_text()[-2000:]
            time.sleep(0.01)
        if former:
            self.reloads_s.append(time.monotonic() - began)

    def _workers(self) -> set[str]:
        master = (self.folder / "pid").read_text().strip()
        return set(Path(f"/proc/{master}/task/{master}/children").read_text().split())


class Content(NamedTuple):
    """What a site answers."""

    status: int
    digest: str

    @classmethod
    def of(cls, body: bytes, status: int = 200) -> Content:
        return cls(status, hashlib.sha256(body).hexdigest())


class Answer(NamedTuple):
    """What a visitor got, after redirects. ``phase`` is empty if one ended meanwhile."""

    phase: str
    target: str
    statuses: tuple[int, ...]  # of each hop
    port: int  # of the site that answered last
    right: bool
    took_s: float


class Visitors:
    """Visitors who ask the site on ``port`` for the targets in ``allowed``, until the block ends.

    ``allowed`` has the possible contents of each target (`/a%20b.jpg?v=1`). It may change meanwhile.
    """

    def __init__(self, port: int, allowed: dict[str, frozenset[Content]], seed: int = 1) -> None:
        self.allowed, self.phase = allowed, "before"
        self.answers: list[Answer] = []
        self.errors: list[str] = []
        self.reconnected = 0
        self._port, self._stop = port, threading.Event()
        self._threads = [
            threading.Thread(target=self._visit, args=(n, random.Random(seed + n))) for n in range(VISITORS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S + 5)

    def wait_for(self, targets: Iterable[str], within_s: float = 30.0) -> None:
        """Wait until each of ``targets`` was asked for in this phase, with an answer or without one."""
        left, seen, deadline = set(targets), 0, time.monotonic() + within_s
        while left and not self.errors:
            assert time.monotonic() < deadline, f"{len(left)} addresses were not asked for in {self.phase}"
            new = self.answers[seen:]
            seen += len(new)
            left -= {answer.target for answer in new if answer.phase == self.phase}
            time.sleep(0.02)

    def wrong(self) -> list[str]:
        """Returns what went wrong: failed requests, and answers that were none of the possible ones."""
        return self.errors + [str(answer) for answer in self.answers if not answer.right]

    def routes(self, phase: str) -> dict[str, set[tuple[tuple[int, ...], int]]]:
        """Returns how each target of ``phase`` was answered: the status of each hop, and the port of the last."""
        found: dict[str, set[tuple[tuple[int, ...], int]]] = {}
        for answer in self.answers:
            if answer.phase == phase:
                found.setdefault(answer.target, set()).add((answer.statuses, answer.port))
        return found

    def share(self, port: int, phase: str) -> float:
        """Returns the share of the answers in ``phase`` that the site on ``port`` gave."""
        ports = [answer.port for answer in self.answers if answer.phase == phase]
        return ports.count(port) / len(ports)

    def figures(self) -> str:
        """Returns what was asked and answered, in lines for people."""
        statuses = Counter(status for answer in self.answers for status in answer.statuses)
        by_status = ", ".join(f"{count:,} with {status}" for status, count in sorted(statuses.items()))
        slowest = max(answer.took_s for answer in self.answers)
        return (
            f"{len(self.answers):,} requests of visitors for {len(self.allowed):,} addresses; answers: {by_status}; "
            f"slowest {slowest * 1000:.0f} ms; {self.reconnected:,} sent again on another connection; "
            f"{len(self.errors):,} errors; {sum(not answer.right for answer in self.answers):,} wrong"
        )

    def _visit(self, number: int, chance: random.Random) -> None:
        connections: dict[int, http.client.HTTPConnection] = {}
        order: list[str] = []
        try:
            while not self._stop.is_set() and len(self.answers) < MOST_REQUESTS:
                if not order:  # all visitors together ask for each address, and the next time for those of another one
                    number = (number + 1) % VISITORS
                    order = list(self.allowed)[number::VISITORS]
                    chance.shuffle(order)
                target = order.pop()
                try:
                    self._ask(target, connections)
                except Exception as error:
                    self.errors.append(f"{self.phase}: {target}: {error!r}")
                time.sleep(PAUSE_S)
        finally:
            for connection in connections.values():
                connection.close()

    def _ask(self, target: str, connections: dict[int, http.client.HTTPConnection]) -> None:
        phase, before, began = self.phase, self.allowed[target], time.monotonic()
        port, where, statuses = self._port, target, []
        while True:
            status, location, body = self._exchange(port, where, connections)
            statuses.append(status)
            if status not in (301, 302, 307, 308) or len(statuses) > 3:
                break
            there = urlsplit(location)
            assert there.hostname == "127.0.0.1"
            assert there.port is not None
            port, where = there.port, there.path + (f"?{there.query}" if there.query else "")
        right = Content.of(body, status) in before | self.allowed[target]
        took_s = time.monotonic() - began
        self.answers.append(Answer(phase if phase == self.phase else "", target, tuple(statuses), port, right, took_s))

    def _exchange(
        self, port: int, target: str, connections: dict[int, http.client.HTTPConnection]
    ) -> tuple[int, str, bytes]:
        """Returns status, Location and body. A request on a connection that the site closed is sent once more."""
        for used in (port in connections, False):
            connection = connections.setdefault(port, http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S))
            try:
                connection.request("GET", target)
                answer = connection.getresponse()
                found = answer.status, answer.getheader("Location") or "", answer.read()
            except CLOSED:
                connections.pop(port).close()
                if not used:
                    raise
                self.reconnected += 1
            else:
                if answer.will_close:
                    connections.pop(port).close()
                return found
        raise AssertionError("the second connection is a new one")
