"""Rows whose objects have the same bytes, a placeholder perhaps: found in the ledger at the end of a run."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Any

from ferry.state import State, failure_cell

if TYPE_CHECKING:
    import duckdb

AT_LEAST = 10  # rows: a few products may share a picture
SHARE = 0.001  # of the planned rows, where that is more
SHOWN_GROUPS = 5
LISTED_ROWS = 100_000
COLUMNS = ("sha256_or_md5", "id", "source", "key", "size")
# A number in place of 64 digits: ten million rows are grouped in the memory that there is.
_GROUPS = """
    CREATE OR REPLACE TABLE many AS
    SELECT hash(coalesce(sha256, md5)) AS number FROM latest
    WHERE status IN ('copied', 'unchanged') AND coalesce(sha256, md5) IS NOT NULL GROUP BY 1 HAVING count(*) >= ?
"""
_ROWS = """
    CREATE OR REPLACE TABLE same AS
    WITH alike AS (
        SELECT coalesce(l.sha256, l.md5) AS digest, l.id, l.source, l.key, l.size, l.row_id
        FROM latest l SEMI JOIN many ON many.number = hash(coalesce(l.sha256, l.md5))
        SEMI JOIN read_parquet(?) m ON m.row_id = l.row_id
        WHERE l.status IN ('copied', 'unchanged')
    )
    SELECT * FROM alike SEMI JOIN (
        SELECT digest FROM alike GROUP BY digest HAVING count(DISTINCT source) >= ?
    ) often USING (digest)
"""


def enough(planned: int) -> int:
    """How many rows with the same bytes are worth a word, of so many that are planned.

    | planned | rows |
    |---|---|
    | 300 | 10 |
    | 10,000 | 10 |
    | 250,000 | 250 |
    """
    return max(AT_LEAST, math.ceil(planned * SHARE))


def find_same_bytes(
    con: duckdb.DuckDBPyConnection, state: State, manifest: str, run_no: int, planned: int
) -> dict[str, Any] | None:
    """Rows of the manifest from different addresses that are copied or unchanged, and whose bytes are those of
    :func:`enough` others: how many, the largest groups with an example each, and the file that lists them. None
    where there are none. ``latest``: the folded ledger.
    """
    most = enough(planned)
    con.execute(_GROUPS, [most])
    if con.execute("SELECT count(*) FROM many").fetchall()[0] == (0,):
        return None
    con.execute(_ROWS, [manifest, most])
    groups = con.execute(
        "SELECT digest, count(*) AS rows, arg_min({'id': id, 'source': source, 'key': key}, row_id) "
        "FROM same GROUP BY digest ORDER BY rows DESC, digest"
    ).fetchall()
    if not groups:
        return None
    return {
        "rows": sum(rows for _, rows, _ in groups),
        "groups": len(groups),
        "largest": [{"digest": digest, "rows": rows, **example} for digest, rows, example in groups[:SHOWN_GROUPS]],
        "file": _write(con, state, run_no),
    }


def _write(con: duckdb.DuckDBPyConnection, state: State, run_no: int) -> str:
    """The first rows of `same` as a table for people; returns its name in the state."""
    name = f"reports/run-{run_no:06d}/same-bytes.csv"
    path = state.spool_dir / "same-bytes.csv"
    cursor = con.execute("SELECT digest, id, source, key, size FROM same ORDER BY ALL LIMIT ?", [LISTED_ROWS])
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            while lines := cursor.fetchmany(10_000):
                writer.writerows([failure_cell(value) for value in line] for line in lines)
        state.write_file(name, path)
    finally:
        path.unlink(missing_ok=True)
    return name
