"""The low-speed guard, with an injected clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferry.http import low_speed
from ferry.http.low_speed import MIN_BYTES_PER_S, WINDOW_S, LowSpeedGuard


def ended_at(size: int, every_s: float, for_s: float, window_s: float = 30.0, busy_s: float = 0.0) -> float | None:
    """Return when the guard ends a body that sends ``size`` bytes after each wait of ``every_s``; asked each second.

    ``busy_s`` is the time that the reader spends on other work before it waits again.
    """
    guard, now, asked = LowSpeedGuard(window_s), 0.0, 0.0
    while now < for_s:
        guard.wait(now)
        end = now + every_s
        while asked < end:
            if asked >= now and guard.is_too_slow(asked):
                return asked
            asked += 1.0
        now = end
        guard.received(now, size)
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
def test_what_is_too_slow(size: int, every_s: float, gives_up: bool) -> None:
    """A body below 1,024 bytes per second ends within about two windows; a faster one never does."""
    ended = ended_at(size, every_s, 7200.0)
    assert (ended is not None) is gives_up
    assert ended is None or WINDOW_S <= ended <= 2 * WINDOW_S + every_s


def test_a_body_that_becomes_slow() -> None:
    """A fast start gives a body that becomes slow no time beyond its window."""
    guard = LowSpeedGuard(30.0)
    guard.wait(0.0)
    guard.received(1.0, 10**9)
    guard.wait(1.0)
    assert not guard.is_too_slow(59.0)
    assert not guard.is_too_slow(60.5)  # the window with the gigabyte ends
    assert guard.is_too_slow(121.0)


def test_a_short_body_is_not_guardd() -> None:
    """A body that ends within the first window is never too slow."""
    assert ended_at(1, 0.59, 59.0) is None


def test_a_slow_reader_is_not_a_slow_body() -> None:
    """Time in which Ferry does not wait for bytes does not count."""
    assert ended_at(100, 0.01, 7200.0, busy_s=10.0) is None
    assert ended_at(100, 5.0, 7200.0, busy_s=10.0) is not None


def test_a_longer_silence_that_the_job_allows() -> None:
    """A `timeouts.read_s` above 60 s makes the window as long."""
    assert ended_at(400_000, 250.0, 7200.0, window_s=300.0) is None
    assert ended_at(100, 250.0, 7200.0, window_s=300.0) is not None


def test_the_next_body_begins_afresh() -> None:
    """Each body on a connection is measured from zero."""
    guard = LowSpeedGuard(30.0)
    guard.wait(0.0)
    assert guard.is_too_slow(61.0)
    guard.begin()
    guard.wait(61.0)
    assert not guard.is_too_slow(100.0)
    assert guard.is_too_slow(121.0)


@given(st.lists(st.tuples(st.floats(0.01, 29), st.integers(1, 100_000)), min_size=1, max_size=200))
def test_it_never_ends_what_is_fast_enough(pieces: list[tuple[float, int]]) -> None:
    """A body whose pieces all arrive at 1,024 bytes per second or faster is never too slow."""
    guard, now = LowSpeedGuard(30.0), 0.0
    for seconds, size in pieces:
        guard.wait(now)
        now += seconds
        guard.received(now, max(size, int(seconds * MIN_BYTES_PER_S) + 1))
        assert not guard.is_too_slow(now)


def test_the_message_says_the_rule() -> None:
    """The message states the limit and the window."""
    assert low_speed.MESSAGE == "the body was slower than 1,024 bytes per second for 60 s or longer"
