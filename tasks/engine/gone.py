"""Copies whose rows have left the list: which they are, and their deletion (docs/delta.md)."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from tasks.engine import lease, ledger, missing
from tasks.engine.access import Access
from tasks.engine.errors import Fatal, ObjectError, Refused
from tasks.engine.job import Job
from tasks.engine.judge import ALIKE
from tasks.engine.lease import steady_s
from tasks.engine.objects import AGAIN, Again, Outcome, Status
from tasks.engine.plan import Plan, cut_off, read_plan
from tasks.engine.reading import failure_cell, with_latest
from tasks.engine.source_check import SourceCheck
from tasks.engine.state import State
from tasks.engine.store import Store, open_store
from tasks.engine.summary import Counts, count
from tasks.engine.swept import STAYS, WAITS, Swept, refusal, why_it_stays
from tasks.engine.tables import outcomes_of

if TYPE_CHECKING:
    import duckdb

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
# An object of the job's own stands under the key, also where a later look at its source failed, or perhaps one does:
# its deletion was begun. (What verify found wrong has an error class.)
_THERE = """(l.status IN ('copied', 'unchanged') OR (l.status = 'failed' AND l.dest_etag IS NOT NULL)
             OR (l.status = 'pending' AND l.error_class IS NULL AND l.dest_etag IS NOT NULL))"""


def find_gone(con: duckdb.DuckDBPyConnection, manifest: str, *, to_directory: bool) -> tuple[int, int]:
    """Fills `gone`: the latest outcome of each copy that belongs to no row of the list. Returns how many, and how many
    copies there are with them. `latest` is the folded ledger.

    A key that a row of the list has, or had its object written under, is in use; in a directory also one that differs
    in case, Unicode form or dots alone, which may be the same file. Rows may have had one key, one after the other or
    all at once (`{sha256}`): that is one copy, and the latest of them says what stands there.
    """
    alike = ALIKE if to_directory else "key"
    con.execute(
        f"""
        CREATE OR REPLACE TEMP VIEW standing AS
        SELECT row_id, key, run_no, attempt, recorded_at FROM latest l
        ANTI JOIN (SELECT key, run_no FROM latest WHERE status = 'dropped') d ON d.key = l.key AND d.run_no > l.run_no
        WHERE {_THERE}
        """
    )
    con.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE gone AS
        WITH listed AS (SELECT row_id, key FROM read_parquet($manifest)),
        used AS (SELECT {alike} AS alike FROM listed WHERE key IS NOT NULL
                 UNION ALL SELECT {alike} FROM latest SEMI JOIN listed USING (row_id)),
        unlisted AS (SELECT *, {alike} AS alike FROM standing ANTI JOIN listed USING (row_id)),
        last AS (SELECT row_id FROM unlisted ANTI JOIN used USING (alike) QUALIFY row_number()
                 OVER (PARTITION BY key ORDER BY run_no DESC, attempt DESC, recorded_at DESC) = 1)
        SELECT * FROM latest SEMI JOIN last USING (row_id)
        """,
        {"manifest": manifest},
    )
    (gone,) = con.execute("SELECT count(*) FROM gone").fetchall()[0]
    (standing,) = con.execute("SELECT count(DISTINCT hash(key)) FROM standing").fetchall()[0]
    return int(gone), int(standing)


def sweep(job: Job, state: State, source: Access, destination: Access, run_no: int, token: str) -> dict[str, Any]:
    """Deletes the copies that have no row any more, where they may be; the answer is :class:`Swept`.

    ``token``: of the run's lease. Raises Fatal where another run has taken it.
    """
    plan = read_plan(state)
    assert plan is not None

    def work(con: duckdb.DuckDBPyConnection, manifest: str) -> Swept:
        gone, standing = find_gone(con, manifest, to_directory=job.destination.uri.startswith("file://"))
        missing.find_missing(con, state, manifest, lease.check(state, token).flow_run)
        swept = Swept(gone, job.delta.delete_after)
        due = sum(copies for case, copies in missing.cases(con) if not why_it_stays(case, job.delta.delete_after))
        swept.refused = _refusal(job, plan, count(con, manifest), gone, due, standing)
        if not cut_off(plan.usable, plan.believed):
            lease.check(state, token)
            missing.count_lists(con, state, run_no)
        if gone and not swept.refused:
            swept.listed = f"reports/run-{run_no:06d}/gone.csv"
            _write_list(state, swept.listed, ((copy.outcome, TO_GO) for batch in _batches(con) for copy in batch))
            reach = Reach(
                partial(open_store, job.destination.uri, destination, state.spool_dir, create=True, short_way=True),
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
        gone=gone, due=due, standing=standing, rows=plan.usable, believed=plan.believed, unsettled=unsettled,
        delta=job.delta,
    )  # fmt: skip


class Copy(NamedTuple):
    """A copy that has no row any more."""

    outcome: Outcome
    missing: missing.Missing


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
            yield [
                Copy(outcome, missing.Missing(**case)) for outcome, case in zip(outcomes_of(part), cases, strict=True)
            ]


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
    con: duckdb.DuckDBPyConnection, state: State, reach: Reach, run_no: int, token: str, swept: Swept
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
            lease.check(state, token)
            looked = steady_s()

    lease.check(state, token)
    for part, copies in enumerate(_batches(con)):
        stay = [why_it_stays(copy.missing, swept.delete_after) for copy in copies]
        swept.waiting += sum(why.startswith(WAITS) for why in stay)
        swept.kept += sum(why.startswith(STAYS) for why in stay)
        yield from ((copy.outcome, why) for copy, why in zip(copies, stay, strict=True) if why)
        batch = [copy.outcome for copy, why in zip(copies, stay, strict=True) if not why]
        if swept.ended:
            yield from ((outcome, f"not deleted: {swept.ended}") for outcome in batch)
            continue
        still_ours()
        asked = asyncio.run(_ask_source(reach.source, batch, still_ours))
        swept.kept += sum(bool(why) for why in asked)
        yield from ((outcome, f"{STAYS}: {why}") for outcome, why in zip(batch, asked, strict=True) if why)
        batch = [outcome for outcome, why in zip(batch, asked, strict=True) if not why]
        if not batch:
            continue
        begun = [
            outcome._replace(
                status=Status.PENDING, error_class=None, status_code=None, message=TO_GO, retryable=False,
                attempt=outcome.attempt + 1, requests=0, run_no=run_no, chunk="", nights=0,
            )
            for outcome in batch
        ]  # fmt: skip
        ledger.append(state, begun, run_no, "gone", 2 * part)
        ends = asyncio.run(_delete(reach.destination, batch, swept, still_ours))
        now = datetime.now(UTC)
        dropped = [
            outcome._replace(
                status=Status.DROPPED, message=what, attempt=outcome.attempt + 1, dest_etag=None, started_at=now,
                recorded_at=now,
            )
            for outcome, (_, what) in zip(begun, ends, strict=True)
            if what in (DELETED, ABSENT, ANOTHER, NO_ETAG)
        ]  # fmt: skip
        ledger.append(state, dropped, run_no, "gone", 2 * part + 1)
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
    open_it: Callable[[], Store], batch: Sequence[Outcome], swept: Swept, still_ours: Callable[[], None]
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
                        f"nothing can be deleted at the destination ({error}). For `delta.delete_gone` its credentials "
                        "need the right to delete objects (s3:DeleteObject)"
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
