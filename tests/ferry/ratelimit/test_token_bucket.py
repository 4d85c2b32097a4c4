"""Tests of the limit on units per second."""

from __future__ import annotations

import pytest

from ferry.ratelimit.token_bucket import SLACK_S, TokenBucket


def begun(bucket: TokenBucket, begin: float, seconds: float, step: float = 0.001) -> int:
    """Return how many units begin in a time, with a try each millisecond."""
    count = 0
    for n in range(round(seconds / step)):
        now = begin + n * step
        while not bucket.wait_s(now):
            bucket.book(now)
            count += 1
    return count


@pytest.mark.parametrize("per_s", [2.0, 50.0, 1000.0])
def test_a_rate_is_kept_without_a_burst(per_s: float) -> None:
    """10 s allow what 10 s should, and the first moment no more than the slack."""
    bucket = TokenBucket(per_s)
    assert begun(bucket, 100.0, 0.001) <= 1 + SLACK_S * per_s
    assert begun(bucket, 100.001, 10) == pytest.approx(10 * per_s, abs=1 + SLACK_S * per_s)


@pytest.mark.parametrize("booked_s", [0.0, 10.0])
@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps(jump_s: float, booked_s: float) -> None:
    """The second after a jump allows what a second should, however the jump is noticed."""
    bucket = TokenBucket(100.0)
    begun(bucket, 10_000.0, 5)
    now = 10_005.0 + jump_s
    bucket.book(now, 100 * booked_s)
    assert begun(bucket, now + booked_s, 1) == pytest.approx(100, abs=2 + SLACK_S * 100)


def test_a_rest_discards_the_slack() -> None:
    """After an hour of rest, units begin one by one, evenly."""
    bucket = TokenBucket(10.0)
    begun(bucket, 0.0, 1)
    bucket.rest(3600.0)
    assert bucket.wait_s(3600.0) < 1e-6
    bucket.book(3600.0)
    assert bucket.wait_s(3600.0) == pytest.approx(0.1, abs=0.001)


def test_a_rest_keeps_what_is_not_paid_for() -> None:
    """A unit for 2 s is waited for, rest or not."""
    bucket = TokenBucket(0.5)
    bucket.book(5.0)
    bucket.rest(5.0)
    assert bucket.wait_s(5.0) == pytest.approx(2 - SLACK_S)


def test_bytes_are_paid_for_afterwards() -> None:
    """After bytes for 3 s, the next wait is 3 s, less the slack."""
    bucket = TokenBucket(1000.0)
    bucket.book(5.0, 3000)
    assert bucket.wait_s(5.0) == pytest.approx(3 - SLACK_S)
    assert bucket.wait_s(5.0, 1.0) == pytest.approx(2)
    assert bucket.wait_s(8.0) == 0


@pytest.mark.parametrize("passed_s", [0.0, 1.0])
def test_another_rate_applies_to_what_is_not_paid_for(passed_s: float) -> None:
    """Half the rate doubles a wait that is left, and a wait that is over stays so."""
    bucket = TokenBucket(10.0, 0.0)
    bucket.book(5.0, 4)
    bucket.change(5.0, 0.0, 5.0 + passed_s)
    assert bucket.wait_s(5.0 + passed_s) == pytest.approx(0.8 if not passed_s else 0.0)


def test_another_rate_after_a_clock_stepped_back() -> None:
    """The step does not count as units that are not paid for."""
    bucket = TokenBucket(10.0, 0.0)
    bucket.book(5000.0, 4)
    bucket.change(5.0, 0.0, 1000.0)
    assert bucket.wait_s(1000.0) == pytest.approx(0.8)
