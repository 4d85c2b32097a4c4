"""One task run is one chunk."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectConcurrentFuture
from prefect.runtime import task_run

from ferry.core import ChunkIncomplete, FerryError, ProcessLost
from ferry.state import ChunkRef
from tasks import policies, task_count
from tasks import run as runs

WINDOW = 2  # chunks that are at work at least, while there are as many
MOST_CHUNKS = 64  # and at most; in between it is for the dispatcher to say whether it has rows enough
POLL_S = 0.25


@task(
    task_run_name="chunk-{ref.digest:.12}-{ref.rows}-rows",
    cache_key_fn=policies.chunk_cache_key,
    retry_condition_fn=policies.worth_another_try,
    persist_result=True,
    result_serializer="json",
)
def transfer_chunk(ref: ChunkRef, fingerprint: str) -> dict[str, Any]:  # noqa: ARG001 (the cache key reads it)
    """Moves a chunk's rows. Returns when none is pending; raises ChunkIncomplete otherwise."""
    run = runs.current()
    retry = (task_run.run_count or 1) - 1
    if retry:  # here and not by Prefect, whose wait for a retry nothing can end: neither a stop nor a Ctrl-C
        run.runtime.sleep(policies.chunk_delay_s(run.job.retries, retry, run.runtime.rng))
    result = run.crew.run_chunk(ref)
    if failed := result.counts.get("failed"):
        run.trouble(ref, str(task_run.id), f"{failed:,} of {ref.rows:,} rows failed")
    return dataclasses.asdict(result)


def transfer_all(run: runs.Run, refs: Sequence[ChunkRef]) -> None:
    """Maps :func:`transfer_chunk` over the chunks, a window at a time.

    A chunk that sleeps until its retry holds no place in the window. Nothing is submitted while the run is paused, nor
    once it is to stop.
    """
    mapped = transfer_chunk.with_options(retries=run.job.retries.chunk_attempts, retry_delay_seconds=0)
    waiting = deque(refs)
    futures: dict[concurrent.futures.Future[Any], tuple[ChunkRef, Any]] = {}
    fingerprint = run.job.fingerprint()
    run.crew.transferring = True
    while futures or (waiting and not run.runtime.stopping):
        if run.crew.look():
            get_run_logger().info("%d engine processes: one core was what limited the rate", run.crew.processes)
        while waiting and not run.runtime.stopping and place(run, waiting[0], len(futures)):
            ref = waiting.popleft()
            task_count.one()
            future = cast("PrefectConcurrentFuture[Any]", mapped.submit(ref, fingerprint))
            futures[future.wrapped_future] = (ref, future)
        if not futures:  # paused, between two chunks
            run.runtime.sleep(POLL_S)
        done, _ = concurrent.futures.wait(futures, POLL_S, concurrent.futures.FIRST_COMPLETED)
        for finished in done:
            ref, future = futures.pop(finished)
            future.wait()
            _note(run, ref, future.state)
    run.crew.transferring = False
    for ref in waiting:
        run.incomplete[ref.digest] = run.runtime.stop_reason


def place(run: runs.Run, ref: ChunkRef, submitted: int) -> bool:
    """Whether one more chunk is to begin. Small ones are over in a moment, large ones are worth waiting for."""
    awake = submitted - run.runtime.chunks_waiting()
    return awake < MOST_CHUNKS and not run.runtime.paused and run.crew.place(ref, wanted=awake < WINDOW)


def _note(run: runs.Run, ref: ChunkRef, state: State[Any]) -> None:
    """Books what became of a chunk."""
    run.crew.over(ref.digest)
    run.task_runs[ref.digest] = str(state.state_details.task_run_id)
    if state.is_completed():
        run.returned.append(ref.digest)
        if state.name == "Cached":
            run.cached += 1
            run.doubtful = run.doubtful or ref.done < ref.rows
        return
    error = state.result(raise_on_failure=False)
    if isinstance(error, ChunkIncomplete):
        run.incomplete[ref.digest] = error.why
        words = f"{error.pending:,} of {ref.rows:,} rows are pending: {error.why}"
        run.trouble(ref, run.task_runs[ref.digest], words)
        return
    if isinstance(error, ProcessLost):
        run.incomplete[ref.digest] = str(error)
        run.returned.append(ref.digest)  # as one that returned without its rows: a further pass takes those
        run.doubtful = True
        return
    run.incomplete[ref.digest] = str(error)
    known = error if isinstance(error, FerryError) else FerryError(f"chunk {ref.digest[:12]}: {error}")
    run.errors.append(known)
    run.runtime.abort(known)
