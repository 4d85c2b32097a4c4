"""Rates: the user's bounds, and the ceiling that a host's refusals tell of."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from ferry.ratelimit.rate import BETA, PLATEAU, SCALE_S, SLACK_S, AdaptiveRate, TokenBucket


def gone(rate: TokenBucket, begin: float, seconds: float, step: float = 0.001) -> int:
    """How many go in a time, asked every millisecond."""
    count = 0
    for n in range(round(seconds / step)):
        now = begin + n * step
        while not rate.wait_s(now):
            rate.book(now)
            count += 1
    return count


@pytest.mark.parametrize("per_s", [2.0, 50.0, 1000.0])
def test_a_rate_is_kept_without_a_burst(per_s: float) -> None:
    """As many as allowed over 10 s; in any first moment no more than the slack."""
    rate = TokenBucket(per_s)
    first = gone(rate, 100.0, 0.001)
    assert first <= 1 + SLACK_S * per_s
    assert gone(rate, 100.001, 10) == pytest.approx(10 * per_s, abs=1 + SLACK_S * per_s)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_rate_and_a_clock_that_jumps(jump_s: float) -> None:
    """Neither a burst nor a freeze: over the second after it, what a second allows."""
    rate = TokenBucket(100.0)
    gone(rate, 10_000.0, 5)
    assert gone(rate, 10_005.0 + jump_s, 1) == pytest.approx(100, abs=2 + SLACK_S * 100)


def test_a_rest_saves_nothing_up() -> None:
    """After an hour of rest they go one by one from the first on, evenly."""
    rate = TokenBucket(10.0)
    gone(rate, 0.0, 1)
    rate.rest(3600.0)
    assert rate.wait_s(3600.0) < 1e-6
    rate.book(3600.0)
    assert rate.wait_s(3600.0) == pytest.approx(0.1, abs=0.001)


def test_bytes_are_paid_for_afterwards() -> None:
    """A body of 3 s worth: the next is waited for that long, less the slack."""
    rate = TokenBucket(1000.0)
    rate.book(5.0, 3000)
    assert rate.wait_s(5.0) == pytest.approx(3 - SLACK_S)
    assert rate.wait_s(5.0, 1.0) == pytest.approx(2)
    assert rate.wait_s(8.0) == 0


def answers(pace: AdaptiveRate, now: float, seconds: float, per_s: float, refused_share: float = 0.0) -> float:
    """A rate of answers, some of them refusals, evenly spread; events are answered. The time afterwards."""
    due = 0.0
    for n in range(round(seconds * per_s)):
        at = now + (n + 1) / per_s
        pace.wait_s(at)
        due += refused_share
        if due >= 1:
            due -= 1
            if pace.refused(at, told=False):
                pace.lower(at, 0.05, max(1, round(per_s * 0.05)))
        else:
            pace.accepted(at)
    return now + seconds


def refuse(pace: AdaptiveRate, now: float, in_flight: int = 10, told: bool = True) -> bool:
    event = pace.refused(now, told)
    if event:
        pace.lower(now, 0.05, in_flight)
    return event


def used(pace: AdaptiveRate, now: float, seconds: float) -> float:
    """As many as the pace allows, all accepted. The time afterwards."""
    end = now + seconds
    while now < end:
        if pace.wait_s(now):
            now += 0.001
        else:
            pace.book(now)
            pace.accepted(now)
    return now


def test_no_pace_before_the_first_refusal() -> None:
    """Whatever is accepted."""
    pace = AdaptiveRate()
    answers(pace, 0.0, 10, 500)
    assert math.isinf(pace.per_s)
    assert pace.wait_s(10.0) == 0


def test_the_ceiling_is_what_was_accepted() -> None:
    """At 200/s accepted: 96% of that is the ceiling, and it starts at 90% of it; in 4 s it is there, and stays."""
    pace = AdaptiveRate()
    now = answers(pace, 0.0, 5, 200)
    assert refuse(pace, now)
    assert pace.per_s == pytest.approx(200 * PLATEAU * BETA, rel=0.03)
    now = used(pace, now, 6)
    assert pace.per_s == pytest.approx(200 * PLATEAU, rel=0.03)
    used(pace, now, SCALE_S[0] - 2)
    assert pace.per_s == pytest.approx(200 * PLATEAU, rel=0.03)


def test_refusals_within_a_second_are_one_event() -> None:
    """What was in flight when the host began to refuse lowers the rate once."""
    pace = AdaptiveRate()
    now = answers(pace, 0.0, 5, 200)
    assert refuse(pace, now)
    per_s = pace.per_s
    assert not any(refuse(pace, now + n / 20) for n in range(20))
    assert pace.per_s == per_s


def test_a_confirmed_ceiling_is_tried_ever_more_rarely() -> None:
    """A host that refuses above 200/s: the times between two events double, up to about two minutes."""
    pace = AdaptiveRate()
    now = answers(pace, 0.0, 5, 200)
    assert refuse(pace, now)
    events = [now]
    while len(events) < 7:
        now = used(pace, now, 0.1)
        if pace.per_s > 205 and refuse(pace, now):
            events.append(now)
    gaps = [after - before for before, after in pairwise(events)]
    assert gaps[0] < 25
    assert all(after > before * 1.5 for before, after in pairwise(gaps[:4]))
    assert 60 < gaps[-1] < 150


def test_more_room_is_found() -> None:
    """A ceiling that is no more: four times the rate within 45 s, and faster and faster."""
    pace = AdaptiveRate()
    now = answers(pace, 0.0, 5, 100)
    assert refuse(pace, now)
    used(pace, now, 45)
    assert pace.per_s > 400


def test_a_rate_that_is_not_needed_does_not_grow() -> None:
    """Nothing was held back, so nothing is known of more; after a minute of that it is forgotten."""
    pace = AdaptiveRate()
    now = answers(pace, 0.0, 5, 100)
    assert refuse(pace, now)
    before = pace.per_s
    now = answers(pace, now, 55, 10)
    assert pace.per_s == before
    answers(pace, now, 10, 10)
    assert math.isinf(pace.per_s)


def test_the_first_refusals_of_all_start_a_search() -> None:
    """Before a rate can be measured: between what was sent and what was accepted, then doubling every 2 s of use."""
    pace = AdaptiveRate()
    for _ in range(20):
        pace.accepted(0.05)
    assert refuse(pace, 0.05, 32)
    first = pace.per_s
    assert 20 < first < 640
    now = used(pace, 0.05, 4)
    assert pace.per_s == pytest.approx(4 * first, rel=0.25)
    used(pace, now, 2)
    assert pace.per_s == pytest.approx(8 * first, rel=0.25)


def test_a_host_that_refuses_everything() -> None:
    """The rate falls by up to eight with each event, and comes back doubling each second once it answers."""
    pace = AdaptiveRate()
    now = answers(pace, 0.0, 5, 500)
    for _ in range(8):
        now += 1.1
        refuse(pace, now)
    assert pace.per_s < 1
    used(pace, now, 30)
    assert pace.per_s > 400


def test_strays_do_not_strangle() -> None:
    """1% refused whatever the rate: after half a minute nothing holds the host; 30% refused is a limit."""
    pace = AdaptiveRate()
    answers(pace, 0.0, 30, 1000, 0.01)
    assert pace.per_s > 1000
    answers(pace, 30.0, 5, 1000, 0.3)
    assert pace.per_s < 800


def test_strays_with_a_retry_after_are_none() -> None:
    """A host that says when to come back means it."""
    pace = AdaptiveRate()
    now = answers(pace, 0.0, 20, 1000)
    assert not refuse(pace, now, told=False)
    assert refuse(pace, now, told=True)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_pace_and_a_clock_that_jumps(jump_s: float) -> None:
    """The rate after the jump is about that before it, and it still learns."""
    pace = AdaptiveRate()
    now = answers(pace, 10_000.0, 5, 200)
    assert refuse(pace, now)
    now = used(pace, now, 5)
    before = pace.per_s
    now += jump_s
    sent, begin = 0, now
    while now < begin + 1:
        if pace.wait_s(now):
            now += 0.001
        else:
            pace.book(now)
            pace.accepted(now)
            sent += 1
    assert sent == pytest.approx(before, rel=0.15)
    assert refuse(pace, now)
    assert pace.per_s == pytest.approx(before, rel=0.25)


def test_a_jump_right_before_a_refusal_does_not_stop_the_host() -> None:
    """An hour that never was makes no rate of one in an hour."""
    pace = AdaptiveRate()
    now = answers(pace, 0.0, 5, 200)
    assert refuse(pace, now + 3600)
    assert pace.per_s > 10
