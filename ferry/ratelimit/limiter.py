"""The limits of all hosts of a run, and of the whole job (algorithms: concurrency.py, rate.py, docs/concurrency.md)."""

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
COPIES_START = 256  # where the server copies by itself: such a request waits for it, and moves nothing
AUTO_CEILING = 256
KEPT_HOSTS = 1000
DESTINATION = "destination"  # no host has this name: it holds no dot
_EVICTION_TRIES = 16  # hosts that are looked at for one to forget, when a new one comes


class Limiter:
    """The limits of all hosts; the destination is one more name.

    ``concurrency`` None is auto: 32 at first, or what ``starts`` has for a name. A number is where each host
    starts, and its ceiling: backing off from it, and coming back, works the same way. No host gets more than
    ``ceiling``, which is what file descriptors and memory allow. A pause over ``max_pause_s`` is not waited for.

    About 1,000 hosts are kept. One that nobody uses is forgotten with what was learned of it, long
    unused ones first (CLOCK, F. Corbató 1968: a host used since it was last looked at is passed over once).
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
        """The limit of a host, for as long as something of it is in flight or was asked for; then ask again."""
        found = self._hosts.get(name)
        if found is None:
            self._evict()
            found = self._hosts[name] = self._new(name)
        return found

    def snapshot(self) -> dict[str, HostSnapshot]:
        """From any thread."""
        return {name: host.snapshot() for name, host in list(self._hosts.items())}

    def bound(self, ceiling: int) -> None:
        """No more than that at once at any host, and at all origins together: other processes have the rest."""
        self._ceiling = ceiling
        for host in self._hosts.values():
            host.bound(ceiling)
        if self._job is not None:
            self._job.bound(ceiling)

    def rested(self, seconds: float) -> None:
        """The run was paused for so long: that is no silence of any host's."""
        for host in self._hosts.values():
            host.rested(seconds)

    def pauses(self) -> dict[str, tuple[float, str]]:
        """Hosts that are to be left alone: until when, by the clock, and why. From any thread."""
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
        # A store is made for many writers, and gives a little more for each; an origin has readers of its own.
        few = auto if name == DESTINATION else FEW
        adaptive = AdaptiveConcurrency(start, min(bound or self._ceiling, self._ceiling), few=few)
        return HostLimit(
            name, adaptive, self._clock, self._call_later, self._max_pause_s,
            limits=limits, limits_key=key, job=job, adopt=self._adopt,
        )  # fmt: skip

    def _adopt(self, host: HostLimit) -> None:
        """Somebody kept a host that was forgotten, and uses it."""
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
