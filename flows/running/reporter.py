"""Progress reports of a live run: log lines, a bar on its page, the terminal's bar, and metrics if configured."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tasks.reporting.log_format import next_report_s
from tasks.reporting.run_view import RunView
from tasks.reporting.text import percent, progress_line

if TYPE_CHECKING:
    from tasks.reporting.ui import Page

Draw = Callable[[RunView], contextlib.AbstractContextManager[None]]
progress_drawer: Draw | None = None  # set by `ferry` on a terminal
POLL_S = 2.5
END_S = 5.0  # at the end, wait at most this long for the last requests to Prefect


@contextlib.contextmanager
def reporting(view: RunView) -> Iterator[None]:
    """Report on a run until the block ends."""
    from prefect import get_run_logger
    from prefect.runtime import flow_run

    from tasks.reporting.last_run import keeping
    from tasks.reporting.metrics import serving_metrics
    from tasks.reporting.ui import Page

    logger = get_run_logger()
    page = Page(flow_run.id, view.job, (view.job, view.mode), logger.warning)
    done = threading.Event()
    # get_run_logger() finds the run through context variables, which a new thread does not inherit.
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(_report, view, page, logger, done), name="ferry-watch",
        daemon=True,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving_metrics(view, logger))
        stack.enter_context(keeping(view, logger))
        if progress_drawer is not None:
            stack.enter_context(progress_drawer(view))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(END_S)


def _report(view: RunView, page: Page, logger: Any, done: threading.Event) -> None:
    """Log progress and move the bar. The bar also moves at each whole percent, and when the run stops progressing."""
    page.create()
    began = logged_at = time.monotonic()
    shown, still, silent = 0, False, ""
    while not done.wait(POLL_S):
        s, now = view.progress.snapshot(), time.monotonic()
        due = now - logged_at >= next_report_s(now - began) - POLL_S / 2
        if due:
            logged_at = now
            if not s.paused:  # a pause is logged once, when it begins
                logger.info(progress_line(s))
        changed, still = bool(s.still) is not still, bool(s.still)
        if changed and still:
            logger.warning(s.still)
        if s.silent and not silent:
            logger.warning(s.silent)
            changed = True
        silent = s.silent
        if due or changed or int(percent(s)) != shown:
            shown = int(percent(s))
            page.update(s)
        page.note_problems(view.chunk_problems)
    page.note_problems(view.chunk_problems)
    page.update(view.progress.snapshot(), over=True)
