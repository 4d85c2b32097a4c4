"""The limits of all hosts of a run and of the whole job.

Algorithms: concurrency.py, rate.py, docs/explanation/concurrency.md.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping

from ferry.job import Limits
from ferry.ratelimit.concurrency import FEW, AdaptiveConcurrency
from ferry.ratelimit.host import HostLimit
from ferry.ratelimit.host_snapshot import HostSnapshot
from ferry.ratelimit.job import CallLater, JobLimit
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
        given = self._limits
        self._job: JobLimit | None = None
        if given.concurrency or given.requests_per_s or given.bytes_per_s:
            bytes_per_s = float(given.bytes_per_s) if given.bytes_per_s else None
            self._job = JobLimit(given.concurrency, given.requests_per_s, bytes_per_s, clock, call_later)

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

    def bound(self, ceiling: int) -> None:
        """Set the maximum of requests in flight for each host and for all origins. Other processes have the rest."""
        self._ceiling = ceiling
        for host in self._hosts.values():
            host.bound(ceiling)
        if self._job is not None:
            self._job.bound(ceiling)

    def rested(self, seconds: float) -> None:
        """Note that the run was paused for ``seconds``, which do not count as silence of a host."""
        for host in self._hosts.values():
            host.rested(seconds)

    def pauses(self) -> dict[str, tuple[float, str]]:
        """Return the paused hosts, each with the end of its pause and the reason. Safe from any thread."""
        now = self._clock()
        paused = [(name, host, host.paused_until) for name, host in list(self._hosts.items())]
        return {name: (until, host.snapshot().why) for name, host, until in paused if until is not None and until > now}

    def _new(self, name: str) -> HostLimit:
        if name == DESTINATION:
            key, limits, job = "limits.destination", self._limits.destination, None
        else:
            pattern, limits = self._limits.of_host(name)
            key, job = f"limits.hosts.{pattern}", self._job
        bound = limits.concurrency or self._concurrency
        auto = self._starts.get(name, AUTO_START)
        start = bound if self._concurrency is not None and bound else auto
        # A store serves many writers and gains a little from each; an origin also serves its own readers.
        few = auto if name == DESTINATION else FEW
        adaptive = AdaptiveConcurrency(start, min(bound or self._ceiling, self._ceiling), few=few)
        return HostLimit(
            name, adaptive, self._clock, self._call_later, self._max_pause_s,
            limits=limits, limits_key=key, job=job, adopt=self._adopt,
        )  # fmt: skip

    def _adopt(self, host: HostLimit) -> None:
        """Register an evicted host again that a caller still holds and uses."""
        self._hosts.setdefault(host.name, host)

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
