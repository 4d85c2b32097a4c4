"""Tests of permits, pauses and limits of hosts, and of the whole job's limits."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest

from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass
from ferry.job.limits import Limits
from ferry.ratelimit.concurrency import AdaptiveConcurrency
from ferry.ratelimit.host import HostLimit
from ferry.ratelimit.limiter import KEPT_HOSTS, Limiter
from ferry.ratelimit.permit import PausedTooLong, overload
from ferry.ratelimit.rate import BETA, CEILING


class Timer:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Time:
    """A clock with timers that run when it is moved. ``shift`` is the error of the clock."""

    def __init__(self) -> None:
        self.now = 5000.0
        self.shift = 0.0
        self.all: list[Timer] = []

    def __call__(self) -> float:
        return self.now + self.shift

    @property
    def timers(self) -> list[Timer]:
        return [timer for timer in self.all if not timer.cancelled]

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        self.all.append(Timer(self.now + delay, callback))
        return self.all[-1]

    def pass_by(self, seconds: float) -> None:
        """Move the clock and run the timers that are due."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.when <= end]:
            first = min(due, key=lambda timer: timer.when)
            self.all.remove(first)
            self.now = max(self.now, first.when)
            first.callback()
        self.now = end

    async def move(self, seconds: float) -> None:
        self.pass_by(seconds)
        await ticks()


async def ticks() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def limiter(concurrency: int | None = None, ceiling: int = 256, **limits: Any) -> tuple[Limiter, Time]:
    time = Time()
    given = Limits.model_validate(limits)
    return Limiter(concurrency, ceiling, time, limits=given, call_later=time.call_later, max_pause_s=60.0), time


class Holder:
    """A task that takes a permit, logs that, and keeps the permit until ``done`` is set."""

    def __init__(self, host: HostLimit, name: int, log: list[int]) -> None:
        self.done = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(host, name, log))

    async def _run(self, host: HostLimit, name: int, log: list[int]) -> None:
        async with host.slot():
            log.append(name)
            await self.done.wait()

    async def cancel(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


def test_a_number_is_start_and_ceiling() -> None:
    """A fixed concurrency is never exceeded, and is halved by failures like an automatic one."""
    limits, _ = limiter(8)
    host = limits.host("a")
    assert host.snapshot().limit == 8
    for _ in range(100):
        host.ok(0.01)
    assert host.snapshot().limit == 8
    for _ in range(6):
        host.overloaded(None, "connection reset", sure=False)
    assert host.snapshot().limit == 4
    assert limiter()[0].host("a").snapshot().limit == 32
    assert limiter(None, 10)[0].host("a").snapshot().limit == 10


def test_never_more_than_the_limit_and_first_come_first_served() -> None:
    """Of six tasks two get the two permits, and the others follow in the order of their requests."""

    async def scenario() -> None:
        limits, _ = limiter(2)
        host, log = limits.host("a"), list[int]()
        holders = [Holder(host, n, log) for n in range(6)]
        await ticks()
        assert log == [0, 1]
        snapshot = host.snapshot()
        assert (snapshot.in_flight, snapshot.waiting, snapshot.limit) == (2, 4, 2)
        for n in (1, 0, 2, 3, 4, 5):
            holders[n].done.set()
            await ticks()
        assert log == [0, 1, 2, 3, 4, 5]
        assert host.snapshot().in_flight == host.snapshot().waiting == 0

    asyncio.run(scenario())


def test_a_waiter_is_served_before_a_new_caller() -> None:
    """A released permit goes to the waiter, not to a caller of the same moment."""

    async def scenario() -> None:
        limits, _ = limiter(1)
        host, log = limits.host("a"), list[int]()
        first = Holder(host, 0, log)
        await ticks()
        second = Holder(host, 1, log)
        await ticks()
        first.done.set()
        late = Holder(host, 2, log)
        await ticks()
        assert log == [0, 1]
        second.done.set()
        late.done.set()
        await ticks()
        assert log == [0, 1, 2]

    asyncio.run(scenario())


def test_the_permit_of_a_cancelled_waiter_is_not_lost() -> None:
    """If a waiter is cancelled while it waits, or when its permit is granted, the next one gets the permit."""

    async def scenario() -> None:
        limits, _ = limiter(1)
        host, log = limits.host("a"), list[int]()
        holders = [Holder(host, n, log) for n in range(4)]
        await ticks()
        await holders[2].cancel()
        assert host.snapshot().waiting == 2
        holders[0].done.set()
        while not holders[0].task.done():  # at its end, holder 1 has a permit and has not run yet
            await asyncio.sleep(0)
        await holders[1].cancel()
        await ticks()
        assert log in ([0, 1, 3], [0, 3])
        holders[3].done.set()
        await ticks()
        assert host.snapshot().in_flight == host.snapshot().waiting == 0

    asyncio.run(scenario())


def test_a_waiter_cancelled_after_the_grant_returns_the_permit() -> None:
    """A permit that its waiter never received is free again."""

    async def scenario() -> None:
        limits, _ = limiter(1)
        host = limits.host("a")
        assert host.take()
        waiter = asyncio.ensure_future(host.wait())
        await ticks()
        host.give_back()  # grants the permit
        assert host.snapshot().in_flight == 1
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert host.snapshot().in_flight == 0
        assert host.take()

    asyncio.run(scenario())


def test_an_exception_releases_the_permit() -> None:
    """A request that raises releases its permit."""

    async def scenario() -> None:
        limits, _ = limiter(1)
        with pytest.raises(RuntimeError):
            async with limits.host("a").slot():
                raise RuntimeError
        assert limits.host("a").snapshot().in_flight == 0

    asyncio.run(scenario())


def test_retry_after_pauses_the_whole_host_and_no_other() -> None:
    """No request begins before the Retry-After is over; then they begin one by one, at a learned rate."""

    async def scenario() -> None:
        limits, time = limiter(4)
        host, log = limits.host("a"), list[int]()
        async with host.slot() as slot:
            slot.overloaded(30.0, "HTTP 429")
        holders = [Holder(host, n, log) for n in range(3)]
        await ticks()
        assert log == []
        snapshot = host.snapshot()
        assert (snapshot.paused_for_s, snapshot.waiting, snapshot.in_flight) == (30.0, 3, 0)
        assert "429" in snapshot.why
        assert "30 s" in snapshot.why
        assert limits.host("b").take()
        await time.move(29.5)
        assert log == []
        await time.move(0.5)
        assert log == [0]  # no burst at its end
        assert host.paused_for_s == 0
        await time.move(0.4)
        assert log == [0, 1]
        assert "requests/s; above that: HTTP 429" in host.snapshot().why
        await time.move(1.0)
        assert log == [0, 1, 2]
        for holder in holders:
            holder.done.set()
        await ticks()

    asyncio.run(scenario())


def test_a_longer_pause_replaces_a_shorter() -> None:
    """The latest end counts, also when a timer runs already. A shorter Retry-After does not shorten a pause."""

    async def scenario() -> None:
        limits, time = limiter(2)
        host, log = limits.host("a"), list[int]()
        host.overloaded(10.0, "HTTP 503")
        holder = Holder(host, 0, log)
        await ticks()
        host.overloaded(20.0, "HTTP 503")
        host.overloaded(1.0, "HTTP 503")
        await time.move(10.0)
        assert log == []
        assert host.paused_for_s == pytest.approx(10.0)
        await time.move(10.0)
        assert log == [0]
        holder.done.set()
        await ticks()

    asyncio.run(scenario())


def test_a_pause_without_waiters_needs_no_timer() -> None:
    """After the pause a permit is free at once."""
    limits, time = limiter(2)
    host = limits.host("a")
    host.overloaded(5.0, "HTTP 429")
    assert not host.take()
    time.now += 5.0
    assert host.take()
    assert time.timers == []


def test_a_waiter_is_served_before_a_new_caller_at_the_end_of_a_pause() -> None:
    """If a pause is over and its timer has not run yet, the waiter comes first."""

    async def scenario() -> None:
        limits, time = limiter(4)
        host, log = limits.host("a"), list[int]()
        host.overloaded(5.0, "HTTP 429")
        holder = Holder(host, 0, log)
        await ticks()
        time.now += 5.0
        assert not host.take()
        await time.move(0.0)
        assert log == [0]
        await time.move(1.0)
        assert host.take()
        holder.done.set()
        await ticks()

    asyncio.run(scenario())


def test_growth_wakes_a_waiter() -> None:
    """A higher limit grants a permit to a waiter."""

    async def scenario() -> None:
        time = Time()
        host = HostLimit("a", AdaptiveConcurrency(1, 2), time, time.call_later)
        log: list[int] = []
        holders = [Holder(host, n, log) for n in range(2)]
        await ticks()
        assert log == [0]
        for _ in range(20):
            time.now += 0.01
            host.ok(0.01)
        await ticks()
        assert log == [0, 1]
        for holder in holders:
            holder.done.set()
        await ticks()

    asyncio.run(scenario())


def test_real_time_pause() -> None:
    """Without injected timers, the timers of the event loop end a pause."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        limits = Limiter(None, 256, loop.time)
        host = limits.host("a")
        host.overloaded(0.05, "HTTP 429")
        start = loop.time()
        async with host.slot():
            assert loop.time() - start >= 0.045

    asyncio.run(scenario())


def test_snapshot_has_every_host() -> None:
    """Status output has one entry per host."""
    limits, _ = limiter(3)
    limits.host("a")
    assert limits.host("a") is limits.host("a")
    limits.host("destination")
    assert {name: s.host for name, s in limits.snapshot().items()} == {"a": "a", "destination": "destination"}


# --- a caller that does not wait


class Pump:
    """A dispatcher with ``work`` requests for one host, which records when each begins."""

    def __init__(self, limits: Limiter, name: str, time: Time, work: int = 1_000_000) -> None:
        self.host = limits.host(name)
        self.time = time
        self.work = work
        self.calls = 0
        self.begun: list[float] = []
        self.host.on_room = self.room
        self.pump()

    def room(self) -> None:
        self.calls += 1
        self.pump()

    def pump(self) -> None:
        while self.work and self.host.take():
            self.work -= 1
            self.begun.append(self.time.now)

    def end(self, count: int = 1, latency_s: float = 0.05) -> None:
        for _ in range(count):
            self.host.ok(latency_s)
            self.host.give_back()


def test_on_room_is_called_once_per_permit_after_a_refused_take() -> None:
    """It is not called after a take() that returned True."""
    limits, time = limiter(2)
    pump = Pump(limits, "a", time, work=4)
    assert len(pump.begun) == 2
    pump.end()
    assert (len(pump.begun), pump.calls) == (3, 1)
    pump.end()
    assert (len(pump.begun), pump.calls) == (4, 2)
    pump.end(2)
    assert pump.calls == 2  # take() was not called again
    assert time.timers == []


def test_waiters_come_before_on_room() -> None:
    """A waiter gets a free permit before on_room is called."""

    async def scenario() -> None:
        limits, time = limiter(1)
        pump = Pump(limits, "a", time)
        waiter = asyncio.ensure_future(pump.host.wait())
        await ticks()
        pump.end()
        await waiter
        assert len(pump.begun) == 1
        pump.host.give_back()
        assert len(pump.begun) == 2

    asyncio.run(scenario())


def test_on_room_comes_with_the_end_of_a_pause_by_one_timer() -> None:
    """Many calls of take() set one timer. After the pause, requests begin one by one."""
    limits, time = limiter(8)
    pump = Pump(limits, "a", time)
    pump.host.overloaded(10.0, "HTTP 429")
    pump.end(8)
    for _ in range(5):
        assert not pump.host.take()
    assert len(time.timers) == 1
    begun = len(pump.begun)
    time.pass_by(9.9)
    assert len(pump.begun) == begun
    time.pass_by(0.11)
    assert len(pump.begun) - begun == 1
    time.pass_by(3)
    assert len(pump.begun) - begun == len(set(pump.begun[begun:])) == 8


def test_on_room_when_the_limit_grows() -> None:
    """A step from 32 to 64 in flight begins 32 requests at once."""
    limits, time = limiter()
    pump = Pump(limits, "a", time)
    assert len(pump.begun) == 32
    while pump.host.snapshot().limit == 32:
        time.now += 0.05 / 32
        pump.end()
    assert pump.host.snapshot().in_flight == pump.host.snapshot().limit == 64


def test_a_refusal_takes_a_step_up_back() -> None:
    """A refusal with a Retry-After during the step from 32 to 64 in flight ends the step."""
    limits, time = limiter()
    pump = Pump(limits, "a", time)
    while pump.host.snapshot().limit == 32:
        time.now += 0.05 / 32
        pump.end()
    pump.host.overloaded(1.0, "HTTP 429")
    assert pump.host.snapshot().limit < 64


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_pause_and_a_clock_that_jumps(jump_s: float) -> None:
    """A jump back begins the pause again, a jump ahead ends it. Neither allows a burst."""
    limits, time = limiter(8)
    pump = Pump(limits, "a", time)
    pump.host.overloaded(10.0, "HTTP 429")
    pump.end(8)
    begun = len(pump.begun)
    time.pass_by(5)
    time.shift = jump_s
    assert pump.host.paused_for_s == (0 if jump_s > 0 else 10)
    time.pass_by(11)
    after = pump.begun[begun:]
    assert len(after) == len(set(after)) == 8


# --- the user's limits


def test_requests_per_s_of_a_host() -> None:
    """Requests are evenly spread with one timer, other hosts are not limited, and status output has the reason."""
    limits, time = limiter(hosts={"img.example": {"requests_per_s": 10}})
    slow, quick = Pump(limits, "img.example", time), Pump(limits, "other.example", time)
    for _ in range(100):
        time.pass_by(0.1)
        slow.end(slow.host.snapshot().in_flight)
        assert len(time.timers) <= 1
    assert 99 <= len(slow.begun) <= 102
    assert len(quick.begun) == 32
    assert slow.host.snapshot().why == "limited by limits.hosts.img.example"
    assert slow.host.snapshot().requests_per_s == 10
    assert quick.host.snapshot().requests_per_s is None


def test_concurrency_of_hosts_and_the_destination() -> None:
    """The most exact entry is the maximum, also above the job's number, but not above the machine's."""
    hosts = {
        "*.example": {"concurrency": 3},
        "img.example": {"concurrency": 50},
        "img.example:81": {"concurrency": 900},
    }
    limits, _ = limiter(8, 100, hosts=hosts, destination={"concurrency": 5})
    expected = {
        "a.example": 3,
        "img.example": 50,
        "img.example:80": 50,
        "img.example:81": 100,
        "b.c": 8,
        "destination": 5,
    }
    assert {name: limits.host(name).snapshot().limit for name in expected} == expected
    auto, _ = limiter(hosts=hosts)
    assert auto.host("img.example").snapshot().limit == 32
    assert "limits.hosts.*.example" in auto.host("a.example").snapshot().why


def test_charge() -> None:
    """Without a limit, nothing waits. With limits, the longer wait of host and job counts."""
    limits, _ = limiter()
    assert limits.host("a").charge(10**9) == 0.0
    limits, time = limiter(bytes_per_s=10_000, hosts={"a": {"bytes_per_s": 5_000}})
    a, b, destination = (limits.host(name) for name in ("a", "b", "destination"))
    assert a.charge(10_000) == pytest.approx(2, abs=0.1)
    assert b.charge(10_000) == pytest.approx(2, abs=0.1)
    assert destination.charge(10**9) == 0.0
    assert not a.take()  # the bytes are more than 1 s ahead
    time.now += 1.1
    assert a.take()
    assert b.take()


def test_hosts_take_turns_at_the_job_s_permits() -> None:
    """Of two permits for three busy hosts, each host gets a third, whichever host's requests end."""
    limits, time = limiter_of_job(concurrency=2)
    pumps = [Pump(limits, name, time) for name in ("a", "b", "c")]
    assert [len(pump.begun) for pump in pumps] == [2, 0, 0]
    for _ in range(60):
        time.now += 0.01
        next(pump for pump in pumps if pump.host.snapshot().in_flight).end()
        assert sum(pump.host.snapshot().in_flight for pump in pumps) == 2
    counts = [len(pump.begun) for pump in pumps]
    assert max(counts) - min(counts) <= 2
    assert limits.host("destination").take()  # the job limits origin hosts only
    assert "whole job" in pumps[0].host.snapshot().why


def limiter_of_job(**limits: Any) -> tuple[Limiter, Time]:
    time = Time()
    return Limiter(None, 256, time, limits=Limits.model_validate(limits), call_later=time.call_later), time


def test_a_turn_that_is_not_used_passes_to_the_next_host() -> None:
    """A host without work at its turn keeps no permit from other hosts."""
    limits, time = limiter_of_job(concurrency=1)
    first, second, third = (Pump(limits, name, time) for name in "abc")
    second.work = 0
    first.work = 0
    first.end()
    assert [len(pump.begun) for pump in (first, second, third)] == [1, 0, 1]


def test_hosts_take_turns_at_the_job_s_requests_per_s() -> None:
    """Of 20 requests a second, each of two hosts gets 10, although one asks first."""
    limits, time = limiter_of_job(requests_per_s=20)
    pumps = [Pump(limits, name, time) for name in ("a", "b")]
    for _ in range(100):
        time.pass_by(0.1)
        for pump in pumps:
            pump.end(pump.host.snapshot().in_flight)
    counts = [len(pump.begun) for pump in pumps]
    assert sum(counts) == pytest.approx(200, abs=3)
    assert abs(counts[0] - counts[1]) <= 3


def test_waiters_and_the_job_s_permits() -> None:
    """wait() also needs a permit of the job, and a cancelled waiter returns that one."""

    async def scenario() -> None:
        limits, _ = limiter_of_job(concurrency=1)
        a, b = limits.host("a"), limits.host("b")
        assert a.take()
        waiter = asyncio.ensure_future(b.wait())
        await ticks()
        assert not waiter.done()
        a.give_back()  # grants b the permit
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert a.take()
        gone = asyncio.ensure_future(b.wait())
        await ticks()
        gone.cancel()
        await ticks()
        a.give_back()
        assert a.take()

    asyncio.run(scenario())


# --- bad input


def test_a_retry_after_of_a_year() -> None:
    """Waiters and new callers get PausedTooLong at once."""

    async def scenario() -> None:
        limits, _ = limiter(1)
        host = limits.host("a")
        async with host.slot() as slot:
            waiter = asyncio.ensure_future(host.wait())
            await ticks()
            slot.overloaded(366 * 86400.0, "HTTP 503")
        with pytest.raises(PausedTooLong, match="31,622,400 s"):
            await waiter
        with pytest.raises(PausedTooLong):
            await host.wait()
        assert not host.take()
        host.overloaded(math.inf, "HTTP 503")
        assert host.paused_for_s <= 366 * 86400.0
        assert "Retry-After 31,622,400 s" in host.snapshot().why
        assert limits.host("b").take()

    asyncio.run(scenario())


@pytest.mark.parametrize("retry_after_s", [0.0, -5.0, math.nan, None])
def test_a_retry_after_that_asks_for_nothing(retry_after_s: float | None) -> None:
    """Zero, a time in the past or no number is not a pause, but the refusals count."""
    limits, _ = limiter(8)
    host = limits.host("a")
    host.overloaded(retry_after_s, "HTTP 429")
    assert host.snapshot().requests_per_s is None  # a single one may be chance
    host.overloaded(retry_after_s, "HTTP 429")
    assert host.paused_for_s == 0
    assert host.snapshot().refused == 2
    assert host.snapshot().requests_per_s is not None


def test_ten_thousand_hosts() -> None:
    """About 1,000 are kept, among them each host that is in use, paused or asked for."""
    limits, time = limiter(4)
    used = limits.host("used")
    assert used.take()
    paused = limits.host("paused")
    paused.overloaded(30.0, "HTTP 429")
    asked = Pump(limits, "asked", time)
    for n in range(10_000):
        host = limits.host(f"host{n}.example")
        assert host.take()
        host.ok(0.01)
        host.give_back()
    kept = limits.snapshot()
    assert len(kept) <= KEPT_HOSTS + 16
    assert {"used", "paused", "asked"} <= set(kept)
    assert limits.host("used") is used
    assert limits.host("asked") is asked.host
    assert "host9999.example" in kept


def test_an_evicted_host_that_is_used_is_registered_again() -> None:
    """A caller may still hold the limit of an evicted host."""
    limits, _ = limiter(4)
    old = limits.host("old")
    for n in range(3 * KEPT_HOSTS):
        limits.host(f"h{n}")
    assert "old" not in limits.snapshot()
    assert old.take()
    assert limits.host("old") is old


def test_a_host_that_is_down() -> None:
    """Resets alone lower the limit to 1, then allow one attempt every 5 s. An answer ends that."""
    limits, time = limiter()
    pump = Pump(limits, "a", time)
    for _ in range(200):
        time.pass_by(0.05)
        for _ in range(pump.host.snapshot().in_flight):
            pump.host.overloaded(None, "connection reset", sure=False)
            pump.host.give_back()
    assert pump.host.snapshot().limit == 1
    assert "paused: connection reset; one attempt every 5 s" in pump.host.snapshot().why
    begun = len(pump.begun)
    for _ in range(40):
        time.pass_by(0.5)
        while pump.host.snapshot().in_flight:
            pump.host.overloaded(None, "connection reset", sure=False)
            pump.host.give_back()
    assert 3 <= len(pump.begun) - begun <= 10
    time.pass_by(6)
    for _ in range(100):
        time.pass_by(0.05)
        pump.end(pump.host.snapshot().in_flight)
    assert pump.host.snapshot().limit > 1
    assert pump.host.paused_for_s == 0


def test_a_host_that_sends_retry_after_is_not_down() -> None:
    """It is paused for as long as it asks, and does not count as silent."""
    limits, _ = limiter(1)
    host = limits.host("a")
    for _ in range(200):
        host.overloaded(0.1, "HTTP 500", sure=False)
    assert host.snapshot().limit == 1
    assert host.paused_for_s == pytest.approx(0.1)
    assert host.silent_for_s == 0


def test_one_broken_object_is_no_overload() -> None:
    """The limit is halved only if more than a tenth of recent requests end in resets."""
    limits, time = limiter(8)
    pump = Pump(limits, "a", time)
    for n in range(300):
        time.now += 0.05
        if n % 20 == 0:
            pump.host.overloaded(None, "reset", sure=False)
            pump.host.give_back()
        else:
            pump.end()
        assert "reduced to" not in pump.host.snapshot().why
    for _ in range(8):
        pump.host.overloaded(None, "reset", sure=False)
        pump.host.give_back()
    assert "reduced to" in pump.host.snapshot().why


@pytest.mark.parametrize(
    ("error_class", "status", "how_sure"),
    [
        (ErrorClass.RATE_LIMITED, 429, "sure"),
        (ErrorClass.SERVER_ERROR, 503, "sure"),
        (ErrorClass.TIMEOUT, None, "maybe"),
        (ErrorClass.TIMEOUT, 408, "maybe"),
        (ErrorClass.CONNECTION, None, "maybe"),
        (ErrorClass.STORE_ERROR, None, "maybe"),
        (ErrorClass.STORE_ERROR, 408, "maybe"),
        (ErrorClass.STORE_ERROR, 500, "maybe"),
        (ErrorClass.STORE_ERROR, 400, None),
        (ErrorClass.STORE_ERROR, 409, None),
        (ErrorClass.NOT_FOUND, 404, None),
        (ErrorClass.NOT_IMAGE, 200, None),
    ],
)
def test_which_errors_are_overload(error_class: ErrorClass, status: int | None, how_sure: str | None) -> None:
    """The table of overload() holds."""
    assert overload(ObjectError(error_class, "it failed", status_code=status)) == how_sure


def test_snapshot_of_a_host() -> None:
    """A snapshot has total counts, the mean latency and the learned rate."""
    limits, time = limiter(8)
    pump = Pump(limits, "a", time)
    for _ in range(400):
        time.now += 0.005
        pump.end(latency_s=8 / 200)
    pump.host.overloaded(0.5, "HTTP 429")
    time.pass_by(1.01)
    pump.end(5, latency_s=8 / 200)
    snapshot = limits.snapshot()["a"]
    assert snapshot.requests == len(pump.begun)
    assert snapshot.refused == 1
    assert snapshot.latency_s == pytest.approx(0.04)
    assert snapshot.requests_per_s == pytest.approx(200 * CEILING * BETA, rel=0.05)
