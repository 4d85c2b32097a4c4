"""Prefect's loggers, made fit for people: an error of Ferry's is its sentence, and what is done already is no news."""

from __future__ import annotations

import logging
import math
import os
import sys
import time

import httpx
from rich.console import Console

from tasks.engine.errors import FerryError


class ForPeople(logging.Filter):
    """Drops the traceback of errors that Ferry raises on purpose, and of a server that is away; those of bugs stay.

    Where no retry follows the whole line goes: Prefect's next one, `Finished in state Failed`, has the sentence again.
    So do the lines about cached chunks: a rerun would have hundreds, and the report counts them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], FerryError | httpx.TransportError):
            record.exc_info = None
            record.exc_text = None
            return "Retry" in record.getMessage()
        return not record.getMessage().startswith("Finished in state Cached")


class ServerAway(logging.Filter):
    """What Prefect's client says while its server is away, in one line a minute.

    It says it of every event, each a task that began or ended, with all that the event holds.
    """

    EVERY_S = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._said = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "'EventsWorker' failed to process item" in text:
            return False
        if "Unable to connect to" not in text:
            return True
        if time.monotonic() - self._said < self.EVERY_S:
            return False
        self._said = time.monotonic()
        record.msg, record.args = (
            "the Prefect server does not answer: the run goes on, and its page there may miss some of its tasks",
            None,
        )
        return True


_FOR_PEOPLE, _SERVER_AWAY = ForPeople(), ServerAway()


def _nobody_reads() -> None:
    """Whoever read what this process says is gone: a worker that was killed, `| head`. Rich would exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def tidy_logs() -> None:
    """Installs the filters on Prefect's loggers; twice does nothing. A log that nobody reads ends no run."""
    for logger in (logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)):
        for handler in logger.handlers:
            if isinstance(console := getattr(handler, "console", None), Console):
                console.on_broken_pipe = _nobody_reads  # type: ignore[method-assign]
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(_FOR_PEOPLE)
    for name in ("prefect.events.clients", "prefect._internal.concurrency"):
        logging.getLogger(name).addFilter(_SERVER_AWAY)
