"""A run's progress while it is on: a log line every few seconds, unless a terminal draws it."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator

from tasks.accounts import progress_line
from tasks.engine.plan import Planned
from tasks.engine.progress import Progress
from tasks.loglines import next_report_s

Draw = Callable[[Progress, Callable[[], Planned | None]], contextlib.AbstractContextManager[None]]
drawer: Draw | None = None  # set by `ferry` on a terminal


@contextlib.contextmanager
def showing(progress: Progress, planned: Callable[[], Planned | None] = lambda: None) -> Iterator[None]:
    """Reports on a run, or on a verification, until the block ends."""
    if drawer is not None:
        with drawer(progress, planned):
            yield
        return
    from prefect import get_run_logger

    done = threading.Event()
    logger = get_run_logger()

    def report() -> None:
        began = time.monotonic()
        while not done.wait(next_report_s(time.monotonic() - began)):
            logger.info(progress_line(progress.snapshot()))

    # get_run_logger() finds the run by context variables, which a new thread does not have.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(report,), name="ferry-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
