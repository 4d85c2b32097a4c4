"""One chunk: its rows in bounded concurrency, outcomes written as they come, settled or incomplete."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from ferry.core import (
    Again,
    ChunkIncomplete,
    Confirmed,
    Damaged,
    ErrorClass,
    Fatal,
    KnownCopy,
    ObjectError,
    Outcome,
    Revalidate,
    Status,
    TransferResult,
    backoff_s,
    redact,
)
from ferry.http import from_origin
from ferry.ratelimit import PausedTooLong, Permit, host_of
from ferry.state import (
    DAMAGE_ADVICE,
    ChunkRef,
    State,
    append_outcomes,
    concat,
    manifest_digest_of,
    read_table,
    rows_of,
    to_bytes,
    verified_path,
    write_outcomes,
)
from ferry.storage import ObjectInfo
from ferry.transfer.chunk_queue import ChunkQueue, PendingRow
from ferry.transfer.dispatcher import HostQueue
from ferry.transfer.retry import Next, next_step
from ferry.transfer.runtime import Runtime, Settled

FLUSH_ROWS = 500
FLUSH_S = 2.0
AWAY_S = 0.5  # before a row is fetched again that found nobody at the destination; up to twice that
GRACE_S = 10.0  # in-flight objects get this long after a stop


@dataclass(slots=True)
class ChunkResult:
    """What a settled chunk returns: counts, and where its outcomes lie. Prefect stores it as JSON."""

    chunk: str
    counts: dict[str, int]
    bytes: int
    seconds: float
    outcomes: str  # name of the file; "" when an earlier run settled everything


class ChunkRows:
    """A chunk's rows, made from its table a slice at a time, without those that are settled already."""

    def __init__(self, table: pa.Table, done: Set[str], settled: Set[str]) -> None:
        self._table = table
        self._done = done
        self._settled = settled
        self._at = 0

    @property
    def unread(self) -> int:
        return len(self._table) - self._at

    def take(self, count: int) -> list[PendingRow] | None:
        if not self.unread:
            return None
        rows = rows_of(self._table.slice(self._at, count))
        self._at += len(rows)
        done, settled = self._done, self._settled
        return [
            PendingRow(row, host_of(row.source)) for row in rows if row.row_id not in done and row.row_id not in settled
        ]


ADVICE = "Run the job again: planning cuts its rows anew"


@dataclass(frozen=True, slots=True)
class Hints:
    """What the plan found out about a chunk's rows, by their IDs."""

    found: dict[str, ObjectInfo] = field(default_factory=dict)  # what exists at the destination
    known: dict[str, KnownCopy] = field(default_factory=dict)  # what was moved before, and is looked at again
    done: set[str] = field(default_factory=set)  # they need nothing


def read_chunk(state: State, ref: ChunkRef) -> tuple[pa.Table, Hints]:
    """The rows, and what is known of them. Raises Damaged."""
    table, hints = _table(state, ref.uri), Hints()
    if not ref.hints:
        return table, hints
    keys = dict(zip(table.column("row_id").to_pylist(), table.column("key").to_pylist(), strict=True))
    for hint in _table(state, ref.hints).to_pylist():
        row_id = hint["row_id"]
        if hint["done"]:
            hints.done.add(row_id)
            continue
        if hint["dest_size"] is not None:
            hints.found[row_id] = ObjectInfo(keys[row_id], hint["dest_size"], hint["dest_etag"], None)
        if hint["revalidate"] is not None:
            hints.known[row_id] = KnownCopy(
                Revalidate(hint["revalidate"]), hint["key"], hint["size"], hint["md5"], hint["sha256"],
                hint["content_type"], hint["etag"], hint["last_modified"], hint["known_etag"], hint["bytes_read_at"],
                Confirmed(hint["confirmed"]) if hint.get("confirmed") else None,
            )  # fmt: skip
    return table, hints


def _table(state: State, name: str) -> pa.Table:
    try:
        return read_table(verified_path(state, name, ADVICE))
    except FileNotFoundError:
        raise Damaged(f"state file {name} is gone. {ADVICE}") from None


def still_there(outcome: Outcome, known: KnownCopy) -> Outcome:
    """A failed look at an object that was moved before: it stands as it was, and the ledger keeps what it knew."""
    return outcome._replace(
        key=known.key, size=known.size, md5=known.md5, sha256=known.sha256, content_type=known.content_type,
        source_etag=known.etag, source_last_modified=known.last_modified, dest_etag=known.dest_etag,
        bytes_read_at=known.bytes_read_at, confirmed=known.confirmed,
        message=f"{outcome.message}; what was copied before stands at the destination",
    )  # fmt: skip


class ChunkRun:
    """One attempt at a chunk. :meth:`run` returns when no row is pending and raises otherwise."""

    def __init__(self, runtime: Runtime, ref: ChunkRef, settled: Settled) -> None:
        self._rt = runtime
        self._ref = ref
        self._settled = settled
        self._buffer: list[Outcome] = []
        self._hints = Hints()
        self._look = ref.existing == "head"
        self._why = ""
        self._loop = asyncio.get_running_loop()
        self._rows: ChunkRows | None = None
        self._agenda: ChunkQueue | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._delayed: set[asyncio.TimerHandle] = set()
        self._over = asyncio.Event()
        self._closing = asyncio.Event()

    async def run(self) -> ChunkResult:
        """Raises ChunkIncomplete with rows pending, Fatal, Damaged for a chunk file."""
        started = time.monotonic()
        if self._ref.done >= self._ref.rows:
            return ChunkResult(self._ref.digest, {}, 0, 0.0, "")
        table, self._hints = await asyncio.to_thread(read_chunk, self._rt.state, self._ref)
        done = self._hints.done
        pending = len(table) - len(done) - len(self._settled.rows)
        # a copy of what was settled: rows that settle from now on are under way and not to be left out
        self._rows = ChunkRows(table, done, frozenset(self._settled.rows))
        self._agenda = ChunkQueue(self._rows)
        flusher = asyncio.create_task(self._flush_often())
        stop = asyncio.create_task(self._rt.stop.wait())
        over = asyncio.create_task(self._over.wait())
        dispatcher = self._rt.dispatcher
        try:
            if pending:
                dispatcher.enter(self)
            self._rt.begun(self._ref.digest)
            if pending:
                await asyncio.wait({stop, over}, return_when=asyncio.FIRST_COMPLETED)
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=GRACE_S)
        finally:
            self._closing.set()
            dispatcher.exit(self)
            for timer in self._delayed:
                timer.cancel()
            under_way = list(self._under_way)
            for task in (*under_way, stop, over):
                task.cancel()
            await asyncio.gather(*under_way, flusher, stop, over, return_exceptions=True)
            await self._flush()
        if self._rt.fatal is not None:
            raise self._rt.fatal
        pending = len(table) - len(done) - len(self._settled.rows)
        if pending:
            raise ChunkIncomplete(self._ref.digest, pending, self._why or self._rt.stop_reason or "not reached")
        name = await asyncio.to_thread(self._merge_parts)
        return ChunkResult(
            self._ref.digest, self._settled.counts, self._settled.bytes, time.monotonic() - started, name
        )

    # --- what the dispatcher asks

    def more(self) -> Sequence[PendingRow]:
        assert self._agenda is not None
        items = self._agenda.more()
        if self._agenda.over:
            self._over.set()
        return items

    def rows_unread(self) -> int:
        return self._rows.unread if self._rows is not None else 0

    def rows_delayed(self) -> int:
        return len(self._delayed)

    def begin(self, item: PendingRow, lane: HostQueue) -> None:
        task = self._loop.create_task(self._try(item, lane))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def leave(self, item: PendingRow, why: str) -> None:  # noqa: ARG002
        self._why = why or self._why
        self._done()

    def _done(self) -> None:
        """One item less; the last one makes way for last tries, or ends the chunk."""
        assert self._agenda is not None
        self._agenda.done()
        self._see_to_the_end()

    def _see_to_the_end(self) -> None:
        assert self._agenda is not None
        if self._agenda.idle:  # a turn of the loop later: what leaves a whole slice pending must not recurse
            self._loop.call_soon(self._rt.dispatcher.feed, self)

    # --- one try of one row

    async def _try(self, item: PendingRow, lane: HostQueue) -> None:
        """One request for the row, in the place at its host that it was given."""
        rt, row = self._rt, item.row
        if item.started_at is None:
            item.started_at = datetime.now(UTC)
        item.tries += 1
        place = Permit(lane.limit, rt.mover.waits.moved)
        circuit = lane.circuit
        try:
            moved = await rt.mover.move(
                row, self._hints.found.get(row.row_id), place, look=self._look, known=self._hints.known.get(row.row_id)
            )
        except ObjectError as error:
            if error.at_destination:
                circuit.record_ok()  # the source did what it should
            else:
                circuit.record_error(error.error_class, error.status_code, error.body_sha256)
            self._failed(item, error, circuit.open_reason)
            rt.dispatcher.look(item.host)
        except PausedTooLong as pause:
            self.leave(item, str(pause))
        except Exception as exc:  # noqa: BLE001 - a bug of ours must not end the chunk: it is this row's outcome
            error_or_fatal = from_origin(exc)
            if isinstance(error_or_fatal, Fatal):
                self.leave(item, "")
                rt.give_up(error_or_fatal)
            else:
                self._failed(item, error_or_fatal, None)
        else:
            circuit.record_ok()
            item.requests += moved.requests
            self._settle(item, moved)
            self._done()
        finally:
            place.release()
            rt.mover.waits.over()

    def _failed(self, item: PendingRow, error: ObjectError, open_reason: str | None) -> None:
        retries = self._rt.retries
        item.requests += max(1, error.requests)
        item.may_have_written |= error.at_destination
        item.mismatches += error.error_class is ErrorClass.DIGEST_MISMATCH
        if open_reason is not None and error.again is not Again.NEVER and not error.at_destination:
            self.leave(item, open_reason)  # the host is in trouble, not this row
            return
        if error.destination_unreachable:  # nor this row's failure: it waits, as those do that wait for a place there
            item.excused += 1
            self._after(AWAY_S + backoff_s(1, AWAY_S, AWAY_S, self._rt.rng), item)
            return
        tries = item.tries - item.excused
        step = next_step(
            error, tries, retries.attempts, item.last, retries.max_backoff_s,
            delay_s=backoff_s(tries, retries.backoff_s, retries.max_backoff_s, self._rt.rng),
            mismatches=item.mismatches,
        )  # fmt: skip
        if step.next is Next.RETRY_AFTER:
            item.last = False
            self._after(step.delay_s, item)
        elif step.next is Next.TO_THE_END:
            assert self._agenda is not None
            self._agenda.requeue_last(item)
            self._see_to_the_end()
        else:
            self._settle(item, self._rt.mover.unconfirmed.last_word(item.row, error))
            self._done()

    def _after(self, delay_s: float, item: PendingRow) -> None:
        def due() -> None:
            self._delayed.discard(timer)
            self._rt.dispatcher.again(item, self)

        timer = self._loop.call_later(delay_s, due)
        self._delayed.add(timer)

    # --- outcomes

    def _settle(self, item: PendingRow, end: TransferResult | ObjectError) -> None:
        outcome = self._outcome(item, end)
        self._buffer.append(outcome)
        counts = self._settled.counts
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
        moved_bytes = end.bytes_read if isinstance(end, TransferResult) else 0
        self._settled.bytes += moved_bytes
        self._rt.progress.add(outcome.status, outcome.error_class, moved_bytes)

    def _outcome(self, item: PendingRow, end: TransferResult | ObjectError) -> Outcome:
        row, rt = item.row, self._rt
        now = datetime.now(UTC)
        if isinstance(end, ObjectError):
            outcome = Outcome(
                row_id=row.row_id, source=redact(row.source), key=row.key, id=row.id, status=Status.FAILED,
                error_class=end.error_class, status_code=end.status_code, message=end.message,
                retryable=end.again is not Again.NEVER, reason=row.reason, attempt=row.attempt,
                requests=item.requests, size=row.size, md5=None, sha256=None, content_type=None, source_etag=None,
                source_last_modified=None, dest_etag=None, started_at=item.started_at or now, recorded_at=now,
                run_no=rt.run_no, chunk=self._ref.digest, settings_digest=rt.settings_digest,
                consecutive_failures=row.consecutive_failures + 1,
            )  # fmt: skip
            known = self._hints.known.get(row.row_id)
            return outcome if known is None or item.may_have_written else still_there(outcome, known)
        return Outcome(
            row_id=row.row_id, source=redact(row.source), key=end.key, id=row.id, status=end.status,
            error_class=end.error_class, status_code=None, message=end.message, retryable=False, reason=row.reason,
            attempt=row.attempt, requests=item.requests, size=end.size, md5=end.md5, sha256=end.sha256,
            content_type=end.content_type, source_etag=end.source_etag,
            source_last_modified=end.source_last_modified, dest_etag=end.dest_etag,
            started_at=item.started_at or now, recorded_at=now, run_no=rt.run_no, chunk=self._ref.digest,
            settings_digest=rt.settings_digest, manifest_digest=manifest_digest_of(row),
            checked_by=end.checked_by, bytes_read_at=end.bytes_read_at or item.started_at or now,
            confirmed=end.confirmed,
        )  # fmt: skip

    async def _flush_often(self) -> None:
        since = time.monotonic()
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), 0.2)
            if len(self._buffer) >= FLUSH_ROWS or (self._buffer and time.monotonic() - since >= FLUSH_S):
                try:
                    await self._flush()
                except Exception as error:  # noqa: BLE001 - whatever it is, outcomes can no longer be written
                    self._rt.give_up(error)
                    return
                since = time.monotonic()

    async def _flush(self) -> None:
        """Writes what is in the buffer. Rows whose outcome was not written are not settled."""
        batch, self._buffer = self._buffer, []
        if not batch:
            return
        part = self._settled.next_part
        self._settled.next_part += 1
        name = await asyncio.to_thread(self._append, batch, part)
        self._settled.parts.append(name)
        self._settled.rows.update(outcome.row_id for outcome in batch)

    def _append(self, batch: list[Outcome], part: int) -> str:
        self._rt.check_lease()
        return append_outcomes(self._rt.state, batch, self._rt.run_no, self._ref.digest, part)

    def _merge_parts(self) -> str:
        """One outcomes file for a settled chunk: the parts are deleted once the whole is written."""
        settled = self._settled
        if len(settled.parts) < 2:
            return settled.parts[0] if settled.parts else ""
        self._rt.check_lease()
        parts = [read_table(verified_path(self._rt.state, name, DAMAGE_ADVICE)) for name in settled.parts]
        whole = to_bytes(concat(parts))
        name = write_outcomes(self._rt.state, whole, self._rt.run_no, self._ref.digest, settled.next_part)
        self._rt.state.delete(settled.parts)
        settled.parts = [name]
        return name


def run_chunk(runtime: Runtime, ref: ChunkRef) -> ChunkResult:
    """Runs a chunk in the runtime's loop and waits for it; for the threads that Prefect runs tasks in.

    Raises ChunkIncomplete, Fatal or UserError. What was settled before a ChunkIncomplete is remembered
    for the next attempt in this process; another process finds it in the ledger.
    """
    settled = runtime.settled.setdefault(ref.digest, Settled())
    with runtime.awake(ref.digest):
        result = runtime.wait(_run(runtime, ref, settled))
    runtime.settled.pop(ref.digest, None)
    return result


async def _run(runtime: Runtime, ref: ChunkRef, settled: Settled) -> ChunkResult:
    return await ChunkRun(runtime, ref, settled).run()
