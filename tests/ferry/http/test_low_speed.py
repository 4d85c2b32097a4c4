"""Bodies that drip, by a clock of our own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.http import low_speed
from ferry.http.low_speed import MIN_BYTES_PER_S, WINDOW_S, LowSpeedGuard


def ended_at(size: int, every_s: float, for_s: float, window_s: float = 30.0, busy_s: float = 0.0) -> float | None:
    """When a body is given up of which ``size`` bytes come ``every_s`` after they are waited for; asked each second.

    ``busy_s``: how long the reader does something else before it waits again.
    """
    judge, now, asked = LowSpeedGuard(window_s), 0.0, 0.0
    while now < for_s:
        judge.wait(now)
        end = now + every_s
        while asked < end:
            if asked >= now and judge.is_too_slow(asked):
                return asked
            asked += 1.0
        now = end
        judge.received(now, size)
        now += busy_s
    return None


@pytest.mark.parametrize(
    ("size", "every_s", "gives_up"),
    [
        (1, 1.0, True),
        (10, 1.0, True),
        (1, 29.0, True),
        (1000, 1.0, True),
        (1100, 1.0, False),
        (20_000, 25.0, True),
        (40_000, 25.0, False),
        (65_536, 1.0, False),
    ],
)
def test_what_drips(size: int, every_s: float, gives_up: bool) -> None:
    """Less than 1,024 bytes a second for a minute is given up within the next one; more is not, for hours."""
    ended = ended_at(size, every_s, 7200.0)
    assert (ended is not None) is gives_up
    assert ended is None or WINDOW_S <= ended <= 2 * WINDOW_S + every_s


def test_a_body_that_becomes_slow() -> None:
    """A gigabyte that came fast buys a later drip no time beyond its window."""
    judge = LowSpeedGuard(30.0)
    judge.wait(0.0)
    judge.received(1.0, 10**9)
    judge.wait(1.0)
    assert not judge.is_too_slow(59.0)
    assert not judge.is_too_slow(60.5)  # the window with the gigabyte ends
    assert judge.is_too_slow(121.0)


def test_a_short_body_is_not_judged() -> None:
    """Whoever needs 59 s for 100 bytes is slow, and has its object."""
    assert ended_at(1, 0.59, 59.0) is None


def test_a_reader_that_takes_its_time_is_no_drip() -> None:
    """What is read slowly because the job bounds the rate, or the disk is busy, comes slowly: nobody waited for it."""
    assert ended_at(100, 0.01, 7200.0, busy_s=10.0) is None
    assert ended_at(100, 5.0, 7200.0, busy_s=10.0) is not None


def test_a_longer_silence_that_the_job_allows() -> None:
    """`timeouts.read_s` over a minute makes the window as long: one piece after 200 s is what the job bargained for."""
    assert ended_at(400_000, 250.0, 7200.0, window_s=300.0) is None
    assert ended_at(100, 250.0, 7200.0, window_s=300.0) is not None


def test_the_next_body_begins_afresh() -> None:
    """A connection has many bodies; what one waited is not the next one's."""
    judge = LowSpeedGuard(30.0)
    judge.wait(0.0)
    assert judge.is_too_slow(61.0)
    judge.begin()
    judge.wait(61.0)
    assert not judge.is_too_slow(100.0)
    assert judge.is_too_slow(121.0)


@given(st.lists(st.tuples(st.floats(0.01, 29), st.integers(1, 100_000)), min_size=1, max_size=200))
def test_it_never_ends_what_is_fast_enough(pieces: list[tuple[float, int]]) -> None:
    """Each piece at 1,024 bytes a second or faster: never given up, whenever it is asked."""
    judge, now = LowSpeedGuard(30.0), 0.0
    for seconds, size in pieces:
        judge.wait(now)
        now += seconds
        judge.received(now, max(size, int(seconds * MIN_BYTES_PER_S) + 1))
        assert not judge.is_too_slow(now)


def test_the_message_says_the_rule() -> None:
    assert low_speed.MESSAGE == "the body came slower than 1,024 bytes a second for 60 s and longer"
