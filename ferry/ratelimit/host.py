"""The limit of one host: requests in flight and per second, the user's limits, pauses."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable

from ferry.job import HostLimits
from ferry.ratelimit.concurrency import AdaptiveConcurrency
from ferry.ratelimit.host_snapshot import HostSnapshot
from ferry.ratelimit.job import BYTES_AHEAD_S, CallLater, Handle, JobLimit
from ferry.ratelimit.pause import Pause
from ferry.ratelimit.permit import PausedTooLong, Slot
from ferry.ratelimit.rate import AdaptiveRate
from ferry.ratelimit.token_bucket import TokenBucket

RECENT = 32  # requests in the moving average of the broken share
BROKEN_SHARE = 0.1  # of recent requests: more resets and timeouts than this are overload
DEAD_SHARE = 0.9  # with so many broken and one request in flight, the host is down
REST_S = (0.5, 5.0)  # between two attempts at a host that is down; doubled each time
_RECENTLY_S = 2.0  # a rate that held a request back within this time is the reason in status output
_SHORTEST_TIMER_S, _LONGEST_TIMER_S = 0.001, 60.0
_LONGEST_PAUSE_S = 366 * 86400.0


class HostLimit:
    """The permits of one host, granted in the order of the requests for them.

    A released permit is counted for the next waiter before that waiter wakes. So no other caller can take it, and a
    cancelled waiter can return it.

    One caller may take permits without waiting. It sets ``on_room`` and calls :meth:`take`; if that returns False,
    ``on_room`` is called when another try may succeed. All methods run on the event loop's thread, except
    :meth:`snapshot`, which any thread may call.
    """

    __slots__ = (
        "_adaptive", "_adopt", "_always_held", "_asked", "_broken", "_byte_rate", "_call_later", "_clock", "_cut_to",
        "_heeded", "_held", "_in_flight", "_job", "_learned", "_limits_key", "_max_pause_s", "_origin",
        "_pause", "_pause_s", "_paused_until", "_refused", "_request_rate", "_rest_s", "_silent_at", "_timer",
        "_timer_at", "_waiters", "_wanted_at", "_why_slow", "forgotten", "name", "on_room", "queued",
        "requests", "seen",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        adaptive: AdaptiveConcurrency,
        clock: Callable[[], float],
        call_later: CallLater | None = None,
        max_pause_s: float = math.inf,
        *,
        limits: HostLimits | None = None,
        limits_key: str = "limits",
        job: JobLimit | None = None,
        adopt: Callable[[HostLimit], None] | None = None,
        origin: str = "",
    ) -> None:
        """``adopt`` is called with a host that was forgotten and is used again. ``origin`` names this process."""
        self.name = name
        self.on_room: Callable[[], None] | None = None
        self.queued = False  # in the queue of the job's limits
        self.seen = 0  # requests when the limiter last checked whether to evict the host
        self.forgotten = False
        self._adopt = adopt
        self._max_pause_s = max_pause_s
        self._adaptive = adaptive
        self._learned = AdaptiveRate()
        self._clock = clock
        self._call_later = call_later
        self._in_flight = self.requests = self._refused = 0
        self._asked = False  # a take() returned False, and on_room has not been called since
        self._request_rate: TokenBucket | None = None
        self._byte_rate: TokenBucket | None = None
        self._job = job
        self._paused_until: float | None = None
        self._pause_s = 0.0
        self._pause = Pause(0.0, "", origin, 0.0)  # the last one, as it began
        self._origin = origin
        self._heeded: dict[str, float] = {}  # other process -> number of its last pause that was heeded here
        self._timer: Handle | None = None
        self._timer_at = 0.0
        self._waiters: OrderedDict[asyncio.Future[None], None] | None = None  # created by the first waiter
        self._why_slow = ""
        self._cut_to = 0  # the limit after the last cut; 0 once it has grown again
        self._rest_s = 0.0  # the last rest; 0 while the host answers
        self._silent_at = 0.0  # when the first rest began
        self._broken = 0.0  # share of recent requests that ended in a reset, a timeout or a refusal
        self.set_limits(limits or HostLimits(), limits_key)

    def set_limits(self, limits: HostLimits, key: str) -> None:
        """Set the user's rates, from now on; ``key`` names them in status output. Then :meth:`wake` applies them."""
        now = self._clock()
        self._request_rate = TokenBucket.changed(self._request_rate, limits.requests_per_s, now)
        self._byte_rate = TokenBucket.changed(self._byte_rate, limits.bytes_per_s, now)
        self._wanted_at = -math.inf  # when one of these two last held a request back
        self._limits_key = key if limits.concurrency or self._request_rate or self._byte_rate else ""
        self._always_held = self._request_rate is not None or self._byte_rate is not None or self._job is not None
        self._held = True  # whether anything but the limit in flight may hold a request back

    def wake(self) -> None:
        """Grant what changed limits allow, perhaps before the timer of the old ones."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._room()

    def slot(self) -> Slot:
        """Return a context manager that waits for a permit and for the end of any pause."""
        return Slot(self)

    # --- permits

    def take(self) -> bool:
        """Take a permit if one is free and nothing waits for it. Most requests need no more than this."""
        if self._waiters or not self._grant():
            self._asked = self.on_room is not None
            return False
        return True

    def _grant(self) -> bool:
        if self._in_flight >= self._adaptive.limit or (self._held and not self._may_begin()):
            return False
        self._in_flight += 1
        self.requests += 1
        return True

    def _may_begin(self) -> bool:
        """Apply pause, rates and the job's limits. Count the request, or see to it that the host is called again."""
        if self.forgotten and self._adopt is not None:
            self._adopt(self)
        now = self._clock()
        if wait_s := self._pause_left_s(now) or self._rates_s(now):
            self._call_in(wait_s, now)
            return False
        if self._job is not None and not self._job.admit(self, now):
            return False
        self._learned.book(now)
        if self._request_rate is not None:
            self._request_rate.book(now)
        elif math.isinf(self._learned.per_s):
            self._held = self._always_held
        return True

    def _pause_left_s(self, now: float) -> float:
        """Return the seconds of pause left, and end the pause if there are none."""
        if self._paused_until is None:
            return 0.0
        if now >= self._paused_until:
            self._paused_until = None
            self._learned.rest(now)
            return 0.0
        # If the clock steps back, the pause begins again, but becomes no longer.
        self._paused_until = min(self._paused_until, now + self._pause_s)
        return self._paused_until - now

    def _rates_s(self, now: float) -> float:
        """Return the seconds until all rates of this host allow a request."""
        wait_s = self._learned.wait_s(now)
        requests_s = self._request_rate.wait_s(now) if self._request_rate is not None else 0.0
        bytes_s = self._byte_rate.wait_s(now, BYTES_AHEAD_S) if self._byte_rate is not None else 0.0
        if requests_s or bytes_s:
            self._wanted_at = now
        return max(wait_s, requests_s, bytes_s)

    async def wait(self) -> None:
        """Wait for a permit. A waiter that is cancelled leaves nothing behind.

        Raises PausedTooLong, at once or while waiting, for a pause of more than ``max_pause_s``.
        """
        if self.paused_for_s > self._max_pause_s:
            raise PausedTooLong(self._pause_message())
        if self._waiters is None:
            self._waiters = OrderedDict()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[future] = None
        self._room()  # sets the timer of a pause
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back()
            else:
                self._waiters.pop(future, None)
            raise

    def give_back(self) -> None:
        """Release a permit."""
        self._in_flight -= 1
        if self._job is not None:
            self._job.leave()
        if self._asked or self._waiters:
            self._room()

    # --- results of requests

    def ok(self, latency_s: float) -> None:
        """Report an object, ``latency_s`` after its request began."""
        now = self._clock()
        self._broken -= self._broken / RECENT
        self._rest_s = 0.0
        self._learned.accepted(now)
        if self._adaptive.answered(latency_s, self._in_flight * 10 >= self._adaptive.limit * 9, now):
            if self._adaptive.limit > self._cut_to:
                self._cut_to = 0
            if self._asked or self._waiters:
                self._room()

    answered = ok  # a response without an object, such as 404, shows as much about the host

    def overloaded(self, retry_after_s: float | None, why: str, sure: bool = True) -> None:
        """Report overload, as Slot.overloaded does."""
        now = self._clock()
        self._broken += (1 - self._broken) / RECENT
        asked_s = min(retry_after_s, _LONGEST_PAUSE_S) if retry_after_s and retry_after_s > 0 else 0.0
        if sure:
            self._refused += 1
            if self._learned.refused(now, asked_s, self._adaptive.latency_s, self._in_flight):
                self._held = True
                self._why_slow = why
                self._adaptive.step_back()
        elif self._broken > BROKEN_SHARE:
            if self._adaptive.overload(now):
                self._cut_to = self._adaptive.limit
                self._why_slow = why
            if self._broken > DEAD_SHARE and self._adaptive.limit == 1 and not asked_s:  # else it answers
                self._rest(now, why)
        if asked_s:
            self._begin_pause(now, asked_s, f"paused: {why}, Retry-After {asked_s:,.0f} s")
            self._refuse_waiters()

    def rest(self, why: str) -> None:
        """Report that the host is down. The next attempt follows after 0.5 s, then after twice as long, up to 5 s."""
        now = self._clock()
        if not self._pause_left_s(now):
            self._rest(now, why)

    def _rest(self, now: float, why: str) -> None:
        self._silent_at = self._silent_at if self._rest_s else now
        self._rest_s = min(max(self._rest_s * 2, REST_S[0]), REST_S[1], self._max_pause_s)
        self._begin_pause(now, self._rest_s, f"paused: {why}; one attempt every {self._rest_s:,.3g} s")

    def _begin_pause(self, now: float, pause_s: float, why: str, told: Pause | None = None) -> None:
        """Pause, unless a pause that is under way ends later. ``told`` is by another process."""
        if self._pause_left_s(now) < pause_s:
            until = now + pause_s
            origin, number = (told.origin, told.number) if told is not None else (self._origin, until)
            self._paused_until, self._pause_s = until, pause_s
            self._held = True
            self._pause = Pause(until, why, origin, number)

    def charge(self, n_bytes: int) -> float:
        """Count bytes that were read against the host and the job; return the seconds to wait before the next read."""
        wait_s = 0.0
        for bucket in (self._byte_rate, self._job.bytes if self._job is not None else None):
            if bucket is not None:
                now = self._clock()
                bucket.book(now, n_bytes)
                wait_s = max(wait_s, bucket.wait_s(now))
        return wait_s

    # --- pauses

    @property
    def pause(self) -> Pause | None:
        """The pause that is under way, or None. Safe from any thread."""
        # The opposite order of that in which they are set: another thread never sees a new pause with an earlier end.
        pause, until = self._pause, self._paused_until
        return pause._replace(until=until) if until is not None and until > self._clock() else None

    def pause_until(self, until: float, why: str) -> None:
        """Pause the host."""
        self._pause_until(until, why)

    def heed(self, pause: Pause) -> None:
        """Pause the host because another process has. What was told before, or began here, changes nothing."""
        if pause.origin != self._origin and pause.number > self._heeded.get(pause.origin, 0.0):
            self._heeded[pause.origin] = pause.number
            self._pause_until(pause.until, pause.why, pause)

    def _pause_until(self, until: float, why: str, told: Pause | None = None) -> None:
        now = self._clock()
        if until > now:
            self._begin_pause(now, min(until - now, _LONGEST_PAUSE_S), why, told)
            self._refuse_waiters()

    def bound(self, ceiling: int) -> None:
        """Set the maximum of requests in flight, from now on."""
        self._adaptive.bound(ceiling)

    @property
    def paused_for_s(self) -> float:
        """Seconds of pause left; 0 if the host is not paused."""
        return self._pause_left_s(self._clock()) if self._paused_until is not None else 0.0

    @property
    def silent_for_s(self) -> float:
        """Seconds without an answer from a host that is down; 0 while it answers."""
        return max(0.0, self._clock() - self._silent_at) if self._rest_s else 0.0

    def rested(self, seconds: float) -> None:
        """Note that the run was paused for ``seconds``, which do not count as silence of the host."""
        self._silent_at += seconds
        self._adaptive.rested()

    def _refuse_waiters(self) -> None:
        """End all waits if the pause is too long."""
        if self._waiters and self.paused_for_s > self._max_pause_s:
            while self._waiters:
                future, _ = self._waiters.popitem(last=False)
                if not future.done():
                    future.set_exception(PausedTooLong(self._pause_message()))

    def _pause_message(self) -> str:
        return f"{self.name} is paused for another {self.paused_for_s:,.0f} s (Retry-After)"

    # --- being called again

    def _room(self) -> None:
        """Grant free permits to the first waiters, then call ``on_room``; or wait for a timer or the job."""
        if self._in_flight >= self._adaptive.limit or self._timer is not None or self.queued:
            return
        waiters = self._waiters
        while waiters:
            future = next(iter(waiters))
            if not future.done():  # else it was cancelled and has not run yet
                if not self._grant():
                    break
                future.set_result(None)
            del waiters[future]
        if self._asked and not waiters and self.on_room is not None and self._in_flight < self._adaptive.limit:
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
        """Note that the limiter does not know the host. If it is used again, it asks to be adopted."""
        self.forgotten = self._held = True

    def from_job(self) -> None:
        """Use the host's turn: the job's limits allow one request."""
        self._room()

    # --- status

    @property
    def will_call(self) -> bool:
        """Whether a pause or a rate holds requests back, and a timer runs until its end."""
        return self._timer is not None

    @property
    def idle(self) -> bool:
        """Whether the host may be evicted: nothing in flight, waiting or to be called, and no pause."""
        return not (self._in_flight or self._waiters or self._asked or self.queued or self.paused_for_s)

    def snapshot(self) -> HostSnapshot:
        """Return the state for status output. Safe from any thread."""
        now = self._clock()
        waiters, until = self._waiters, self._paused_until
        left_s = 0.0 if until is None else max(0.0, min(until - now, self._pause_s))
        per_s = min(self._learned.per_s, self._request_rate.per_s if self._request_rate is not None else math.inf)
        return HostSnapshot(
            self.name, self._adaptive.limit, self._in_flight, len(waiters) if waiters else 0, left_s,
            self._pause.why if left_s > 0 else self._reason(now), None if math.isinf(per_s) else per_s,
            self.requests, self._refused, self._adaptive.latency_s, self._at_limit(now),
        )  # fmt: skip

    def _at_limit(self, now: float) -> bool:
        """Returns whether the user's limits hold requests back."""
        at_most = self._adaptive.at_ceiling and bool(self._limits_key) and self._in_flight >= self._adaptive.limit
        return now - self._wanted_at < _RECENTLY_S or self.queued or at_most

    def _reason(self, now: float) -> str:
        if now - self._wanted_at < _RECENTLY_S:
            return f"limited by {self._limits_key}"
        if now - self._learned.wanted_at < _RECENTLY_S and not math.isinf(self._learned.per_s):
            return f"at most {self._learned.per_s:,.3g} requests/s; above that: {self._why_slow}"
        if self.queued:
            return "limited by limits of the whole job"
        if self._cut_to:
            return f"reduced to {self._cut_to} in flight: {self._why_slow}"
        reason = self._adaptive.reason()
        return f"{reason} ({self._limits_key})" if self._adaptive.at_ceiling and self._limits_key else reason
