"""A run's progress while it is on: a log line every few seconds, unless a terminal draws it."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator

from prefect import get_run_logger

from tasks.engine.progress import Snapshot
from tasks.run import Run

EVERY_S = 5.0
drawer: Callable[[Run], contextlib.AbstractContextManager[None]] | None = None  # set by `ferry` on a terminal


@contextlib.contextmanager
def logging_progress(run: Run) -> Iterator[None]:
    """Reports on a run until the block ends."""
    if drawer is not None:
        with drawer(run):
            yield
        return
    done = threading.Event()
    logger = get_run_logger()

    def report() -> None:
        while not done.wait(EVERY_S):
            logger.info(line(run.runtime.progress.snapshot()))

    # get_run_logger() finds the run by context variables, which a new thread does not have.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(report,), name="ferry-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def line(s: Snapshot) -> str:
    """A moment of the run as one line."""
    left = f", about {duration(s.left_s)} left" if s.left_s is not None else ""
    failed = f", {s.failed:,} failed" if s.failed else ""
    return f"{s.done:,} of {s.todo:,} rows, {size(s.bytes)}, {s.rate:,.0f} rows/s{left}{failed}"


def size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
