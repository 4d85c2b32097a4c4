"""The pool of engine processes: when it grows, and a process that ends because a limit allows fewer."""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from ferry.core import ProcessLost
from ferry.processes import write_message
from ferry.state import ChunkRef
from ferry.transfer import ChunkResult
from tasks.workers.handle import WorkerHandle
from tasks.workers.pool import WorkerPool
from tasks.workers.worker import RESULT
from tests.support.helpers import make_job

REF = ChunkRef("chunks/ab.parquet", "ab" * 32, 5, 0, "base", 1)
ALIVE, DEAD, RETIRED = (SimpleNamespace(has_died=d, retired=r, cpu_s=0.0) for d, r in ((0, 0), (1, 0), (1, 1)))


@pytest.mark.parametrize(
    ("limits", "workers", "started"),
    [
        ({}, [], [2]),
        ({}, [ALIVE], [3]),
        ({"requests_per_s": 5}, [], []),  # the limit decides the rate, not a core
        ({"hosts": {"a.example": {"concurrency": 5}}}, [], []),
        ({}, [DEAD], []),  # perhaps for lack of memory
        ({}, [RETIRED], [2]),
        ({}, [ALIVE, ALIVE, ALIVE], []),
    ],
)
def test_when_the_pool_grows(
    limits: dict[str, Any], workers: list[Any], started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only without limits in force, and not after a process was lost. ``started``: the processes after it."""
    pool, shares = WorkerPool.__new__(WorkerPool), list[int]()
    pool.workers, pool._most = workers, 4
    pool._setup = SimpleNamespace(job=make_job(limits=limits))  # type: ignore[assignment]
    pool._autoscaler = SimpleNamespace(should_add=lambda *_: True)  # type: ignore[assignment]
    pool._runtime = SimpleNamespace(  # type: ignore[assignment]
        stopping=False, paused=False, loop_cpu_s=lambda: 0.0, hosts=lambda: ([], 0)
    )
    monkeypatch.setattr(pool, "_exchange", lambda: None)
    monkeypatch.setattr(pool, "_share", lambda _: None)
    monkeypatch.setattr(pool, "_start_worker", lambda: shares.append(pool.processes + 1))
    pool.adjust()
    assert shares == started


def handle(answers: bytes = b"") -> WorkerHandle:
    """A handle of a process that has sent these answers and ended."""
    made = WorkerHandle.__new__(WorkerHandle)
    made._process = SimpleNamespace(stdin=io.BytesIO(), stdout=io.BytesIO(answers))  # type: ignore[assignment]
    made._lock, made._waiting = threading.Lock(), {}
    made.has_died = made.retired = False
    return made


def answer(**fields: Any) -> bytes:
    out = io.BytesIO()
    write_message(out, RESULT, json.dumps({"chunk": REF.digest, **fields}).encode())
    return out.getvalue()


def test_a_process_that_was_ended_takes_no_chunk() -> None:
    """A chunk that was assigned before is lost, and a pass of the run takes its rows."""
    ended = handle()
    ended.retire()
    with pytest.raises(ProcessLost, match="during chunk abababababab, since a limit allows fewer processes"):
        ended.run(REF)
    assert not ended.answers


@pytest.mark.parametrize("ended", [False, True])
def test_pending_rows_of_a_process_that_was_ended(ended: bool) -> None:
    """They are lost with the process: Prefect would retry the chunk there. Late answers are left out."""
    done = {"result": {"chunk": REF.digest, "rows": 5, "counts": {}, "bytes": 0, "outcomes": ""}}
    found = handle(answer(pending=3, why="the run has ended", hopeless=False) + answer(**done))
    future: Future[ChunkResult] = Future()
    found._waiting[REF.digest] = future
    if ended:
        found.retire()
    found._listen()
    assert isinstance(future.exception(), ProcessLost) is ended
    assert found.has_died
