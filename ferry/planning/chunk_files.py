"""Cuts rows into chunk files: immutable, named by the digest of their bytes, the same for the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from ferry.core import UserError
from ferry.state import CHUNK_SCHEMA, ChunkRef, State, digest_of, to_bytes, with_schema

if TYPE_CHECKING:
    import duckdb


FILES_AT_ONCE = 500  # paths in one statement
SPAN_ROWS = 1_000_000  # of the list that are sorted at once

# A row of a listed chunk needs nothing more when the ledger has this attempt of it or a later one, when it left the
# manifest or may not move (unusable, doubled, colliding), when the list says something else of it since, or when a
# newer chunk holds it.
DONE = """(l.row_id IS NOT NULL OR m.row_id IS NULL OR m.error_class IS NOT NULL OR v.row_id IS NOT NULL OR h.stale
           OR NOT h.newest)"""
HELD_JOINED = """
    FROM (
        SELECT *, row_number() OVER (PARTITION BY row_id ORDER BY stale, attempt DESC, place DESC) = 1 AS newest
        FROM held
    ) h
    LEFT JOIN m ON m.row_id = h.row_id
    LEFT JOIN verdict v ON v.row_id = h.row_id
    LEFT JOIN latest l ON l.row_id = h.row_id AND l.attempt >= h.attempt
"""


# What the list says of a row besides what it is, compared with what its chunk has.
_STALE = "m.row_id IS NOT NULL AND (" + " OR ".join(
    f"c.{name} IS DISTINCT FROM m.{name}" for name in ("size", "md5", "sha256", "etag", "content_type")
) + ")"  # fmt: skip


def load_held(con: duckdb.DuckDBPyConnection, state: State, chunks: Sequence[ChunkRef]) -> None:
    """Fills `held`: for each row of these chunks, the chunk and for which attempt it holds the row.

    ``stale``: the list has another size or digest for the row than it had when the chunk was cut.
    """
    import duckdb

    con.execute(
        "CREATE OR REPLACE TABLE held (row_id VARCHAR, attempt BIGINT, chunk VARCHAR, place INTEGER, stale BOOLEAN)"
    )
    digests = [chunk.digest for chunk in chunks]
    con.execute(
        "CREATE OR REPLACE TABLE places AS SELECT unnest(?::VARCHAR[]) AS chunk, unnest(range(?))::INTEGER AS place",
        [digests, len(digests)],
    )
    for start in range(0, len(chunks), FILES_AT_ONCE):
        try:
            paths = [str(state.local(chunk.uri)) for chunk in chunks[start : start + FILES_AT_ONCE]]
            con.execute(
                f"""
                INSERT INTO held
                SELECT c.row_id, c.attempt, p.chunk, p.place, {_STALE}
                FROM read_parquet(?, filename = true) c JOIN places p ON p.chunk = parse_filename(c.filename, true)
                     LEFT JOIN m ON m.row_id = c.row_id
                """,
                [paths],
            )
        except (duckdb.Error, FileNotFoundError) as exc:
            raise UserError(
                f"a chunk file of the plan is missing or damaged ({str(exc).splitlines()[0]}). "
                "Run the job again: its rows are cut anew"
            ) from None


def load_begun(con: duckdb.DuckDBPyConnection, state: State, chunks: Sequence[ChunkRef]) -> None:
    """Fills `begun`: rows that left the list and whose chunk holds them for an attempt without an outcome.

    A run that was killed may have moved them, and written their keys.
    """
    con.execute("""
        CREATE TABLE left_out AS SELECT h.row_id, h.chunk FROM held h ANTI JOIN m USING (row_id)
        LEFT JOIN latest l ON l.row_id = h.row_id AND l.attempt >= h.attempt WHERE l.row_id IS NULL
    """)
    con.execute("CREATE TABLE begun (row_id VARCHAR, key VARCHAR, run_no BIGINT)")
    refs = {chunk.digest: chunk for chunk in chunks}
    for (digest,) in con.execute("SELECT DISTINCT chunk FROM left_out").fetchall():
        con.execute(
            "INSERT INTO begun SELECT c.row_id, c.key, ? FROM read_parquet(?) c "
            "JOIN left_out o ON o.row_id = c.row_id AND o.chunk = ?",
            [refs[digest].run_no, str(state.local(refs[digest].uri)), digest],
        )


def without(kept: Sequence[ChunkRef], new: Sequence[ChunkRef]) -> list[ChunkRef]:
    """The listed chunks that are not cut again just now: the same rows give the same chunk."""
    again = {chunk.digest for chunk in new}
    return [chunk for chunk in kept if chunk.digest not in again]


def choose(con: duckdb.DuckDBPyConnection, limit: int | None, pending: int) -> dict[str, int]:
    """Fills `cut` with the rows of `todo` that this run takes; returns how many for which reason.

    A limit counts the pending rows of earlier chunks first, then new rows, then the others.
    """
    room = "" if limit is None else f"ORDER BY reason <> 'new', row_no LIMIT {max(0, limit - pending)}"
    con.execute(f"CREATE TABLE cut AS SELECT * FROM todo {room}")
    return dict(con.execute("SELECT reason, count(*) FROM cut GROUP BY 1 ORDER BY 1").fetchall())


def write_chunks(
    con: duckdb.DuckDBPyConnection, state: State, run_no: int, chunk_rows: int, *, base: bool
) -> list[ChunkRef]:
    """Writes `cut` as chunk files, in the manifest's order: new rows apart from others, in base chunks if ``base``."""
    chunks: list[ChunkRef] = []
    of_new: Literal["base", "retry"] = "base" if base else "retry"
    kinds: tuple[tuple[Literal["base", "retry"], str], ...] = ((of_new, "= 'new'"), ("retry", "<> 'new'"))
    for kind, test in kinds:
        lines = _in_order(con, test, chunk_rows)
        chunks += [_write(state, table, kind, run_no) for table in regrouped(lines, chunk_rows)]
    return chunks


def _in_order(con: duckdb.DuckDBPyConnection, test: str, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of `cut` whose reason passes ``test``, in the manifest's order, span by span: to sort whole rows of a
    long list at once takes more memory than there is."""
    first, last = con.execute(f"SELECT min(row_no), max(row_no) FROM cut WHERE reason {test}").fetchall()[0]
    if first is None:
        return
    for start in range(first, last + 1, SPAN_ROWS):
        reader: Any = con.sql(
            f"""
            SELECT m.row_id, m.source, m.key, m.deferred_key, m.size, m.md5, m.sha256, m.content_type, m.etag,
                   m.last_modified, m.id, t.reason, t.attempt, t.consecutive_failures
            FROM m JOIN cut t ON t.row_id = m.row_id
            WHERE t.reason {test} AND m.row_no BETWEEN $start AND $end AND t.row_no BETWEEN $start AND $end
            ORDER BY m.row_no
            """,
            params={"start": start, "end": start + SPAN_ROWS - 1},
        ).to_arrow_reader(batch_rows)
        yield from reader


def _write(state: State, table: pa.Table, kind: Literal["base", "retry"], run_no: int) -> ChunkRef:
    table = with_schema(table, CHUNK_SCHEMA)
    if kind == "retry":
        # The same rows for the same reason may be due in several runs: the result that Prefect keeps of one must not
        # be taken for another's.
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"ferry_run": str(run_no).encode()})
    data = to_bytes(table)
    digest = digest_of(data)
    name = f"chunks/{digest}.parquet"
    state.write(name, data)
    size = sum(value or 0 for value in table.column("size").to_pylist())
    return ChunkRef(name, digest, table.num_rows, size, kind, run_no)


def regrouped(batches: Any, rows: int) -> Iterator[pa.Table]:
    """Tables of exactly ``rows`` rows (the last may be shorter), whatever batches come."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            take = min(rows - count, batch.num_rows)
            held.append(batch.slice(0, take))
            batch = batch.slice(take)
            count += take
            if count == rows:
                yield pa.Table.from_batches(held).combine_chunks()
                held, count = [], 0
    if count:
        yield pa.Table.from_batches(held).combine_chunks()
