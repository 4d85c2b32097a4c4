"""Hints: what a plan knows of single rows of an unfinished chunk, in one file for each chunk that has any."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ferry.core import BUCKET_SCHEMES
from ferry.job import Checks, Job
from ferry.planning.chunk_files import grouped
from ferry.state import HINT_SCHEMA, HINTS, ChunkRef, Spooled, State, checked_name, to_bytes, with_schema

if TYPE_CHECKING:
    import duckdb

_OF_COPY = """l.key, l.size, l.md5, l.sha256, l.content_type, l.source_etag AS etag,
              l.source_last_modified AS last_modified, l.dest_etag AS known_etag, {read_at} AS bytes_read_at,
              l.confirmed, l.address, l.attributes_sha256, l.lost_attributes"""

# The columns of :attr:`KnownCopies.lines`, without a row.
_NO_COPIES = (
    """(SELECT NULL::BIGINT AS row_no, NULL::VARCHAR AS revalidate, {columns} FROM latest l WHERE false)""".format(
        columns=_OF_COPY.format(read_at="l.recorded_at")
    )
)


class KnownCopies:
    """What the ledger has of copies that chunks are told of: those to recheck, and other rows' with a row's digest.

    They are in the spool by row number. `rechecked` has the rows with a copy to recheck.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, ledger: Iterable[object], at_once: int) -> None:
        """``ledger`` fills `latest` with one part of the ledger after the other."""
        self._con, self._ledger, self.at_once = con, ledger, at_once
        self.lines = Spooled(con, "copies", "row_no")
        self.rechecks = 0
        con.execute("CREATE OR REPLACE TABLE rechecked (row_no BIGINT)")

    def add_rechecks(self) -> None:
        """Adds the copies in `revalidations`, whose rows are in `latest`."""
        ((rows,),) = self._con.execute("INSERT INTO rechecked SELECT row_no FROM revalidations").fetchall()
        if rows:
            # an earlier Ferry did not write bytes_read_at, and read the bytes of each row
            columns = _OF_COPY.format(read_at="coalesce(l.bytes_read_at, l.recorded_at)")
            self.lines.add(
                f"SELECT r.row_no, r.revalidate, {columns} FROM revalidations r JOIN latest l USING (row_id)"
            )
        self.rechecks += rows

    def find_equal(self, job: Job) -> None:
        """Adds, for rows of `open_rows`, a copy of an earlier run with the digest that the manifest has for them.

        Its attributes are known to be those of the job and of its bytes: it was written under the present settings,
        with a check of its type, not from a bucket, and has lost none. A key that `ferry verify` found missing or
        altered is left out, since other rows may share it.
        """
        con = self._con
        if not job.dedupe or job.checks not in (Checks.IMAGE, Checks.DECODE):
            return
        con.execute(
            """
            CREATE TABLE wanted_digests AS
            SELECT m.row_no, m.sha256, m.md5 FROM manifest m SEMI JOIN open_rows USING (row_no)
            WHERE NOT m.deferred_key AND coalesce(m.sha256, m.md5) IS NOT NULL
                  AND m.row_no NOT IN (FROM rechecked);
            CREATE TABLE unproven (key VARCHAR);
            CREATE TABLE matches (row_no BIGINT, copy_id VARCHAR, low VARCHAR, high VARCHAR)
            """
        )
        if not con.execute("SELECT 1 FROM wanted_digests LIMIT 1").fetchall():
            return
        for _ in self._ledger:
            con.execute("INSERT INTO unproven SELECT key FROM latest WHERE status = 'pending' AND key IS NOT NULL")
        given = {"settings": job.settings_digest(), "buckets": list(BUCKET_SCHEMES)}
        for _ in self._ledger:
            con.execute(
                """
                INSERT INTO matches
                WITH copies AS (
                    SELECT l.row_id AS copy_id, l.sha256, l.md5 FROM latest l
                    WHERE l.status = 'copied' AND l.settings_digest = $settings
                          AND l.confirmed IS NOT NULL AND l.dest_etag IS NOT NULL AND l.size IS NOT NULL
                          AND l.sha256 IS NOT NULL AND l.md5 IS NOT NULL AND l.content_type IS NOT NULL
                          AND lower(left(coalesce(l.address, l.source), 5)) NOT IN (SELECT unnest($buckets))
                          AND l.lost_attributes IS NULL AND l.key NOT IN (FROM unproven)
                )
                SELECT w.row_no, min(c.copy_id), '', '' FROM wanted_digests w JOIN copies c ON c.sha256 = w.sha256
                GROUP BY 1
                UNION ALL
                SELECT w.row_no, min(c.copy_id), min(c.sha256), max(c.sha256)
                FROM wanted_digests w JOIN copies c ON c.md5 = w.md5 AND w.sha256 IS NULL GROUP BY 1
                """,
                given,
            )
        con.execute(
            """
            CREATE TABLE equal_copies AS SELECT row_no, min(copy_id) AS row_id FROM matches GROUP BY 1
            HAVING min(low) = max(high)  -- else the MD5 names several bodies
            """
        )
        columns = _OF_COPY.format(read_at="l.recorded_at")
        for _ in self._ledger:
            self.lines.add(
                f"SELECT e.row_no, NULL AS revalidate, {columns} FROM equal_copies e JOIN latest l USING (row_id)"
            )

    def close(self) -> None:
        """Deletes what is in the spool."""
        self.lines.close()


def write_hints(
    con: duckdb.DuckDBPyConnection, state: State, chunks: Mapping[int, ChunkRef], known: KnownCopies
) -> dict[int, str]:
    """Writes one file for each chunk with hints, and returns the files' names by the chunk's position.

    Hints are rows that are done, existing objects under a row's key, copies to recheck, and other rows' copies with the
    row's digest. ``chunks``: by their position in `open_rows`.
    """
    positions = {chunk.digest: position for position, chunk in chunks.items()}
    names: dict[int, str] = {}
    for group in grouped(list(chunks.values()), max(1, known.at_once // 4)):  # hints are wide
        found = _hints(con, state, {positions[chunk.digest]: chunk for chunk in group}, known)
        for position, batches in groupby(found, key=itemgetter(0)):
            names[position] = _write(state, chunks[position], [batch for _, batch in batches])
    return names


def _hints(
    con: duckdb.DuckDBPyConnection, state: State, chunks: Mapping[int, ChunkRef], known: KnownCopies
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields the hints of these chunks in batches, each with its chunk's position, one chunk after the other."""
    con.execute(
        "CREATE OR REPLACE TABLE group_rows AS SELECT o.* FROM open_rows o WHERE position IN (SELECT unnest(?))",
        [list(chunks)],
    )
    low, high = con.execute("SELECT coalesce(min(row_no), 0), coalesce(max(row_no), 0) FROM group_rows").fetchall()[0]
    span = f"BETWEEN {low} AND {high}"
    copies = f"(FROM {known.lines.sql()} WHERE row_no {span})" if known.lines else _NO_COPIES
    begun = [str(state.local(chunk.uri)) for chunk in chunks.values() if chunk.done]
    done = (
        """
        UNION ALL BY NAME
        SELECT p.position, c.row_id, true AS done FROM read_parquet($begun, filename = true, union_by_name = true) c
               JOIN chunk_positions p ON p.chunk = parse_filename(c.filename, true)
               ANTI JOIN named n ON n.row_id = c.row_id AND n.position = p.position
        """
        if begun
        else ""
    )
    reader: Any = con.sql(
        f"""
        WITH named AS (
            SELECT o.position, o.row_no, m.row_id FROM group_rows o JOIN manifest m ON m.row_no = o.row_no
            WHERE m.row_no {span}
        )
        SELECT n.position, n.row_id, false AS done, e.size AS dest_size, e.etag AS dest_etag, c.* EXCLUDE (row_no)
        FROM named n LEFT JOIN existing e ON e.row_no = n.row_no LEFT JOIN {copies} c ON c.row_no = n.row_no
        WHERE e.row_no IS NOT NULL OR c.row_no IS NOT NULL
        {done}
        ORDER BY position, row_id
        """,
        params={"begun": begun} if begun else {},
    ).to_arrow_reader(50_000)
    for batch in reader:
        at = 0
        numbers = batch.column("position").to_pylist()
        while at < len(numbers):
            end = bisect_right(numbers, numbers[at], at)
            yield numbers[at], batch.slice(at, end - at)
            at = end


def _write(state: State, chunk: ChunkRef, batches: list[pa.RecordBatch]) -> str:
    table = pa.Table.from_batches(batches).select(HINT_SCHEMA.names)
    data = to_bytes(with_schema(table, HINT_SCHEMA))
    name = checked_name(f"{HINTS}/{chunk.digest[:32]}", data)
    state.write(name, data)
    return name
