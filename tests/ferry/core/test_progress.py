"""Counters of a run's progress."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ferry.core import progress as module
from ferry.core.progress import Progress
from ferry.core.records import ErrorClass, Status


def test_a_further_pass_counts_rows_once() -> None:
    """Rows that a further pass retries count as pending, not as failed, and are counted once."""
    progress = Progress()
    progress.start(3)
    progress.add(Status.COPIED, None, 10)
    progress.add(Status.FAILED, ErrorClass.TIMEOUT, 0)
    progress.add(Status.FAILED, ErrorClass.NOT_FOUND, 0)
    assert progress.retryable == 1
    progress.requeue(1)
    now = progress.snapshot()
    assert (now.todo, now.done, now.failed, progress.retryable) == (3, 2, 1, 0)
    progress.add(Status.COPIED, None, 10)
    now = progress.snapshot()
    assert (now.todo, now.done, now.failed) == (3, 3, 1)


class Clock:
    """The time of `ferry.core.progress`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.mark.parametrize(("window_s", "looks_s", "bursts_s"), [(5, 0.25, 0.5), (30, 1, 5), (30, 5, 7), (5, 20, 5)])
def test_the_rate_of_rows_that_come_in_bursts(
    window_s: float, looks_s: float, bursts_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is about that of the rows at each look, also at looks further apart than its window."""
    clock, progress = Clock(monkeypatch), Progress()
    progress.window_s = window_s
    progress.start(1_000_000)
    next_look, next_burst, rates = 100.0, 100.0, []
    for _ in range(2_000):
        clock.now = min(next_look, next_burst)
        if clock.now >= next_burst:
            progress.add_all({"copied": int(100 * bursts_s)}, {}, 0)
            next_burst += bursts_s
        if clock.now >= next_look:
            rates.append(progress.snapshot().rate)
            next_look += looks_s
    assert all(70 <= rate <= 130 for rate in rates[len(rates) // 2 :])


def test_the_rate_after_a_pause_is_of_the_time_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, progress = Clock(monkeypatch), Progress()
    progress.window_s = 30
    progress.start(10_000)
    for second in range(80):
        clock.now += 1
        if second in (40, 60):
            progress.pause(second == 40)
        if not progress.paused:
            progress.add_all({"copied": 10}, {}, 0)
        rate = progress.snapshot().rate
        if second in (39, 45, 59, 65, 79):
            assert rate == pytest.approx(0 if progress.paused else 10, rel=0.3)
