"""Mapping of DuckDB's and Arrow's exceptions to Ferry's errors."""

from __future__ import annotations

import os

from ferry.core import DISK_ERRNOS, Fatal, disk_error


def from_planning(exc: Exception, state: str) -> Fatal | None:
    """Returns a Fatal for a disk error that planning or folding the state at ``state`` raised, None for any other one.

    Arrow sets errno. DuckDB offers no error number: its message only contains the text of strerror(3), so that text is
    searched. Any other exception is a bug.
    """
    if isinstance(exc, OSError) and exc.errno in DISK_ERRNOS:
        return disk_error(exc, f"state {state}")
    for number in DISK_ERRNOS:
        if os.strerror(number) in str(exc):
            return disk_error(OSError(number, os.strerror(number)), f"state {state}")
    return None
