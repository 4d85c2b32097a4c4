"""What DuckDB and Arrow raise, as Ferry's errors."""

from __future__ import annotations

import os

from ferry.core import DISK_ERRNOS, Fatal, disk_error


def from_planning(exc: Exception, state: str) -> Fatal | None:
    """Maps what DuckDB and Arrow raise while the state at ``state`` is planned, counted or folded.

    Arrow sets errno; DuckDB only repeats strerror(3) in its text. What is not known here is a bug: None.
    """
    if isinstance(exc, OSError) and exc.errno in DISK_ERRNOS:
        return disk_error(exc, f"state {state}")
    for number in DISK_ERRNOS:
        if os.strerror(number) in str(exc):
            return disk_error(OSError(number, os.strerror(number)), f"state {state}")
    return None
