"""Search of the ledger for many rows whose objects have the same bytes, which may be a placeholder image."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Any

from ferry.state import State, failure_cell

if TYPE_CHECKING:
    import duckdb

MIN_ROWS = 10  # fewer rows may share an image on purpose
SHARE = 0.001  # of the planned rows, if that is more
SHOWN_GROUPS = 5
LISTED_ROWS = 100_000
COLUMNS = ("sha256_or_md5", "id", "source", "key", "size")
# Grouping by a 64-bit hash instead of the 64 digits lets ten million rows fit into the memory limit.
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
        SEMI JOIN manifest m ON m.row_id = l.row_id
        WHERE l.status IN ('copied', 'unchanged')
    )
    SELECT * FROM alike SEMI JOIN (
        SELECT digest FROM alike GROUP BY digest HAVING count(DISTINCT source) >= ?
    ) often USING (digest)
"""


def min_rows(planned: int) -> int:
    """Returns how many rows with the same bytes are reported, for a number of planned rows.

    | planned | rows |
    |---|---|
    | 300 | 10 |
    | 10,000 | 10 |
    | 250,000 | 250 |
    """
    return max(MIN_ROWS, math.ceil(planned * SHARE))


def find_same_bytes(con: duckdb.DuckDBPyConnection, state: State, run_no: int, planned: int) -> dict[str, Any] | None:
    """Returns facts about groups of rows with different addresses and the same bytes, or None if there is no group.

    A group has at least :func:`min_rows` copied or unchanged rows of the manifest. The result has the number of rows
    and groups, and the largest groups with an example each. It also names the file that lists the rows. ``con`` is that
    of :func:`ferry.state.folded_ledger`.
    """
    least = min_rows(planned)
    con.execute(_GROUPS, [least])
    if con.execute("SELECT count(*) FROM many").fetchall()[0] == (0,):
        return None
    con.execute(_ROWS, [least])
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
    """Writes the first rows of `same` as a CSV file, and returns its name in the state."""
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
