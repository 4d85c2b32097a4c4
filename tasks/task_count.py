"""The count of this process's task runs, all of which a local server must record before it stops."""

from __future__ import annotations

import threading

_lock = threading.Lock()
_made = 0


def one() -> None:
    """Count a task run that starts, or is submitted to Prefect to be run or found in the cache."""
    global _made
    with _lock:
        _made += 1


def made() -> int:
    """Returns the number of task runs so far."""
    return _made
