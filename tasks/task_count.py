"""The count of this process's task runs, all of which a local server must record before it stops."""

from __future__ import annotations

import threading

_lock = threading.Lock()
_total = 0


def increment() -> None:
    """Count a task run that starts, or is submitted to Prefect to be run or found in the cache."""
    global _total
    with _lock:
        _total += 1


def total() -> int:
    """Returns the number of task runs so far."""
    return _total
