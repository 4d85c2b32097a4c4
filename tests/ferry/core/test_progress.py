"""Counters of a run's progress."""

from __future__ import annotations

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
