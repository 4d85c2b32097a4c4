"""Rule for adding a transfer process, and its measurements. Pure except for :func:`cores` and :func:`idle_s`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

MIN_LOOP_CPU = 0.75  # share of a core that a saturated event loop uses; the rest is waiting for sockets
MIN_IDLE_CPU = 0.3  # idle share of a core; with less, another process brings no gain
INTERVAL_S = 5.0  # seconds over which both shares are measured
MIN_REMAINING_S = 20.0  # a process costs a second of a core and 100 MB, so the remaining rows must take this long


class Autoscaler:
    """Decides every five seconds whether to add a transfer process.

    | each loop used 0.75 of a core | 0.3 of a core was idle | rows for 20 s remain | add a process |
    |---|---|---|---|
    | yes | yes | yes | yes |
    | no in any column | | | no |
    """

    def __init__(self) -> None:
        self._at: float | None = None
        self._cpu_s: list[float] = []
        self._idle_s = 0.0

    def should_add(
        self, now: float, cpu_s: Sequence[float], idle_s: float, remaining_s: Callable[[], float | None]
    ) -> bool:
        """Returns whether to add a process. The first call only starts the measurement.

        ``cpu_s`` are the CPU seconds used so far by each event loop, ``idle_s`` the idle seconds so far of all cores.
        ``remaining_s`` returns the estimated seconds for the remaining rows.
        """
        if self._at is not None and 0 <= now - self._at < INTERVAL_S:
            return False
        before, before_s, before_idle_s = self._at, self._cpu_s, self._idle_s
        self._at, self._cpu_s, self._idle_s = now, list(cpu_s), idle_s
        if before is None or now <= before or len(before_s) != len(cpu_s):
            return False  # the first call, a clock that was set back, or another number of processes
        span_s = now - before
        busy = min((after - earlier) / span_s for after, earlier in zip(cpu_s, before_s, strict=True))
        idle = (idle_s - before_idle_s) / span_s
        return busy >= MIN_LOOP_CPU and idle >= MIN_IDLE_CPU and (remaining_s() or 0.0) >= MIN_REMAINING_S


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_s() -> float | None:
    """Returns the idle seconds of all cores that this process may use, or None if the system does not report them."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()  # proc_stat(5): fields 4 and 5 are idle and iowait
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        fields = [line.split() for line in lines]
        ticks = sum(int(line[4]) + int(line[5]) for line in fields if line and line[0] in ours)
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")
