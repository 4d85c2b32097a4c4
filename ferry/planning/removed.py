"""The copies whose rows were removed from the manifest (docs/how-to/delta-runs.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ferry.planning.collisions import FOLDED_KEY

if TYPE_CHECKING:
    import duckdb

# An object of the job exists under the key, even if a later check of its source failed; or it may exist, since its
# deletion had begun. What `ferry verify` found missing or altered has an error class, and does not count.
_HAS_OBJECT = """(l.status IN ('copied', 'unchanged') OR (l.status = 'failed' AND l.dest_etag IS NOT NULL)
             OR (l.status = 'pending' AND l.error_class IS NULL AND l.dest_etag IS NOT NULL))"""


def find_removed(con: duckdb.DuckDBPyConnection, *, to_directory: bool) -> tuple[int, int]:
    """Fills `removed`: the latest outcome of each copy that belongs to no row of `manifest`.

    Returns their number, and the number of all copies. `latest` is the folded ledger.

    A key is in use if a row of the manifest has it, or had its object written under it. In a directory, a key that
    differs from one in use only in case, Unicode form or dots is also in use: both may name the same file. Several rows
    may have had one key (`{sha256}`). That is one copy, described by the latest of their outcomes.
    """
    key = FOLDED_KEY if to_directory else "key"
    con.execute(
        f"""
        CREATE OR REPLACE TEMP VIEW copies AS
        SELECT row_id, key, run_no, attempt, recorded_at FROM latest l
        ANTI JOIN (SELECT key, run_no FROM latest WHERE status = 'removed') d ON d.key = l.key AND d.run_no > l.run_no
        WHERE {_HAS_OBJECT}
        """
    )
    con.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE removed AS
        WITH listed AS (SELECT row_id, key FROM manifest),
        used AS (SELECT {key} AS used_key FROM listed WHERE key IS NOT NULL
                 UNION ALL SELECT {key} FROM latest SEMI JOIN listed USING (row_id)),
        unlisted AS (SELECT *, {key} AS used_key FROM copies ANTI JOIN listed USING (row_id)),
        last AS (SELECT row_id FROM unlisted ANTI JOIN used USING (used_key) QUALIFY row_number()
                 OVER (PARTITION BY key ORDER BY run_no DESC, attempt DESC, recorded_at DESC) = 1)
        SELECT * FROM latest SEMI JOIN last USING (row_id)
        """
    )
    (removed,) = con.execute("SELECT count(*) FROM removed").fetchall()[0]
    (copies,) = con.execute("SELECT count(DISTINCT hash(key)) FROM copies").fetchall()[0]
    return int(removed), int(copies)
