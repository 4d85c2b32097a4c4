"""Cuts rows into chunk files: immutable, named by the digest of their bytes, the same for the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import duckdb
import pyarrow as pa

from tasks.engine import tables
from tasks.engine.errors import UserError
from tasks.engine.plan import ChunkRef
from tasks.engine.state import State

FILES_AT_ONCE = 500  # paths in one statement


def load_held(con: duckdb.DuckDBPyConnection, state: State, chunks: Sequence[ChunkRef]) -> None:
    """Fills `held`: for each row of these chunks, the chunk and for which attempt it holds the row."""
    con.execute("CREATE OR REPLACE TABLE held (row_id VARCHAR, attempt BIGINT, chunk VARCHAR)")
    for start in range(0, len(chunks), FILES_AT_ONCE):
        try:
            paths = [str(state.local(chunk.uri)) for chunk in chunks[start : start + FILES_AT_ONCE]]
            con.execute(
                "INSERT INTO held SELECT row_id, attempt, parse_filename(filename, true) "
                "FROM read_parquet(?, filename = true)",
                [paths],
            )
        except (duckdb.Error, FileNotFoundError) as exc:
            raise UserError(
                f"a chunk file of the plan is missing or damaged ({str(exc).splitlines()[0]}). "
                "Restore it, or plan anew with `ferry run --replan`"
            ) from None


def choose(con: duckdb.DuckDBPyConnection, limit: int | None, pending: int) -> dict[str, int]:
    """Fills `cut` with the rows of `todo` that this run takes; returns how many for which reason.

    A limit counts the pending rows of earlier chunks first, then new rows, then the others.
    """
    room = "" if limit is None else f"ORDER BY reason <> 'new', row_no LIMIT {max(0, limit - pending)}"
    con.execute(f"CREATE TABLE cut AS SELECT * FROM todo {room}")
    return dict(con.execute("SELECT reason, count(*) FROM cut GROUP BY 1 ORDER BY 1").fetchall())


def write_chunks(con: duckdb.DuckDBPyConnection, state: State, run_no: int, chunk_rows: int) -> list[ChunkRef]:
    """Writes `cut` as chunk files, in the manifest's order: new rows in base chunks, others apart."""
    chunks: list[ChunkRef] = []
    kinds: tuple[tuple[Literal["base", "again"], str], ...] = (("base", "= 'new'"), ("again", "<> 'new'"))
    for kind, test in kinds:
        reader = con.sql(f"""
            SELECT m.row_id, m.source, m.key, m.late_key, m.size, m.md5, m.sha256, m.content_type, m.etag,
                   m.last_modified, m.id, t.reason, t.attempt
            FROM m JOIN cut t ON t.row_id = m.row_id WHERE t.reason {test} ORDER BY m.row_no
        """).to_arrow_reader(chunk_rows)
        chunks += [_write(state, table, kind, run_no) for table in regrouped(reader, chunk_rows)]
    return chunks


def _write(state: State, table: pa.Table, kind: Literal["base", "again"], run_no: int) -> ChunkRef:
    data = tables.to_bytes(table.cast(tables.CHUNK))
    digest = tables.digest(data)
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
