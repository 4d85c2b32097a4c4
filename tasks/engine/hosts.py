"""What the limiter does at each host, written down while a run is on, so that `ferry status` can say it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tasks.engine.errors import FerryError
from tasks.engine.limiter import HostSnapshot, Limiter
from tasks.engine.state import State

NAME = "reports/hosts.json"
EVERY_S, EVERY_S_IN_A_BUCKET = 2.0, 15.0
MOST_HOSTS = 50  # the busiest


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts of one run at one moment, the busiest first; ``more`` were left out."""

    run_no: int
    at: float  # seconds since 1970
    hosts: list[HostSnapshot]
    more: int = 0
    handshakes: int = 0  # connections opened so far, to origins and the destination


def busiest(run_no: int, snapshots: list[HostSnapshot], now: float, handshakes: int = 0) -> Hosts:
    used = sorted((host for host in snapshots if host.requests), key=lambda host: -host.requests)
    return Hosts(run_no, now, used[:MOST_HOSTS], len(used) - len(used[:MOST_HOSTS]), handshakes)


def read_hosts(state: State) -> Hosts | None:
    """The last that a run wrote; None before the first, and where it cannot be read."""
    try:
        data: dict[str, Any] = json.loads(state.read(NAME))
        known = [HostSnapshot(**host) for host in data["hosts"]]
        return Hosts(data["run_no"], data["at"], known, data["more"], data["handshakes"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


async def keep_written(
    state: State, limiter: Limiter, run_no: int, held: Callable[[], bool], handshakes: Callable[[], int]
) -> None:
    """Writes the file every few seconds while the lease is held, until it is cancelled, and once more then."""
    every_s = EVERY_S_IN_A_BUCKET if state.uri.startswith("s3://") else EVERY_S
    try:
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(_write, state, limiter, run_no, held, handshakes)
    finally:
        _write(state, limiter, run_no, held, handshakes)


def _write(
    state: State, limiter: Limiter, run_no: int, held: Callable[[], bool], handshakes: Callable[[], int]
) -> None:
    hosts = busiest(run_no, list(limiter.snapshot().values()), time.time(), handshakes())
    if hosts.hosts and held():
        with contextlib.suppress(FerryError, OSError):  # a courtesy: where it cannot be written, outcomes will say so
            state.write(NAME, json.dumps(asdict(hosts)).encode())
