"""Reads the destination back and compares it with the ledger (SEMANTICS: plan and cache)."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from ferry.core import Confirmed, ErrorClass, Fatal, ObjectError, Outcome, Progress, Status, UserError, short
from ferry.http import Algorithm
from ferry.state import State, append_outcomes, outcomes_of, with_latest
from ferry.storage import ObjectInfo, Store, md5_of_etag, same_etag

if TYPE_CHECKING:
    import duckdb

AT_ONCE = 32
BETWEEN_TRIES_S = 1.0
PAUSED_S = 0.5  # between two looks whether it goes on
UNREAD_IN_A_ROW = 50  # objects, then it is the destination that fails, and not they
# also what an earlier verification found wrong, until a run has repaired it
SHOULD_BE_THERE = "(l.status IN ('copied', 'unchanged') OR l.error_class IN ('missing', 'altered'))"
CHUNK = "verify"  # of an outcome that says an object is right again; "" would be taken for one of planning
SEEDS = 1 << 31
_SHARE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*\Z")


@dataclass(frozen=True, slots=True)
class Sample:
    """Which rows a verification reads: those whose digest with the seed is ``up_to`` at most. The same seed and the
    same rows give the same sample, whatever the order, on every machine."""

    seed: int
    up_to: str  # 32 hex digits
    of: int  # rows that should be at the destination


EVERYTHING = Sample(0, "g", 0)  # "g" sorts after every hex digit
IN_SAMPLE = "md5(l.row_id || ?) <= ?"


class Evidence(StrEnum):
    """What an object was compared by."""

    DIGEST = "digest"
    ETAG = "ETag"
    SIZE = "size"


class Verdict(NamedTuple):
    """What is wrong with an object, None where nothing is, and what it was compared by."""

    wrong: ErrorClass | None
    by: Evidence = Evidence.SIZE


@dataclass(slots=True)
class Verified:
    """What reading back came to. ``wrong`` are outcomes that make their rows pending, ``right_again`` those of objects
    that an earlier verification found wrong.

    ``unread`` objects could not be read: nothing is known of them, and their rows stay as they are. So do those of
    ``unproven`` objects: found wrong before, and looking right by what proves nothing against that.
    """

    checked: int
    bytes: int
    missing: int
    altered: int
    wrong: list[Outcome]
    right_again: list[Outcome] = field(default_factory=list)
    unproven: int = 0
    unread: int = 0
    unread_first: str = ""  # its key, and why
    by: Counter[Evidence] = field(default_factory=Counter)  # objects that were compared, by what


def sample_rows(sample: str | int, rows: int) -> int:
    """How many rows of ``rows`` a sample has: `1%` (rounded up, one at least), or a count. Raises UserError.

    | sample | of 250 rows |
    |---|---|
    | `2%` | 5 |
    | `0.1%` | 1 |
    | `100%` | 250 |
    | 20, `20` | 20 |
    | 1000 | 250 |
    | 0, `0%`, `101%`, `-1`, `1.5` | refused |
    """
    text = str(sample)
    if (share := _SHARE.match(text)) and 0 < float(share[1]) <= 100:
        return min(rows, max(1, math.ceil(rows * float(share[1]) / 100 - 1e-9)))
    if not isinstance(sample, bool) and re.fullmatch(r"\s*0*[1-9][0-9]{0,11}\s*", text):
        return min(rows, int(text))
    raise UserError(f"the sample `{text[:40]}` is neither a share (`1%`, up to `100%`) nor a count of objects (`500`)")


def draw_sample(state: State, sample: str | int, seed: int | None = None) -> Sample:
    """A random sample of the rows that should be at the destination, or the one that ``seed`` stands for."""
    sample_rows(sample, 0)  # a wrong one is said before the ledger is read
    seed = secrets.randbelow(SEEDS) if seed is None else seed

    def work(con: duckdb.DuckDBPyConnection, manifest: str) -> Sample:
        there = f"FROM latest l SEMI JOIN read_parquet(?) m USING (row_id) WHERE {SHOULD_BE_THERE}"
        (rows,) = con.execute(f"SELECT count(*) {there}", [manifest]).fetchone() or (0,)
        if not rows:
            return Sample(seed, "", 0)
        last = con.execute(
            f"SELECT md5(l.row_id || ?) AS drawn {there} ORDER BY drawn LIMIT 1 OFFSET ?",
            [str(seed), manifest, sample_rows(sample, rows) - 1],
        ).fetchone()
        return Sample(seed, last[0] if last else "", rows)

    return with_latest(state, work)


def verify_parts(state: State, rows_each: int, sample: Sample = EVERYTHING) -> tuple[int, list[tuple[str, str]]]:
    """How many rows are to be read, and ranges of row_id, ``(from, below)``, of about ``rows_each`` of them."""

    def work(con: duckdb.DuckDBPyConnection, manifest: str) -> tuple[int, list[tuple[str, str]]]:
        lines = con.execute(
            f"""
            WITH there AS (
                SELECT l.row_id, row_number() OVER (ORDER BY l.row_id) - 1 AS n
                FROM latest l SEMI JOIN read_parquet(?) m USING (row_id)
                WHERE {SHOULD_BE_THERE} AND {IN_SAMPLE}
            )
            SELECT row_id, (SELECT count(*) FROM there) FROM there WHERE n % {rows_each} = 0 ORDER BY 1
            """,
            [manifest, str(sample.seed), sample.up_to],
        ).fetchall()
        edges = [row_id for row_id, _ in lines]
        bounds = list(zip(edges, [*edges[1:], "g"], strict=bool(edges)))  # "g" sorts after every hex digit
        return (lines[0][1] if lines else 0), bounds

    return with_latest(state, work)


def expected_objects(state: State, bounds: tuple[str, str], sample: Sample = EVERYTHING) -> list[Outcome]:
    """The outcomes of one part: what the destination should hold."""

    def work(con: duckdb.DuckDBPyConnection, manifest: str) -> list[Outcome]:
        cursor: Any = con.sql(
            f"""
            SELECT l.* FROM latest l SEMI JOIN read_parquet(?) m USING (row_id)
            WHERE {SHOULD_BE_THERE} AND {IN_SAMPLE} AND l.row_id >= ? AND l.row_id < ? ORDER BY l.key
            """,
            params=[manifest, str(sample.seed), sample.up_to, *bounds],
        )
        return list(outcomes_of(cursor.to_arrow_reader(10_000).read_all()))

    return with_latest(state, work)


def verdict(
    outcome: Outcome, size: int | None, md5: str | None, sha256: str | None, etag: str | None = None
) -> Verdict:
    """Is what stands at the destination what the ledger says? ``size`` None: nothing stands there.

    | size | a digest on both sides | an ETag on both sides | verdict | compared by |
    |---|---|---|---|---|
    | none | | | missing | size |
    | differs | | | altered | size |
    | same | sha256 or md5 differs | | altered | digest |
    | same | all on both sides agree | | as it should be | digest |
    | same | no | differs | altered | ETag |
    | same | no | the same | as it should be | ETag |
    | same | no | no | as it should be | size |
    """
    if size is None:
        return Verdict(ErrorClass.MISSING)
    if outcome.size is not None and size != outcome.size:
        return Verdict(ErrorClass.ALTERED)
    known = [(here, there) for here, there in ((outcome.sha256, sha256), (outcome.md5, md5)) if here and there]
    if known:
        same = all(here == there for here, there in known)
        return Verdict(None if same else ErrorClass.ALTERED, Evidence.DIGEST)
    if outcome.dest_etag and etag:
        return Verdict(None if same_etag(outcome.dest_etag, etag) else ErrorClass.ALTERED, Evidence.ETAG)
    return Verdict(None)


async def read_back(store: Store, outcomes: Sequence[Outcome], run_no: int, progress: Progress) -> Verified:
    """Reads each object through and compares the digest of its bytes; where the ledger has none, its ETag.

    An object that cannot be read in three tries is counted. Raises Fatal, also after :data:`UNREAD_IN_A_ROW` of these.
    """
    result = Verified(0, 0, 0, 0, [])
    queue = iter(outcomes)
    in_a_row = 0

    async def worker() -> None:
        nonlocal in_a_row
        for outcome in queue:
            while progress.paused:  # noqa: ASYNC110 - told from another thread
                await asyncio.sleep(PAUSED_S)
            try:
                size, md5, sha256, etag = await _digests(store, outcome)
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
            found = verdict(outcome, size, md5, sha256, etag)
            wrong = _book(result, outcome, found, run_no, etag)
            if wrong is None and outcome.status is Status.PENDING:
                _book_right_again(result, outcome, found, run_no, etag)
            result.bytes += size or 0
            progress.add(Status.FAILED if wrong else Status.UNCHANGED, wrong, size or 0)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return result


async def _digests(store: Store, outcome: Outcome) -> tuple[int | None, str | None, str | None, str | None]:
    """Size, MD5, SHA-256 and ETag of an object; of the digests the better one that the ledger has."""
    algorithm: Algorithm = "md5" if outcome.md5 and not outcome.sha256 else "sha256"
    for left in (2, 1, 0):
        try:
            digest, found = await store.digest(outcome.key, max_bytes=1 << 62, algorithm=algorithm)
        except ObjectError as error:
            if error.error_class in (ErrorClass.NOT_FOUND, ErrorClass.KEY_COLLISION):  # or no file can be there
                return None, None, None, None
            if not left:
                raise
            await asyncio.sleep(BETWEEN_TRIES_S)
            continue
        md5, sha256 = (digest, None) if algorithm == "md5" else (None, digest)
        return found.size, md5, sha256, found.etag
    raise AssertionError("unreachable")


def compare_with_listing(
    outcomes: Sequence[Outcome], listed: dict[str, ObjectInfo], run_no: int, progress: Progress
) -> Verified:
    """`--list`: sizes and ETags; no object is read. An ETag that is the ledger's MD5 is right, whatever it was.

    A listing disproves nothing that an earlier verification found: bytes may be others under the same ETag.
    """
    result = Verified(0, 0, 0, 0, [])
    for outcome in outcomes:
        found = listed.get(outcome.key)
        size, etag = (found.size, found.etag) if found else (None, None)
        said = outcome
        if outcome.md5 is not None and md5_of_etag(etag) == outcome.md5:
            said = outcome._replace(dest_etag=etag)
        wrong = _book(result, outcome, verdict(said, size, None, None, etag), run_no, etag, listed=True)
        result.unproven += wrong is None and outcome.status is Status.PENDING
        progress.add(Status.FAILED if wrong else Status.UNCHANGED, wrong, 0)
    return result


def _book(
    result: Verified, outcome: Outcome, found: Verdict, run_no: int, etag: str | None, *, listed: bool = False
) -> ErrorClass | None:
    """Counts an object, and notes an outcome where it is wrong; returns what is wrong."""
    result.checked += 1
    wrong = found.wrong
    if wrong is not ErrorClass.MISSING:
        result.by[found.by] += 1
    if wrong is None:
        return None
    if wrong is ErrorClass.MISSING:
        result.missing += 1
        text = "the destination's listing lacks this object" if listed else "the destination no longer has this object"
    else:
        result.altered += 1
        text = "the destination holds other bytes than the ledger says"
        if found.by is Evidence.ETAG:
            there, known = short(etag or "", 80), short(outcome.dest_etag or "", 80)
            text = (
                f"the object's ETag is {there} where the ledger has {known}: "
                "it was written again since, with other bytes or with other settings (encryption, parts)"
            )
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
    return wrong


def _book_right_again(result: Verified, outcome: Outcome, found: Verdict, run_no: int, etag: str | None) -> None:
    """Of an object that an earlier verification found wrong. Its size alone does not clear it."""
    if found.by is Evidence.SIZE:
        result.unproven += 1
        return
    now = datetime.now(UTC)
    result.right_again.append(
        outcome._replace(
            status=Status.UNCHANGED, error_class=None, message=None, retryable=False, requests=1, started_at=now,
            recorded_at=now, run_no=run_no, chunk=CHUNK, dest_etag=etag or outcome.dest_etag,
            confirmed=Confirmed.READ_BACK if found.by is Evidence.DIGEST else outcome.confirmed,
        )
    )  # fmt: skip


def note_verified(state: State, result: Verified, run_no: int, part: int) -> None:
    """Writes the outcomes that make rows pending, which the next run repairs, and of those that are right again."""
    if outcomes := [*result.wrong, *result.right_again]:
        append_outcomes(state, outcomes, run_no, "verify", part)
