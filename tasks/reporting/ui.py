"""A live run's page in Prefect's UI: its tags, a progress bar, and notes on chunks with problems.

One separate thread sends the requests (flows.running.reporter), so that they do not delay the run. Only the first
failure is logged.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from uuid import UUID

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from ferry.core import Snapshot, escaped
from tasks import prefect_api
from tasks.reporting.text import ChunkProblem, percent, progress_line

MOST_NOTES = 50  # chunks with a note of their own; the artifact `<job>-chunks` has more


def slug(name: str) -> str:
    """Returns a job's name for Prefect's artifact keys: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "job"


class Page:
    """The page of one run. Its methods make a few requests each, and raise none of Prefect's errors."""

    def __init__(self, flow_run: str, name: str, tags: Sequence[str], warn: Callable[[str], None]) -> None:
        self._flow_run, self._name, self._tags, self._warn = UUID(flow_run), name, tags, warn
        self._bar: UUID | None = None
        self._noted: set[str] = set()
        self._has_failed = False

    def create(self) -> None:
        """Tag the run, and create the artifact `<job>-progress`."""
        with prefect_api.best_effort(self._warn_once, "the run's tags and progress") as client:
            before = client.read_flow_run(self._flow_run).tags
            client.update_flow_run(self._flow_run, tags=sorted({*before, *self._tags}))
            made = client.create_artifact(
                ArtifactCreate(
                    key=f"{slug(self._name)}-progress", type="progress", data=0.0, description="starting",
                    flow_run_id=self._flow_run,
                )
            )  # fmt: skip
            self._bar = made.id

    def update(self, s: Snapshot, *, over: bool = False) -> None:
        """Update the progress bar. Create it first if that failed before."""
        if self._bar is None:
            self.create()
        if self._bar is None:
            return
        with prefect_api.best_effort(self._warn_once, "the run's progress") as client:
            client.update_artifact(
                self._bar, ArtifactUpdate(data=percent(s, over=over), description=progress_line(s, over=over))
            )

    def note_problems(self, chunks: deque[ChunkProblem]) -> None:
        """Create a note at the task run of each chunk in the queue: the problem, the file, how to list the rows.

        The artifacts have neither the flow run's ID nor a key, so that each appears only at its task run.
        """
        new = []
        while chunks:
            chunk = chunks.popleft()
            if chunk.digest not in self._noted and len(self._noted) < MOST_NOTES and not self._has_failed:
                self._noted.add(chunk.digest)
                new.append(chunk)
        if not new:
            return
        with prefect_api.best_effort(self._warn_once, "notes on chunks") as client:
            for chunk in new:
                client.create_artifact(
                    ArtifactCreate(
                        type="markdown", data=note(chunk), description=plain(chunk.problem),
                        task_run_id=UUID(chunk.task_run),
                    )
                )  # fmt: skip

    def _warn_once(self, text: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._warn(text)


def note(chunk: ChunkProblem) -> str:
    """Returns the note as Markdown, in code blocks, which have a copy button in the UI.

    The file is not a link: a browser cannot open a file in a bucket or on another machine.
    """
    return (
        f"The rows with their reasons:\n```\nferry failures JOB.yaml --chunk {chunk.digest[:12]}\n```\n"
        f"The file with all rows of the chunk:\n```\n{chunk.file}\n```\n"
    )


def plain(text: str) -> str:
    """Returns text that is safe in Markdown and HTML: control characters are shown, markup is escaped."""
    shown = escaped(text)
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", shown) if re.search(r"[<>`|\[\]*&]", shown) else shown
