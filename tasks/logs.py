"""Prefect's loggers, made fit for people: an error of Ferry's is its sentence, and what is done already is no news."""

from __future__ import annotations

import logging

from tasks.engine.errors import FerryError


class ForPeople(logging.Filter):
    """Drops the traceback of errors that Ferry raises on purpose; those of bugs stay.

    Where no retry follows the whole line goes: Prefect's next one, `Finished in state Failed`, has the sentence again.
    So do the lines about cached chunks: a rerun would have hundreds, and the report counts them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], FerryError):
            record.exc_info = None
            record.exc_text = None
            return "Retry" in record.getMessage()
        return not record.getMessage().startswith("Finished in state Cached")


_FILTER = ForPeople()


def tidy_logs() -> None:
    """Installs the filter on the loggers of task and flow runs; adding it twice does nothing."""
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(_FILTER)
