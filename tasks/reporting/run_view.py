"""A live view of a run, for the log, the run's page, the terminal and metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ferry.core import Progress
from ferry.ratelimit import HostSnapshot
from ferry.state import Planned
from tasks.reporting.text import ChunkProblem


@dataclass(frozen=True, slots=True)
class RunView:
    """A view of a run or a verification, readable from any thread."""

    job: str
    mode: str
    progress: Progress
    planned: Callable[[], Planned | None] = lambda: None
    chunk_problems: deque[ChunkProblem] = field(default_factory=deque)
    hosts: Callable[[], tuple[list[HostSnapshot], int]] = lambda: ([], 0)  # the second value: connections opened
    processes: Callable[[], int] = lambda: 1
