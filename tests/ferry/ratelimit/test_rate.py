"""Tests of the learned limit on requests per second, by the tables of AdaptiveRate."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from ferry.ratelimit.rate import ABOVE, BETA, CEILING, FORGET_S, HOLD_S, SEARCH_S, AdaptiveRate

START = CEILING * BETA  # of what was accepted: the rate after a refusal


def answers(rate: AdaptiveRate, now: float, seconds: float, per_s: float, refused_share: float = 0.0) -> float:
    """Count answers, some of them refusals, evenly spread. Return the time afterwards."""
    due = 0.0
    for n in range(round(seconds * per_s)):
        at = now + (n + 1) / per_s
        rate.wait_s(at)
        due += refused_share
        if due >= 1:
            due -= 1
            rate.refused(at, 0.0, 0.05, max(1, round(per_s * 0.05)))
        else:
            rate.accepted(at)
    return now + seconds


def refuse(rate: AdaptiveRate, now: float, in_flight: int = 10, told_s: float = 1.0) -> bool:
    return rate.refused(now, told_s, 0.05, in_flight)


def used(rate: AdaptiveRate, now: float, seconds: float) -> float:
    """Send and accept as much as the rate allows. Return the time afterwards."""
    end = now + seconds
    while now < end:
        if rate.wait_s(now):
            now += 0.001
        else:
            rate.book(now)
            rate.accepted(now)
    return now


def refused_at(per_s: float, now: float = 0.0) -> tuple[AdaptiveRate, float]:
    """Return a rate that was refused once, after 5 s at ``per_s``, and the time."""
    rate = AdaptiveRate()
    now = answers(rate, now, 5, per_s)
    assert refuse(rate, now, round(per_s * 0.05))
    return rate, now


def test_no_limit_before_the_first_refusal() -> None:
    """Accepted requests alone set no limit."""
    rate = AdaptiveRate()
    answers(rate, 0.0, 10, 500)
    assert math.isinf(rate.per_s)
    assert rate.wait_s(10.0) == 0


def test_the_ceiling_is_what_was_accepted() -> None:
    """A refusal at 200/s: the rate begins at 90% of the ceiling, reaches it after 8 s, and exceeds it after 16 s."""
    rate, now = refused_at(200)
    assert rate.per_s == pytest.approx(200 * START, rel=0.03)
    now = used(rate, now, 1 + HOLD_S[0])
    assert rate.per_s == pytest.approx(200 * CEILING, rel=0.01)
    used(rate, now, HOLD_S[0])
    assert rate.per_s == pytest.approx(200 * CEILING * (2 - BETA), rel=0.03)


def test_refusals_within_a_second_are_one_event() -> None:
    """Refusals of requests that were in flight lower the rate once; at slow hosts, within the latency."""
    rate, now = refused_at(200)
    per_s = rate.per_s
    assert not any(refuse(rate, now + n / 20) for n in range(20))
    assert rate.per_s == per_s
    assert rate.refused(now + 1.01, True, 5.0, 10)
    assert not refuse(rate, now + 6)
    assert refuse(rate, now + 6.1)


def test_a_confirmed_ceiling_is_tried_at_longer_intervals() -> None:
    """At a host that refuses above 200/s, the times between events double, up to 32 s to the ceiling."""
    rate, now = refused_at(200)
    events = [now]
    while len(events) < 6:
        now = used(rate, now, 0.1)
        if rate.per_s > 205 and refuse(rate, now):
            events.append(now)
    gaps = [after - before for before, after in pairwise(events)]
    assert gaps[0] < 2.2 * HOLD_S[0]
    assert gaps[1] > 1.5 * gaps[0]
    assert gaps[2] > 1.5 * gaps[1]
    assert gaps[4] < 2.2 * HOLD_S[1]


@pytest.mark.parametrize(("per_s", "within_s"), [(20, 25), (100, 22), (1000, 22)])
def test_more_capacity_is_found(per_s: float, within_s: float) -> None:
    """Four times the rate some 20 s after a refusal; later at slow hosts, whose bursts hide their rate for longer."""
    rate, now = refused_at(per_s)
    now = used(rate, now, 2 * HOLD_S[0])
    assert rate.per_s < 1.2 * per_s
    used(rate, now, within_s - 2 * HOLD_S[0])
    assert rate.per_s > 4 * per_s


def test_a_burst_is_not_more_capacity() -> None:
    """At 20/s the curve sends 40 requests above the ceiling before it becomes a guess."""
    rate, now = refused_at(20)
    above = 0.0
    while rate.per_s < 2 * 20:
        above += max(0.0, rate.per_s - 20 * CEILING) * 0.1
        now = used(rate, now, 0.1)
    assert above > ABOVE


def test_a_rate_that_is_not_needed_does_not_rise() -> None:
    """It stays while it holds no request back, and is forgotten after a minute."""
    rate, now = refused_at(100)
    before = rate.per_s
    now = answers(rate, now, FORGET_S - 5, 10)
    assert rate.per_s == before
    answers(rate, now, 10, 10)
    assert math.isinf(rate.per_s)


def test_a_pause_does_not_raise_the_rate() -> None:
    """Nor does it leave a burst for its end, or counts for the next refusal."""
    rate, now = refused_at(100)
    now = used(rate, now, 5)
    before = rate.per_s
    now += 1.1
    rate.rest(now)
    assert rate.wait_s(now) == 0
    rate.book(now)
    assert rate.wait_s(now) > 0
    assert rate.per_s == before
    refuse(rate, now)
    assert rate.per_s == pytest.approx(math.sqrt(before))  # a guess


@pytest.mark.parametrize(("per_s", "burst"), [(20, 1), (100, 2), (2000, 11)])
def test_a_burst(per_s: float, burst: int) -> None:
    """Without a pause, requests of 20 ms may begin at once, and no more than 10 beside the first."""
    rate, now = refused_at(per_s)
    now += 1
    count = 0
    while not rate.wait_s(now):
        rate.book(now)
        count += 1
    assert count == burst


@pytest.mark.parametrize("idle_s", [0, 10])
def test_early_refusals_set_a_guess(idle_s: float) -> None:
    """Too few answers for a rate: between what was sent and accepted, then doubling each second of use."""
    rate = AdaptiveRate()
    if idle_s:
        answers(rate, 0.05 - idle_s, 0.01, 1000)
    for _ in range(20):
        rate.accepted(0.05)
    assert refuse(rate, 0.05, 32)
    first = rate.per_s
    assert first == pytest.approx(math.sqrt(21 * 32 / 0.05))
    now = used(rate, 0.05, 2 * SEARCH_S)
    assert rate.per_s == pytest.approx(4 * first, rel=0.25)
    used(rate, now, SEARCH_S)
    assert rate.per_s == pytest.approx(8 * first, rel=0.25)


def test_after_a_long_retry_after_all_times_of_the_curve_are_longer() -> None:
    """With 16 s a guess doubles in 8 s, and a ceiling is reached after 64 s."""
    guess = AdaptiveRate()
    refuse(guess, 0.0, 32, told_s=16.0)
    first = guess.per_s
    used(guess, 0.0, 8 * SEARCH_S)
    assert guess.per_s == pytest.approx(2 * first, rel=0.1)
    ceiling = AdaptiveRate()
    now = answers(ceiling, 0.0, 5, 500)
    refuse(ceiling, now, 25, told_s=16.0)
    now = used(ceiling, now, HOLD_S[0])
    assert ceiling.per_s < 0.95 * 500
    used(ceiling, now, 7 * HOLD_S[0])
    assert ceiling.per_s == pytest.approx(CEILING * 500, rel=0.02)


def test_a_guess_that_is_right_becomes_a_ceiling() -> None:
    """It is held, and does not double further."""
    rate = AdaptiveRate()
    refuse(rate, 0.0, 100)
    guess, now = rate.per_s, 0.0
    for _ in range(100):
        now += 1 / guess
        rate.accepted(now)
    assert refuse(rate, now)
    assert rate.per_s == pytest.approx(guess * START, rel=0.05)
    used(rate, now, 5)
    assert rate.per_s < guess


def test_a_guess_after_a_ceiling() -> None:
    """The time that the ceiling was used does not count for the guess."""
    rate, now = refused_at(500)
    now = used(rate, now, 10)
    rate.rest(now)
    per_s = rate.per_s
    refuse(rate, now)
    assert rate.per_s == pytest.approx(math.sqrt(per_s))


def test_a_host_that_refuses_everything() -> None:
    """Each event takes the root of the rate; once the host answers, the rate is back within 15 s."""
    rate, now = refused_at(500)
    for _ in range(30):
        now += 1.1
        assert refuse(rate, now)
    assert 1 <= rate.per_s < 2
    used(rate, now, 15)
    assert rate.per_s > 400


def test_most_answers_refused_is_not_a_ceiling() -> None:
    """Less than a tenth accepted over a second: a guess, which the next seconds correct."""
    rate = AdaptiveRate()
    now = answers(rate, 0.0, 1.5, 1000, 0.95)
    first = rate.per_s
    used(rate, now, 2.5)
    assert rate.per_s > 4 * first


def test_refusals_by_chance_do_not_lower_the_rate() -> None:
    """1% refused at any rate sets no limit; 30% does."""
    rate = AdaptiveRate()
    answers(rate, 0.0, 30, 1000, 0.01)
    assert math.isinf(rate.per_s)
    answers(rate, 30.0, 5, 1000, 0.3)
    assert rate.per_s < 800


def test_a_refusal_with_a_retry_after_is_not_chance() -> None:
    """One without is, if it is the only one; also at a host without other answers."""
    for seconds in (0, 20):
        rate = AdaptiveRate()
        now = answers(rate, 0.0, seconds, 1000)
        assert not refuse(rate, now, told_s=0.0)
        assert refuse(rate, now, told_s=1.0)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps(jump_s: float) -> None:
    """The rate is about the same after the jump, and still falls with a refusal."""
    rate, now = refused_at(200, 10_000.0)
    now = used(rate, now, 5)
    before = rate.per_s
    now += jump_s
    sent, begin = 0, now
    while now < begin + 1:
        if rate.wait_s(now):
            now += 0.001
        else:
            rate.book(now)
            rate.accepted(now)
            sent += 1
    assert sent == pytest.approx(before, rel=0.15)
    assert rate.per_s == pytest.approx(before, rel=0.15)
    now = used(rate, now, 10)
    assert rate.per_s > 1.02 * before
    assert refuse(rate, now)
    assert rate.per_s == pytest.approx(before * START, rel=0.25)


def test_a_jump_right_before_a_refusal_does_not_stop_the_host() -> None:
    """Answers before the jump are not counted as a rate over an hour."""
    rate = AdaptiveRate()
    now = answers(rate, 0.0, 5, 200)
    assert refuse(rate, now + 3600)
    assert rate.per_s > 10
