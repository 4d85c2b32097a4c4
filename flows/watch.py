"""A run's progress while it is on: a log line every few seconds, unless a terminal draws it."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator

from tasks.accounts import progress_line
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
    from prefect import get_run_logger

    done = threading.Event()
    logger = get_run_logger()

    def report() -> None:
        while not done.wait(EVERY_S):
            logger.info(progress_line(run.runtime.progress.snapshot()))

    # get_run_logger() finds the run by context variables, which a new thread does not have.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(report,), name="ferry-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
