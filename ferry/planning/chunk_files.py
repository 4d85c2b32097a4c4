"""Chunk files: immutable, named by the digest of their bytes, and the same for the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from ferry.core import UserError
from ferry.state import CHUNK_SCHEMA, ChunkRef, State, digest_of, to_bytes, with_schema

if TYPE_CHECKING:
    import duckdb


FILES_PER_STATEMENT = 500
SORTED_ROWS = 1_000_000  # rows of the manifest that are sorted at once

# A row of a listed chunk needs no further work in any of these cases:
# - the ledger has this attempt or a later one
# - the row was removed from the manifest, is unusable, or is a duplicate or a collision
# - the manifest describes the row differently since
# - a newer chunk has the row
DONE = """(l.row_id IS NOT NULL OR m.row_id IS NULL OR m.error_class IS NOT NULL OR p.row_id IS NOT NULL OR h.stale
           OR NOT h.newest)"""
HELD_JOINED = """
    FROM (
        SELECT *, row_number() OVER (PARTITION BY row_id ORDER BY stale, attempt DESC, position DESC) = 1 AS newest
        FROM held
    ) h
    LEFT JOIN manifest m ON m.row_id = h.row_id
    LEFT JOIN problems p ON p.row_id = h.row_id
    LEFT JOIN latest l ON l.row_id = h.row_id AND l.attempt >= h.attempt
"""


# The manifest describes the row differently than the chunk does.
_STALE = "m.row_id IS NOT NULL AND (" + " OR ".join(
    f"c.{name} IS DISTINCT FROM m.{name}"
    for name in ("size", "md5", "sha256", "etag", "content_type", "alternatives")
) + ")"  # fmt: skip


def load_held(con: duckdb.DuckDBPyConnection, state: State, chunks: Sequence[ChunkRef]) -> None:
    """Fills `held`: each row of these chunks with its chunk, the chunk's position in the list, and the attempt.

    A row is ``stale`` if the manifest has another size, digest, ETag, type or other further addresses than when the
    chunk was written. Raises UserError for a chunk file that is missing or damaged.
    """
    import duckdb

    con.execute(
        "CREATE OR REPLACE TABLE held (row_id VARCHAR, attempt BIGINT, chunk VARCHAR, position INTEGER, stale BOOLEAN)"
    )
    digests = [chunk.digest for chunk in chunks]
    con.execute(
        "CREATE OR REPLACE TABLE chunk_positions AS "
        "SELECT unnest(?::VARCHAR[]) AS chunk, unnest(range(?))::INTEGER AS position",
        [digests, len(digests)],
    )
    for start in range(0, len(chunks), FILES_PER_STATEMENT):
        try:
            paths = [str(state.local(chunk.uri)) for chunk in chunks[start : start + FILES_PER_STATEMENT]]
            con.execute(
                f"""
                INSERT INTO held
                SELECT c.row_id, c.attempt, p.chunk, p.position, {_STALE}
                FROM (
                    -- files before schema 5 lack the column
                    SELECT NULL::VARCHAR[] AS alternatives WHERE false UNION ALL BY NAME
                    SELECT * FROM read_parquet(?, filename = true, union_by_name = true)
                ) c
                     JOIN chunk_positions p ON p.chunk = parse_filename(c.filename, true)
                     LEFT JOIN manifest m ON m.row_id = c.row_id
                """,
                [paths],
            )
        except (duckdb.Error, FileNotFoundError) as exc:
            raise UserError(
                f"a chunk file of the plan is missing or damaged ({str(exc).splitlines()[0]}). "
                "Run the job again: the next plan writes its rows to new chunks"
            ) from None


def load_begun(con: duckdb.DuckDBPyConnection, state: State, chunks: Sequence[ChunkRef]) -> None:
    """Fills `begun`: rows that were removed from the manifest, and whose chunk has an attempt without an outcome.

    A killed run may have transferred them, and written their keys.
    """
    con.execute("""
        CREATE TABLE unrecorded AS SELECT h.row_id, h.chunk FROM held h ANTI JOIN manifest m USING (row_id)
        LEFT JOIN latest l ON l.row_id = h.row_id AND l.attempt >= h.attempt WHERE l.row_id IS NULL
    """)
    con.execute("CREATE TABLE begun (row_id VARCHAR, key VARCHAR, run_no BIGINT)")
    refs = {chunk.digest: chunk for chunk in chunks}
    for (digest,) in con.execute("SELECT DISTINCT chunk FROM unrecorded").fetchall():
        con.execute(
            "INSERT INTO begun SELECT c.row_id, c.key, ? FROM read_parquet(?) c "
            "JOIN unrecorded u ON u.row_id = c.row_id AND u.chunk = ?",
            [refs[digest].run_no, str(state.local(refs[digest].uri)), digest],
        )


def without(kept: Sequence[ChunkRef], new: Sequence[ChunkRef]) -> list[ChunkRef]:
    """Returns the listed chunks without those that were just written again: the same rows make the same file."""
    again = {chunk.digest for chunk in new}
    return [chunk for chunk in kept if chunk.digest not in again]


def select_rows(
    con: duckdb.DuckDBPyConnection, limit: int | None, pending: int, *, at_random: bool = False
) -> dict[str, int]:
    """Fills `selected` with the rows of `todo` for this run, and returns their number by reason.

    ``limit`` counts the ``pending`` rows of earlier chunks first, then new rows, then the others: the first ones of the
    manifest, or ``at_random`` those with the smallest row IDs, which are digests.
    """
    order = "row_id" if at_random else "row_no"
    first_rows = "" if limit is None else f"ORDER BY reason <> 'new', {order} LIMIT {max(0, limit - pending)}"
    con.execute(f"CREATE TABLE selected AS SELECT * FROM todo {first_rows}")
    return dict(con.execute("SELECT reason, count(*) FROM selected GROUP BY 1 ORDER BY 1").fetchall())


def write_chunks(
    con: duckdb.DuckDBPyConnection, state: State, run_no: int, chunk_rows: int, *, base: bool, dedupe: bool = False
) -> list[ChunkRef]:
    """Writes `selected` as chunk files in the manifest's order, and returns their references.

    New rows and others go to separate chunks; those of new rows are base chunks if ``base``. With ``dedupe`` a row
    whose digest an earlier row has by the manifest comes after that row, so that mostly one chunk has both.
    """
    chunks: list[ChunkRef] = []
    if dedupe:
        _move(con)
    of_new: Literal["base", "retry"] = "base" if base else "retry"
    kinds: tuple[tuple[Literal["base", "retry"], str], ...] = ((of_new, "= 'new'"), ("retry", "<> 'new'"))
    for kind, condition in kinds:
        batches = _in_order(con, condition, chunk_rows, dedupe=dedupe)
        chunks += [_write(state, table, kind, run_no) for table in regrouped(batches, chunk_rows)]
    return chunks


_COLUMNS = """m.row_id, m.source, m.key, m.deferred_key, m.size, m.md5, m.sha256, m.content_type, m.etag,
              m.last_modified, m.id, s.reason, s.attempt, s.consecutive_failures, m.alternatives,
              m.storage_class"""


def _move(con: duckdb.DuckDBPyConnection) -> None:
    """Fills `moved`: rows with the digest of an earlier row of the same kind of chunk, and its number as ``place``.

    The digests are compared by a hash, which takes less memory. Two that differ may only make rows move needlessly.
    """
    con.execute(f"""
        CREATE OR REPLACE TABLE moved AS
        WITH digests AS (
            SELECT s.row_id, s.row_no, s.reason = 'new' AS is_new, hash(coalesce(m.sha256, m.md5)) AS digest
            FROM selected s JOIN manifest m ON m.row_id = s.row_id
            WHERE coalesce(m.sha256, m.md5) IS NOT NULL
        ), places AS (
            SELECT digest, is_new, min(row_no) AS place FROM digests GROUP BY ALL HAVING count(*) > 1
        )
        SELECT {_COLUMNS}, p.place, s.row_no
        FROM digests d JOIN places p ON p.digest = d.digest AND p.is_new = d.is_new AND p.place < d.row_no
             JOIN selected s ON s.row_id = d.row_id JOIN manifest m ON m.row_id = d.row_id
    """)


def _in_order(
    con: duckdb.DuckDBPyConnection, condition: str, batch_rows: int, *, dedupe: bool
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of `selected` whose reason meets ``condition``, in the manifest's order.

    It sorts SORTED_ROWS at a time: sorting all rows of a long manifest needs more memory than the limit. Looking for
    rows that were moved takes memory, too, and so only a job with ``dedupe`` does.
    """
    not_moved, moved = ("", "")
    if dedupe:
        not_moved = "AND m.row_id NOT IN (SELECT row_id FROM moved)"
        moved = "UNION ALL FROM moved WHERE place BETWEEN $start AND $end"
    first, last = con.execute(f"SELECT min(row_no), max(row_no) FROM selected WHERE reason {condition}").fetchall()[0]
    if first is None:
        return
    for start in range(first, last + 1, SORTED_ROWS):
        reader: Any = con.sql(
            f"""
            SELECT * EXCLUDE (place, row_no) FROM (
                SELECT {_COLUMNS}, m.row_no AS place, m.row_no FROM manifest m JOIN selected s ON s.row_id = m.row_id
                WHERE m.row_no BETWEEN $start AND $end AND s.row_no BETWEEN $start AND $end {not_moved}
                {moved}
            ) WHERE reason {condition} ORDER BY place, row_no
            """,
            params={"start": start, "end": start + SORTED_ROWS - 1},
        ).to_arrow_reader(batch_rows)
        yield from reader


def _write(state: State, table: pa.Table, kind: Literal["base", "retry"], run_no: int) -> ChunkRef:
    table = with_schema(table, CHUNK_SCHEMA)
    if kind == "retry":
        # Several runs may try the same rows for the same reason. The run number makes their digests differ, so that
        # the result that Prefect cached for one is not taken for another's.
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"ferry_run": str(run_no).encode()})
    data = to_bytes(table)
    digest = digest_of(data)
    name = f"chunks/{digest}.parquet"
    state.write(name, data)
    size = sum(value or 0 for value in table.column("size").to_pylist())
    return ChunkRef(name, digest, table.num_rows, size, kind, run_no)


def regrouped(batches: Any, rows: int) -> Iterator[pa.Table]:
    """Yields the rows of batches of any size as tables of exactly ``rows`` rows; the last may be shorter."""
    slices: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            take = min(rows - count, batch.num_rows)
            slices.append(batch.slice(0, take))
            batch = batch.slice(take)
            count += take
            if count == rows:
                yield pa.Table.from_batches(slices).combine_chunks()
                slices, count = [], 0
    if count:
        yield pa.Table.from_batches(slices).combine_chunks()
