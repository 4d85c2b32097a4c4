"""The transfer task, one run of which processes one chunk, and its mapping over the chunks of a plan."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, cast

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectConcurrentFuture
from prefect.runtime import task_run
from prefect.states import Completed

from ferry.core import ChunkIncomplete, ErrorClass, FerryError, ProcessLost, Snapshot
from ferry.state import ChunkRef, recorded_of
from tasks import policies
from tasks import run as runs

WINDOW = 2  # the least number of active chunks, while there are so many
MOST_CHUNKS = 64  # the largest number; in between, the dispatcher decides whether it needs more rows
POLL_S = 0.25


def chunk_name(parameters: dict[str, Any]) -> str:
    """Returns the name of a chunk's task run, such as `chunk-3-of-12-6248201a9251`: its place, and its digest."""
    ref: ChunkRef = parameters["ref"]
    return f"chunk-{runs.current().places[ref.digest]}-{ref.digest:.12}"


@task(
    task_run_name=cast("Any", chunk_name),
    cache_key_fn=policies.chunk_cache_key,
    retry_condition_fn=policies.worth_another_try,
    persist_result=True,
    result_serializer="json",
)
def transfer_chunk(ref: ChunkRef, fingerprint: str) -> dict[str, Any] | State[Any]:  # noqa: ARG001 (the cache key reads it)
    """Transfer a chunk's rows, and return its counts. Raises ChunkIncomplete if rows are still pending.

    The state of a chunk with failed rows is Completed, too, and says how many: `3 rows failed`.
    """
    run = runs.current()
    retry = (task_run.run_count or 1) - 1
    if retry:  # not by Prefect: neither a stop nor a Ctrl-C can end Prefect's wait for a retry
        run.runtime.sleep(policies.chunk_delay_s(run.job.retries, retry, run.runtime.rng))
    result = run.pool.run_chunk(ref)
    counts = dataclasses.asdict(result)
    if failed := result.counts.get("failed"):
        run.note_problem(ref, str(task_run.id), f"{failed:,} of {ref.rows:,} rows failed")
        return Completed(name=f"{failed:,} {'row' if failed == 1 else 'rows'} failed", data=counts)
    return counts


class MoreChunks(Protocol):
    """Chunks that the run may come to have later, since other machines work on the plan, too."""

    @property
    def is_open(self) -> bool:
        """Whether there may be more, or another machine is still at work."""
        ...

    def take(self) -> Sequence[ChunkRef]:
        """Returns chunks for this machine, as far as there are some now. Called a few times a second."""
        ...


def transfer_all(run: runs.Run, refs: Sequence[ChunkRef], more: MoreChunks | None = None) -> None:
    """Map :func:`transfer_chunk` over the chunks, with a limited number of active ones.

    A chunk that sleeps until its retry does not count as active. No chunk is submitted while the run is paused, or
    after it was stopped.
    """
    run.number_chunks(refs)
    mapped = transfer_chunk.with_options(retries=run.job.retries.chunk_attempts, retry_delay_seconds=0)
    waiting = deque(refs)
    futures: dict[concurrent.futures.Future[Any], tuple[ChunkRef, Any]] = {}
    fingerprint = run.job.fingerprint()
    if any(ref.done < ref.rows for ref in refs):
        run.shared.join(run.runtime.sleep)
    run.pool.transferring = True
    while futures or ((waiting or (more is not None and more.is_open)) and not run.runtime.stopping):
        if run.pool.adjust():
            get_run_logger().info("now %d engine processes, since one core limited the rate", run.pool.processes)
        for change in run.pool.follow_limits():
            get_run_logger().info("%s", change)
        # not earlier: chunks that this machine keeps ahead are lost to the others
        if more is not None and not waiting and len(futures) < WINDOW and not run.runtime.stopping:
            waiting.extend(more.take())
        while waiting and not run.runtime.stopping and has_room(run, waiting[0], len(futures)):
            ref = waiting.popleft()
            future = cast("PrefectConcurrentFuture[Any]", mapped.submit(ref, fingerprint))
            futures[future.wrapped_future] = (ref, future)
        if not futures:  # paused between two chunks, or other machines are still at work
            run.runtime.sleep(POLL_S)
        done, _ = concurrent.futures.wait(futures, POLL_S, concurrent.futures.FIRST_COMPLETED)
        for finished in done:
            ref, future = futures.pop(finished)
            future.wait()
            _record(run, ref, future.state)
    run.pool.transferring = False
    if run.hopeless and not nothing_came(run.runtime.progress.snapshot()):
        # Other hosts answered, which took a while. A pass tries these chunks once more, without a wait.
        run.returned += run.hopeless
        run.needs_repair = True
    run.hopeless.clear()
    for ref in waiting:
        run.incomplete[ref.digest] = run.runtime.stop_reason


def nothing_came(s: Snapshot) -> bool:
    """Returns whether no host has answered in this run: no row has another outcome than a failed connection."""
    silent = (ErrorClass.DNS, ErrorClass.TLS, ErrorClass.CONNECTION, ErrorClass.TIMEOUT)
    return s.failed == s.done and set(s.classes) <= set(silent)


def has_room(run: runs.Run, ref: ChunkRef, submitted: int) -> bool:
    """Returns whether to start one more chunk: up to WINDOW always, then while a process needs more rows."""
    awake = submitted - run.runtime.chunks_waiting()
    return awake < MOST_CHUNKS and not run.runtime.paused and run.pool.assign(ref, wanted=awake < WINDOW)


def _has_outcomes(run: runs.Run, ref: ChunkRef) -> bool:
    """Returns whether all rows of a chunk have outcomes: in the ledger, or in this run from another attempt."""
    to_do = ref.rows - ref.done
    return to_do == 0 or len(recorded_of(run.state, run.run_no, ref.digest)) >= to_do


def _record(run: runs.Run, ref: ChunkRef, state: State[Any]) -> None:
    """Record the end of a chunk's task run."""
    run.pool.forget(ref.digest)
    run.task_runs[ref.digest] = str(state.state_details.task_run_id)
    if state.is_completed():
        run.returned.append(ref.digest)
        if state.name == "Cached":
            run.cached += 1
            run.needs_repair = run.needs_repair or not _has_outcomes(run, ref)
        return
    error = state.result(raise_on_failure=False)
    if isinstance(error, ChunkIncomplete):
        run.incomplete[ref.digest] = error.why
        problem = f"{error.pending:,} of {ref.rows:,} rows are pending: {error.why}"
        run.note_problem(ref, run.task_runs[ref.digest], problem)
        run.hopeless += [ref.digest] if error.hopeless else []
        return
    if isinstance(error, ProcessLost):
        run.incomplete[ref.digest] = str(error)
        run.returned.append(ref.digest)  # as if it had returned without these rows: another pass takes them
        run.needs_repair = True
        return
    run.incomplete[ref.digest] = str(error)
    known = error if isinstance(error, FerryError) else FerryError(f"chunk {ref.digest[:12]}: {error}")
    run.errors.append(known)
    run.runtime.abort(known)
