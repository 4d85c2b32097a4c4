"""Deletion of the copies whose rows were removed from the manifest (docs/how-to/delta-runs.md)."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from ferry.core import AGAIN, Again, Fatal, ObjectError, Outcome, Refused, Status
from ferry.job import Delta, Job
from ferry.planning import count_copies, find_removed, looks_truncated
from ferry.reconcile.source_check import SourceCheck
from ferry.state import (
    Counts,
    Missing,
    Plan,
    State,
    append_outcomes,
    check_lease,
    count,
    count_lists,
    failure_cell,
    find_missing,
    folded_ledger,
    missing_cases,
    outcomes_of,
    read_plan,
    steady_s,
)
from ferry.storage import Access, Store, open_store

if TYPE_CHECKING:
    import duckdb

AT_ONCE = 16
BATCH = 500
LEASE_CHECK_S = 10.0  # between two checks of the lease
TRIES, BETWEEN_TRIES_S = 3, 1.0
MAX_WAIT_S = 60.0  # for a longer Retry-After, the next run tries again
FAILURES_TO_STOP = 10  # so many failures before any deletion mean that no key can be deleted
DELETED = "deleted"
ABSENT = "not deleted: the destination does not have the object any more"
ANOTHER = "not deleted: the object is not the one that Ferry wrote there"
NO_ETAG = "not deleted: the destination gave no ETag, so Ferry cannot tell whether it wrote the object"
TO_DELETE = "to be deleted; the run did not finish"
COLUMNS = ("result", "key", "id", "source", "size", "md5", "sha256", "dest_etag", "recorded_at")
KEPT, WAITING = "kept", "waiting"  # how the text for a copy begins that this run does not delete


@dataclass(slots=True)
class PruneResult:
    """The result of pruning: the numbers of copies whose rows were removed from the manifest."""

    removed: int  # all such copies
    delete_after: int  # the manifests in a row that must lack a copy
    deleted: int = 0
    untracked: int = 0  # the object is missing, or is not known to be Ferry's: Ferry does not count it any more
    failed: int = 0
    first_failure: str = ""  # the key, and the error
    stop_reason: str = ""  # why the rest was not tried
    refused: str = ""  # why nothing was deleted, although `delete_removed` is set
    file: str = ""  # pruned.csv, which lists all copies with their results
    waiting: int = 0  # copies that too few manifests in a row have lacked
    kept: int = 0  # copies that a row or the source may still have

    @property
    def succeeded(self) -> bool:
        return not self.refused and not self.failed


def prune_removed(
    job: Job, state: State, source: Access, destination: Access, run_no: int, token: str
) -> dict[str, Any]:
    """Deletes the copies whose rows were removed from the manifest, and returns a :class:`PruneResult` as a dict.

    ``token`` is of the run's lease. Raises Fatal if another run has taken it.
    """
    plan = read_plan(state)
    assert plan is not None
    with folded_ledger(state, state.spool_dir) as con:
        removed = find_removed(con, to_directory=job.destination.uri.startswith("file://"))
        find_missing(con, state, check_lease(state, token).flow_run)
        result = PruneResult(removed, job.delta.delete_after)
        due = sum(n for case, n in missing_cases(con) if not why_kept(case, job.delta.delete_after))
        result.refused = _refusal(job, plan, count(con), removed, due, count_copies(con))
        if not looks_truncated(plan.usable, plan.expected_rows):
            check_lease(state, token)
            count_lists(con, state, run_no)
        if removed and not result.refused:
            result.file = f"reports/run-{run_no:06d}/pruned.csv"
            _write_csv(state, result.file, ((copy.outcome, TO_DELETE) for batch in _batches(con) for copy in batch))
            stores = Stores(
                partial(open_store, job.destination.uri, destination, state.spool_dir, create=True),
                partial(SourceCheck, job, source, state.spool_dir),
            )
            _write_csv(state, result.file, _prune(con, state, stores, run_no, token, result))
            result.failed = removed - result.deleted - result.untracked - result.waiting - result.kept
    return asdict(result)


def _refusal(job: Job, plan: Plan, counts: Counts, removed: int, due: int, copies: int) -> str:
    not_done = ""
    if counts.pending:
        not_done = f"{counts.pending:,} rows are pending"
    elif counts.failed > job.budget(counts.planned - counts.duplicates):
        not_done = f"{counts.failed:,} rows failed, more than `failure_budget` allows"
    return refusal(
        removed=removed, due=due, copies=copies, rows=plan.usable, expected=plan.expected_rows, not_done=not_done,
        delta=job.delta,
    )  # fmt: skip


class Copy(NamedTuple):
    """A copy whose row was removed from the manifest."""

    outcome: Outcome
    missing: Missing


@dataclass(frozen=True, slots=True)
class Stores:
    """Functions that open destination and source; each batch opens them again, in an event loop of its own."""

    destination: Callable[[], Store]
    source: Callable[[], SourceCheck]


def _batches(con: duckdb.DuckDBPyConnection) -> Iterator[list[Copy]]:
    reader: Any = con.sql(
        "SELECT removed.*, lists, shares, unidentified FROM removed JOIN missing USING (key)"
    ).to_arrow_reader(BATCH)
    for batch in reader:
        table = pa.Table.from_batches([batch])
        for start in range(0, table.num_rows, BATCH):
            part = table.slice(start, BATCH)
            cases = part.select(["lists", "shares", "unidentified"]).to_pylist()
            yield [Copy(outcome, Missing(**case)) for outcome, case in zip(outcomes_of(part), cases, strict=True)]


def _write_csv(state: State, name: str, results: Iterable[tuple[Outcome, str]]) -> None:
    """Writes a file with one line per copy and its result; the file is complete or missing."""
    path = state.spool_dir / "pruned.csv"
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for outcome, result in results:
                values = (result, *(getattr(outcome, name) for name in COLUMNS[1:-1]), outcome.recorded_at.isoformat())
                writer.writerow([failure_cell(value) for value in values])
        state.write_file(name, path)
    finally:
        path.unlink(missing_ok=True)


def _prune(
    con: duckdb.DuckDBPyConnection, state: State, stores: Stores, run_no: int, token: str, result: PruneResult
) -> Iterator[tuple[Outcome, str]]:
    """Deletes the copies in batches, and yields the result of each; a batch is in the ledger before the next begins.

    Each copy is recorded as pending before it is deleted. The run may die in between, and the row may be in the next
    manifest again: that run must not believe that the copy exists.
    """
    checked_at = steady_s()

    def check_lease_often() -> None:
        """Raises Fatal if another run has taken the lease, for instance while this process was suspended."""
        nonlocal checked_at
        if steady_s() - checked_at > LEASE_CHECK_S:
            check_lease(state, token)
            checked_at = steady_s()

    check_lease(state, token)
    for part, copies in enumerate(_batches(con)):
        reasons = [why_kept(copy.missing, result.delete_after) for copy in copies]
        result.waiting += sum(reason.startswith(WAITING) for reason in reasons)
        result.kept += sum(reason.startswith(KEPT) for reason in reasons)
        yield from ((copy.outcome, reason) for copy, reason in zip(copies, reasons, strict=True) if reason)
        batch = [copy.outcome for copy, reason in zip(copies, reasons, strict=True) if not reason]
        if result.stop_reason:
            yield from ((outcome, f"not deleted: {result.stop_reason}") for outcome in batch)
            continue
        check_lease_often()
        reasons = asyncio.run(_check_source(stores.source, batch, check_lease_often))
        result.kept += sum(bool(reason) for reason in reasons)
        yield from ((outcome, f"{KEPT}: {reason}") for outcome, reason in zip(batch, reasons, strict=True) if reason)
        batch = [outcome for outcome, reason in zip(batch, reasons, strict=True) if not reason]
        if not batch:
            continue
        begun = [
            outcome._replace(
                status=Status.PENDING, error_class=None, status_code=None, message=TO_DELETE, retryable=False,
                attempt=outcome.attempt + 1, requests=0, run_no=run_no, chunk="", consecutive_failures=0,
            )
            for outcome in batch
        ]  # fmt: skip
        append_outcomes(state, begun, run_no, "prune", 2 * part)
        results = asyncio.run(_delete(stores.destination, batch, result, check_lease_often))
        now = datetime.now(UTC)
        ended = [
            outcome._replace(
                status=Status.REMOVED, message=text, attempt=outcome.attempt + 1, dest_etag=None, started_at=now,
                recorded_at=now,
            )
            for outcome, (_, text) in zip(begun, results, strict=True)
            if text in (DELETED, ABSENT, ANOTHER, NO_ETAG)
        ]  # fmt: skip
        append_outcomes(state, ended, run_no, "prune", 2 * part + 1)
        yield from results


async def _check_source(
    open_source: Callable[[], SourceCheck], batch: Sequence[Outcome], check_lease_often: Callable[[], None]
) -> list[str]:
    """Returns, for each copy of a batch, why the source's answer keeps it, or "" if it may be deleted."""
    source = open_source()
    limit = asyncio.Semaphore(AT_ONCE)

    async def check(outcome: Outcome) -> str:
        async with limit:
            check_lease_often()
            return await source.why_kept(outcome)

    try:
        return await asyncio.gather(*map(check, batch))
    finally:
        await source.close()


async def _delete(
    open_destination: Callable[[], Store],
    batch: Sequence[Outcome],
    result: PruneResult,
    check_lease_often: Callable[[], None],
) -> list[tuple[Outcome, str]]:
    """Deletes the copies of a batch and returns each with its result.

    If the destination fails for all copies, the rest is not tried.
    """
    store = open_destination()
    limit = asyncio.Semaphore(AT_ONCE)

    async def delete(outcome: Outcome) -> str:
        async with limit:
            if result.stop_reason:
                return f"not deleted: {result.stop_reason}"
            check_lease_often()
            try:
                text = await _delete_one(store, outcome)
            except (ObjectError, Fatal) as error:
                result.failed += 1
                result.first_failure = result.first_failure or f"{outcome.key}: {error}"
                if isinstance(error, Fatal) and not isinstance(error, Refused):
                    result.stop_reason = str(error)
                elif not result.deleted and result.failed >= FAILURES_TO_STOP:
                    result.stop_reason = (
                        f"nothing can be deleted at the destination ({error}). For `delta.delete_removed` its "
                        "credentials need the right to delete objects (s3:DeleteObject)"
                    )
                return f"not deleted: {error}"
            if text == DELETED:
                result.deleted += 1
            else:
                result.untracked += 1
            return text

    try:
        return list(zip(batch, await asyncio.gather(*map(delete, batch)), strict=True))
    finally:
        await store.close()


def _unquoted(etag: str | None) -> str:
    """Returns an ETag without quotes: stores return it with or without, depending on the request."""
    return (etag or "").strip('"')


async def _delete_one(store: Store, outcome: Outcome) -> str:
    """Deletes a copy whose ETag is the one in the ledger, and returns the result as text. Raises ObjectError, Fatal.

    Check and deletion are two requests, since not all stores support a conditional DELETE.
    """
    for left in reversed(range(TRIES)):
        try:
            found = await store.head(outcome.key)
            if found is None:
                return ABSENT
            if not (found.etag and outcome.dest_etag):
                return NO_ETAG
            if _unquoted(found.etag) != _unquoted(outcome.dest_etag):
                return ANOTHER
            await store.delete(outcome.key)
            if store.kind == "file" and await store.head(outcome.key) is not None:  # a symbolic link is not deleted
                return ANOTHER
            return DELETED
        except ObjectError as error:
            delay_s = error.retry_after_s or BETWEEN_TRIES_S
            if not left or AGAIN[error.error_class] is not Again.NOW or delay_s > MAX_WAIT_S:
                raise
            await asyncio.sleep(delay_s)
    raise AssertionError("unreachable")


def why_kept(case: Missing, delete_after: int) -> str:
    """Returns why a copy without a row is not deleted now, or "" if it may be deleted.

    | manifests in a row that lacked it | a row without an object at the destination | result |
    |---|---|---|
    | fewer than delete_after | any | waiting |
    | enough | has its id or its source | kept |
    | enough | has neither a usable address nor an id, nor a key | kept |
    | enough | neither of these | may be deleted |
    """
    if case.lists < delete_after:
        times = "once" if case.lists == 1 else f"{case.lists} times"
        return f"{WAITING}: missing from the manifest {times}; deleted when {delete_after} manifests in a row lack it"
    if case.shares:
        return f"{KEPT}: a row of the manifest that is not at the destination has its {case.shares}"
    if case.unidentified:
        return f"{KEPT}: it may belong to a row of the manifest that has neither a usable address nor an id"
    return ""


def refusal(*, removed: int, due: int, copies: int, rows: int, expected: int, not_done: str, delta: Delta) -> str:
    """Returns why this run may not delete any copy, or "" if it may delete all that are due.

    ``removed`` copies have no row, and ``due`` are those of them that :func:`why_kept` does not keep. ``copies`` is the
    number of all copies. ``rows`` are the manifest's rows without unusable ones and duplicates; ``expected`` is
    Plan.expected_rows. ``not_done`` names rows that this run has not finished: an image may have moved to such a row,
    and its old copy is kept until the new one exists.

    | removed | due | the manifest | not_done | due, of all copies | result |
    |---|---|---|---|---|---|
    | 0 | 0 | any | any | | may (there is nothing) |
    | some | any | looks truncated | any | any | refused |
    | some | 0 | else | any | | may (there is nothing) |
    | some | some | else | pending rows, or failures over the budget | any | refused |
    | some | some | else | "" | more than max_delete | refused |
    | some | some | else | "" | not more | may |
    """
    if removed and looks_truncated(rows, expected):
        return (
            f"the manifest has {rows:,} rows, {expected:,} were expected, and so it looks truncated. If it is "
            "complete, run once with `delta.accept_shorter_manifest: true`"
        )
    if not due:
        return ""
    if not_done:
        return f"{not_done}; the next run tries again"
    most = delta.max_deletions(copies)
    if due > most:
        return (
            f"{due:,} of {copies:,} copies have no row any more, and `delta.max_delete` ({delta.max_delete}) allows "
            f"{most:,} deletions per run. If all are to be deleted, run once with a larger `delta.max_delete`"
        )
    return ""
