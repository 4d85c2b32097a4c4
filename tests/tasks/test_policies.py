"""When Prefect retries a chunk, and when a run ends because no host answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ferry.core import ChunkIncomplete, Fatal, FerryError, Progress, Status
from ferry.core.records import ErrorClass
from tasks import policies
from tasks.transfer import nothing_came
from tasks.workers.messages import error_of

PENDING = ChunkIncomplete("c" * 64, 3, "why")
HOPELESS = ChunkIncomplete("c" * 64, 3, "why", hopeless=True)


@pytest.mark.parametrize(
    ("error", "stopping", "limit_reached", "again"),
    [
        (PENDING, False, False, True),
        (PENDING, True, False, False),
        (PENDING, False, True, False),
        (HOPELESS, False, False, False),
        (Fatal("x"), False, False, False),
        (None, False, False, False),
    ],
)
def test_which_chunks_are_retried(
    error: Any, stopping: bool, limit_reached: bool, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks with pending rows, unless the run ends or no host of these rows answers."""
    run = SimpleNamespace(runtime=SimpleNamespace(stopping=stopping, limit_reached=limit_reached))
    monkeypatch.setattr("tasks.run.current", lambda: run)
    assert policies.worth_another_try(None, None, SimpleNamespace(data=error)) is again


@pytest.mark.parametrize("hopeless", [True, False])
def test_an_engine_process_passes_it_on(hopeless: bool) -> None:
    """The error of a chunk in an engine process says whether other attempts may help."""
    error = error_of({"pending": 3, "why": "why", "hopeless": hopeless}, "c" * 64)
    assert isinstance(error, ChunkIncomplete)
    assert (error.pending, error.hopeless) == (3, hopeless)
    assert isinstance(error_of({"fatal": "x"}, "c"), FerryError)


@pytest.mark.parametrize(
    ("outcomes", "nothing"),
    [
        ([], True),
        ([(Status.FAILED, ErrorClass.CONNECTION), (Status.FAILED, ErrorClass.DNS)], True),
        ([(Status.FAILED, ErrorClass.CONNECTION), (Status.FAILED, ErrorClass.NOT_FOUND)], False),
        ([(Status.FAILED, ErrorClass.CONNECTION), (Status.COPIED, None)], False),
        ([(Status.UNCHANGED, None)], False),
    ],
)
def test_whether_anything_came(outcomes: list[tuple[Status, ErrorClass | None]], nothing: bool) -> None:
    """Failed connections alone mean that no host has answered."""
    progress = Progress()
    for status, error_class in outcomes:
        progress.add(status, error_class, 0)
    assert nothing_came(progress.snapshot()) is nothing
