"""A run's page in Prefect's UI while the run is on: its tags, a bar that moves, and chunks in trouble.

A courtesy to whoever looks, asked from one thread of its own (reporter.py): it holds nothing up, and is lost where
Prefect does not take it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from uuid import UUID

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from ferry.core import Snapshot, escaped
from tasks import prefect_api
from tasks.reporting.text import Troubled, percent, progress_line

MOST_TROUBLED = 50  # chunks with a note of their own; `<job>-chunks` has more of them


def slug(name: str) -> str:
    """A job's name as Prefect's artifact keys have it: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "job"


class Page:
    """Made for one run. Its methods make a few requests each, and raise nothing of Prefect's."""

    def __init__(self, flow_run: str, name: str, tags: Sequence[str], tell: Callable[[str], None]) -> None:
        self._flow_run, self._name, self._tags, self._tell = UUID(flow_run), name, tags, tell
        self._bar: UUID | None = None
        self._noted: set[str] = set()
        self._told = False

    def begin(self) -> None:
        """Tags the run, and makes the artifact `<job>-progress`."""
        with prefect_api.best_effort(self._once, "the run's tags and progress") as client:
            before = client.read_flow_run(self._flow_run).tags
            client.update_flow_run(self._flow_run, tags=sorted({*before, *self._tags}))
            made = client.create_artifact(
                ArtifactCreate(
                    key=f"{slug(self._name)}-progress", type="progress", data=0.0, description="begins",
                    flow_run_id=self._flow_run,
                )
            )  # fmt: skip
            self._bar = made.id

    def moved(self, s: Snapshot, *, over: bool = False) -> None:
        """The bar stands where the run is; it is made now where it could not be before."""
        if self._bar is None:
            self.begin()
        if self._bar is None:
            return
        with prefect_api.best_effort(self._once, "the run's progress") as client:
            client.update_artifact(
                self._bar, ArtifactUpdate(data=percent(s, over=over), description=progress_line(s, over=over))
            )

    def troubled(self, chunks: deque[Troubled]) -> None:
        """Takes what is there, for notes at the chunks' task runs: what is wrong, where the rows are, how to see them.

        They carry neither the flow run's ID nor a key: each stands at its task run alone.
        """
        new = []
        while chunks:
            chunk = chunks.popleft()
            if chunk.digest not in self._noted and len(self._noted) < MOST_TROUBLED and not self._told:
                self._noted.add(chunk.digest)
                new.append(chunk)
        if not new:
            return
        with prefect_api.best_effort(self._once, "notes at chunks") as client:
            for chunk in new:
                client.create_artifact(
                    ArtifactCreate(
                        type="markdown", data=note(chunk), description=plain(chunk.words),
                        task_run_id=UUID(chunk.task_run),
                    )
                )  # fmt: skip

    def _once(self, text: str) -> None:
        if not self._told:
            self._told = True
            self._tell(text)


def note(chunk: Troubled) -> str:
    """Markdown, in blocks that the UI has a button to copy. The file is no link: no browser opens one in a bucket, or
    on another machine."""
    return (
        f"Which rows they are, and why:\n```\nferry failures JOB.yaml --chunk {chunk.digest[:12]}\n```\n"
        f"All rows of the chunk:\n```\n{chunk.file}\n```\n"
    )


def plain(text: str) -> str:
    """Safe in Markdown and HTML: control characters shown, markup escaped."""
    shown = escaped(text)
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", shown) if re.search(r"[<>`|\[\]*&]", shown) else shown
