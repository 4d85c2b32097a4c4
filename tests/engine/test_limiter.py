"""Places and pauses of hosts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from tasks.engine.limiter import Aimd, HostLimit, Limiter


class Time:
    """A clock with timers that run when it is moved."""

    def __init__(self) -> None:
        self.now = 50.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Time:
        self.timers.append((self.now + delay, callback))
        return self

    def cancel(self) -> None: ...

    async def move(self, seconds: float) -> None:
        self.now += seconds
        due = [callback for when, callback in self.timers if when <= self.now]
        self.timers = [(when, callback) for when, callback in self.timers if when > self.now]
        for callback in due:
            callback()
        await ticks()


async def ticks() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def limiter(concurrency: int | None = None, ceiling: int = 256) -> tuple[Limiter, Time]:
    time = Time()
    return Limiter(concurrency, ceiling, time, call_later=time.call_later), time


class Holder:
    """A task that takes a place, notes it, and keeps it until released."""

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


def test_aimd_grows_by_one_per_full_round() -> None:
    """`limit` successes in use add one place."""
    law = Aimd(4, 10, Time())
    for _ in range(4):
        law.success(0.05, 4)
    assert law.limit == 5
    for _ in range(4):
        law.success(0.05, 5)
    assert law.limit == 5
    law.success(0.05, 5)
    assert law.limit == 6


def test_aimd_does_not_grow_unused_nor_past_its_ceiling() -> None:
    """Successes while few are in flight prove nothing; the ceiling holds."""
    law = Aimd(32, 34, Time())
    for _ in range(1000):
        law.success(0.05, 5)
    assert law.limit == 32
    for _ in range(1000):
        law.success(0.05, 34)
    assert law.limit == 34


def test_aimd_halves_once_per_window_and_stops_at_one() -> None:
    """A burst of failures is one cut; later ones cut again, down to 1."""
    time = Time()
    law = Aimd(32, 256, time)
    assert [law.overload() for _ in range(20)].count(True) == 1
    assert law.limit == 16
    limits = []
    for _ in range(6):
        time.now += 0.2
        law.overload()
        limits.append(law.limit)
    assert limits == [8, 4, 2, 1, 1, 1]


def test_aimd_window_is_a_round_trip_of_slow_hosts() -> None:
    """With a mean latency of 2 s, failures within 2 s are one event."""
    time = Time()
    law = Aimd(32, 256, time)
    law.success(2.0, 32)
    law.overload()
    time.now += 1.9
    law.overload()
    assert law.limit == 16
    time.now += 0.2
    law.overload()
    assert law.limit == 8


def test_aimd_recovers_from_one() -> None:
    """A limit of 1 that is in use grows again."""
    law = Aimd(1, 4, Time())
    law.success(0.1, 1)
    assert law.limit == 2


def test_a_number_is_start_and_ceiling() -> None:
    """A fixed concurrency is never exceeded, and backs off like auto."""
    limits, _ = limiter(8)
    host = limits.host("a")
    assert host.snapshot().limit == 8
    for _ in range(100):
        host.ok(0.01)
    assert host.snapshot().limit == 8
    host.overloaded(None, "HTTP 503")
    assert host.snapshot().limit == 4
    assert limiter()[0].host("a").snapshot().limit == 32
    assert limiter(None, 10)[0].host("a").snapshot().limit == 10


def test_never_more_than_the_limit_and_first_come_first_served() -> None:
    """Two places: two hold them, the others follow in the order they came."""

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


def test_nobody_overtakes_a_waiter() -> None:
    """A place that comes free goes to who waits, not to who asks at that moment."""

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


def test_a_cancelled_waiter_leaks_nothing() -> None:
    """Cancelled while it waits, or in the very moment that it is given its place: the next one gets it."""

    async def scenario() -> None:
        limits, _ = limiter(1)
        host, log = limits.host("a"), list[int]()
        holders = [Holder(host, n, log) for n in range(4)]
        await ticks()
        await holders[2].cancel()
        assert host.snapshot().waiting == 2
        holders[0].done.set()
        while not holders[0].task.done():  # at its end, holder 1 has been granted the place and has not run yet
            await asyncio.sleep(0)
        await holders[1].cancel()
        await ticks()
        assert log in ([0, 1, 3], [0, 3])
        holders[3].done.set()
        await ticks()
        assert host.snapshot().in_flight == host.snapshot().waiting == 0

    asyncio.run(scenario())


def test_cancelled_after_the_grant_gives_it_back() -> None:
    """A grant that its waiter never saw is handed on."""

    async def scenario() -> None:
        limits, _ = limiter(1)
        host = limits.host("a")
        assert host.take()
        waiter = asyncio.ensure_future(host.wait())
        await ticks()
        host.give_back()  # grants the place
        assert host.snapshot().in_flight == 1
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert host.snapshot().in_flight == 0
        assert host.take()

    asyncio.run(scenario())


def test_an_exception_gives_the_place_back() -> None:
    """A request that raises frees its place."""

    async def scenario() -> None:
        limits, _ = limiter(1)
        with pytest.raises(RuntimeError):
            async with limits.host("a").slot():
                raise RuntimeError
        assert limits.host("a").snapshot().in_flight == 0

    asyncio.run(scenario())


def test_retry_after_pauses_the_whole_host_and_no_other() -> None:
    """Nobody starts before the Retry-After is over, then all that may do, in order."""

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
        assert log == [0, 1]  # the limit was halved
        assert host.paused_for_s == 0
        for holder in holders:
            holder.done.set()
        await ticks()
        assert log == [0, 1, 2]
        assert "slowed down" in host.snapshot().why

    asyncio.run(scenario())


def test_a_longer_pause_replaces_a_shorter() -> None:
    """The latest moment that was asked for counts, also when a timer runs already; a shorter one shortens nothing."""

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


def test_a_pause_that_nobody_waited_for_ends_by_itself() -> None:
    """After the pause a place is free at once, without a timer."""
    limits, time = limiter(2)
    host = limits.host("a")
    host.overloaded(5.0, "HTTP 429")
    assert not host.take()
    time.now += 5.0
    assert host.take()
    assert time.timers == []


def test_nobody_overtakes_at_the_end_of_a_pause() -> None:
    """When a pause is over and its timer has yet to run, who waited comes first."""

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
        assert host.take()
        holder.done.set()
        await ticks()

    asyncio.run(scenario())


def test_growth_wakes_a_waiter() -> None:
    """A place that the law adds goes to who waits."""

    async def scenario() -> None:
        time = Time()
        host = HostLimit("a", Aimd(1, 2, time), time, time.call_later)
        log: list[int] = []
        holders = [Holder(host, n, log) for n in range(2)]
        await ticks()
        assert log == [0]
        host.ok(0.01)
        await ticks()
        assert log == [0, 1]
        for holder in holders:
            holder.done.set()
        await ticks()

    asyncio.run(scenario())


def test_real_time_pause() -> None:
    """Without injected timers the loop's own end a pause."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        limits = Limiter(None, 256, loop.time)
        host = limits.host("a")
        host.overloaded(0.05, "HTTP 429")
        start = loop.time()
        async with host.slot():
            assert loop.time() - start >= 0.045

    asyncio.run(scenario())


def test_snapshot_names_every_host() -> None:
    """Status output gets one line per host."""
    limits, _ = limiter(3)
    limits.host("a")
    assert limits.host("a") is limits.host("a")
    limits.host("destination")
    assert {name: s.host for name, s in limits.snapshot().items()} == {"a": "a", "destination": "destination"}
