"""When one more engine process is worth its while. Pure but for :func:`idle_s`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

BUSY = 0.75  # of a core, that an event loop uses: the rest goes in waiting for its turn at sockets
IDLE = 0.3  # of a core, that nobody uses: less would not pay for another process
LOOK_S = 5.0  # the time over which both are taken
LEFT_S = 20.0  # the rows to come take at least this long; a process costs a second of a core and 100 MB


class Growth:
    """Looks every five seconds at the event loops of all engine processes.

    | each loop used three quarters of a core | a third of a core was idle | rows for 20 s more | another process |
    |---|---|---|---|
    | yes | yes | yes | yes |
    | any of them not | | | no |
    """

    def __init__(self) -> None:
        self._at: float | None = None
        self._cpu_s: list[float] = []
        self._idle_s = 0.0

    def look(self, now: float, cpu_s: Sequence[float], idle_s: float, left_s: Callable[[], float | None]) -> bool:
        """Whether to start one more. ``cpu_s``: used so far by each loop; ``idle_s``: by no one, over all cores."""
        if self._at is not None and 0 <= now - self._at < LOOK_S:
            return False
        before, before_s, before_idle_s = self._at, self._cpu_s, self._idle_s
        self._at, self._cpu_s, self._idle_s = now, list(cpu_s), idle_s
        if before is None or now <= before or len(before_s) != len(cpu_s):
            return False  # the first look, a clock that stepped back, or a process more than last time
        span_s = now - before
        busy = min((after - earlier) / span_s for after, earlier in zip(cpu_s, before_s, strict=True))
        idle = (idle_s - before_idle_s) / span_s
        return busy >= BUSY and idle >= IDLE and (left_s() or 0.0) >= LEFT_S


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_s() -> float | None:
    """Seconds in which a core had nothing to do, over all of those this process may use; None where nobody says."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()  # proc_stat(5): fields 4 and 5 are idle, waiting for a disk
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        fields = [line.split() for line in lines]
        ticks = sum(int(line[4]) + int(line[5]) for line in fields if line and line[0] in ours)
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")
