"""What there is to see of a run while it is on, for those who show it: log, page, terminal, metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tasks.accounts import Troubled
from tasks.engine.host_snapshot import HostSnapshot
from tasks.engine.plan import Planned
from tasks.engine.progress import Progress

if TYPE_CHECKING:
    from tasks.run import Run


@dataclass(frozen=True, slots=True)
class Watched:
    """A run, or a verification. To be read from any thread."""

    job: str
    mode: str
    progress: Progress
    planned: Callable[[], Planned | None] = lambda: None
    troubled: deque[Troubled] = field(default_factory=deque)
    hosts: Callable[[], tuple[list[HostSnapshot], int]] = lambda: ([], 0)  # and connections opened
    processes: Callable[[], int] = lambda: 1


def watched(run: Run) -> Watched:
    return Watched(
        run.job.name, run.job.mode, run.runtime.progress, lambda: run.planned, run.troubled, run.runtime.all_hosts,
        lambda: run.crew.processes,
    )  # fmt: skip
