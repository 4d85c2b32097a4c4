"""The formats of log lines, and the intervals of progress lines. Without Prefect, for engine processes.

With `FERRY_LOG_FORMAT=json` in the environment each line is one JSON object, else Prefect's text with the run's name.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

FORMAT = "FERRY_LOG_FORMAT"
SHORT = 8  # digits of a run's ID in text lines
FIRST_S, SHARE, LAST_S = 5.0, 20.0, 1800.0
CHUNK = re.compile(r"chunk-\d+-of-\d+-([0-9a-f]{12})")  # names of task runs, from tasks.transfer
RECORD_FIELDS = ("flow_run_id", "flow_run_name", "task_run_id", "task_run_name")  # set by Prefect on a run's records

run_fields: dict[str, Any] = {}  # this process's run: flow_run_id, flow_run_name, job, run_no


def next_report_s(elapsed_s: float) -> float:
    """Returns the seconds until a run's next progress line: the longer the run, the longer the interval.

    | since the start | until the next line | lines so far |
    |---|---|---|
    | 0 to 100 s | 5 s | 20 |
    | 1 hour | 3 minutes | under 100 |
    | 10 hours and more | 30 minutes | under 150 |
    | a week | 30 minutes | under 500 |
    """
    return min(LAST_S, max(FIRST_S, elapsed_s / SHARE))


def as_json() -> bool:
    """Returns whether log lines are JSON."""
    return os.environ.get(FORMAT, "").strip().lower() == "json"


def unknown_format() -> str | None:
    """Returns what is wrong with the setting, or None."""
    given = os.environ.get(FORMAT, "")
    if given.strip().lower() in ("", "text", "json"):
        return None
    return f"{FORMAT}={given!r} is neither `text` nor `json`; log lines are text"


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Returns the fields of the run and the chunk that a line is about."""
    found = dict(run_fields)
    found.update((name, value) for name in RECORD_FIELDS if (value := getattr(record, name, None)))
    if match := CHUNK.match(found.get("task_run_name", "")):
        found["chunk"] = match[1]
    return found


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: time (UTC), level, logger, message, :func:`fields_of`, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"), "level": record.levelname, "logger": record.name,
            "message": record.getMessage(), **fields_of(record),
        }  # fmt: skip
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """Formats as Prefect does, with the run: `Task run 'chunk-3-of-12-2e4bd0e50415' of 'products' fae78618 - ...`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d | %(levelname)-7s | %(whose)s - %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        run = fields_of(record)
        name, ident = run.get("flow_run_name"), str(run.get("flow_run_id", ""))[:SHORT]
        if task := run.get("task_run_name"):
            record.whose = f"Task run {task!r} of {name!r} {ident}"
        elif record.name == "prefect.flow_runs":
            record.whose = f"Flow run {name!r} {ident}"
        else:
            record.whose = f"{record.name} {ident}".rstrip()
        return super().formatMessage(record)


def console_handlers() -> Iterator[tuple[logging.Logger, logging.StreamHandler[Any]]]:
    """Returns the handlers that write to this process's standard error or output, with their loggers."""
    for logger in (logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler) and (
                hasattr(handler, "console") or handler.stream in (sys.stderr, sys.stdout)
            ):
                yield logger, handler


def configure_plain_logging(run: dict[str, Any]) -> None:
    """Configure logging in a process without Prefect. ``run`` has the fields of its run."""
    run_fields.update(run)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json() else TextLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(True)
