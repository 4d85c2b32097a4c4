"""What there is to see of a run while it is on, for those who show it: log, page, terminal, metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ferry.core import Progress
from ferry.ratelimit import HostSnapshot
from ferry.state import Planned
from tasks.reporting.text import Troubled


@dataclass(frozen=True, slots=True)
class RunView:
    """A run, or a verification. To be read from any thread."""

    job: str
    mode: str
    progress: Progress
    planned: Callable[[], Planned | None] = lambda: None
    troubled: deque[Troubled] = field(default_factory=deque)
    hosts: Callable[[], tuple[list[HostSnapshot], int]] = lambda: ([], 0)  # and connections opened
    processes: Callable[[], int] = lambda: 1
