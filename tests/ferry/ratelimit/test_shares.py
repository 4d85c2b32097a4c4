"""Tests of limits that several engine processes share, and of when another process is started."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ferry.job.limits import Limits
from ferry.job.model import Job
from ferry.processes.autoscaler import INTERVAL_S, Autoscaler, cores, idle_s
from ferry.ratelimit.host_snapshot import HostSnapshot
from ferry.ratelimit.limiter import Limiter
from ferry.ratelimit.pause import Pause
from ferry.ratelimit.shares import limits_of
from ferry.ratelimit.status import together
from ferry.state import lease
from tasks.workers.pool import processes_of
from tests.support.helpers import directory_state


def job(**settings: object) -> Job:
    return Job.model_validate({"name": "j", "manifest": "l.csv", "destination": "file:///d/", **settings})


def test_limits_are_divided() -> None:
    """Each process has at least one permit. Rates may become smaller than a user could write."""
    limits = Limits.model_validate(
        {
            "concurrency": 9, "requests_per_s": 50, "bytes_per_s": 1500,
            "destination": {"concurrency": 1}, "hosts": {"a.example": {"requests_per_s": 3}},
        }
    )  # fmt: skip
    part = limits_of(limits, 2)
    assert (part.concurrency, part.requests_per_s, part.bytes_per_s) == (4, 25, 750)
    assert part.destination.concurrency == 1
    assert part.of_host("a.example")[1].requests_per_s == 1.5
    assert limits_of(limits, 1) is limits
    assert limits_of(Limits(), 3) == Limits()


@pytest.mark.parametrize(
    ("settings", "limit", "expected"),
    [
        ({}, None, (1, min(16, cores()))),
        ({"processes": "auto", "concurrency": 20}, None, (1, 1)),
        ({"limits": {"requests_per_s": 5}}, None, (1, 1)),
        ({"limits": {"hosts": {"a.example": {"bytes_per_s": 5000}}}}, None, (1, 1)),
        ({"processes": 3}, None, (3, 3)),
        ({"processes": 3}, 10, (1, 1)),
        ({}, 10, (1, 1)),
        ({"processes": 4, "concurrency": 2}, None, (2, 2)),
        ({"processes": 4, "limits": {"destination": {"concurrency": 1}}}, None, (1, 1)),
        ({"processes": 4, "limits": {"hosts": {"a.example": {"concurrency": 3}}}}, None, (3, 3)),
    ],
)
def test_how_many_processes(settings: dict[str, object], limit: int | None, expected: tuple[int, int]) -> None:
    """The table of tasks.workers.pool.processes_of."""
    made = job(**settings)
    assert processes_of(made, limit, made.limits) == expected


def test_how_many_processes_with_limits_of_now() -> None:
    """A timetable keeps `auto` at one process at any time. Of N processes, each needs a permit of what is in force."""
    timed = job(limits={"timetable": [{"time": "08:00-18:00", "concurrency": 1}]})
    assert processes_of(timed, None, Limits()) == (1, 1)
    assert processes_of(job(processes=4), None, Limits(concurrency=2)) == (2, 2)
    assert processes_of(job(processes=4, limits={"concurrency": 2}), None, Limits()) == (4, 4)


@pytest.mark.parametrize(
    ("loops", "idle", "left_s", "added"),
    [
        ([0.9], 0.5, 60.0, True),
        ([0.7], 0.5, 60.0, False),  # the loop waits for hosts, not for a core
        ([0.9], 0.1, 60.0, False),  # no core is idle
        ([0.9], 0.5, 10.0, False),  # the run ends soon
        ([0.9], 0.5, None, False),
        ([0.9, 0.9], 0.5, 60.0, True),
        ([0.9, 0.5], 0.5, 60.0, False),
    ],
)
def test_when_a_process_is_added(loops: list[float], idle: float, left_s: float | None, added: bool) -> None:
    """A process is added only if each loop is busy, a core idle and enough left, never at the first call."""
    autoscaler = Autoscaler()
    zero = [0.0] * len(loops)
    assert not autoscaler.should_add(100.0, zero, 0.0, lambda: left_s)
    assert not autoscaler.should_add(
        100.0 + INTERVAL_S / 2, [share * INTERVAL_S / 2 for share in loops], idle, lambda: left_s
    )
    assert (
        autoscaler.should_add(
            100.0 + INTERVAL_S, [share * INTERVAL_S for share in loops], idle * INTERVAL_S, lambda: left_s
        )
        is added
    )


def test_the_measurement_restarts_with_each_process_and_when_the_clock_steps_back() -> None:
    autoscaler = Autoscaler()
    autoscaler.should_add(100.0, [0.0], 0.0, lambda: 60.0)
    assert not autoscaler.should_add(106.0, [6.0, 0.0], 3.0, lambda: 60.0)
    assert autoscaler.should_add(112.0, [12.0, 6.0], 6.0, lambda: 60.0)
    assert not autoscaler.should_add(50.0, [12.0, 6.0], 6.0, lambda: 60.0)


def test_idle_time_is_of_this_machine() -> None:
    before = idle_s()
    if before is None:
        pytest.skip("no /proc/stat on this system: processes: auto stays at one")
    time.sleep(0.3)
    after = idle_s()
    assert after is not None
    assert 0 <= after - before <= 2 * cores()


def test_a_lower_maximum_applies_to_all_hosts() -> None:
    """Known and new hosts, alone and together, stay within it."""
    limiter = Limiter(None, 64, lambda: 0.0, limits=Limits(concurrency=64))
    one = limiter.host("a.example")
    taken = sum(one.take() for _ in range(40))
    assert taken == 32
    limiter.change(Limits(concurrency=8), 8)
    for _ in range(taken):
        one.give_back()
    assert sum(one.take() for _ in range(40)) == 8
    assert sum(limiter.host("b.example").take() for _ in range(40)) == 0  # the job's permits are used up


def test_a_pause_of_another_process() -> None:
    """The later end counts."""
    now = 100.0
    limiter = Limiter(None, 64, lambda: now)
    assert limiter.pauses() == {}
    pause = Pause(130.0, "paused: HTTP 429, Retry-After 30 s", "other", 7.0)
    limiter.host("a.example").heed(pause)
    limiter.host("a.example").heed(Pause(120.0, "shorter", "third", 3.0))
    assert limiter.pauses() == {"a.example": pause}
    assert not limiter.host("a.example").take()
    now = 131.0
    assert limiter.pauses() == {}
    limiter.host("a.example").heed(Pause(130.0, "over already", "other", 8.0))
    assert limiter.host("a.example").take()


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("old_s", [0.25, 1.0, 4.0])
def test_a_pause_that_processes_tell_each_other_ends(processes: int, old_s: float) -> None:
    """Whatever they were told, they tell again, and it arrives old: the host is paused for 5 s all the same.

    Each is told the last words of all others every quarter of a second, as a process that has gone silent leaves them.
    """
    now = 100.0
    limiters = [Limiter(None, 64, lambda: now) for _ in range(processes)]
    said: list[list[tuple[float, Pause]]] = [[] for _ in limiters]  # each one's pauses: when it said so, and what
    limiters[0].host("a.example").pause_until(now + 5.0, "paused: HTTP 429, Retry-After 5 s")
    for _ in range(400):
        for limiter, words in zip(limiters, said, strict=True):
            words += [(now, pause._replace(until=pause.until - now)) for pause in limiter.pauses().values()]
        now += 0.25
        for n, limiter in enumerate(limiters):
            for words in said[:n] + said[n + 1 :]:
                heard = [pause for at, pause in words if at <= now - old_s][-1:]
                for pause in heard:
                    limiter.host("a.example").heed(pause._replace(until=now + pause.until))
        if now > 105.0 + processes * (old_s + 0.25):
            assert all(limiter.host("a.example").paused_for_s == 0 for limiter in limiters), now
    assert sum(bool(words) for words in said) == processes  # all were paused


def test_a_second_pause_of_a_process_is_heeded() -> None:
    """Only what was told before is not; a pause that comes back to its own process is not either."""
    now = 100.0
    one, other = Limiter(None, 64, lambda: now), Limiter(None, 64, lambda: now)
    for _ in range(2):
        one.host("a.example").pause_until(now + 5.0, "why")
        other.host("a.example").heed(one.pauses()["a.example"])
        assert other.host("a.example").paused_for_s == 5.0
        now += 4.0
        one.host("a.example").heed(other.pauses()["a.example"]._replace(until=now + 5.0))
        assert one.host("a.example").paused_for_s == 1.0
        now += 1.0
        assert not other.host("a.example").paused_for_s


def test_hosts_of_all_processes_together() -> None:
    mine = HostSnapshot("a", 10, 4, 1, 0.0, "holding", 20.0, 100, 2, 0.1)
    other = HostSnapshot("a", 6, 3, 0, 5.0, "paused", 10.0, 300, 1, 0.3)
    alone = HostSnapshot("b", 6, 3, 0, 0.0, "holding", None, 5, 0, 0.3)
    heard_of = HostSnapshot("b", 32, 0, 0, 5.0, "paused")
    both, single = together([[mine, alone], [other, heard_of]])
    assert (both.limit, both.in_flight, both.waiting, both.requests, both.refused) == (16, 7, 1, 400, 3)
    assert (both.requests_per_s, both.paused_for_s, both.why) == (30.0, 5.0, "paused (of 2 processes)")
    assert both.latency_s == pytest.approx(0.25)
    assert single is alone


def test_a_lease_says_until_when(tmp_path: Path) -> None:
    state = directory_state(tmp_path)
    with lease.hold_lease(state, "test") as held:
        assert held.held
        assert 0 < held.until - lease.steady_s() <= lease.LENGTH_S
        held._lost = True
        assert held.until == 0.0
        held._lost = False
