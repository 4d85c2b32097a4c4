"""Writer and reader of reports/hosts.json, which shows the limits of each host to `ferry status` during a run."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ferry.core import FerryError, in_bucket
from ferry.ratelimit.host_snapshot import HostSnapshot
from ferry.state import State

NAME = "reports/hosts.json"
EVERY_S, EVERY_S_IN_A_BUCKET = 2.0, 15.0  # interval between writes, for a state in a directory and in a bucket
MOST_HOSTS = 50  # only the busiest hosts are written


@dataclass(frozen=True, slots=True)
class Hosts:
    """The busiest hosts of a run at one moment, in order of their requests. ``omitted`` counts the other hosts."""

    run_no: int
    at: float  # seconds since 1970
    hosts: list[HostSnapshot]
    omitted: int = 0
    connections_opened: int = 0  # so far, to origins and to the destination
    paused: bool = False  # the run is paused and sends no requests
    still: str = ""  # if no transfer makes progress: a sentence that says so and what the run waits for
    progress: dict[str, Any] | None = None  # started_at, and of Snapshot: todo, done, failed, bytes, rates, left_s


def busiest(run_no: int, snapshots: list[HostSnapshot], now: float) -> Hosts:
    """Return the hosts with the most requests, up to 50. Hosts without requests do not count."""
    used = sorted((host for host in snapshots if host.requests), key=lambda host: -host.requests)
    return Hosts(run_no, now, used[:MOST_HOSTS], len(used) - len(used[:MOST_HOSTS]))


def read_hosts(state: State) -> Hosts | None:
    """Return the hosts of the last write, or None if there is no readable file."""
    try:
        data: dict[str, Any] = json.loads(state.read(NAME))
        known = [HostSnapshot(**host) for host in data["hosts"]]
        paused = data.get("paused", False)
        still = str(data.get("still", ""))
        return Hosts(
            data["run_no"],
            data["at"],
            known,
            data["omitted"],
            data["connections_opened"],
            paused,
            still,
            data.get("progress"),
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def together(processes: Sequence[Sequence[HostSnapshot]]) -> list[HostSnapshot]:
    """Return one snapshot for each host, summed over the processes of a run.

    The sentence is that of the process with the longest pause, then with the most requests.
    """
    found: dict[str, list[HostSnapshot]] = {}
    for snapshots in processes:
        for host in (host for host in snapshots if host.requests):  # a process may know a host only from a shared pause
            found.setdefault(host.host, []).append(host)
    return [_sum(of_host) if len(of_host) > 1 else of_host[0] for of_host in found.values()]


def _sum(parts: list[HostSnapshot]) -> HostSnapshot:
    most = max(parts, key=lambda part: (part.paused_for_s, part.requests))
    rates = [part.requests_per_s for part in parts]
    requests = sum(part.requests for part in parts)
    latency_s = sum(part.latency_s * part.requests for part in parts) / requests if requests else 0.0
    return replace(
        most,
        limit=sum(part.limit for part in parts), in_flight=sum(part.in_flight for part in parts),
        waiting=sum(part.waiting for part in parts), requests=requests, refused=sum(part.refused for part in parts),
        requests_per_s=None if None in rates else sum(rate for rate in rates if rate is not None),
        latency_s=latency_s, at_limit=any(part.at_limit for part in parts),
        why=f"{most.why} (of {len(parts)} processes)",
    )  # fmt: skip


async def keep_written(state: State, get_hosts: Callable[[], Hosts], held: Callable[[], bool]) -> None:
    """Write the file every few seconds until cancelled, and once more at the end, while the lease is held.

    ``get_hosts`` returns the hosts of all processes.
    """
    every_s = EVERY_S_IN_A_BUCKET if in_bucket(state.uri) else EVERY_S
    try:
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(_write, state, get_hosts, held)
    finally:
        _write(state, get_hosts, held)


def _write(state: State, get_hosts: Callable[[], Hosts], held: Callable[[], bool]) -> None:
    hosts = get_hosts()
    if (hosts.hosts or hosts.still) and held():
        with contextlib.suppress(
            FerryError, OSError
        ):  # best effort: if the state cannot be written, the outcomes raise the error
            state.write(NAME, json.dumps(asdict(hosts)).encode())
