"""The limits of all hosts of a run and of the whole job.

Algorithms: concurrency.py, rate.py, docs/explanation/concurrency.md.
"""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping

from ferry.job import HostLimits, Limits
from ferry.ratelimit.concurrency import FEW, AdaptiveConcurrency
from ferry.ratelimit.host import HostLimit
from ferry.ratelimit.host_snapshot import HostSnapshot
from ferry.ratelimit.job import CallLater, JobLimit
from ferry.ratelimit.pause import Pause
from ferry.ratelimit.permit import PausedTooLong, Slot

__all__ = ["HostLimit", "Limiter", "PausedTooLong", "Slot"]

AUTO_START = 32
COPIES_START = 256  # for server-side copies, whose requests transfer no bytes and wait for the server
AUTO_CEILING = 256
KEPT_HOSTS = 1000
DESTINATION = "destination"  # not the name of a host: it contains no dot
_EVICTION_TRIES = 16  # hosts to check for one to evict, when a new one is added


class Limiter:
    """The limits of all hosts. The destination counts as one more host.

    ``concurrency`` None is automatic: hosts start at 32 requests in flight, or at their value in ``starts``. A number
    is where each host starts, and its maximum; backing off and recovering work the same way. ``ceiling`` is the maximum
    for any host, as file descriptors and memory allow. The limiter does not wait for a pause longer than
    ``max_pause_s``.

    About 1,000 hosts are kept. An idle host is evicted with what was learned of it, the least recently used first. The
    algorithm is CLOCK (F. Corbató 1968): a host used since its last check is skipped once.
    """

    def __init__(
        self,
        concurrency: int | None,
        ceiling: int,
        clock: Callable[[], float],
        *,
        limits: Limits | None = None,
        call_later: CallLater | None = None,
        max_pause_s: float = math.inf,
        starts: Mapping[str, int] | None = None,
    ) -> None:
        self._starts = starts or {}
        self._limits = limits or Limits()
        self._concurrency = concurrency
        self._ceiling = ceiling
        self._clock = clock
        self._call_later = call_later
        self._max_pause_s = max_pause_s
        self._hosts: OrderedDict[str, HostLimit] = OrderedDict()
        self._job = JobLimit(self._limits, clock, call_later)
        self._origin = secrets.token_hex(8)  # of pauses that other processes are told

    def host(self, name: str) -> HostLimit:
        """Return the limit of a host. Valid while the host has requests in flight or waiting; then call again."""
        found = self._hosts.get(name)
        if found is None:
            self._evict()
            found = self._hosts[name] = self._new(name)
        return found

    def snapshot(self) -> dict[str, HostSnapshot]:
        """Return the state of all hosts. Safe from any thread."""
        return {name: host.snapshot() for name, host in list(self._hosts.items())}

    def change(self, limits: Limits, ceiling: int) -> None:
        """Set the user's limits, and the maximum of requests in flight for each host, from now on.

        Requests in flight finish, and count. What the new limits allow begins at once.
        """
        self._limits, self._ceiling = limits, ceiling
        hosts = list(self._hosts.values())
        self._job.set_limits(limits)
        for host in hosts:
            self._set_limits(host)
        self._job.wake()
        for host in hosts:
            host.wake()

    def rested(self, seconds: float) -> None:
        """Note that the run was paused for ``seconds``, which do not count as silence of a host."""
        for host in self._hosts.values():
            host.rested(seconds)

    def pauses(self) -> dict[str, Pause]:
        """Return the pauses that are under way, by host. Safe from any thread."""
        return {name: pause for name, host in list(self._hosts.items()) if (pause := host.pause) is not None}

    def _new(self, name: str) -> HostLimit:
        key, limits, most = self._given(name)
        auto = self._starts.get(name, AUTO_START)
        start = most if self._concurrency is not None else auto
        # A store serves many writers and gains a little from each; an origin also serves its own readers.
        few = auto if name == DESTINATION else FEW
        return HostLimit(
            name, AdaptiveConcurrency(start, most, few=few), self._clock, self._call_later, self._max_pause_s,
            limits=limits, limits_key=key, job=None if name == DESTINATION else self._job, adopt=self._adopt,
            origin=self._origin,
        )  # fmt: skip

    def _given(self, name: str) -> tuple[str, HostLimits, int]:
        """Returns the user's limits of a host, the key that sets them, and the maximum of its requests in flight."""
        pattern, limits = self._limits.of_host(name)
        key = f"limits.hosts.{pattern}"
        if name == DESTINATION:
            key, limits = "limits.destination", self._limits.destination
        return key, limits, min(limits.concurrency or self._concurrency or self._ceiling, self._ceiling)

    def _set_limits(self, host: HostLimit) -> None:
        key, limits, most = self._given(host.name)
        host.bound(most)
        host.set_limits(limits, key)

    def _adopt(self, host: HostLimit) -> None:
        """Register an evicted host again that a caller still holds and uses, and set limits that it missed.

        Beside a newer host of its name it stays unknown, and asks again.
        """
        host.forgotten = self._hosts.setdefault(host.name, host) is not host
        self._set_limits(host)

    def _evict(self) -> None:
        for _ in range(min(_EVICTION_TRIES, len(self._hosts)) if len(self._hosts) >= KEPT_HOSTS else 0):
            name, host = next(iter(self._hosts.items()))
            if host.idle and host.seen == host.requests:
                del self._hosts[name]
                host.forget()
                if len(self._hosts) < KEPT_HOSTS:
                    return
            else:
                host.seen = host.requests
                self._hosts.move_to_end(name)
