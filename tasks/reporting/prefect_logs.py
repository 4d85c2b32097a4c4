"""Prefect's loggers, made fit for people: an error of Ferry's is its sentence, what is done already is no news, and a
run of a week says less than a thousand lines.
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
    ENGINE,
    FLOW_RUNS,
    NOT_SENT,
    RETRIED,
    SETTLED,
    TASK_RUNS,
    UNREACHABLE,
)
from tasks.reporting import log_format
from tasks.reporting.log_format import next_report_s


class ForPeople(logging.Filter):
    """Drops the traceback of errors that Ferry raises on purpose, and of a server that is away; those of bugs stay.

    Where no retry follows the whole line goes: Prefect's next one, `Finished in state Failed`, has the sentence again.
    So do the lines about chunks that are settled, unless debugging is on: a rerun would have hundreds, and the report
    counts them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.exc_info and isinstance(record.exc_info[1], FerryError | httpx.TransportError):
            record.exc_info = None
            record.exc_text = None
            return RETRIED in text
        if text.startswith(CACHED):
            return False
        settled = record.name == TASK_RUNS and text.startswith(SETTLED)
        return not settled or logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


def _not_a_bug(record: logging.LogRecord) -> bool:
    """In a worker's process Prefect raises what ended a run once more, and logs that with a traceback. The line before
    it, `Finished in state Failed`, has said all."""
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun | CancelledRun))


class Fewer(logging.Filter):
    """The first lines all, then one as often as a run says how far it is, with how many were left out before it.

    Chunks that wait for a host in trouble say so at each of their retries: hundreds of chunks, all night.
    """

    FIRST = 100

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self.again()

    def again(self) -> None:
        """Another run begins."""
        self._since, self._said, self._lines, self._left_out = self._clock(), -math.inf, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        with self._lock:
            self._lines += 1
            if self._lines > self.FIRST and now - self._said < next_report_s(now - self._since):
                self._left_out += 1
                return False
            left_out, self._left_out, self._said = self._left_out, 0, now
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (since the last such line {left_out:,} more)", None
        return True


class ServerAway(logging.Filter):
    """What Prefect's client says while its server is away, in one line a minute, and in fewer the longer that lasts.

    It says it of every event, each a task that began or ended, with all that the event holds.
    """

    EVERY_S = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._said = self._since = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if NOT_SENT in text:
            return False
        if UNREACHABLE not in text:
            return True
        now = time.monotonic()
        if self._since == -math.inf:
            self._since = now
        if now - self._said < max(self.EVERY_S, next_report_s(now - self._since)):
            return False
        self._said = now
        record.msg, record.args = (
            "the Prefect server does not answer: the run goes on, and its page there may miss some of its tasks",
            None,
        )
        return True


_FOR_PEOPLE, _SERVER_AWAY, _OF_TASKS, _OF_FERRY = ForPeople(), ServerAway(), Fewer(), Fewer()
_FILTERS: dict[str, tuple[logging.Filter | Callable[[logging.LogRecord], bool], ...]] = {
    ENGINE: (_not_a_bug,),
    FLOW_RUNS: (_FOR_PEOPLE, _not_a_bug),
    TASK_RUNS: (_FOR_PEOPLE, _OF_TASKS),
    "prefect.ferry": (_OF_FERRY,),
    **dict.fromkeys(CLIENTS, (_SERVER_AWAY,)),
}


def _nobody_reads() -> None:
    """Whoever read what this process says is gone: a worker that was killed, `| head`. Rich would exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def tidy_logs() -> None:
    """Installs filters and formats on Prefect's loggers; twice does nothing. A log that nobody reads ends no run.

    Inside a flow it learns which run the lines are about.
    """
    run = FlowRunContext.get()  # and not prefect.runtime, which asks the server where there is none yet
    if run is not None and run.flow_run is not None:
        job = (run.parameters or {}).get("job")
        name = job["name"] if isinstance(job, dict) else getattr(job, "name", "")
        log_format.about.clear()
        log_format.about.update(flow_run_id=str(run.flow_run.id), flow_run_name=run.flow_run.name, job=name)
        _OF_TASKS.again()
        _OF_FERRY.again()
        if problem := log_format.unknown_format():
            get_logger("ferry").warning(problem)
    for logger, handler in list(log_format.consoles()):
        _shape(logger, handler)
    for name, filters in _FILTERS.items():
        for wanted in filters:
            logging.getLogger(name).addFilter(wanted)


def _shape(logger: logging.Logger, handler: logging.Handler) -> None:
    """Gives a handler on the console our lines. For JSON Prefect's own goes: Rich prints `:cat:` as a picture."""
    console = getattr(handler, "console", None)  # of Prefect's own handler
    if not log_format.as_json():
        if isinstance(console, Console):
            handler.setFormatter(log_format.TextLines())
            console.on_broken_pipe = _nobody_reads  # type: ignore[method-assign]
        return
    logging.captureWarnings(True)
    if isinstance(console, Console):
        bare = logging.StreamHandler(handler.stream)  # type: ignore[attr-defined]
        bare.setLevel(handler.level)
        logger.removeHandler(handler)
        logger.addHandler(bare)
        handler = bare
    handler.setFormatter(log_format.JsonLines())
