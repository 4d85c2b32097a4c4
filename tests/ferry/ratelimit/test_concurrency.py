"""Tests of the limit on requests in flight, by the table of AdaptiveConcurrency."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from ferry.ratelimit.concurrency import CUT_WINDOW_S, FEW, WAIT_S, AdaptiveConcurrency, gain

Rate = Callable[[int], float]  # requests in flight -> answers per second


def capacity(per_s: float, base_s: float = 0.05) -> Rate:
    """Return the rate of a host that serves ``per_s``, ``base_s`` away."""
    return lambda limit: min(per_s, limit / base_s)


UNLIMITED = capacity(1e6)


def feed(adaptive: AdaptiveConcurrency, now: float, seconds: float, rate: Rate, used: bool = True) -> float:
    """Answer at the rate for the limit in force. Return the time afterwards."""
    end = now + seconds
    while now < end:
        per_s = rate(adaptive.limit)
        now += 1 / per_s
        adaptive.answered(adaptive.limit / per_s, used, now)
    return now


def limits(adaptive: AdaptiveConcurrency, now: float, seconds: float, rate: Rate) -> list[tuple[float, int]]:
    """Return each limit in force, with its beginning."""
    seen: list[tuple[float, int]] = []
    end = now + seconds
    while now < end:
        if not seen or seen[-1][1] != adaptive.limit:
            seen.append((now, adaptive.limit))
        now = feed(adaptive, now, 0.001, rate)
    return seen


@pytest.mark.parametrize(
    ("steady", "rate", "tried", "rate_tried", "expected"),
    [(32, 100, 64, 200, 1), (32, 100, 64, 125, 0.25), (32, 100, 64, 100, 0), (32, 100, 16, 100, 0),
     (32, 100, 16, 50, 1), (32, 100, 16, 120, -0.4)],
)  # fmt: skip
def test_gain(steady: int, rate: float, tried: int, rate_tried: float, expected: float) -> None:
    """The table of gain()."""
    assert gain(steady, rate, tried, rate_tried) == pytest.approx(expected)


def test_steps_double_while_the_rate_does() -> None:
    """32, 64, 128, 256 within a second at a host without a limit, and never above the maximum."""
    assert [limit for _, limit in limits(AdaptiveConcurrency(32, 256), 0.0, 2, UNLIMITED)] == [32, 64, 128, 256]
    assert [limit for _, limit in limits(AdaptiveConcurrency(32, 100), 0.0, 2, UNLIMITED)] == [32, 64, 100]


def test_a_step_that_brings_too_little_is_taken_back() -> None:
    """Where 60 in flight are needed, 128 are tried once, after that only small steps."""
    seen = [limit for _, limit in limits(AdaptiveConcurrency(32, 256), 0.0, 60, capacity(1200))]
    assert seen[:5] == [32, 64, 128, 80, 64]
    assert max(seen[3:]) == 80


@pytest.mark.parametrize(("more", "then"), [(0.25, 160), (0.125, 100)])
def test_what_follows_a_small_step_up(more: float, then: int) -> None:
    """With a gain of 100%, x2. With 50%, x1.25 again."""
    adaptive = AdaptiveConcurrency(64, 256, few=64)
    now = feed(adaptive, 0.0, 3, capacity(1280))
    seen = [limit for _, limit in limits(adaptive, now, 5, lambda limit: 1280 * (1 + more * (limit > 64)))]
    assert seen[:3] == [64, 80, then]


def test_what_follows_a_doubling() -> None:
    """With a gain of 50% it is kept, and x2 again."""
    delivers = {32: 1280.0, 64: 1920.0}
    seen = [limit for _, limit in limits(AdaptiveConcurrency(32, 256), 0.0, 2, lambda n: delivers.get(n, 1920.0))]
    assert seen[:3] == [32, 64, 128]


def test_the_first_round_also_steps_down() -> None:
    """Where 10 are needed and 32 are the start, 64 are tried, then 16, then 8."""
    seen = [limit for _, limit in limits(AdaptiveConcurrency(32, 256), 0.0, 10, capacity(200))]
    assert seen[:4] == [32, 64, 16, 8]


def test_fewer_than_a_few_only_where_they_deliver_more() -> None:
    """At a host that delivers the same to one request, the limit stays at 8, or at the caller's value."""
    for few in (FEW, 32):
        assert min(limit for _, limit in limits(AdaptiveConcurrency(64, 256, few), 0.0, 60, lambda _: 1000.0)) == few

    def best_at_3(limit: int) -> float:
        return 3000 / (limit + 9 / limit)

    assert min(limit for _, limit in limits(AdaptiveConcurrency(32, 256), 0.0, 60, best_at_3)) <= 4


def test_a_steady_limit_is_tried_every_four_seconds() -> None:
    """A quarter more three times, then a fifth less; both are taken back."""
    seen = limits(AdaptiveConcurrency(64, 256), 0.0, 120, capacity(1280))
    steps = [limit for at, limit in seen if at > 10 and limit != 64]
    assert set(steps) == {80, 51}
    assert steps.count(80) == pytest.approx(3 * steps.count(51), abs=3)
    begun = [at for at, limit in seen if at > 10 and limit != 64]
    assert all(after - before >= WAIT_S for before, after in pairwise(begun))


def test_more_capacity_is_found() -> None:
    """After minutes at 200/s, a limit for 1,000/s within 10 s."""
    adaptive = AdaptiveConcurrency(32, 256)
    now = feed(adaptive, 0.0, 120, capacity(200))
    assert adaptive.limit <= 16
    feed(adaptive, now, 10, capacity(1000))
    assert adaptive.limit >= 45


def test_a_rate_that_rises_with_a_limit_in_use_doubles_the_limit() -> None:
    """20% more at the same limit starts a new search at once, not after 4 s."""
    adaptive = AdaptiveConcurrency(64, 256)
    now = feed(adaptive, 0.0, 20, capacity(1e6, 0.5))
    now = feed(adaptive, now, 20, lambda _: 100.0)
    held = adaptive.limit
    seen = limits(adaptive, now, 3, lambda _: 125.0)
    assert held * 2 in [limit for _, limit in seen]


def test_less_capacity_is_found() -> None:
    """From 800/s to 100/s: at most 16 in flight within 15 s, by halves."""
    adaptive = AdaptiveConcurrency(32, 256)
    now = feed(adaptive, 0.0, 20, capacity(800))
    assert adaptive.limit >= 40
    feed(adaptive, now, 15, capacity(100))
    assert adaptive.limit <= 16


def test_a_slow_change_is_followed() -> None:
    """15% more every 10 s, which no single round shows, is 16 times as much in the end."""
    adaptive, per_s = AdaptiveConcurrency(32, 256), 100.0
    now = feed(adaptive, 0.0, 30, capacity(per_s))
    for _ in range(20):
        per_s *= 1.15
        now = feed(adaptive, now, 10, capacity(per_s))
    assert adaptive.limit >= 0.8 * per_s * 0.05


def test_a_limit_that_is_not_used_stays() -> None:
    """Answers while few are in flight change nothing, whatever their rate; a step under way is taken back."""
    adaptive = AdaptiveConcurrency(32, 256)
    now = feed(adaptive, 0.0, 20, lambda _: 5000.0, used=False)
    assert adaptive.limit == 32
    now = feed(adaptive, now, 3, capacity(1200))
    while adaptive.limit <= 64:
        now = feed(adaptive, now, 0.01, capacity(1200))
    now = feed(adaptive, now, 30, lambda _: 100.0, used=False)
    assert adaptive.limit == 64
    feed(adaptive, now, 30, lambda _: 5000.0, used=False)
    assert adaptive.limit == 64


def test_overload_halves_once_per_window_down_to_one() -> None:
    """Failures within 0.2 s are one event; later ones halve again, to 1."""
    adaptive = AdaptiveConcurrency(32, 256)
    assert [adaptive.overload(1.0) for _ in range(20)].count(True) == 1
    assert adaptive.limit == 16
    seen = []
    for n in range(1, 7):
        adaptive.overload(1.0 + n * (CUT_WINDOW_S + 0.01))
        seen.append(adaptive.limit)
    assert seen == [8, 4, 2, 1, 1, 1]


def test_the_window_is_a_round_trip_of_slow_hosts() -> None:
    """With a mean latency of 2 s, failures within 2 s are one event."""
    adaptive = AdaptiveConcurrency(32, 256)
    adaptive.answered(2.0, True, 0.0)
    assert adaptive.overload(0.0)
    assert not adaptive.overload(1.9)
    assert adaptive.overload(2.1)
    assert adaptive.limit == 8


@pytest.mark.parametrize("refused", [False, True])
def test_overload_during_a_step_up_takes_the_step_back(refused: bool) -> None:
    """The steady limit stays, and the next step up waits."""
    adaptive = AdaptiveConcurrency(64, 256, few=64)
    now = feed(adaptive, 0.0, 10, capacity(1280))
    while adaptive.limit == 64:
        now = feed(adaptive, now, 0.01, capacity(1280))
    assert adaptive.step_back() if refused else adaptive.overload(now)
    assert adaptive.limit == 64
    feed(adaptive, now, WAIT_S - 0.1, capacity(1280))
    assert adaptive.limit == 64


def test_a_refusal_at_the_steady_limit_changes_nothing() -> None:
    """A host that refuses a rate is held by the rate."""
    adaptive = AdaptiveConcurrency(64, 256)
    assert not adaptive.step_back()
    assert adaptive.limit == 64


def test_small_limits() -> None:
    """From 3, a step of a quarter is 4. Below ``few``, a step down is not one up."""
    best_at_4 = {1: 30.0, 2: 60.0, 3: 100.0, 4: 130.0}
    adaptive = AdaptiveConcurrency(3, 256)
    feed(adaptive, 0.0, 60, lambda limit: best_at_4.get(limit, 100.0))
    assert adaptive.limit == 4
    seen = limits(adaptive, 60.0, 120, lambda limit: best_at_4.get(limit, 100.0))
    assert {limit for _, limit in seen} == {4, 5}


def test_a_slow_host_has_short_rounds() -> None:
    """At 5/s a round ends after 2 s and one answer for each request in flight, so the limit is found within 80 s."""
    adaptive = AdaptiveConcurrency(32, 256)
    now = feed(adaptive, 0.0, 80, capacity(5))
    assert adaptive.limit <= 10
    assert len(limits(adaptive, now, 60, capacity(5))) >= 6


def test_steps_down_from_the_maximum_are_as_rare_as_others() -> None:
    """One every 16 s, although no step up is possible."""
    seen = limits(AdaptiveConcurrency(64, 64), 0.0, 160, UNLIMITED)
    assert 8 <= [limit for _, limit in seen].count(51) <= 12


def test_a_step_down_without_use_proves_nothing() -> None:
    """It is taken back, although the rate is the same."""
    adaptive = AdaptiveConcurrency(64, 64)
    now = feed(adaptive, 0.0, 10, UNLIMITED)
    while adaptive.limit == 64:
        now = feed(adaptive, now, 0.01, UNLIMITED)
    feed(adaptive, now, 10, lambda _: 1280.0, used=False)
    assert adaptive.limit == 64


def test_it_comes_back_from_one() -> None:
    """At 64 in flight within 2.5 s of an outage, at 50 ms."""
    adaptive, now = AdaptiveConcurrency(64, 64), 0.0
    for _ in range(10):
        adaptive.overload(now)
        now += 1
    assert adaptive.limit == 1
    feed(adaptive, now, 2.5, UNLIMITED)
    assert adaptive.limit == 64


def test_start_and_maximum() -> None:
    """A start above the maximum is lowered, until a higher maximum allows more. A new maximum applies at once."""
    adaptive = AdaptiveConcurrency(500, 64)
    assert (adaptive.limit, adaptive.at_ceiling) == (64, True)
    adaptive.bound(100)
    assert (adaptive.limit, adaptive.at_ceiling) == (100, True)
    adaptive.bound(8)
    feed(adaptive, 0.0, 20, UNLIMITED)
    assert adaptive.limit == 8


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps(jump_s: float) -> None:
    """The limit still follows capacity, and overload still halves it."""
    adaptive = AdaptiveConcurrency(32, 256)
    now = feed(adaptive, 10_000.0, 10, capacity(200))
    adaptive.overload(now)
    now = feed(adaptive, now + jump_s, 20, capacity(2000))
    assert adaptive.limit >= 80
    seen = limits(adaptive, now + jump_s, 10, capacity(2000))
    assert len(seen) > 1
    before = adaptive.limit
    adaptive.overload(now + jump_s + 10)
    assert adaptive.limit < before


def test_a_clock_that_steps_back_delays_no_step() -> None:
    """The next step is tried within 4 s, not within an hour."""
    adaptive = AdaptiveConcurrency(64, 256)
    now = feed(adaptive, 10_000.0, 30, capacity(1280))
    assert len(limits(adaptive, now - 3600, 10, capacity(1280))) >= 3


def test_a_pause_of_the_run_is_not_a_low_rate() -> None:
    """The round that the pause interrupted is measured again."""
    adaptive = AdaptiveConcurrency(64, 64)
    now = feed(adaptive, 0.0, 9.9, UNLIMITED)
    adaptive.rested()
    seen = limits(adaptive, now + 3600, 3, UNLIMITED)
    assert seen[0][1] == 64
    assert min(limit for _, limit in seen) > 32


def test_reasons() -> None:
    """Each state has a sentence with the number in force."""
    adaptive = AdaptiveConcurrency(32, 256)
    assert adaptive.reason() == "measuring the rate with 32 in flight"
    feed(adaptive, 0.0, 2, UNLIMITED)
    assert adaptive.reason() == "holding at 256, the maximum"
    adaptive, now, seen = AdaptiveConcurrency(64, 256), 0.0, set()
    for _ in range(6000):
        now = feed(adaptive, now, 0.01, capacity(1280))
        seen.add(adaptive.reason())
    assert {
        "trying 80 in flight instead of 64, to see if the rate rises",
        "trying 51 in flight instead of 64, to see if the rate stays the same",
        "holding at 64: more in flight did not raise the rate",
    } <= seen
