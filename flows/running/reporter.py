"""A run while it is on: lines in the log, a bar on its page, what a terminal draws, metrics where asked for."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ferry.core import Progress
from ferry.state import Planned
from tasks.reporting.log_format import next_report_s
from tasks.reporting.run_view import RunView
from tasks.reporting.text import percent, progress_line

if TYPE_CHECKING:
    from tasks.reporting.ui import Page

Draw = Callable[[Progress, Callable[[], Planned | None]], contextlib.AbstractContextManager[None]]
drawer: Draw | None = None  # set by `ferry` on a terminal
LOOK_S = 2.5
END_S = 5.0  # the last requests to Prefect are waited for so long


@contextlib.contextmanager
def showing(watched: RunView) -> Iterator[None]:
    """Reports on it until the block ends."""
    from prefect import get_run_logger
    from prefect.runtime import flow_run

    from tasks.reporting.metrics import served
    from tasks.reporting.ui import Page

    logger = get_run_logger()
    page = Page(flow_run.id, watched.job, (watched.job, watched.mode), logger.warning)
    done = threading.Event()
    # get_run_logger() finds the run by context variables, which a new thread does not have.
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(_report, watched, page, logger, done), name="ferry-watch",
        daemon=True,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(served(watched, logger))
        if drawer is not None:
            stack.enter_context(drawer(watched.progress, watched.planned))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(END_S)


def _report(watched: RunView, page: Page, logger: Any, done: threading.Event) -> None:
    """The thread. The bar moves with each line, at each whole percent between them, and when the run stands still."""
    page.begin()
    began = said = time.monotonic()
    shown, still = 0, False
    while not done.wait(LOOK_S):
        s, now = watched.progress.snapshot(), time.monotonic()
        due = now - said >= next_report_s(now - began) - LOOK_S / 2
        if due:
            said = now
            if not s.paused:  # that was said once
                logger.info(progress_line(s))
        begins, still = bool(s.still) is not still, bool(s.still)
        if begins and still:
            logger.warning(s.still)
        if due or begins or int(percent(s)) != shown:
            shown = int(percent(s))
            page.moved(s)
        page.troubled(watched.troubled)
    page.troubled(watched.troubled)
    page.moved(watched.progress.snapshot(), over=True)
