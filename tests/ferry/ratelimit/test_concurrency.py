"""The law of the limit on requests in flight."""

from __future__ import annotations

import math

import pytest

from ferry.ratelimit.concurrency import CUT_WINDOW_S, WALL_WAIT_S, AdaptiveConcurrency, Phase


def feed(
    climb: AdaptiveConcurrency, now: float, seconds: float, per_s: float, latency_s: float = 0.05, used: bool = True
) -> float:
    """Completions at a rate, the limit in use or half empty. The time afterwards."""
    count = round(seconds * per_s)
    for n in range(count):
        in_flight = climb.limit if used else climb.limit // 2
        climb.done(latency_s, in_flight, now + (n + 1) / per_s)
    return now + seconds


def by_capacity(climb: AdaptiveConcurrency, now: float, seconds: float, per_s: float, base_s: float = 0.05) -> float:
    """Completions of a host that serves `per_s` and is `base_s` away: the rate is what the limit allows, up to that."""
    end = now + seconds
    while now < end:
        rate = min(per_s, climb.limit / base_s)
        now += 1 / rate
        climb.done(climb.limit / rate, climb.limit, now)
    return now


def test_startup_doubles_while_the_rate_does() -> None:
    """32, 64, 128, 256 on a host without a limit, within a second; never past the ceiling."""
    climb = AdaptiveConcurrency(32, 256)
    seen: list[int] = []
    now = 0.0
    for _ in range(100):
        now = by_capacity(climb, now, 0.01, 1e6)
        if not seen or seen[-1] != climb.limit:
            seen.append(climb.limit)
    assert seen == [32, 64, 128, 256]


def test_startup_ends_where_more_bring_no_more() -> None:
    """Capacity for 60 in flight: 128 are tried, then about 60 x 1.25 are held."""
    climb = AdaptiveConcurrency(32, 256)
    by_capacity(climb, 0.0, 1.5, 1200)
    assert climb.phase is Phase.HOLD
    assert 60 <= climb.limit <= 80


def test_an_idle_limit_proves_nothing() -> None:
    """Completions while few are in flight neither raise nor lower it, however fast they come."""
    climb = AdaptiveConcurrency(32, 256)
    feed(climb, 0.0, 20, 5000, used=False)
    assert (climb.limit, climb.phase) == (32, Phase.START)
    now = by_capacity(climb, 0.0, 3, 1200)
    held = climb.limit
    now = feed(climb, now, 30, 100, used=False)
    assert climb.limit == held or climb.phase in (Phase.UP, Phase.DOWN)  # a probe that was under way is taken back
    feed(climb, now, 5, 5000, used=False)
    assert climb.limit in range(held - held // 3, held + held // 4 + 1)


def test_places_that_bring_nothing_are_given_up() -> None:
    """Begun with far more than the host bears: most of the queue is gone soon, and none of the rate."""
    climb = AdaptiveConcurrency(32, 256)
    now = by_capacity(climb, 0.0, 15, 200)
    while climb.phase is not Phase.HOLD:
        now = by_capacity(climb, now, 0.1, 200)
    assert 10 <= climb.limit <= 18


def test_more_capacity_is_found() -> None:
    """Held long at 200/s; at 1,000/s the limit is in reach of what that needs within 10 s."""
    climb = AdaptiveConcurrency(32, 256)
    now = by_capacity(climb, 0.0, 120, 200)
    before = climb.limit
    by_capacity(climb, now, 10, 1000)
    assert before < 20
    assert climb.limit >= 45


def test_overload_halves_once_per_window_down_to_one() -> None:
    """A burst of failures is one cut; later ones cut again, to 1 and no further."""
    climb = AdaptiveConcurrency(32, 256)
    assert [climb.overload(1.0) for _ in range(20)].count(True) == 1
    assert climb.limit == 16
    limits = []
    for n in range(1, 7):
        climb.overload(1.0 + n * (CUT_WINDOW_S + 0.01))
        limits.append(climb.limit)
    assert limits == [8, 4, 2, 1, 1, 1]


def test_the_window_is_a_round_trip_of_slow_hosts() -> None:
    """With a mean latency of 2 s, failures within 2 s are one event."""
    climb = AdaptiveConcurrency(32, 256)
    climb.done(2.0, 32, 0.0)
    assert climb.overload(0.0)
    assert not climb.overload(1.9)
    assert climb.overload(2.1)
    assert climb.limit == 8


def test_what_was_refused_is_left_alone_for_a_while() -> None:
    """After a cut it comes back to 4/5 of the limit that was refused; tries it after 4 s, the next time after 8 s."""
    climb = AdaptiveConcurrency(40, 256)
    assert climb.overload(0.0)
    now = by_capacity(climb, 0.0, WALL_WAIT_S[0] - 1, 1e6)
    assert climb.limit == 32
    while climb.limit <= 32:
        now = by_capacity(climb, now, 0.05, 1e6)
    assert WALL_WAIT_S[0] - 0.1 <= now <= WALL_WAIT_S[0] + 2
    assert climb.phase is Phase.UP
    assert climb.overload(now)
    assert climb.limit == 32  # the probe is taken back
    refused_at = now
    while climb.limit <= 32:
        now = by_capacity(climb, now, 0.05, 1e6)
    assert now - refused_at >= 2 * WALL_WAIT_S[0]


def test_a_refusal_that_does_not_come_again_is_forgotten() -> None:
    """A round beyond what was refused proves that there is no such limit: back to the ceiling."""
    climb = AdaptiveConcurrency(64, 256)
    climb.overload(0.0)
    by_capacity(climb, 0.0, 15, 1e6)
    assert climb.limit == 256


def test_it_comes_back_from_one() -> None:
    """A dead host that returns is at 4/5 of what it had within seconds, at 50 ms."""
    climb = AdaptiveConcurrency(64, 64)
    now = 0.0
    for _ in range(10):
        climb.overload(now)
        now += 1
    assert climb.limit == 1
    by_capacity(climb, now, 2.5, 1e6)
    assert climb.limit >= 51


def test_it_stays_within_floor_and_ceiling() -> None:
    """Whatever comes; a start outside is brought inside."""
    assert AdaptiveConcurrency(500, 64).limit == 64
    assert AdaptiveConcurrency(1, 64, floor=4).limit == 4
    climb = AdaptiveConcurrency(8, 8, floor=2)
    now = by_capacity(climb, 0.0, 10, 1e6)
    assert 2 <= climb.limit <= 8
    for n in range(20):
        climb.overload(now + n)
    assert climb.limit == 2


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps(jump_s: float) -> None:
    """Costs a round, no freeze: the limit still follows capacity up, and overload still cuts."""
    climb = AdaptiveConcurrency(32, 256)
    now = by_capacity(climb, 10_000.0, 10, 200)
    climb.overload(now)
    now = by_capacity(climb, now + jump_s, 20, 2000)
    assert climb.limit >= 80
    before = climb.limit
    climb.overload(now)
    assert climb.limit < before


def test_words() -> None:
    """Each phase has a sentence, with the number that is in force."""
    climb = AdaptiveConcurrency(32, 256)
    assert "starting with 32" in climb.words(0.0)
    now = by_capacity(climb, 0.0, 0.25, 1e6)
    assert "growing" in climb.words(now)
    now = by_capacity(climb, now, 2, 1e6)
    assert climb.words(now) == "holding at 256: no more are allowed"
    climb = AdaptiveConcurrency(32, 256)
    words = set()
    now = 0.0
    for _ in range(600):
        now = by_capacity(climb, now, 0.05, 1000)
        words.add(climb.words(now).split(":")[-1].strip())
    assert {"more in flight brought no more", "do more bring more?", "do fewer bring as much?"} <= words
    climb.overload(now)
    now = by_capacity(climb, now, 1.5, 1000)
    assert "were refused" in climb.words(now)
    assert not math.isnan(climb.latency_s)


def _least(climb: AdaptiveConcurrency, latency_s: float) -> int:
    """The smallest limit in a minute at a host that delivers 1,000/s whatever the limit, after so many seconds."""
    now, least = 0.0, climb.limit
    while now < 60:
        now = feed(climb, now, 0.1, 1000, latency_s)
        least = min(least, climb.limit)
    return least


def test_places_that_wait_for_another_host_are_no_burden() -> None:
    """1,000/s at 1 ms are one request at a time: after startup no fewer are tried, since that would relieve nobody."""
    assert _least(AdaptiveConcurrency(32, 256), 0.001) == 16
    assert _least(AdaptiveConcurrency(32, 256), 0.016) < 16


def test_fewer_than_a_few_are_not_tried() -> None:
    """8 at an origin, as many as it started with at the destination; a user's own bound may be less."""
    assert _least(AdaptiveConcurrency(32, 256), 0.05) == 8
    assert _least(AdaptiveConcurrency(32, 256, few=32), 0.05) == 32
    assert _least(AdaptiveConcurrency(4, 4), 0.05) == 4


def by_crowd(climb: AdaptiveConcurrency, now: float, seconds: float, per_s: float, base_s: float = 0.005) -> float:
    """As by_capacity, but that each further one in flight brings a little: a store that works best on many at once."""
    end = now + seconds
    while now < end:
        rate = min(per_s * (1 - 2 / (climb.limit + 2)), climb.limit / base_s)
        now += 1 / rate
        climb.done(climb.limit / rate, climb.limit, now)
    return now


def test_startup_ends_with_a_few_at_least() -> None:
    """A store that is near, and delivers as much to 64 as to 32: 32 stay, where rate x latency asks for 14."""
    climb = AdaptiveConcurrency(32, 256, few=32)
    now = 0.0
    for _ in range(60):
        now = feed(climb, now, 1, 1400, latency_s=0.008)
        assert climb.limit >= 32


def test_no_limit_is_held_for_good() -> None:
    """Wherever startup ends, more are tried now and then: else a wrong start would last for as long as the run."""
    for few in (8, 32):
        climb = AdaptiveConcurrency(32, 256, few=few)
        now = by_crowd(climb, 0.0, 20, 1500)
        for _ in range(3):
            seen = set()
            for _ in range(700):
                now = by_crowd(climb, now, 0.1, 1500)
                seen.add(climb.limit)
            assert len(seen) > 1


def test_a_host_that_grows_slowly_faster_is_followed_from_a_few() -> None:
    """Fifteen per cent more every ten seconds is no other host at any moment; ten times as much in the end."""
    climb = AdaptiveConcurrency(32, 256, few=8)
    now, per_s = by_capacity(climb, 0.0, 30, 100), 100.0
    assert climb.limit <= 10
    for _ in range(20):
        per_s *= 1.15
        now = by_capacity(climb, now, 10, per_s)
    assert climb.limit >= 0.8 * per_s * 0.05
