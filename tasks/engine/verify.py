"""Reads the destination back and compares it with the ledger (SEMANTICS: plan and cache)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tasks.engine import ledger
from tasks.engine.errors import Fatal, ObjectError
from tasks.engine.objects import ErrorClass, Outcome, Status
from tasks.engine.progress import Progress
from tasks.engine.reading import with_latest
from tasks.engine.state import State
from tasks.engine.store import Found, Store, md5_of_etag
from tasks.engine.tables import outcomes_of

if TYPE_CHECKING:
    import duckdb

AT_ONCE = 32
BETWEEN_TRIES_S = 1.0
UNREAD_IN_A_ROW = 50  # objects, then it is the destination that fails, and not they
# also what an earlier verification found wrong, until a run has repaired it
SHOULD_BE_THERE = "(l.status IN ('copied', 'unchanged') OR l.error_class IN ('missing', 'altered'))"


@dataclass(slots=True)
class Verified:
    """What reading back came to. ``wrong`` are outcomes that make their rows pending.

    ``unread`` objects could not be read: nothing is known of them, and their rows stay as they are.
    """

    checked: int
    bytes: int
    missing: int
    altered: int
    wrong: list[Outcome]
    unread: int = 0
    unread_first: str = ""  # its key, and why


def parts(state: State, rows_each: int) -> tuple[int, list[tuple[str, str]]]:
    """How many rows should be at the destination, and ranges of row_id, ``(from, below)``, of about ``rows_each``."""

    def work(con: duckdb.DuckDBPyConnection, manifest: str) -> tuple[int, list[tuple[str, str]]]:
        lines = con.execute(
            f"""
            WITH there AS (
                SELECT l.row_id, row_number() OVER (ORDER BY l.row_id) - 1 AS n
                FROM latest l SEMI JOIN read_parquet(?) m USING (row_id)
                WHERE {SHOULD_BE_THERE}
            )
            SELECT row_id, (SELECT count(*) FROM there) FROM there WHERE n % {rows_each} = 0 ORDER BY 1
            """,
            [manifest],
        ).fetchall()
        edges = [row_id for row_id, _ in lines]
        bounds = list(zip(edges, [*edges[1:], "g"], strict=bool(edges)))  # "g" sorts after every hex digit
        return (lines[0][1] if lines else 0), bounds

    return with_latest(state, work)


def expected(state: State, bounds: tuple[str, str]) -> list[Outcome]:
    """The outcomes of one part: what the destination should hold."""

    def work(con: duckdb.DuckDBPyConnection, manifest: str) -> list[Outcome]:
        cursor: Any = con.sql(
            f"""
            SELECT l.* FROM latest l SEMI JOIN read_parquet(?) m USING (row_id)
            WHERE {SHOULD_BE_THERE} AND l.row_id >= ? AND l.row_id < ? ORDER BY l.key
            """,
            params=[manifest, *bounds],
        )
        return list(outcomes_of(cursor.to_arrow_reader(10_000).read_all()))

    return with_latest(state, work)


def verdict(outcome: Outcome, size: int | None, md5: str | None, sha256: str | None) -> ErrorClass | None:
    """Is what stands at the destination what the ledger says? ``size`` None: nothing stands there.

    | size | digest known on both sides | verdict |
    |---|---|---|
    | none | | missing |
    | differs | | altered |
    | same | sha256 differs, or md5 differs | altered |
    | same | all that both know agree | None: as it should be |
    """
    if size is None:
        return ErrorClass.MISSING
    if outcome.size is not None and size != outcome.size:
        return ErrorClass.ALTERED
    for here, there in ((outcome.sha256, sha256), (outcome.md5, md5)):
        if here and there and here != there:
            return ErrorClass.ALTERED
    return None


async def read_back(store: Store, outcomes: Sequence[Outcome], run_no: int, progress: Progress) -> Verified:
    """Downloads each object and compares its bytes' digests.

    An object that cannot be read in three tries is counted. Raises Fatal, also after :data:`UNREAD_IN_A_ROW` of these.
    """
    result = Verified(0, 0, 0, 0, [])
    queue = iter(outcomes)
    in_a_row = 0

    async def worker() -> None:
        nonlocal in_a_row
        for outcome in queue:
            try:
                size, md5, sha256 = await _digests(store, outcome)
            except ObjectError as error:
                result.unread += 1
                result.unread_first = result.unread_first or f"{outcome.key}: {error}"
                progress.add(Status.PENDING, error.error_class, 0)
                in_a_row += 1
                if in_a_row >= UNREAD_IN_A_ROW:
                    raise Fatal(
                        f"{in_a_row} objects in a row could not be read from the destination, the last one "
                        f"{outcome.key}: {error}. Verify again when it answers"
                    ) from None
                continue
            in_a_row = 0
            wrong = verdict(outcome, size, md5, sha256)
            _book(result, outcome, wrong, run_no)
            result.bytes += size or 0
            progress.add(Status.FAILED if wrong else Status.UNCHANGED, wrong, size or 0)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return result


async def _digests(store: Store, outcome: Outcome) -> tuple[int | None, str | None, str | None]:
    for left in (2, 1, 0):
        try:
            body, _, _ = await store.get(outcome.key, max_bytes=1 << 62, side="destination")
        except ObjectError as error:
            if error.error_class in (ErrorClass.NOT_FOUND, ErrorClass.KEY_COLLISION):  # or no file can be there
                return None, None, None
            if not left:
                raise
            await asyncio.sleep(BETWEEN_TRIES_S)
            continue
        try:
            return body.size, body.md5, body.sha256
        finally:
            body.discard()
    raise AssertionError("unreachable")


def compare_listing(outcomes: Sequence[Outcome], listed: dict[str, Found], run_no: int, progress: Progress) -> Verified:
    """`--list`: sizes, and MD5s where ETags are such; no object is read."""
    result = Verified(0, 0, 0, 0, [])
    for outcome in outcomes:
        found = listed.get(outcome.key)
        size, md5 = (found.size, md5_of_etag(found.etag)) if found else (None, None)
        # A KMS ETag looks like an MD5: it counts as one only where it did when the object was written.
        if md5_of_etag(outcome.dest_etag) != outcome.md5:
            md5 = None
        wrong = verdict(outcome, size, md5, None)
        _book(result, outcome, wrong, run_no)
        progress.add(Status.FAILED if wrong else Status.UNCHANGED, wrong, 0)
    return result


def _book(result: Verified, outcome: Outcome, wrong: ErrorClass | None, run_no: int) -> None:
    result.checked += 1
    if wrong is None:
        return
    if wrong is ErrorClass.MISSING:
        result.missing += 1
        text = "the destination no longer has this object"
    else:
        result.altered += 1
        text = "the destination holds other bytes than the ledger says"
    now = datetime.now(UTC)
    result.wrong.append(
        outcome._replace(
            status=Status.PENDING,
            error_class=wrong,
            status_code=None,
            message=text,
            retryable=True,
            requests=1,
            started_at=now,
            recorded_at=now,
            run_no=run_no,
            chunk="",
        )
    )


def note_wrong(state: State, result: Verified, run_no: int, part: int) -> None:
    """Writes the outcomes that make rows pending; the next run repairs them."""
    if result.wrong:
        ledger.append(state, result.wrong, run_no, "verify", part)
