"""What one host is asked for at once and per second: limits that adapt, the user's bounds, pauses."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable

from ferry.job import HostLimits
from ferry.ratelimit.concurrency import AdaptiveConcurrency, Phase
from ferry.ratelimit.host_snapshot import HostSnapshot
from ferry.ratelimit.job import BYTES_AHEAD_S, CallLater, Handle, JobLimit
from ferry.ratelimit.permit import PausedTooLong, Slot
from ferry.ratelimit.rate import AdaptiveRate, TokenBucket

RECENT = 32  # requests that the share of broken ones looks back on, as a moving average
BROKEN_SHARE = 0.1
DEAD_SHARE = 0.9  # of them broken, and one at a time left: nobody is there
REST_S = (0.5, 5.0)  # between two tries then; doubled each time
_PACED_S = 0.25  # a learned rate that held a request back this long ago is what holds the host
_BOUND_S = 2.0  # a rate that held something back this long ago is what bounds a host, for status output
_SHORTEST_TIMER_S, _LONGEST_TIMER_S = 0.001, 60.0
_LONGEST_PAUSE_S = 366 * 86400.0


class HostLimit:
    """The places of one host, given out in the order they were asked for.

    A place is handed over: whoever gives one back counts it for the next waiter before that one
    wakes, so that nobody can step in between and a cancelled waiter can return what it was given.

    One caller can do without waiting: it calls :meth:`take` and, where that says no, is told by
    ``on_room``, set before, when to try again. All calls come from the event loop's thread; :meth:`snapshot` from any.
    """

    __slots__ = (
        "_adopt", "_always_held", "_asked", "_broken", "_bytes", "_call_later", "_charged", "_climb", "_clock", "_held",
        "_in_flight", "_job", "_limits_key", "_pace", "_patience_s", "_pause_s", "_paused_until", "_rate",
        "_rate_wanted_at", "_refused", "_rest_s", "_silent_at", "_slow", "_timer", "_timer_at", "_waiters",
        "_why_paused", "_why_slow", "forgotten", "name", "on_room", "queued", "requests", "seen",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        climb: AdaptiveConcurrency,
        clock: Callable[[], float],
        call_later: CallLater | None = None,
        max_pause_s: float = math.inf,
        *,
        limits: HostLimits | None = None,
        limits_key: str = "limits",
        job: JobLimit | None = None,
        adopt: Callable[[HostLimit], None] | None = None,
    ) -> None:
        limits = limits or HostLimits()
        self.name = name
        self.on_room: Callable[[], None] | None = None  # a take() that was refused may now succeed
        self.queued = False  # waits for its turn at the job's own limits
        self.seen = 0  # requests when the limiter last looked for a host to forget
        self.forgotten = False
        self._adopt = adopt
        self._patience_s = max_pause_s
        self._climb = climb
        self._clock = clock
        self._call_later = call_later
        self._in_flight = self.requests = self._refused = 0
        self._asked = False  # a take() was refused, and nobody was told of room since
        self._pace = AdaptiveRate()
        self._rate = TokenBucket(limits.requests_per_s) if limits.requests_per_s else None
        self._rate_wanted_at = -math.inf
        self._bytes = TokenBucket(float(limits.bytes_per_s)) if limits.bytes_per_s else None
        self._charged = tuple(rate for rate in (self._bytes, job.bytes if job else None) if rate is not None)
        self._limits_key = limits_key if limits.concurrency or self._rate or self._bytes else ""
        self._job = job
        self._always_held = self._rate is not None or self._bytes is not None or job is not None
        self._held = self._always_held
        self._paused_until: float | None = None
        self._pause_s = 0.0
        self._timer: Handle | None = None
        self._timer_at = 0.0
        self._waiters: OrderedDict[asyncio.Future[None], None] | None = None  # made by the first waiter
        self._why_paused = self._why_slow = ""
        self._slow = 0  # the limit after the last cut; 0: it has grown since
        self._rest_s = 0.0
        self._silent_at = 0.0  # when the first rest began; counts while `_rest_s` is set
        self._broken = 0.0  # share of recent requests that ended in a reset, a timeout or a refusal

    def slot(self) -> Slot:
        """``async with host.slot() as slot:`` waits for a place and for the end of any pause."""
        return Slot(self)

    # --- places

    def take(self) -> bool:
        """A place at once, if one is free and nobody waits for it. Most calls end here."""
        if self._waiters or not self._place():
            self._asked = self.on_room is not None
            return False
        return True

    def _place(self) -> bool:
        if self._in_flight >= self._climb.limit or (self._held and not self._may_go()):
            return False
        self._in_flight += 1
        self.requests += 1
        return True

    def _may_go(self) -> bool:
        """What holds a host that has a place: pause, rates, the job. Books the request, or sees to being called."""
        if self.forgotten and self._adopt is not None:
            self.forgotten = False
            self._adopt(self)
        now = self._clock()
        if wait_s := self._pause_left_s(now) or self._rates_s(now):
            self._call_in(wait_s, now)
            return False
        if self._job is not None and not self._job.admit(self, now):
            return False
        self._pace.book(now)
        if self._rate is not None:
            self._rate.book(now)
        elif math.isinf(self._pace.per_s):
            self._held = self._always_held
        return True

    def _pause_left_s(self, now: float) -> float:
        """Seconds of pause left, kept up to date."""
        if self._paused_until is None:
            return 0.0
        if now >= self._paused_until:
            self._paused_until = None
            self._pace.rest(now)
            return 0.0
        # A clock that steps back starts the pause anew, no more.
        self._paused_until = min(self._paused_until, now + self._pause_s)
        return self._paused_until - now

    def _rates_s(self, now: float) -> float:
        """Seconds until all rates of this host have room for a request."""
        wait_s = self._pace.wait_s(now)
        if self._rate is not None and (rate_s := self._rate.wait_s(now)):
            self._rate_wanted_at = now
            wait_s = max(wait_s, rate_s)
        if self._bytes is not None and (bytes_s := self._bytes.wait_s(now, BYTES_AHEAD_S)):
            self._rate_wanted_at = now
            wait_s = max(wait_s, bytes_s)
        return wait_s

    async def wait(self) -> None:
        """Queue for a place. Cancelled while queued, it leaves no trace.

        Raises PausedTooLong, at once or while queued, for a pause of more than ``max_pause_s``.
        """
        if self.paused_for_s > self._patience_s:
            raise PausedTooLong(self._pause_in_words())
        if self._waiters is None:
            self._waiters = OrderedDict()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[future] = None
        self._room()  # arms the timer of a pause
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
        if self._job is not None:
            self._job.leave()
        if self._asked or self._waiters:
            self._room()

    # --- how requests went

    def ok(self, latency_s: float) -> None:
        """An object came; ``latency_s`` from its request to its end."""
        now = self._clock()
        self._broken -= self._broken / RECENT
        self._rest_s = 0.0
        self._pace.accepted(now)
        if self._climb.done(latency_s, self._in_flight, now):
            if self._climb.limit > self._slow:
                self._slow = 0
            if self._asked or self._waiters:
                self._room()

    answered = ok  # an answer that is no object (404, ...) tells as much of what the host bears

    def overloaded(self, retry_after_s: float | None, why: str, sure: bool = True) -> None:
        """As Slot.overloaded."""
        now = self._clock()
        self._broken += (1 - self._broken) / RECENT
        if sure:
            self._refused += 1
            self._refusal(now, why, bool(retry_after_s))
        elif self._broken > BROKEN_SHARE:
            self._cut(now, why)
            if self._broken > DEAD_SHARE and self._climb.limit == 1 and not retry_after_s:
                self._rest(now, why)
        if retry_after_s is not None and retry_after_s > 0:
            asked_s = min(retry_after_s, _LONGEST_PAUSE_S)
            self._pause(now, asked_s, f"paused: {why}, Retry-After {asked_s:,.0f} s")
            self._send_away()

    def rest(self, why: str) -> None:
        """Nobody is there: it is tried again after half a second, then after twice as long each time, up to 5 s."""
        now = self._clock()
        if not self._pause_left_s(now):
            self._rest(now, why)

    def _rest(self, now: float, why: str) -> None:
        self._silent_at = self._silent_at if self._rest_s else now
        self._rest_s = min(max(self._rest_s * 2, REST_S[0]), REST_S[1], self._patience_s)
        self._pause(now, self._rest_s, f"paused: {why}; a try every {self._rest_s:,.3g} s")

    def _refusal(self, now: float, why: str, told: bool) -> None:
        """429, 503, SlowDown: too many at a time, or too many per second?

        | what was going on | then |
        |---|---|
        | the same trouble, or a few strays | nothing |
        | more places were tried | back to as many as before; no word on the rate |
        | a learned rate held requests back | a lower rate |
        | else | half the places, and a rate |
        """
        if not self._pace.refused(now, told):
            return
        latency_s = self._climb.latency_s
        if self._climb.phase is Phase.UP and self._cut(now, why):
            self._pace.excuse(now, latency_s)
            return
        paced = 0 <= now - self._pace.wanted_at <= max(_PACED_S, latency_s)
        self._pace.lower(now, latency_s, self._in_flight)
        self._held = True
        if not paced:
            self._cut(now, why)
        self._why_slow = why

    def _pause(self, now: float, pause_s: float, why: str) -> None:
        """The later end counts, of this pause and one that runs."""
        if self._pause_left_s(now) < pause_s:
            self._paused_until, self._pause_s = now + pause_s, pause_s
            self._held = True
            self._why_paused = why

    def _cut(self, now: float, why: str) -> bool:
        if not self._climb.overload(now):
            return False
        self._slow = self._climb.limit
        self._why_slow = why
        return True

    def charge(self, n_bytes: int) -> float:
        """Books bytes that were read, at the host and at the job; the seconds to sleep before reading on."""
        if not self._charged:
            return 0.0
        now = self._clock()
        wait_s = 0.0
        for rate in self._charged:
            rate.book(now, n_bytes)
            wait_s = max(wait_s, rate.wait_s(now))
        return wait_s

    # --- pauses and being called

    @property
    def paused_until(self) -> float | None:
        """By the host's clock; None where it is not paused. From any thread."""
        return self._paused_until

    def pause_until(self, until: float, why: str) -> None:
        """Another process was told to leave the host alone."""
        now = self._clock()
        if until > now:
            self._pause(now, min(until - now, _LONGEST_PAUSE_S), why)
            self._send_away()

    def bound(self, ceiling: int) -> None:
        """No more than that at once, from now on."""
        self._climb.bound(ceiling)

    @property
    def paused_for_s(self) -> float:
        """Seconds until the host may be asked again; 0 when it is not paused."""
        return self._pause_left_s(self._clock()) if self._paused_until is not None else 0.0

    @property
    def silent_for_s(self) -> float:
        """Seconds for which nobody has answered here, however often that was tried; 0 while somebody does."""
        return max(0.0, self._clock() - self._silent_at) if self._rest_s else 0.0

    def rested(self, seconds: float) -> None:
        """The run was paused: nothing was asked here, so that nothing was answered."""
        self._silent_at += seconds
        self._climb.rested()

    def _send_away(self) -> None:
        """Waiters do not outwait a long pause."""
        if self._waiters and self.paused_for_s > self._patience_s:
            while self._waiters:
                future, _ = self._waiters.popitem(last=False)
                if not future.done():
                    future.set_exception(PausedTooLong(self._pause_in_words()))

    def _pause_in_words(self) -> str:
        return f"{self.name} asks to be left alone for {self.paused_for_s:,.0f} s (Retry-After)"

    def _room(self) -> None:
        """Hand free places to the first waiters, or tell who asked; or have a timer or the job call again."""
        if self._in_flight >= self._climb.limit or self._timer is not None or self.queued:
            return
        waiters = self._waiters
        while waiters:
            future = next(iter(waiters))
            if not future.done():  # else it was cancelled in this very moment
                if not self._place():
                    break
                future.set_result(None)
            del waiters[future]
        if self._asked and not waiters and self.on_room is not None and self._in_flight < self._climb.limit:
            self._asked = False
            self.on_room()

    def _call_in(self, wait_s: float, now: float) -> None:
        if self.on_room is None and not self._waiters:
            return
        due = now + min(wait_s, _LONGEST_TIMER_S)
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        later = self._call_later or asyncio.get_running_loop().call_later
        self._timer_at = due
        self._timer = later(min(max(wait_s, _SHORTEST_TIMER_S), _LONGEST_TIMER_S), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._room()

    def forget(self) -> None:
        """The limiter keeps it no longer; used all the same, it will ask to be kept again."""
        self.forgotten = self._held = True

    def from_job(self) -> None:
        """The job has room, and it is this host's turn."""
        self._room()

    # --- status

    @property
    def will_call(self) -> bool:
        """A pause or a rate holds requests back, and a timer runs until it ends."""
        return self._timer is not None

    @property
    def idle(self) -> bool:
        """Nothing in flight, nobody waits or was told to, no pause: it may be forgotten."""
        return not (self._in_flight or self._waiters or self._asked or self.queued or self.paused_for_s)

    def snapshot(self) -> HostSnapshot:
        now = self._clock()
        waiters, until = self._waiters, self._paused_until
        left_s = 0.0 if until is None else max(0.0, min(until - now, self._pause_s))
        per_s = min(self._pace.per_s, self._rate.per_s if self._rate is not None else math.inf)
        return HostSnapshot(
            self.name, self._climb.limit, self._in_flight, len(waiters) if waiters else 0, left_s,
            self._why_paused if left_s > 0 else self._why(now), None if math.isinf(per_s) else per_s,
            self.requests, self._refused, self._climb.latency_s,
        )  # fmt: skip

    def _why(self, now: float) -> str:
        if now - self._rate_wanted_at < _BOUND_S:
            return f"bounded by {self._limits_key}"
        if now - self._pace.wanted_at < _BOUND_S and not math.isinf(self._pace.per_s):
            return f"at most {self._pace.per_s:,.3g} requests/s; above that: {self._why_slow}"
        if self.queued:
            return "bounded by limits of the whole job"
        if self._slow:
            return f"slowed down to {self._slow} in flight: {self._why_slow}"
        words = self._climb.words(now)
        return f"{words} ({self._limits_key})" if self._climb.at_ceiling and self._limits_key else words
