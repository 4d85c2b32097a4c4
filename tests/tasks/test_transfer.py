"""What the end of a chunk's task run means for its run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prefect.states import Completed

from ferry.state import ChunkRef, ledger
from tasks import run as runs
from tasks.transfer import _record
from tests.support.helpers import directory_state, make_outcome

CHUNK = "c" * 64


@pytest.mark.parametrize(
    ("name", "done", "recorded", "needs_repair"),
    [
        ("Cached", 0, 0, True),
        ("Cached", 0, 2, True),
        ("Cached", 0, 3, False),  # an attempt of this run has recorded them, as when a shard's process was killed
        ("Cached", 1, 2, False),
        ("Cached", 3, 0, False),
        ("Completed", 0, 0, False),  # the task itself has recorded its rows
    ],
)
def test_a_cached_chunk_that_lacks_outcomes(
    name: str, done: int, recorded: int, needs_repair: bool, tmp_path: Path
) -> None:
    """Rows that neither the ledger nor this run has are planned again, whatever the cache says of their chunk."""
    state = directory_state(tmp_path)
    outcomes = [make_outcome(str(row), run_no=2, chunk=CHUNK) for row in range(recorded)]
    ledger.append_outcomes(state, outcomes, 2, CHUNK, 0)
    ledger.append_outcomes(state, [make_outcome(str(row), run_no=1, chunk=CHUNK) for row in range(3)], 1, CHUNK, 0)
    pool = SimpleNamespace(forget=lambda _digest: None)
    run: Any = SimpleNamespace(
        state=state, run_no=2, pool=pool, task_runs={}, returned=[], cached=0, needs_repair=False
    )
    _record(cast("runs.Run", run), ChunkRef("chunks/c", CHUNK, 3, 0, "base", 1, done=done), Completed(name=name))
    assert run.needs_repair is needs_repair
    assert (run.returned, run.cached) == ([CHUNK], int(name == "Cached"))
