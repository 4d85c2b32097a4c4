"""The times and statuses of one run's requests, read from the origin's access log.

Each tool is measured in the same way: from the start of the first request for an object to the end of the last response
with one.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.nginx import FLUSH_S

OBJECTS = (".jpg", ".tif")
CALM_AFTER_S = 10.0


@dataclass(slots=True)
class Window:
    """Seconds since the epoch."""

    first: float = 0.0
    last: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    heads: int = 0
    refused_later: float | None = None
    """Share of the requests answered with 429, ten seconds after the first one and later; None when there are none."""
    done_at: list[float] = field(default_factory=list, repr=False)
    """The time when each object was delivered, in order."""

    @property
    def steady_s(self) -> float:
        return self.last - self.first


def position(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def settle() -> None:
    """Waits until nginx has written its buffered log lines."""
    time.sleep(FLUSH_S + 0.1)


def read_window(log: Path, since: int, method: str = "GET") -> Window:
    """Reads the log after ``since`` bytes. Call :func:`settle` first."""
    window, requests = Window(), []
    with log.open("rb") as lines:
        lines.seek(since)
        for line in lines:
            ended, took, status, verb, path = line.decode().split(" ", 4)
            if not path.rstrip().endswith(OBJECTS):
                continue
            if verb != method:
                window.heads += verb == "HEAD"
                continue
            requests.append((float(ended), float(took), int(status)))
    if not requests:
        return window
    window.first = min(ended - took for ended, took, _ in requests)
    window.statuses = Counter(status for _, _, status in requests)
    window.done_at = sorted(ended for ended, _, status in requests if status in (200, 206))
    window.last = window.done_at[-1] if window.done_at else max(ended for ended, _, _ in requests)
    later = [status for ended, _, status in requests if ended >= window.first + CALM_AFTER_S]
    if later:
        window.refused_later = later.count(429) / len(later)
    return window
