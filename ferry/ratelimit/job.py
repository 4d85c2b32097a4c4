"""Limits of the whole job, which its origin hosts share in turn."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ferry.job import HostLimits
from ferry.ratelimit.token_bucket import TokenBucket

BYTES_AHEAD_S = 1.0  # no new request while the bytes read are this far ahead of bytes_per_s
_SHORTEST_TIMER_S = 0.001


class Handle(Protocol):
    """A timer that can be cancelled."""

    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Handle]


class WaitingHost(Protocol):
    """A host that waits for capacity within the limits of the job."""

    queued: bool

    def from_job(self) -> None:
        """Tell the host that its turn has come: it may take one permit."""


class JobLimit:
    """Limits on requests in flight, requests per second and bytes per second over all origin hosts.

    A refused host joins a queue and gets one permit when its turn comes. While hosts are queued, no other host gets a
    permit, so that busy hosts leave capacity for the others. Without limits it counts requests in flight, since a limit
    that is set later also covers these.
    """

    __slots__ = (
        "_call_later",
        "_clock",
        "_concurrency",
        "_in_flight",
        "_queue",
        "_requests",
        "_timer",
        "_turn",
        "bytes",
    )

    def __init__(self, limits: HostLimits, clock: Callable[[], float], call_later: CallLater | None = None) -> None:
        self._requests: TokenBucket | None = None
        self.bytes: TokenBucket | None = None
        self._clock = clock
        self._call_later = call_later
        self._in_flight = 0
        self._queue: deque[WaitingHost] = deque()
        self._turn: WaitingHost | None = None
        self._timer: Handle | None = None
        self.set_limits(limits)

    def set_limits(self, limits: HostLimits) -> None:
        """Set the limits, from now on. Requests in flight count. Then :meth:`wake` serves the queue."""
        now = self._clock()
        self._concurrency = limits.concurrency or math.inf
        self._requests = TokenBucket.changed(self._requests, limits.requests_per_s, now)
        self.bytes = TokenBucket.changed(self.bytes, limits.bytes_per_s, now)

    def wake(self) -> None:
        """Serve the queue under changed limits, which may allow a request before the timer of the old ones."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._serve()

    def admit(self, host: WaitingHost, now: float) -> bool:
        """Admit and count one request of a host, or return False and call the host when its turn comes."""
        if (self._queue and self._turn is not host) or not self._has_room(now):
            if not host.queued:
                host.queued = True
                self._queue.append(host)
            return False
        self._turn = None
        self._in_flight += 1
        if self._requests is not None:
            self._requests.book(now)
        return True

    def leave(self) -> None:
        """Note that a request has ended, and serve the queue."""
        self._in_flight -= 1
        if self._queue:
            self._serve()

    def _has_room(self, now: float) -> bool:
        if self._in_flight >= self._concurrency:
            return False
        wait_s = self._requests.wait_s(now) if self._requests is not None else 0.0
        if self.bytes is not None:
            wait_s = max(wait_s, self.bytes.wait_s(now, BYTES_AHEAD_S))
        if wait_s > 0 and self._timer is None:
            later = self._call_later or asyncio.get_running_loop().call_later
            self._timer = later(max(wait_s, _SHORTEST_TIMER_S), self._on_timer)
        return wait_s <= 0

    def _serve(self) -> None:
        while self._queue and self._has_room(self._clock()):
            host = self._queue.popleft()
            host.queued = False
            self._turn = host
            host.from_job()
        self._turn = None

    def _on_timer(self) -> None:
        self._timer = None
        self._serve()
