"""One chunk: its rows in bounded concurrency, outcomes written as they come, settled or incomplete."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tasks.engine import ledger, tables
from tasks.engine.agenda import Agenda, Item
from tasks.engine.circuit import Circuit
from tasks.engine.errors import ChunkIncomplete, Fatal, ObjectError, UserError, from_origin
from tasks.engine.limiter import PausedTooLong
from tasks.engine.objects import Again, ErrorClass, Outcome, Row, Status
from tasks.engine.plan import ChunkRef
from tasks.engine.retry import Next, backoff_s, next_step
from tasks.engine.runtime import Runtime, Settled
from tasks.engine.store import Found
from tasks.engine.transfer import Moved, host_of, overload
from tasks.engine.urls import redact

FLUSH_ROWS = 500
FLUSH_S = 2.0
PROBE_POLL_S = 0.25  # rows of a host that is being probed wait for the answer
GRACE_S = 10.0  # in-flight objects get this long after a stop


@dataclass(slots=True)
class ChunkResult:
    """What a settled chunk returns: counts, and where its outcomes lie. Prefect stores it as JSON."""

    chunk: str
    counts: dict[str, int]
    bytes: int
    seconds: float
    outcomes: str  # name of the file; "" when an earlier run settled everything


def read_chunk(runtime: Runtime, ref: ChunkRef) -> tuple[list[Row], dict[str, Found], set[str]]:
    """Rows, what exists of them at the destination, and which need nothing. Raises UserError when damaged."""
    try:
        path = runtime.state.local(ref.uri)
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"chunk file {ref.uri} is gone. Restore it, or plan anew with `ferry run --replan`") from None
    if tables.digest(data) != ref.digest:
        raise UserError(f"chunk file {ref.uri} is damaged. Restore it, or plan anew with `ferry run --replan`")
    rows = tables.rows_of(tables.read_table(path))
    found: dict[str, Found] = {}
    done: set[str] = set()
    try:
        hints = tables.read_table(runtime.state.local(ref.hints)).to_pylist()
    except FileNotFoundError:
        hints = []
    keys = {row.row_id: row.key for row in rows} if hints else {}
    for hint in hints:
        if hint["done"]:
            done.add(hint["row_id"])
        elif hint["dest_size"] is not None:
            found[hint["row_id"]] = Found(keys[hint["row_id"]], hint["dest_size"], hint["dest_etag"], None)
    return rows, found, done


class ChunkRun:
    """One attempt at a chunk. :meth:`run` returns when no row is pending and raises otherwise."""

    def __init__(self, runtime: Runtime, ref: ChunkRef, settled: Settled) -> None:
        self._rt = runtime
        self._ref = ref
        self._settled = settled
        self._buffer: list[Outcome] = []
        self._found: dict[str, Found] = {}
        self._left = 0
        self._why = ""
        self._alive = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()
        self._agenda = Agenda(())
        self._closing = asyncio.Event()

    async def run(self) -> ChunkResult:
        """Raises ChunkIncomplete with rows pending, Fatal, UserError for a damaged chunk file."""
        started = time.monotonic()
        if self._ref.done >= self._ref.rows:
            return ChunkResult(self._ref.digest, {}, 0, 0.0, "")
        rows, self._found, done = await asyncio.to_thread(read_chunk, self._rt, self._ref)
        self._agenda = Agenda(row for row in rows if row.row_id not in done and row.row_id not in self._settled.rows)
        flusher = asyncio.create_task(self._flush_often())
        stop = asyncio.create_task(self._rt.stop.wait())
        over = asyncio.create_task(self._over.wait())
        try:
            self._pump()
            await asyncio.wait({stop, over}, return_when=asyncio.FIRST_COMPLETED)
            if not self._over.is_set():
                await asyncio.wait({over}, timeout=GRACE_S)
        finally:
            self._closing.set()
            for task in (*self._workers, stop, over):
                task.cancel()
            await asyncio.gather(*self._workers, flusher, stop, over, return_exceptions=True)
            if self._timer is not None:
                self._timer.cancel()
            await self._flush()
        if self._rt.fatal is not None:
            raise self._rt.fatal
        pending = len(rows) - len(done) - len(self._settled.rows)
        if pending:
            raise ChunkIncomplete(self._ref.digest, pending, self._why or self._rt.stop_reason or "not reached")
        name = await asyncio.to_thread(self._merge_parts)
        return ChunkResult(
            self._ref.digest, self._settled.counts, self._settled.bytes, time.monotonic() - started, name
        )

    # --- handing out rows

    def _pump(self) -> None:
        """Starts workers while there are rows for them; the last one to leave says that it is over."""
        self._timer = None
        now = time.monotonic()
        while self._alive < self._rt.width and not self._rt.stop.is_set():
            item = self._agenda.next(now)
            if isinstance(item, Item):
                self._alive += 1
                task = asyncio.create_task(self._work(item))
                self._workers.add(task)
                task.add_done_callback(self._gone)
                continue
            if item is not None and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(item, self._pump)
            break
        if not self._alive and (self._agenda.empty or self._rt.stop.is_set()):
            self._over.set()

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._workers.discard(task)
        self._alive -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            self._rt.give_up(error)
        if self._timer is not None:
            self._timer.cancel()
        self._pump()

    async def _work(self, item: Item) -> None:
        following: Item | float | None = item
        while isinstance(following, Item):
            await self._try(following)
            if self._rt.stop.is_set():
                return
            following = self._agenda.next(time.monotonic())
            if isinstance(following, Item) and following.last:
                self._pump()  # workers that found nothing to do have left; last tries are for all of them

    # --- one try of one row

    async def _try(self, item: Item) -> None:
        row, rt = item.row, self._rt
        host = host_of(row.source)
        circuit = rt.circuit(host)
        if circuit.open_reason is not None and not circuit.may_probe():
            if circuit.probing:
                self._agenda.retry(item, time.monotonic() + PROBE_POLL_S)
            else:
                self._leave(item, circuit.open_reason)
            return
        if not item.tries and not rt.permit():
            self._leave(item, "the run's --limit is reached")
            return
        try:
            await self._ask(item, host, circuit)
        except PausedTooLong as pause:
            self._leave(item, str(pause))

    async def _ask(self, item: Item, host: str, circuit: Circuit) -> None:
        """One request for the row, in a place at its host. Raises PausedTooLong."""
        row, rt = item.row, self._rt
        item.started_at = item.started_at or datetime.now(UTC)
        item.tries += 1
        async with rt.limiter.host(host).slot() as slot:
            if rt.stop.is_set():
                self._leave(item, "")
                return
            started = time.monotonic()
            try:
                moved = await rt.mover.move(row, self._found.get(row.row_id), look=self._ref.existing == "head")
            except Fatal:
                self._leave(item, "")
                raise
            except PausedTooLong:
                raise
            except ObjectError as error:
                if not error.at_destination:
                    circuit.record_error(error.error_class, error.status_code, error.body_sha256)
                    if how_sure := overload(error):
                        slot.overloaded(error.retry_after_s, error.message, sure=how_sure == "sure")
                failure = error
            except Exception as exc:  # a bug of ours must not end the chunk: it is this row's outcome
                error_or_fatal = from_origin(exc)
                if isinstance(error_or_fatal, Fatal):
                    self._leave(item, "")
                    raise error_or_fatal from exc
                failure = error_or_fatal
            else:
                slot.ok(time.monotonic() - started)
                circuit.record_ok()
                item.requests += moved.requests
                self._agenda.done(item)
                self._settle(item, moved)
                return
        self._failed(item, failure, circuit.open_reason)

    def _failed(self, item: Item, error: ObjectError, open_reason: str | None) -> None:
        retries = self._rt.retries
        item.requests += max(1, error.requests)
        item.mismatches += error.error_class is ErrorClass.DIGEST_MISMATCH
        if open_reason is not None and error.again is not Again.NEVER and not error.at_destination:
            self._leave(item, open_reason)  # the host is in trouble, not this row
            return
        step = next_step(
            error, item.tries, retries.attempts, item.last, retries.max_backoff_s,
            delay_s=backoff_s(item.tries, retries.backoff_s, retries.max_backoff_s, self._rt.rng),
            mismatches=item.mismatches,
        )  # fmt: skip
        if step.next is Next.RETRY_AFTER:
            self._agenda.retry(item, time.monotonic() + step.delay_s)
        elif step.next is Next.TO_THE_END:
            self._agenda.to_the_end(item)
        else:
            self._agenda.done(item)
            self._settle(item, error)

    def _leave(self, item: Item, why: str) -> None:
        """The row stays pending."""
        self._agenda.done(item)
        self._left += 1
        self._why = why or self._why

    # --- outcomes

    def _settle(self, item: Item, end: Moved | ObjectError) -> None:
        outcome = self._outcome(item, end)
        self._buffer.append(outcome)
        counts = self._settled.counts
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
        moved_bytes = end.bytes_read if isinstance(end, Moved) else 0
        self._settled.bytes += moved_bytes
        self._rt.progress.add(outcome.status, outcome.error_class, moved_bytes)

    def _outcome(self, item: Item, end: Moved | ObjectError) -> Outcome:
        row, rt = item.row, self._rt
        now = datetime.now(UTC)
        base = Outcome(
            row_id=row.row_id, source=redact(row.source), key=row.key, id=row.id, status=Status.FAILED,
            error_class=None, status_code=None, message=None, retryable=False, reason=row.reason,
            attempt=row.attempt, requests=item.requests, size=row.size, md5=None, sha256=None,
            content_type=None, source_etag=None, source_last_modified=None, dest_etag=None,
            started_at=item.started_at or now, recorded_at=now, run_no=rt.run_no, chunk=self._ref.digest, how=rt.how,
        )  # fmt: skip
        if isinstance(end, ObjectError):
            return replace(
                base, error_class=end.error_class, status_code=end.status_code, message=end.message,
                retryable=end.again is not Again.NEVER,
            )  # fmt: skip
        return replace(
            base, status=end.status, key=end.key, error_class=end.error_class, message=end.message, size=end.size,
            md5=end.md5, sha256=end.sha256, content_type=end.content_type, source_etag=end.source_etag,
            source_last_modified=end.source_last_modified, dest_etag=end.dest_etag,
        )  # fmt: skip

    async def _flush_often(self) -> None:
        since = time.monotonic()
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), 0.2)
            if len(self._buffer) >= FLUSH_ROWS or (self._buffer and time.monotonic() - since >= FLUSH_S):
                try:
                    await self._flush()
                except Fatal as error:
                    self._rt.give_up(error)
                    return
                since = time.monotonic()

    async def _flush(self) -> None:
        """Writes what is in the buffer. Rows whose outcome was not written are not settled."""
        batch, self._buffer = self._buffer, []
        if not batch:
            return
        self._rt.check_lease()
        part = self._settled.next_part
        self._settled.next_part += 1
        name = await asyncio.to_thread(ledger.append, self._rt.state, batch, self._rt.run_no, self._ref.digest, part)
        self._settled.parts.append(name)
        self._settled.rows.update(outcome.row_id for outcome in batch)

    def _merge_parts(self) -> str:
        """One outcomes file for a settled chunk: the parts are deleted once the whole is written."""
        settled = self._settled
        if len(settled.parts) < 2:
            return settled.parts[0] if settled.parts else ""
        self._rt.check_lease()
        parts = [tables.read_table(self._rt.state.local(name)) for name in settled.parts]
        name = ledger.outcome_name(self._rt.run_no, self._ref.digest, settled.next_part)
        self._rt.state.write(name, tables.to_bytes(tables.concat(parts)))
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
        result = runtime.wait(ChunkRun(runtime, ref, settled).run())
    runtime.settled.pop(ref.digest, None)
    return result
