"""How many task runs this process has made: so many a local server must have recorded before it may end."""

from __future__ import annotations

import threading

_lock = threading.Lock()
_made = 0


def one() -> None:
    """A task run begins, or is handed to Prefect to be run or found in the cache."""
    global _made
    with _lock:
        _made += 1


def made() -> int:
    return _made
