"""Filters for Prefect's loggers: expected errors without tracebacks, no lines for finished chunks, limited repetition.

A run of a week logs fewer than a thousand lines.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable

import httpx
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, FailedRun
from prefect.logging import get_logger
from rich.console import Console

from ferry.core import FerryError
from tasks.prefect_patches import (
    CACHED,
    CLIENTS,
    COMPLETED,
    ENGINE,
    FLOW_RUNS,
    LAST_EVENTS,
    NOT_SENT,
    RETRIED,
    TASK_RUNS,
    UNREACHABLE,
)
from tasks.reporting import log_format
from tasks.reporting.log_format import next_report_s


class ExpectedErrors(logging.Filter):
    """Drops the tracebacks of Ferry's own errors and of an unreachable server. Tracebacks of bugs stay.

    If no retry follows, the whole line is dropped: Prefect's next one, `Finished in state Failed`, has the message.
    Lines about finished chunks are dropped unless debugging is on: a rerun has hundreds, and the report counts them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.exc_info and isinstance(record.exc_info[1], FerryError | httpx.TransportError):
            record.exc_info = None
            record.exc_text = None
            return RETRIED in text
        if text.startswith(CACHED):
            return False
        finished = record.name == TASK_RUNS and text.startswith(COMPLETED)
        return not finished or logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


def _is_news(record: logging.LogRecord) -> bool:
    """Returns False for the traceback that a worker's process logs after a run has failed.

    Prefect raises the run's error again there. The line before, `Finished in state Failed`, already has the message.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun | CancelledRun))


class Thinned(logging.Filter):
    """Passes the first lines, then one line per progress interval, with the number of lines dropped before it.

    Chunks that wait for a failing host log each of their retries: hundreds of chunks, for hours.
    """

    FIRST = 100

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Reset the counts for another run."""
        self._started_at, self._logged_at, self._lines, self._dropped = self._clock(), -math.inf, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        with self._lock:
            self._lines += 1
            if self._lines > self.FIRST and now - self._logged_at < next_report_s(now - self._started_at):
                self._dropped += 1
                return False
            left_out, self._dropped, self._logged_at = self._dropped, 0, now
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out:,} similar lines were dropped before)", None
        return True


class ServerUnreachable(logging.Filter):
    """Reduces the errors of Prefect's client about an unreachable server to one line a minute, later to fewer.

    Prefect logs one for each event, such as the start or end of a task, with the event's whole content.
    """

    EVERY_S = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._logged_at = self._started_at = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if NOT_SENT in text:
            return False
        if UNREACHABLE not in text:
            return True
        now = time.monotonic()
        if self._started_at == -math.inf:
            self._started_at = now
        if now - self._logged_at < max(self.EVERY_S, next_report_s(now - self._started_at)):
            return False
        self._logged_at = now
        record.msg, record.args = (
            "the Prefect server does not answer; the run continues, but its page there may miss some tasks",
            None,
        )
        return True


_EXPECTED_ERRORS, _SERVER_UNREACHABLE, _OF_TASKS, _OF_FERRY = (
    ExpectedErrors(),
    ServerUnreachable(),
    Thinned(),
    Thinned(),
)
_FILTERS: dict[str, tuple[logging.Filter | Callable[[logging.LogRecord], bool], ...]] = {
    ENGINE: (_is_news,),
    FLOW_RUNS: (_EXPECTED_ERRORS, _is_news),
    TASK_RUNS: (_EXPECTED_ERRORS, _OF_TASKS),
    "prefect.ferry": (_OF_FERRY,),
    **dict.fromkeys(CLIENTS, (_SERVER_UNREACHABLE,)),
    LAST_EVENTS: (lambda record: record.levelno > logging.WARNING,),
}


def _discard_output() -> None:
    """Discard output whose reader is gone, such as a killed worker or `| head`. Rich would exit the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def configure_logging() -> None:
    """Install filters and formats on Prefect's loggers. Safe to call twice.

    In a flow, the lines then name its run. An output without a reader does not end a run.
    """
    run = FlowRunContext.get()  # not prefect.runtime, which sends a request to the server before a run exists
    if run is not None and run.flow_run is not None:
        job = (run.parameters or {}).get("job")
        name = job["name"] if isinstance(job, dict) else getattr(job, "name", "")
        log_format.run_fields.clear()
        log_format.run_fields.update(flow_run_id=str(run.flow_run.id), flow_run_name=run.flow_run.name, job=name)
        _OF_TASKS.reset()
        _OF_FERRY.reset()
        if problem := log_format.unknown_format():
            get_logger("ferry").warning(problem)
    for logger, handler in list(log_format.console_handlers()):
        _set_format(logger, handler)
    for name, filters in _FILTERS.items():
        for wanted in filters:
            logging.getLogger(name).addFilter(wanted)


def _set_format(logger: logging.Logger, handler: logging.Handler) -> None:
    """Set the format of a console handler. For JSON, replace Prefect's own, whose Rich prints `:cat:` as an emoji."""
    console = getattr(handler, "console", None)  # only Prefect's own handler has one
    if not log_format.as_json():
        if isinstance(console, Console):
            handler.setFormatter(log_format.TextLines())
            console.on_broken_pipe = _discard_output  # type: ignore[method-assign]
        return
    logging.captureWarnings(True)
    if isinstance(console, Console):
        bare = logging.StreamHandler(handler.stream)  # type: ignore[attr-defined]
        bare.setLevel(handler.level)
        logger.removeHandler(handler)
        logger.addHandler(bare)
        handler = bare
    handler.setFormatter(log_format.JsonLines())
