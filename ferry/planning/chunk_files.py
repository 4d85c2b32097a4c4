"""Chunk files: immutable, named by the digest of their bytes, and the same for the same rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from ferry.core import UserError
from ferry.planning.contenders import hash_conditions
from ferry.state import (
    CHUNK_SCHEMA,
    ROWS_AT_ONCE,
    ChunkRef,
    Spooled,
    State,
    digest_of,
    release_freed,
    to_bytes,
    with_schema,
)

if TYPE_CHECKING:
    import duckdb


FILES_PER_STATEMENT = 500
SORTED_ROWS = 500_000  # rows of the manifest that are sorted at once: of 5 million, a million took 160 MB more, as fast
BATCH_ROWS = 10_000  # that DuckDB gives out at a time

# SQL for a hash of what the manifest says of an object. A chunk's row is stale once the manifest says something else.
DESCRIBED = "hash(size::BIGINT, md5, sha256, etag, content_type, alternatives)"


def position_chunks(con: duckdb.DuckDBPyConnection, chunks: Sequence[ChunkRef]) -> None:
    """Fills `chunk_positions` with the digest of each of these chunks and its position in the list."""
    digests = [chunk.digest for chunk in chunks]
    con.execute(
        "CREATE OR REPLACE TABLE chunk_positions AS "
        "SELECT unnest(?::VARCHAR[]) AS chunk, unnest(range(?))::INTEGER AS position",
        [digests, len(digests)],
    )


def read_chunks(state: State, chunks: Sequence[ChunkRef], at_once: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields queries, with their parameters, for the rows of these chunks, each one for about ``at_once`` of them.

    Each row has its attempt, its chunk's position, and DESCRIBED as it was when the chunk was written. Settled
    chunks are left out: the ledger has an outcome for each of their attempts.
    """
    for part in grouped([chunk for chunk in chunks if not chunk.settled], at_once):
        paths = [str(state.local(chunk.uri)) for chunk in part]
        yield (
            f"""
            SELECT c.row_id, c.attempt, p.position, {DESCRIBED} AS described
            FROM (
                -- files before schema 5 lack the column
                SELECT NULL::VARCHAR[] AS alternatives WHERE false UNION ALL BY NAME
                SELECT * FROM read_parquet($paths, filename = true, union_by_name = true)
            ) c JOIN chunk_positions p ON p.chunk = parse_filename(c.filename, true)
            """,
            {"paths": paths},
        )


def grouped(chunks: Sequence[ChunkRef], at_once: int) -> Iterator[list[ChunkRef]]:
    """Yields the chunks in lists of at most FILES_PER_STATEMENT, and of at most ``at_once`` rows or one chunk."""
    part: list[ChunkRef] = []
    rows = 0
    for chunk in chunks:
        if part and (len(part) == FILES_PER_STATEMENT or rows + chunk.rows > at_once):
            yield part
            part, rows = [], 0
        part.append(chunk)
        rows += chunk.rows
    if part:
        yield part


@contextlib.contextmanager
def refuse_damaged_chunks() -> Iterator[None]:
    """Raises UserError for a chunk file that is missing or damaged."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except (duckdb.Error, FileNotFoundError) as exc:
        raise UserError(
            f"a chunk file of the plan is missing or damaged ({str(exc).splitlines()[0]}). "
            "Run the job again: the next plan writes its rows to new chunks"
        ) from None


def load_held(con: duckdb.DuckDBPyConnection, state: State, chunks: Sequence[ChunkRef]) -> None:
    """Fills `chunk_positions`, and `held` with all rows of these chunks. Raises UserError as refuse_damaged_chunks."""
    position_chunks(con, chunks)
    con.execute("CREATE OR REPLACE TABLE held (row_id VARCHAR, attempt BIGINT, position INTEGER, described UBIGINT)")
    with refuse_damaged_chunks():
        for sql, given in read_chunks(state, chunks, ROWS_AT_ONCE):
            con.execute(f"INSERT INTO held {sql}", given)


def load_begun(
    con: duckdb.DuckDBPyConnection, state: State, chunks: Sequence[ChunkRef], parts: Iterable[object] = (None,)
) -> set[int]:
    """Fills `begun`: rows that were removed from the manifest, and whose chunk has an attempt without an outcome.

    A killed run may have transferred them, and written their keys. ``parts`` fills `manifest_rows`, `latest` and
    `held` with one part of the rows after the other. Returns the positions of chunks with such an
    attempt, also of a row that the manifest has.
    """
    con.execute("CREATE TABLE begun (row_id VARCHAR, key VARCHAR, run_no BIGINT)")
    con.execute("CREATE OR REPLACE TABLE lost (row_id VARCHAR, position INTEGER)")
    positions: set[int] = set()
    for _ in () if all(chunk.settled for chunk in chunks) else parts:
        con.execute("""
            CREATE OR REPLACE TABLE without_outcome AS
            SELECT h.row_id, h.position FROM held h
            LEFT JOIN latest l ON l.row_id = h.row_id AND l.attempt >= h.attempt WHERE l.row_id IS NULL;
            INSERT INTO lost FROM without_outcome ANTI JOIN manifest_rows USING (row_id)
        """)
        positions |= {at for (at,) in con.execute("SELECT DISTINCT position FROM without_outcome").fetchall()}
    for (position,) in con.execute("SELECT DISTINCT position FROM lost").fetchall():
        con.execute(
            "INSERT INTO begun SELECT c.row_id, c.key, ? FROM read_parquet(?) c "
            "JOIN lost u ON u.row_id = c.row_id AND u.position = ?",
            [chunks[position].run_no, str(state.local(chunks[position].uri)), position],
        )
    con.execute("DROP TABLE lost; DROP TABLE IF EXISTS without_outcome")
    return positions


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
    order = "drawn" if at_random else "row_no"
    first_rows = "" if limit is None else f"ORDER BY reason <> 'new', {order} LIMIT {max(0, limit - pending)}"
    con.execute(f"CREATE TABLE selected AS SELECT * EXCLUDE (drawn) FROM todo {first_rows}")
    return dict(con.execute("SELECT reason::VARCHAR, count(*) FROM selected GROUP BY 1 ORDER BY 1").fetchall())


def write_chunks(
    con: duckdb.DuckDBPyConnection,
    state: State,
    run_no: int,
    chunk_rows: int,
    *,
    base: bool,
    dedupe: bool = False,
    record_from: int | None = None,
    at_once: int = SORTED_ROWS,
) -> list[ChunkRef]:
    """Writes `selected` as chunk files in the manifest's order, and returns their references.

    New rows and others go to separate chunks; those of new rows are base chunks if ``base``. With ``dedupe`` a row
    whose digest an earlier row has by the manifest comes after that row, so that mostly one chunk has both. The rows of
    the chunks are added to `open_rows`, if ``record_from`` is the position of the first one there.
    """
    chunks: list[ChunkRef] = []
    of_new: Literal["base", "retry"] = "base" if base else "retry"
    kinds: tuple[tuple[Literal["base", "retry"], str], ...] = ((of_new, "= 'new'"), ("retry", "<> 'new'"))
    moved = Spooled(con, "moved", "place")
    try:
        if dedupe:
            _move(con, moved, at_once)
        for kind, condition in kinds:
            for table in regrouped(_in_order(con, condition, chunk_rows, moved, at_once), chunk_rows):
                if record_from is not None:
                    _record(con, table, record_from + len(chunks))
                chunks.append(_write(state, table.drop_columns(["row_no"]), kind, run_no))
    finally:
        moved.close()
    return chunks


def _record(con: duckdb.DuckDBPyConnection, table: pa.Table, position: int) -> None:
    with con.cursor() as other:  # ``con`` is reading the rows
        other.register("written", table.select(["row_no"]))
        other.execute("INSERT INTO open_rows SELECT ?, row_no FROM written", [position])


_COLUMNS = """m.row_id, m.source, m.key, m.deferred_key, m.size, m.md5, m.sha256, m.content_type, m.etag,
              m.last_modified, m.id, s.reason::VARCHAR AS reason, s.attempt::BIGINT AS attempt,
              s.consecutive_failures::BIGINT AS consecutive_failures, m.alternatives, m.storage_class, m.row_no"""


def _move(con: duckdb.DuckDBPyConnection, moved: Spooled, at_once: int) -> None:
    """Fills `moved_rows`: rows with the digest of an earlier row of the same kind of chunk, whose number is ``place``.

    ``moved`` gets what their chunk has of them. The digests are compared by a hash, which takes less memory. Two that
    differ may only make rows move needlessly.
    """
    con.execute("""
        CREATE OR REPLACE TABLE moved_rows (row_no BIGINT, place BIGINT);
        CREATE OR REPLACE TABLE digests AS
        SELECT row_no, hash(coalesce(m.sha256, m.md5), s.reason = 'new') AS hash
        FROM selected s JOIN manifest m USING (row_no) WHERE coalesce(m.sha256, m.md5) IS NOT NULL
    """)
    for condition in hash_conditions(con, "digests", "hash", at_once):
        con.execute(f"""
            INSERT INTO moved_rows
            WITH part AS (FROM digests WHERE {condition}),
            places AS (SELECT hash, min(row_no) AS place FROM part GROUP BY 1 HAVING count(*) > 1)
            SELECT row_no, place FROM part JOIN places USING (hash) WHERE place < row_no
        """)
    con.execute("DROP TABLE digests")
    for span in _spans(con, "moved_rows", "true", at_once):
        moved.add(
            f"SELECT {_COLUMNS}, o.place FROM manifest m JOIN moved_rows o ON o.row_no = m.row_no "
            f"JOIN selected s ON s.row_no = m.row_no WHERE m.row_no {span}"
        )


def _spans(con: duckdb.DuckDBPyConnection, table: str, condition: str, at_once: int) -> list[str]:
    """Returns conditions on the row numbers in a table, for ``at_once`` rows of the manifest each."""
    first, last = con.execute(f"SELECT min(row_no), max(row_no) FROM {table} WHERE {condition}").fetchall()[0]
    starts = range(first, last + 1, at_once) if first is not None else ()
    return [f"BETWEEN {start} AND {start + at_once - 1}" for start in starts]


def _in_order(
    con: duckdb.DuckDBPyConnection, condition: str, batch_rows: int, moved: Spooled, at_once: int
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of `selected` whose reason meets ``condition``, in the manifest's order.

    It sorts ``at_once`` rows at a time: sorting all rows of a long manifest needs more memory than the limit. A row
    that was moved is sorted with the row that it comes after.
    """
    for span in _spans(con, "selected", f"reason {condition}", at_once):
        release_freed(con)  # of the span before
        not_moved = "AND m.row_no NOT IN (SELECT row_no FROM moved_rows)" if moved else ""
        with_moved = f"UNION ALL BY NAME FROM {moved.sql()} WHERE place {span}" if moved else ""
        # small batches: DuckDB holds two of them, beside the table that is made of them
        reader: Any = con.sql(
            f"""
            SELECT * EXCLUDE (place) FROM (
                SELECT {_COLUMNS}, m.row_no AS place FROM manifest m JOIN selected s ON s.row_no = m.row_no
                WHERE m.row_no {span} AND s.row_no {span} {not_moved}
                {with_moved}
            ) WHERE reason {condition} ORDER BY place, row_no
            """
        ).to_arrow_reader(min(batch_rows, BATCH_ROWS))
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
                table = pa.Table.from_batches(slices).combine_chunks()
                slices, count = [], 0  # before the caller needs memory
                yield table
    if count:
        yield pa.Table.from_batches(slices).combine_chunks()
