"""Execution of one chunk: starts its rows, retries them, and writes their outcomes as they finish."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ferry.core import (
    Again,
    ChunkIncomplete,
    ErrorClass,
    Fatal,
    ObjectError,
    Outcome,
    Status,
    TransferResult,
    backoff_s,
    redact,
)
from ferry.http import from_origin
from ferry.ratelimit import CircuitBreaker, PausedTooLong, Permit, silence_of
from ferry.state import (
    DAMAGE_ADVICE,
    ChunkRef,
    append_outcomes,
    concat,
    manifest_digest_of,
    read_table,
    recorded_of,
    to_bytes,
    verified_path,
    write_outcomes,
)
from ferry.transfer.chunk_queue import ChunkQueue, PendingRow
from ferry.transfer.chunk_rows import ChunkRows, Hints, read_chunk, repeated_apart, with_known_copy
from ferry.transfer.dispatcher import HostQueue
from ferry.transfer.retry import Next, next_step
from ferry.transfer.runtime import ChunkProgress, Runtime

FLUSH_ROWS = 500
FLUSH_S = 2.0
OUTAGE_RETRY_S = 0.5  # before the next try of a row in an outage; up to twice that
GRACE_S = 10.0  # for rows in progress to finish after a stop


@dataclass(slots=True)
class ChunkResult:
    """The result of a finished chunk, which Prefect stores as JSON."""

    chunk: str
    counts: dict[str, int]
    bytes: int
    seconds: float
    outcomes: str  # name of the outcomes file; "" if earlier runs had done all rows


class ChunkRun:
    """One attempt at a chunk. :meth:`run` returns when no row is pending and raises otherwise."""

    def __init__(self, runtime: Runtime, ref: ChunkRef, progress: ChunkProgress) -> None:
        self._rt = runtime
        self._ref = ref
        self._progress = progress
        self._buffer: list[Outcome] = []
        self._hints = Hints()
        self._check_existing = ref.existing == "head"
        self._why_pending = ""
        self._left_pending = self._hopeless = 0  # rows; of these, those whose host never answered
        self._loop = asyncio.get_running_loop()
        self._rows: ChunkRows | None = None
        self._queue: ChunkQueue | None = None
        self._in_progress: set[asyncio.Task[None]] = set()
        self._delayed: set[asyncio.TimerHandle] = set()
        self._finished = asyncio.Event()
        self._closing = asyncio.Event()

    async def run(self) -> ChunkResult:
        """Does all rows. Raises ChunkIncomplete with rows pending, Fatal, and Damaged for a chunk file."""
        started = time.monotonic()
        if self._ref.done >= self._ref.rows:
            return ChunkResult(self._ref.digest, {}, 0, 0.0, "")
        table, self._hints = await asyncio.to_thread(read_chunk, self._rt.state, self._ref)
        done = self._hints.done
        pending = len(table) - len(done) - len(self._progress.rows)
        # a copy of the set, since rows that finish from now on must not be left out: they are in progress
        recorded = frozenset(self._progress.rows)
        first, later = repeated_apart(table) if self._rt.dedupe else (table, None)
        self._rows = ChunkRows(first, done, recorded)
        self._queue = ChunkQueue(self._rows, ChunkRows(later, done, recorded) if later is not None else None)
        flusher = asyncio.create_task(self._flush_until_closing())
        stop = asyncio.create_task(self._rt.stop.wait())
        finished = asyncio.create_task(self._finished.wait())
        dispatcher = self._rt.dispatcher
        try:
            if pending:
                dispatcher.enter(self)
            self._rt.begun(self._ref.digest)
            if pending:
                await asyncio.wait({stop, finished}, return_when=asyncio.FIRST_COMPLETED)
            if self._in_progress:
                await asyncio.wait(self._in_progress, timeout=GRACE_S)
        finally:
            self._closing.set()
            dispatcher.exit(self)
            for timer in self._delayed:
                timer.cancel()
            in_progress = list(self._in_progress)
            for task in (*in_progress, stop, finished):
                task.cancel()
            await asyncio.gather(*in_progress, flusher, stop, finished, return_exceptions=True)
            await self._flush()
        if self._rt.fatal is not None:
            raise self._rt.fatal
        pending = len(table) - len(done) - len(self._progress.rows)
        if pending:
            why = self._why_pending or self._rt.stop_reason or "not started"
            hopeless = 0 < self._hopeless == self._left_pending
            raise ChunkIncomplete(self._ref.digest, pending, why, hopeless=hopeless)
        name = await asyncio.to_thread(self._merge_parts)
        return ChunkResult(
            self._ref.digest, self._progress.counts, self._progress.bytes, time.monotonic() - started, name
        )

    # --- the dispatcher's interface (dispatcher.Attempt)

    def next_rows(self) -> Sequence[PendingRow]:
        assert self._queue is not None
        items = self._queue.next_rows()
        if self._queue.finished:
            self._finished.set()
        return items

    def rows_unread(self) -> int:
        return self._rows.unread if self._rows is not None else 0

    def rows_delayed(self) -> int:
        return len(self._delayed)

    def begin(self, item: PendingRow, host: HostQueue) -> None:
        task = self._loop.create_task(self._try(item, host))
        self._in_progress.add(task)
        task.add_done_callback(self._in_progress.discard)

    def leave_pending(self, item: PendingRow, why: str, *, hopeless: bool = False) -> None:  # noqa: ARG002
        self._why_pending = why or self._why_pending
        self._left_pending += 1
        self._hopeless += hopeless
        self._done()

    def _done(self) -> None:
        """Gives a row back to the queue; after the last one, last tries begin or the chunk ends."""
        assert self._queue is not None
        self._queue.done()
        self._feed_if_idle()

    def _feed_if_idle(self) -> None:
        assert self._queue is not None
        if self._queue.idle:  # by the loop, since leaving a whole slice pending must not recurse
            self._loop.call_soon(self._rt.dispatcher.feed, self)

    # --- one try of one row

    async def _try(self, item: PendingRow, host: HostQueue) -> None:
        """Tries a row once, with the permit of its host that the dispatcher has taken."""
        rt, row = self._rt, item.to_fetch
        known = self._hints.known.get(row.row_id)
        if item.started_at is None:
            item.started_at = datetime.now(UTC)
        item.tries += 1
        permit = Permit(host.limit, rt.object_transfer.waits.moved)
        circuit = host.circuit
        try:
            result = await rt.object_transfer.transfer(
                row, self._hints.found.get(row.row_id), permit,
                check_existing=self._check_existing,
                known=known and known.at(item.address, is_source=not item.failures),
                in_ledger=self._hints.in_ledger.get(row.row_id),
            )  # fmt: skip
        except ObjectError as error:
            if error.at_destination:
                circuit.record_ok()  # the source responded as it should
            else:
                circuit.record_error(error.error_class, error.status_code, error.body_sha256, silence_of(error))
                if error.outage:
                    host.limit.pause_until(time.monotonic() + 2 * OUTAGE_RETRY_S, error.message)
            self._failed(item, error, circuit)
            rt.dispatcher.check_pause(host.name)
        except PausedTooLong as pause:
            self.leave_pending(item, str(pause))
        except Exception as exc:  # noqa: BLE001 - a bug must not end the chunk: it becomes this row's outcome
            error_or_fatal = from_origin(exc)
            if isinstance(error_or_fatal, Fatal):
                self.leave_pending(item, "")
                rt.abort(error_or_fatal)
            else:
                self._failed(item, error_or_fatal)
        else:
            circuit.record_ok()
            item.requests += result.requests
            self._record(item, result)
            self._done()
        finally:
            rt.dispatcher.note_response(host)
            permit.release()
            rt.object_transfer.waits.over()

    def _failed(self, item: PendingRow, error: ObjectError, circuit: CircuitBreaker | None = None) -> None:
        """Retries a row after an error, leaves it pending, or records that it failed."""
        retries = self._rt.retries
        item.requests += max(1, error.requests)
        item.may_have_written |= error.at_destination
        item.mismatches += error.error_class is ErrorClass.DIGEST_MISMATCH
        why = circuit.open_reason if circuit is not None else None
        if circuit is not None and why and error.again is not Again.NEVER and not error.at_destination:
            self.leave_pending(item, why, hopeless=circuit.is_hopeless)  # the host's failure, and not this row's
            return
        if error.outage:  # of the destination or of a proxy: the row waits like those that have not begun
            item.excused += 1
            self._retry_after(OUTAGE_RETRY_S + backoff_s(1, OUTAGE_RETRY_S, OUTAGE_RETRY_S, self._rt.rng), item)
            return
        tries = item.tries - item.excused
        step = next_step(
            error, tries, retries.attempts, item.last, retries.max_backoff_s,
            delay_s=backoff_s(tries, retries.backoff_s, retries.max_backoff_s, self._rt.rng),
            mismatches=item.mismatches, more_addresses=item.has_next_address,
        )  # fmt: skip
        if step.next is Next.RETRY_AFTER:
            item.last = False
            self._retry_after(step.delay_s, item)
        elif step.next is Next.NEXT_ADDRESS:
            item.to_next_address(error)
            self._retry_after(0.0, item)  # in the queue of that address's host
        elif step.next is Next.REQUEUE_LAST:
            assert self._queue is not None
            self._queue.requeue_last(item)
            self._feed_if_idle()
        else:
            self._record(item, self._rt.object_transfer.unconfirmed.final_error(item.row, error))
            self._done()

    def _retry_after(self, delay_s: float, item: PendingRow) -> None:
        def due() -> None:
            self._delayed.discard(timer)
            self._rt.dispatcher.retry(item, self)

        timer = self._loop.call_later(delay_s, due)
        self._delayed.add(timer)

    # --- outcomes

    def _record(self, item: PendingRow, end: TransferResult | ObjectError) -> None:
        """Adds the row's outcome to the buffer and counts it."""
        outcome = self._outcome(item, end)
        self._buffer.append(outcome)
        counts = self._progress.counts
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
        bytes_read = end.bytes_read if isinstance(end, TransferResult) else 0
        self._progress.bytes += bytes_read
        self._rt.progress.add(outcome.status, outcome.error_class, bytes_read)

    def _outcome(self, item: PendingRow, end: TransferResult | ObjectError) -> Outcome:
        row, rt = item.row, self._rt
        now = datetime.now(UTC)
        if isinstance(end, ObjectError):
            address, end, message = item.failure(end)
            outcome = Outcome(
                row_id=row.row_id, source=redact(row.source), key=row.key, id=row.id, status=Status.FAILED,
                error_class=end.error_class, status_code=end.status_code, message=message,
                retryable=end.again is not Again.NEVER, reason=row.reason, attempt=row.attempt,
                requests=item.requests, size=row.size, md5=None, sha256=None, content_type=None, source_etag=None,
                source_last_modified=None, dest_etag=None, started_at=item.started_at or now, recorded_at=now,
                run_no=rt.run_no, chunk=self._ref.digest, settings_digest=rt.settings_digest,
                consecutive_failures=row.consecutive_failures + 1, address=address,
            )  # fmt: skip
            known = self._hints.known.get(row.row_id)
            return outcome if known is None or item.may_have_written else with_known_copy(outcome, known)
        return Outcome(
            row_id=row.row_id, source=redact(row.source), key=end.key, id=row.id, status=end.status,
            error_class=end.error_class, status_code=None, message=end.message, retryable=False, reason=row.reason,
            attempt=row.attempt, requests=item.requests, size=end.size, md5=end.md5, sha256=end.sha256,
            content_type=end.content_type, source_etag=end.source_etag,
            source_last_modified=end.source_last_modified, dest_etag=end.dest_etag,
            started_at=item.started_at or now, recorded_at=now, run_no=rt.run_no, chunk=self._ref.digest,
            settings_digest=rt.settings_digest, manifest_digest=manifest_digest_of(row),
            checked_by=end.checked_by, bytes_read_at=end.bytes_read_at or item.started_at or now,
            confirmed=end.confirmed, address=redact(item.address) if item.failures else None, copy_of=end.copy_of,
            attributes_sha256=end.attributes_sha256, lost_attributes=end.lost_attributes,
        )  # fmt: skip

    async def _flush_until_closing(self) -> None:
        """Writes outcomes every FLUSH_ROWS rows or FLUSH_S seconds; aborts the run if they cannot be written."""
        since = time.monotonic()
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), 0.2)
            if len(self._buffer) >= FLUSH_ROWS or (self._buffer and time.monotonic() - since >= FLUSH_S):
                try:
                    await self._flush()
                except Exception as error:  # noqa: BLE001 - after any error here outcomes can no longer be written
                    self._rt.abort(error)
                    return
                since = time.monotonic()

    async def _flush(self) -> None:
        """Writes the buffer. A row is done once its outcome is written."""
        batch, self._buffer = self._buffer, []
        if not batch:
            return
        part = self._progress.next_part
        self._progress.next_part += 1
        name = await asyncio.to_thread(self._append, batch, part)
        self._progress.parts.append(name)
        self._progress.rows.update(outcome.row_id for outcome in batch)

    def _append(self, batch: list[Outcome], part: int) -> str:
        self._rt.check_lease()
        return append_outcomes(self._rt.state, batch, self._rt.run_no, self._ref.digest, part)

    def _merge_parts(self) -> str:
        """Merges a finished chunk's outcomes into one file, deletes the parts, and returns the file's name."""
        progress = self._progress
        if len(progress.parts) < 2:
            return progress.parts[0] if progress.parts else ""
        self._rt.check_lease()
        parts = [read_table(verified_path(self._rt.state, name, DAMAGE_ADVICE)) for name in progress.parts]
        merged = to_bytes(concat(parts))
        name = write_outcomes(self._rt.state, merged, self._rt.run_no, self._ref.digest, progress.next_part)
        self._rt.state.delete(progress.parts)
        progress.parts = [name]
        return name


def run_chunk(runtime: Runtime, ref: ChunkRef) -> ChunkResult:
    """Runs a chunk in the runtime's loop and waits for it; for the threads in which Prefect runs tasks.

    Raises ChunkIncomplete, Fatal or UserError. After a ChunkIncomplete the next attempt in this process continues with
    the rows that are left. In a run on several machines another process may have begun the chunk: what it recorded is
    taken over. In any other run, another process finds the rows that are done in the ledger.
    """
    progress = runtime.chunk_progress.get(ref.digest)
    if progress is None:
        progress = ChunkProgress()
        if runtime.on_machines and ref.done < ref.rows:
            done = recorded_of(runtime.state, runtime.run_no, ref.digest)
            progress.rows.update(done)
            progress.counts.update(Counter(status for status, _ in done.values()))
        runtime.chunk_progress[ref.digest] = progress
    with runtime.attempting(ref.digest):
        result = runtime.wait(_run(runtime, ref, progress))
    runtime.chunk_progress.pop(ref.digest, None)
    return result


async def _run(runtime: Runtime, ref: ChunkRef, progress: ChunkProgress) -> ChunkResult:
    return await ChunkRun(runtime, ref, progress).run()
