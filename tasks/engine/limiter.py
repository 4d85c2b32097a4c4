"""How many requests a host gets at once: a limit that adapts, and pauses that the host asks for."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

AUTO_START = 32
AUTO_CEILING = 256
CUT_WINDOW_S = 0.2
RECENT = 32  # requests that the share of broken ones looks back on, as a moving average
BROKEN_SHARE = 0.1
_SHORTEST_TIMER_S = 0.001


class Handle(Protocol):
    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Handle]


class Aimd:
    """The law of the limit: additive increase, multiplicative decrease. Pure; the clock is injected.

    One more place after ``limit`` successes that came while the limit was in use; half of them on
    overload, at most once per window (the longer of 0.2 s and the mean latency), because what is in
    flight when a host starts to fail is one event and not many.

    Source: D. Chiu, R. Jain, "Analysis of the Increase and Decrease Algorithms for Congestion
    Avoidance", 1989; RFC 5681 section 3.1.
    """

    __slots__ = ("_ceiling", "_clock", "_cut_at", "_floor", "_latency_s", "_successes", "limit")

    def __init__(self, start: int, ceiling: int, clock: Callable[[], float], floor: int = 1) -> None:
        self._floor = floor
        self._ceiling = max(floor, ceiling)
        self.limit = max(floor, min(start, ceiling))
        self._clock = clock
        self._successes = 0
        self._latency_s = 0.0
        self._cut_at: float | None = None

    def success(self, latency_s: float, in_flight: int) -> None:
        """A request went well; ``in_flight`` counts it. An idle limit proves nothing and does not grow."""
        self._latency_s += (latency_s - self._latency_s) / 8 if self._latency_s else latency_s
        if self.limit >= self._ceiling or in_flight * 10 < self.limit * 9:
            return
        self._successes += 1
        if self._successes >= self.limit:
            self._successes = 0
            self.limit += 1

    def overload(self) -> bool:
        """429, 503, a reset or a timeout. True when the limit was cut (or is at its floor already)."""
        now = self._clock()
        if self._cut_at is not None and now - self._cut_at < max(CUT_WINDOW_S, self._latency_s):
            return False
        self._cut_at = now
        self._successes = 0
        self.limit = max(self._floor, self.limit // 2)
        return True


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """The state of one host, for status output."""

    host: str
    limit: int
    in_flight: int
    waiting: int
    paused_for_s: float
    why: str  # "" while nothing holds it back


class PausedTooLong(Exception):
    """The host asked for a pause that nobody here waits for; the text says who and how long."""


class Slot:
    """One place at a host; a context manager. Tell it once how the request went, or nothing."""

    __slots__ = ("_host",)

    def __init__(self, host: HostLimit) -> None:
        self._host = host

    async def __aenter__(self) -> Self:
        host = self._host
        if not host.take():
            await host.wait()  # raises PausedTooLong
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host.give_back()

    def ok(self, latency_s: float) -> None:
        self._host.ok(latency_s)

    def overloaded(self, retry_after_s: float | None = None, why: str = "overload", *, sure: bool = True) -> None:
        """The host is asked for too much. ``retry_after_s`` pauses it as a whole; ``why`` is for status output.

        Not ``sure``: a reset or a timeout, which one broken object also causes. It counts once more than a
        tenth of the host's recent requests end so.
        """
        self._host.overloaded(retry_after_s, why, sure)


class HostLimit:
    """The places of one host, given out in the order they were asked for.

    A place is handed over: whoever gives one back counts it for the next waiter before that one
    wakes, so that nobody can step in between and a cancelled waiter can return what it was given.
    """

    __slots__ = (
        "_broken",
        "_call_later",
        "_clock",
        "_in_flight",
        "_law",
        "_patience_s",
        "_paused_until",
        "_timer",
        "_waiters",
        "_why_paused",
        "_why_slow",
        "name",
    )

    def __init__(
        self,
        name: str,
        law: Aimd,
        clock: Callable[[], float],
        call_later: CallLater | None = None,
        patience_s: float = math.inf,
    ) -> None:
        self.name = name
        self._patience_s = patience_s
        self._law = law
        self._clock = clock
        self._call_later = call_later
        self._in_flight = 0
        self._paused_until: float | None = None
        self._timer: Handle | None = None
        self._waiters: OrderedDict[asyncio.Future[None], None] | None = None  # made by the first waiter
        self._why_paused = ""
        self._why_slow = ""
        self._broken = 0.0  # share of recent requests that ended in a reset, a timeout or a refusal

    def slot(self) -> Slot:
        """``async with host.slot() as slot:`` waits for a place and for the end of any pause."""
        return Slot(self)

    @property
    def paused_for_s(self) -> float:
        """Seconds until the host may be asked again; 0 when it is not paused."""
        if self._paused_until is None:
            return 0.0
        left = self._paused_until - self._clock()
        if left > 0:
            return left
        self._paused_until = None
        return 0.0

    def snapshot(self) -> HostSnapshot:
        waiting = len(self._waiters) if self._waiters else 0
        paused_for_s = self.paused_for_s
        why = self._why_paused if paused_for_s > 0 else self._why_slow
        return HostSnapshot(self.name, self._law.limit, self._in_flight, waiting, paused_for_s, why)

    def take(self) -> bool:
        """A place at once, if one is free and nobody waits for it. Most calls end here."""
        if self._waiters or self._in_flight >= self._law.limit:
            return False
        if self._paused_until is not None and self.paused_for_s > 0:
            return False
        self._in_flight += 1
        return True

    async def wait(self) -> None:
        """Queue for a place. Cancelled while queued, it leaves no trace.

        Raises PausedTooLong, at once or while queued, for a pause of more than ``patience_s``.
        """
        if self.paused_for_s > self._patience_s:
            raise PausedTooLong(self._pause_in_words())
        if self._waiters is None:
            self._waiters = OrderedDict()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[future] = None
        self._wake()  # arms the timer of a pause
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back()
            else:
                self._waiters.pop(future, None)
            raise

    def give_back(self) -> None:
        self._in_flight -= 1
        if self._waiters:
            self._wake()

    def ok(self, latency_s: float) -> None:
        self._broken -= self._broken / RECENT
        before = self._law.limit
        self._law.success(latency_s, self._in_flight)
        if self._law.limit != before:
            self._why_slow = ""
            if self._waiters:
                self._wake()

    def overloaded(self, retry_after_s: float | None, why: str, sure: bool = True) -> None:
        self._broken += (1 - self._broken) / RECENT
        if not sure and self._broken <= BROKEN_SHARE:
            return
        if self._law.overload():
            self._why_slow = f"slowed down: {why}"
        if retry_after_s is not None and retry_after_s > 0:
            until = self._clock() + retry_after_s
            if self._paused_until is None or until > self._paused_until:
                self._paused_until = until
                self._why_paused = f"paused: {why}, Retry-After {retry_after_s:.0f} s"
            self._send_away()

    def _send_away(self) -> None:
        """Waiters do not outwait a long pause."""
        if self._waiters and self.paused_for_s > self._patience_s:
            while self._waiters:
                future, _ = self._waiters.popitem(last=False)
                if not future.done():
                    future.set_exception(PausedTooLong(self._pause_in_words()))

    def _pause_in_words(self) -> str:
        return f"{self.name} asks to be left alone for {self.paused_for_s:,.0f} s (Retry-After)"

    def _wake(self) -> None:
        """Hand free places to the first waiters, or have the pause's end call again."""
        waiters = self._waiters
        if not waiters:
            return
        left = self.paused_for_s
        if left > 0:
            if self._timer is None:
                later = self._call_later or asyncio.get_running_loop().call_later
                self._timer = later(max(left, _SHORTEST_TIMER_S), self._pause_over)
            return
        while waiters and self._in_flight < self._law.limit:
            future, _ = waiters.popitem(last=False)
            if not future.done():
                self._in_flight += 1
                future.set_result(None)

    def _pause_over(self) -> None:
        self._timer = None
        self._wake()


class Limiter:
    """The limits of all hosts; the destination is one more name.

    ``concurrency`` None is auto: 32 at first, up to ``ceiling``. A number is where each host starts
    and its ceiling: backing off from it, and coming back, works the same way. A pause of more than
    ``patience_s`` is not waited for.
    """

    def __init__(
        self,
        concurrency: int | None,
        ceiling: int,
        clock: Callable[[], float],
        *,
        call_later: CallLater | None = None,
        patience_s: float = math.inf,
    ) -> None:
        self._patience_s = patience_s
        self._start = AUTO_START if concurrency is None else concurrency
        self._ceiling = ceiling if concurrency is None else concurrency
        self._clock = clock
        self._call_later = call_later
        self._hosts: dict[str, HostLimit] = {}

    def host(self, name: str) -> HostLimit:
        found = self._hosts.get(name)
        if found is None:
            law = Aimd(self._start, self._ceiling, self._clock)
            found = self._hosts[name] = HostLimit(name, law, self._clock, self._call_later, self._patience_s)
        return found

    def snapshot(self) -> dict[str, HostSnapshot]:
        return {name: host.snapshot() for name, host in self._hosts.items()}
