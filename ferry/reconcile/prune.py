"""Copies whose rows have left the list: which they are, and their deletion (docs/how-to/delta-runs.md)."""

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
from ferry.job import Job
from ferry.planning import cut_off, find_gone
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
    missing_cases,
    outcomes_of,
    read_plan,
    steady_s,
    with_latest,
)
from ferry.storage import Access, Store, open_store

if TYPE_CHECKING:
    import duckdb
from ferry.job import Delta

AT_ONCE = 16
BATCH = 500
LOOK_S = 10.0  # between two looks at the lease
TRIES, BETWEEN_TRIES_S = 3, 1.0
WAIT_AT_MOST_S = 60.0  # a store may ask for a year: the next night is sooner
FAILED_AT_FIRST = 10  # and nothing deleted: then it is not the keys
DELETED = "deleted"
ABSENT = "was not there any more"
ANOTHER = "left: it is not what Ferry wrote there"
NO_ETAG = "left: the destination gave no ETag, so that Ferry cannot tell whether it is what it wrote there"
TO_GO = "to be deleted; the run did not end"
COLUMNS = ("what", "key", "id", "source", "size", "md5", "sha256", "dest_etag", "recorded_at")


def prune_removed(
    job: Job, state: State, source: Access, destination: Access, run_no: int, token: str
) -> dict[str, Any]:
    """Deletes the copies that have no row any more, where they may be; the answer is :class:`PruneResult`.

    ``token``: of the run's lease. Raises Fatal where another run has taken it.
    """
    plan = read_plan(state)
    assert plan is not None

    def work(con: duckdb.DuckDBPyConnection, manifest: str) -> PruneResult:
        gone, standing = find_gone(con, manifest, to_directory=job.destination.uri.startswith("file://"))
        find_missing(con, state, manifest, check_lease(state, token).flow_run)
        swept = PruneResult(gone, job.delta.delete_after)
        due = sum(copies for case, copies in missing_cases(con) if not why_it_stays(case, job.delta.delete_after))
        swept.refused = _refusal(job, plan, count(con, manifest), gone, due, standing)
        if not cut_off(plan.usable, plan.expected_rows):
            check_lease(state, token)
            count_lists(con, state, run_no)
        if gone and not swept.refused:
            swept.listed = f"reports/run-{run_no:06d}/gone.csv"
            _write_list(state, swept.listed, ((copy.outcome, TO_GO) for batch in _batches(con) for copy in batch))
            reach = Reach(
                partial(open_store, job.destination.uri, destination, state.spool_dir, create=True, direct_http=True),
                partial(SourceCheck, job, source, state.spool_dir),
            )
            _write_list(state, swept.listed, _ends(con, state, reach, run_no, token, swept))
            swept.failed = gone - swept.deleted - swept.left - swept.waiting - swept.kept
        return swept

    return asdict(with_latest(state, work, state.spool_dir))


def _refusal(job: Job, plan: Plan, counts: Counts, gone: int, due: int, standing: int) -> str:
    over = counts.failed > job.budget(counts.planned - counts.duplicates)
    unsettled = f"{counts.pending:,} rows pending" if counts.pending else ""
    if over and not unsettled:
        unsettled = f"{counts.failed:,} rows failed, more than `failure_budget` allows"
    return refusal(
        gone=gone, due=due, standing=standing, rows=plan.usable, believed=plan.expected_rows, unsettled=unsettled,
        delta=job.delta,
    )  # fmt: skip


class Copy(NamedTuple):
    """A copy that has no row any more."""

    outcome: Outcome
    missing: Missing


@dataclass(frozen=True, slots=True)
class Reach:
    """How to get at both ends; each batch opens them for itself."""

    destination: Callable[[], Store]
    source: Callable[[], SourceCheck]


def _batches(con: duckdb.DuckDBPyConnection) -> Iterator[list[Copy]]:
    reader: Any = con.sql("SELECT gone.*, lists, shares, nameless FROM gone JOIN missing USING (key)").to_arrow_reader(
        BATCH
    )
    for batch in reader:
        table = pa.Table.from_batches([batch])
        for start in range(0, table.num_rows, BATCH):
            part = table.slice(start, BATCH)
            cases = part.select(["lists", "shares", "nameless"]).to_pylist()
            yield [Copy(outcome, Missing(**case)) for outcome, case in zip(outcomes_of(part), cases, strict=True)]


def _write_list(state: State, name: str, ends: Iterable[tuple[Outcome, str]]) -> None:
    """For people: what went, and what did not. The file is whole or not there."""
    path = state.spool_dir / "gone.csv"
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for outcome, what in ends:
                values = (what, *(getattr(outcome, name) for name in COLUMNS[1:-1]), outcome.recorded_at.isoformat())
                writer.writerow([failure_cell(value) for value in values])
        state.write_file(name, path)
    finally:
        path.unlink(missing_ok=True)


def _ends(
    con: duckdb.DuckDBPyConnection, state: State, reach: Reach, run_no: int, token: str, swept: PruneResult
) -> Iterator[tuple[Outcome, str]]:
    """Deletes, and says what became of each copy; the ledger has that before the next batch begins.

    It has each as pending before it is deleted: should the run end here and the row come back, nobody may believe that
    its copy stands there.
    """
    looked = steady_s()

    def still_ours() -> None:
        """A run that was suspended, or waited long, may have been followed by another one."""
        nonlocal looked
        if steady_s() - looked > LOOK_S:
            check_lease(state, token)
            looked = steady_s()

    check_lease(state, token)
    for part, copies in enumerate(_batches(con)):
        stay = [why_it_stays(copy.missing, swept.delete_after) for copy in copies]
        swept.waiting += sum(why.startswith(WAITING) for why in stay)
        swept.kept += sum(why.startswith(KEPT) for why in stay)
        yield from ((copy.outcome, why) for copy, why in zip(copies, stay, strict=True) if why)
        batch = [copy.outcome for copy, why in zip(copies, stay, strict=True) if not why]
        if swept.ended:
            yield from ((outcome, f"not deleted: {swept.ended}") for outcome in batch)
            continue
        still_ours()
        asked = asyncio.run(_ask_source(reach.source, batch, still_ours))
        swept.kept += sum(bool(why) for why in asked)
        yield from ((outcome, f"{KEPT}: {why}") for outcome, why in zip(batch, asked, strict=True) if why)
        batch = [outcome for outcome, why in zip(batch, asked, strict=True) if not why]
        if not batch:
            continue
        begun = [
            outcome._replace(
                status=Status.PENDING, error_class=None, status_code=None, message=TO_GO, retryable=False,
                attempt=outcome.attempt + 1, requests=0, run_no=run_no, chunk="", consecutive_failures=0,
            )
            for outcome in batch
        ]  # fmt: skip
        append_outcomes(state, begun, run_no, "gone", 2 * part)
        ends = asyncio.run(_delete(reach.destination, batch, swept, still_ours))
        now = datetime.now(UTC)
        dropped = [
            outcome._replace(
                status=Status.REMOVED, message=what, attempt=outcome.attempt + 1, dest_etag=None, started_at=now,
                recorded_at=now,
            )
            for outcome, (_, what) in zip(begun, ends, strict=True)
            if what in (DELETED, ABSENT, ANOTHER, NO_ETAG)
        ]  # fmt: skip
        append_outcomes(state, dropped, run_no, "gone", 2 * part + 1)
        yield from ends


async def _ask_source(
    open_it: Callable[[], SourceCheck], batch: Sequence[Outcome], still_ours: Callable[[], None]
) -> list[str]:
    """Why each copy of a batch stays as its source has it, in its order; "" where it may go."""
    source = open_it()
    places = asyncio.Semaphore(AT_ONCE)

    async def one(outcome: Outcome) -> str:
        async with places:
            still_ours()
            return await source.why_it_stays(outcome)

    try:
        return await asyncio.gather(*map(one, batch))
    finally:
        await source.close()


async def _delete(
    open_it: Callable[[], Store], batch: Sequence[Outcome], swept: PruneResult, still_ours: Callable[[], None]
) -> list[tuple[Outcome, str]]:
    """What became of each copy of a batch, in its order. Where the destination fails for all, the rest is not tried."""
    store = open_it()
    places = asyncio.Semaphore(AT_ONCE)

    async def one(outcome: Outcome) -> str:
        async with places:
            if swept.ended:
                return f"not deleted: {swept.ended}"
            still_ours()
            try:
                what = await _delete_one(store, outcome)
            except (ObjectError, Fatal) as error:
                swept.failed += 1
                swept.why_failed = swept.why_failed or f"{outcome.key}: {error}"
                if isinstance(error, Fatal) and not isinstance(error, Refused):
                    swept.ended = str(error)
                elif not swept.deleted and swept.failed >= FAILED_AT_FIRST:
                    swept.ended = (
                        f"nothing can be deleted at the destination ({error}). For `delta.delete_removed` its "
                        "credentials need the right to delete objects (s3:DeleteObject)"
                    )
                return f"not deleted: {error}"
            if what == DELETED:
                swept.deleted += 1
            else:
                swept.left += 1
            return what

    try:
        return list(zip(batch, await asyncio.gather(*map(one, batch)), strict=True))
    finally:
        await store.close()


def _bare(etag: str | None) -> str:
    """A PUT, a HEAD and a copy on the server answer with quotes or without."""
    return (etag or "").strip('"')


async def _delete_one(store: Store, outcome: Outcome) -> str:
    """Deletes a copy if it is still what the ledger says, by its ETag. Raises ObjectError, Fatal.

    S3 knows no condition for this that all stores honour, so the look and the deletion are two requests.
    """
    for left in reversed(range(TRIES)):
        try:
            found = await store.head(outcome.key)
            if found is None:
                return ABSENT
            if not (found.etag and outcome.dest_etag):
                return NO_ETAG
            if _bare(found.etag) != _bare(outcome.dest_etag):
                return ANOTHER
            await store.delete(outcome.key)
            if store.kind == "file" and await store.head(outcome.key) is not None:  # behind a link
                return ANOTHER
            return DELETED
        except ObjectError as error:
            delay_s = error.retry_after_s or BETWEEN_TRIES_S
            if not left or AGAIN[error.error_class] is not Again.NOW or delay_s > WAIT_AT_MOST_S:
                raise
            await asyncio.sleep(delay_s)
    raise AssertionError("unreachable")


KEPT, WAITING = "stays", "waits"  # what the words for a copy begin with that is not deleted tonight


@dataclass(slots=True)
class PruneResult:
    """What became of the copies that had no row any more."""

    gone: int
    delete_after: int  # so many lists in a row
    deleted: int = 0
    left: int = 0  # another object stands there, or none: they are not counted as gone any more
    failed: int = 0
    why_failed: str = ""  # of the first
    ended: str = ""  # why no more were tried after some
    refused: str = ""  # why nothing was deleted although it was asked for
    listed: str = ""  # the file with what went, and what stays
    waiting: int = 0  # not missing from enough lists in a row yet
    kept: int = 0  # missing long enough, and a row or the source may still have them

    @property
    def well(self) -> bool:
        return not self.refused and not self.failed


def why_it_stays(case: Missing, delete_after: int) -> str:
    """Why a copy that has no row any more is not deleted, whatever the night came to; "" where it may be.

    | lists in a row that lacked it | a row that is not at the destination | |
    |---|---|---|
    | fewer than delete_after | any | waits |
    | enough | has its id or its source | stays |
    | enough | has neither a usable address nor an id, nor a key | stays |
    | enough | none of these | may go |
    """
    if case.lists < delete_after:
        times = "once" if case.lists == 1 else f"{case.lists} times"
        return f"{WAITING}: missing from the list {times}; deleted when {delete_after} lists in a row lack it"
    if case.shares:
        return f"{KEPT}: a row of the list that is not at the destination has its {case.shares}"
    if case.nameless:
        return f"{KEPT}: the list has a row with neither a usable address nor an id, which may be its own"
    return ""


def refusal(*, gone: int, due: int, standing: int, rows: int, believed: int, unsettled: str, delta: Delta) -> str:
    """Why no copy may be deleted tonight; "" where all that are ``due`` may.

    ``due``: those of ``gone`` that do not stay by :func:`why_it_stays`. ``rows``: of the list, that can be used and
    are no duplicates; ``believed``: of the last one that did not look cut off (plan.rows_believed). ``unsettled``:
    what this night has left open, in words. An image may have moved to another row: its old copy stays until the new
    one is there.

    | gone | due | the list | the night | due, of those standing | |
    |---|---|---|---|---|---|
    | 0 | 0 | any | any | | may (there is nothing) |
    | some | any | looks cut off (plan.cut_off) | any | any | refused |
    | some | 0 | else | any | | may (there is nothing) |
    | some | some | else | not settled, or over the budget | any | refused |
    | some | some | else | settled | more than max_delete | refused |
    | some | some | else | settled | not more | may |
    """
    if gone and cut_off(rows, believed):
        return (
            f"the list has {rows:,} rows where it had {believed:,}, and looks cut off. If it is right, run once with "
            "`delta.accept_shorter_manifest: true`"
        )
    if not due:
        return ""
    if unsettled:
        return f"the night left {unsettled}"
    most = delta.max_deletions(standing)
    if due > most:
        return (
            f"{due:,} of {standing:,} copies have no row any more, and `delta.max_delete` ({delta.max_delete}) lets "
            f"{most:,} go in one night. If they are to go, run once with a larger one"
        )
    return ""
