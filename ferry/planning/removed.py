"""Copies that belong to no row of the list any more (docs/how-to/delta-runs.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ferry.planning.collisions import ALIKE

if TYPE_CHECKING:
    import duckdb

# An object of the job's own stands under the key, also where a later look at its source failed, or perhaps one does:
# its deletion was begun. (What verify found wrong has an error class.)
_THERE = """(l.status IN ('copied', 'unchanged') OR (l.status = 'failed' AND l.dest_etag IS NOT NULL)
             OR (l.status = 'pending' AND l.error_class IS NULL AND l.dest_etag IS NOT NULL))"""


def find_gone(con: duckdb.DuckDBPyConnection, manifest: str, *, to_directory: bool) -> tuple[int, int]:
    """Fills `gone`: the latest outcome of each copy that belongs to no row of the list. Returns how many, and how many
    copies there are with them. `latest` is the folded ledger.

    A key that a row of the list has, or had its object written under, is in use; in a directory also one that differs
    in case, Unicode form or dots alone, which may be the same file. Rows may have had one key, one after the other or
    all at once (`{sha256}`): that is one copy, and the latest of them says what stands there.
    """
    alike = ALIKE if to_directory else "key"
    con.execute(
        f"""
        CREATE OR REPLACE TEMP VIEW standing AS
        SELECT row_id, key, run_no, attempt, recorded_at FROM latest l
        ANTI JOIN (SELECT key, run_no FROM latest WHERE status = 'removed') d ON d.key = l.key AND d.run_no > l.run_no
        WHERE {_THERE}
        """
    )
    con.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE gone AS
        WITH listed AS (SELECT row_id, key FROM read_parquet($manifest)),
        used AS (SELECT {alike} AS alike FROM listed WHERE key IS NOT NULL
                 UNION ALL SELECT {alike} FROM latest SEMI JOIN listed USING (row_id)),
        unlisted AS (SELECT *, {alike} AS alike FROM standing ANTI JOIN listed USING (row_id)),
        last AS (SELECT row_id FROM unlisted ANTI JOIN used USING (alike) QUALIFY row_number()
                 OVER (PARTITION BY key ORDER BY run_no DESC, attempt DESC, recorded_at DESC) = 1)
        SELECT * FROM latest SEMI JOIN last USING (row_id)
        """,
        {"manifest": manifest},
    )
    (gone,) = con.execute("SELECT count(*) FROM gone").fetchall()[0]
    (standing,) = con.execute("SELECT count(DISTINCT hash(key)) FROM standing").fetchall()[0]
    return int(gone), int(standing)
