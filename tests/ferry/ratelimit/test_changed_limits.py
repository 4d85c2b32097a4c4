"""Tests of limits that change during a run: none is exceeded, and no waiter is forgotten."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from ferry.core import pace
from ferry.job.limits import Limits
from ferry.ratelimit.concurrency import AdaptiveConcurrency
from ferry.ratelimit.host import HostLimit
from ferry.ratelimit.limiter import KEPT_HOSTS, Limiter
from ferry.ratelimit.shares import limits_of
from tests.ferry.ratelimit.test_limiter import Holder, Pump, Time, limiter, limiter_of_job, ticks

CEILING = 256


def change(limits: Limiter, **given: Any) -> None:
    limits.change(Limits.model_validate(given), CEILING)


def passing(time: Time, seconds: float, *pumps: Pump, latency_s: float = 0.05) -> list[int]:
    """Let requests end after ``latency_s``, for some seconds. Returns how many each host began in that time."""
    before = [len(pump.begun) for pump in pumps]
    for _ in range(round(seconds / latency_s)):
        time.pass_by(latency_s)
        for pump in pumps:
            pump.end(pump.host.snapshot().in_flight)
    return [len(pump.begun) - count for pump, count in zip(pumps, before, strict=True)]


HOST = {"hosts": {"a": {"requests_per_s": 10}}}


@pytest.mark.parametrize("lower", [{"requests_per_s": 10}, HOST])
@pytest.mark.parametrize("before", [{}, {"requests_per_s": 100}])
def test_a_lower_rate(lower: dict[str, Any], before: dict[str, Any]) -> None:
    """From the change on no more than the rate and its burst begin, of the host and of the whole job."""
    limits, time = limiter(**before)
    pump = Pump(limits, "a", time)
    assert passing(time, 2, pump)[0] >= 190
    change(limits, **lower)
    for seconds in (1, 5):
        assert passing(time, seconds, pump)[0] <= 10 * seconds + 1
    assert pump.host.snapshot().at_limit


@pytest.mark.parametrize("where", ["job", "host"])
@pytest.mark.parametrize("after", [None, 100])
def test_a_higher_rate_does_not_wait_for_the_old_one(where: str, after: int | None) -> None:
    """With one request each 100 s, the next begins at once when the rate is raised or removed; no timer is left."""

    def given(per_s: float | None) -> dict[str, Any]:
        return {"requests_per_s": per_s} if where == "job" else {"hosts": {"a": {"requests_per_s": per_s}}}

    limits, time = limiter(**given(0.01))
    pump = Pump(limits, "a", time)
    assert len(pump.begun) == 1
    time.pass_by(1)
    change(limits, **given(after))
    time.pass_by(0.02)
    assert len(pump.begun) > 1
    if after is None:
        assert len(pump.begun) == 32  # as many as are in flight at the start
        assert time.timers == []
        assert "limited" not in pump.host.snapshot().why
        assert not pump.host.snapshot().at_limit


def test_a_waiter_does_not_wait_for_the_old_rate() -> None:
    """wait() returns when the limit is removed, in the order of the requests."""

    async def scenario(before: dict[str, Any]) -> None:
        limits, _ = limiter_of_job(**before)
        host, log = limits.host("a"), list[int]()
        holders = [Holder(host, n, log) for n in range(3)]
        await ticks()
        assert log == [0]
        change(limits)
        await ticks()
        assert log == [0, 1, 2]
        for holder in holders:
            holder.done.set()
        await ticks()

    for before in ({"requests_per_s": 0.01}, {"concurrency": 1}):
        asyncio.run(scenario(before))
        asyncio.run(scenario({"hosts": {"a": before}}))


@pytest.mark.parametrize("lower", [{"concurrency": 3}, {"hosts": {"a": {"concurrency": 3}}}])
def test_fewer_in_flight(lower: dict[str, Any]) -> None:
    """Requests in flight finish; no other begins until fewer than the limit are in flight."""
    limits, time = limiter()
    pump = Pump(limits, "a", time)
    assert len(pump.begun) == 32
    change(limits, **lower)
    for in_flight in range(31, 2, -1):
        time.pass_by(0.01)
        pump.end()
        assert (pump.host.snapshot().in_flight, len(pump.begun)) == (in_flight, 32)
    for _ in range(50):
        time.pass_by(0.01)
        pump.end()
        assert pump.host.snapshot().in_flight == 3
    assert len(pump.begun) == 82


def test_a_limit_of_the_job_that_comes_later_counts_what_is_in_flight() -> None:
    """64 requests of two hosts are in flight when 10 are allowed: the first one begins after the 55th end."""
    limits, time = limiter()
    pumps = [Pump(limits, name, time) for name in ("a", "b")]
    change(limits, concurrency=10)
    for _ in range(54):
        max(pumps, key=lambda pump: pump.host.snapshot().in_flight).end()
    assert [len(pump.begun) for pump in pumps] == [32, 32]
    for _ in range(20):
        max(pumps, key=lambda pump: pump.host.snapshot().in_flight).end()
        assert sum(pump.host.snapshot().in_flight for pump in pumps) == 10
    assert limits.host("destination").take()
    change(limits)
    assert sum(pump.host.snapshot().in_flight for pump in pumps) > 10


def test_more_in_flight() -> None:
    """Below a raised limit the host begins as at the start of a run, and searches up to it."""
    limits, time = limiter(hosts={"a": {"concurrency": 2}})
    pump = Pump(limits, "a", time)
    passing(time, 20, pump)
    assert pump.host.snapshot().limit == 2
    change(limits, hosts={"a": {"concurrency": 40}})
    assert pump.host.snapshot().in_flight == 32
    for _ in range(400):
        passing(time, 0.05, pump)
        assert pump.host.snapshot().in_flight <= 40
    assert pump.host.snapshot().limit == 40
    assert "limits.hosts.a" in pump.host.snapshot().why


def test_a_lower_maximum_during_a_step_down() -> None:
    """If the step down fails, the limit returns to the new maximum, not to the old steady limit."""
    adaptive = AdaptiveConcurrency(64, 64, few=1)
    now = 0.0
    while adaptive.limit == 64:
        now += 1 / 640
        adaptive.answered(0.1, True, now)
    assert adaptive.limit < 64
    adaptive.bound(50)
    for _ in range(5000):
        now += 0.1 / adaptive.limit
        adaptive.answered(0.1, True, now)
        assert adaptive.limit <= 50


def test_bytes_per_s() -> None:
    """A limit on bytes that comes later counts the bytes read from then on; one that ends holds nothing back."""
    limits, time = limiter()
    pump = Pump(limits, "a", time, work=40)
    assert pump.host.charge(10**9) == 0.0
    change(limits, bytes_per_s=10_000, hosts={"a": {"bytes_per_s": 5_000}})
    assert pump.host.charge(50_000) == pytest.approx(10, abs=0.1)
    pump.end(32)
    assert len(pump.begun) == 32
    change(limits, bytes_per_s=10_000)
    assert pump.host.charge(0) == pytest.approx(5, abs=0.1)
    assert len(pump.begun) == 32
    change(limits)
    assert pump.host.charge(10**9) == 0.0
    assert len(pump.begun) == 40


def test_a_pause_stays() -> None:
    """Other limits do not shorten a Retry-After."""
    limits, time = limiter(requests_per_s=5)
    pump = Pump(limits, "a", time)
    pump.host.overloaded(30.0, "HTTP 429")
    pump.end(pump.host.snapshot().in_flight)
    begun = len(pump.begun)
    change(limits)
    time.pass_by(29.9)
    assert len(pump.begun) == begun
    time.pass_by(0.2)
    assert len(pump.begun) > begun


def test_an_evicted_host_has_the_limits_of_now() -> None:
    """A caller may still hold it, also where a newer one has its name."""
    limits, _ = limiter()
    old, twin = limits.host("old"), limits.host("twin")
    for n in range(3 * KEPT_HOSTS):
        limits.host(f"h{n}")
    assert {"old", "twin"}.isdisjoint(limits.snapshot())
    assert limits.host("twin") is not twin
    change(limits, hosts={"old": {"requests_per_s": 0.01}, "twin": {"requests_per_s": 0.01}})
    for host in (old, twin):
        assert host.take()
        assert not host.take()
    assert limits.host("old") is old
    change(limits)
    assert old.take()
    assert twin.take()


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes(processes: int) -> None:
    """The processes together stay within each limit, before and after it changes."""
    time = Time()
    before, after = Limits(requests_per_s=200), Limits.model_validate({"requests_per_s": 30, "concurrency": 7})
    every = [
        Limiter(None, CEILING, time, limits=limits_of(before, processes), call_later=time.call_later)
        for _ in range(processes)
    ]
    pumps = [Pump(limits, "a", time) for limits in every]
    assert sum(passing(time, 5, *pumps)) <= 200 * 5 + 20
    for limits in every:
        limits.change(limits_of(after, processes), CEILING)
    assert sum(passing(time, 5, *pumps)) <= 30 * 5 + processes
    assert sum(pump.host.snapshot().in_flight for pump in pumps) <= 7


@pytest.mark.parametrize("seed", range(20))
def test_any_changes(seed: int) -> None:
    """Under random changes no request begins above a limit in force, and without limits every host continues."""
    rng = random.Random(seed)
    limits, time = limiter()
    pumps = [Pump(limits, name, time) for name in "abc"]

    def some() -> dict[str, Any]:
        values = {"concurrency": rng.randint(1, 40), "requests_per_s": rng.choice([0.01, 1, 20, 300])}
        return {name: value for name, value in values.items() if rng.random() < 0.5}

    def in_flight() -> list[int]:
        return [pump.host.snapshot().in_flight for pump in pumps]

    def counts(of_hosts: list[int]) -> list[int]:
        return [sum(of_hosts), *of_hosts[:2]]

    for _ in range(40):
        given = {**some(), "hosts": {name: some() for name in "ab"}}
        change(limits, **given)
        sides = [given, given["hosts"]["a"], given["hosts"]["b"]]  # the whole job, two hosts
        since, before = time.now, counts([len(pump.begun) for pump in pumps])
        least = counts(in_flight())
        for _ in range(rng.randint(1, 60)):
            time.pass_by(0.05)
            for pump in pumps:
                pump.end(rng.randint(0, pump.host.snapshot().in_flight))
            now = counts(in_flight())
            for side, count, were in zip(sides, now, least, strict=True):
                assert count <= max(side.get("concurrency", 10**6), were)
            least = [min(pair) for pair in zip(least, now, strict=True)]
        for side, count, was in zip(sides, counts([len(pump.begun) for pump in pumps]), before, strict=True):
            if rate := side.get("requests_per_s"):
                assert count - was <= rate * (time.now - since + 0.05) + 1
    change(limits)
    assert min(passing(time, 1, *pumps)) > 0


def test_a_reader_does_not_wait_for_the_old_rate() -> None:
    """A wait for bytes ends within a second or so once the limit is removed, and is not longer for what others read."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        host = HostLimit("a", AdaptiveConcurrency(1, 1), loop.time, limits=Limits(bytes_per_s=1000))
        reading = asyncio.ensure_future(pace(host.charge, 60_000))
        await asyncio.sleep(0.01)
        assert not reading.done()
        host.set_limits(Limits(), "limits")
        await asyncio.wait_for(reading, 30)

    asyncio.run(scenario())


def test_a_reader_waits_for_its_own_bytes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that others read meanwhile do not prolong a wait."""
    slept: list[float] = []
    left = iter([2.5, 9.0, 9.0, 9.0])

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(pace(lambda _: next(left), 100))
    assert slept == [1.0, 1.0, 0.5]
