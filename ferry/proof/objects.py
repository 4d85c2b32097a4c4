"""The objects that a proof is about, and those at the destination that no row accounts for, as tables of DuckDB."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferry.reconcile import EVERYTHING, Reading, Sample

if TYPE_CHECKING:
    import duckdb

LINES = 50_000  # in memory at a time


class Readings:
    """A file with the readings of a verification, part by part."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        path.write_text("row_id,sha256,md5,size\n", encoding="ascii")

    def add(self, readings: Iterable[Reading]) -> None:
        """Append readings."""
        with self.path.open("a", encoding="ascii", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(readings)


def create_objects(con: duckdb.DuckDBPyConnection, readings: Path, sample: Sample, *, read: bool) -> None:
    """Creates `done`, with each row that has an object at the destination by the ledger.

    ``con`` is that of :func:`ferry.state.folded_ledger` after a verification, which read the objects of the ``sample``;
    without ``read`` it read none.

    | column | content |
    |---|---|
    | `row_id`, `key`, `size`, `etag`, `recorded_at` | by the ledger; a missing size by the verification |
    | `sha256`, `md5` | by the ledger; where it has not both, those of the bytes that the verification read |
    | `read_now` | these digests are from the verification: they were not compared with the source |
    | `confirmed` | the best evidence for the bytes: `read_back`, else `digest`, else `size` |

    A row is `read_back` if the run or this verification read its bytes and compared a digest, and `digest` if the
    store's answer to the upload had one.
    """
    con.execute(
        """
        CREATE TABLE readings AS SELECT * FROM read_csv(?, header = true, auto_detect = false, delim = ',',
            columns = {'row_id': 'VARCHAR', 'sha256': 'VARCHAR', 'md5': 'VARCHAR', 'size': 'BIGINT'})
        """,
        [str(readings)],
    )
    con.execute("CREATE TABLE asked (read BOOLEAN, every BOOLEAN, seed VARCHAR, up_to VARCHAR)")
    con.execute("INSERT INTO asked VALUES (?, ?, ?, ?)", [read, sample is EVERYTHING, str(sample.seed), sample.up_to])
    # One join a statement: DuckDB 2.0 keeps the hash tables of all joins of a statement in memory, which at a million
    # rows do not fit into its limit.
    con.execute(
        """
        CREATE TABLE held AS
        SELECT row_id, key, size, dest_etag AS etag, recorded_at, sha256, md5, confirmed AS how
        FROM latest SEMI JOIN manifest USING (row_id) ANTI JOIN waiting USING (row_id)
        WHERE status IN ('copied', 'unchanged')
        """
    )
    con.execute(
        """
        CREATE TABLE done AS
        SELECT * EXCLUDE (unread, has_digest, was_read, how),
               CASE WHEN (was_read AND has_digest AND NOT unread) OR how = 'read_back' THEN 'read_back'
                    WHEN how = 'digest' THEN 'digest' ELSE 'size' END AS confirmed
        FROM (
            SELECT l.row_id, l.key, coalesce(l.size, r.size) AS size, l.etag, l.recorded_at,
                   CASE WHEN r.sha256 IS NULL THEN l.sha256 ELSE r.sha256 END AS sha256,
                   CASE WHEN r.md5 IS NULL THEN l.md5 ELSE r.md5 END AS md5,
                   r.sha256 IS NOT NULL AS read_now,
                   r.row_id IS NOT NULL AND r.sha256 IS NULL AS unread,
                   l.sha256 IS NOT NULL OR l.md5 IS NOT NULL AS has_digest,
                   a.read AND (a.every OR md5(l.row_id || a.seed) <= a.up_to) AS was_read, l.how
            FROM held l LEFT JOIN readings r USING (row_id), asked a
        )
        """
    )
    con.execute("DROP TABLE held; DROP TABLE readings")


def count_confirmed(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Returns the number of rows of `done` by their evidence."""
    found = dict(con.execute("SELECT confirmed, count(*) FROM done GROUP BY 1").fetchall())
    return {kind: found.get(kind, 0) for kind in ("digest", "read_back", "size")}


def compare_listing(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Returns the numbers of objects in `listed`, of rows of `done` that it lacks, and of those with another size.

    Rows and not keys are counted: DuckDB would hold all keys in memory to count each once.
    """
    (objects, missing, resized) = con.execute(
        """
        SELECT (SELECT count(*) FROM listed), count(*) FILTER (o.key IS NULL), count(*) FILTER (o.size <> d.size)
        FROM done d LEFT JOIN listed o USING (key)
        """
    ).fetchall()[0]
    return {"objects": objects, "not_listed": missing, "other_size": resized}


def select_others(con: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    """Yields key, size, ETag, date and row of each listed object that no row of `done` has, sorted by key.

    ``row`` is the status of a row with that key, such as `failed` or `pending`; None if there is none.
    """
    found = con.execute(
        """
        SELECT o.key, o.size, o.etag, o.modified, min(l.status)
        FROM (SELECT * FROM listed ANTI JOIN done USING (key)) o
        LEFT JOIN (SELECT * FROM latest SEMI JOIN manifest USING (row_id)) l USING (key)
        GROUP BY ALL ORDER BY 1
        """
    )
    while lines := found.fetchmany(LINES):
        yield from lines
