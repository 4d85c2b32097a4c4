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


def find_removed(con: duckdb.DuckDBPyConnection, *, to_directory: bool) -> int:
    """Fills `removed`: the latest outcome of each copy that belongs to no row of `manifest`. Returns their number.

    `latest` is the folded ledger. A key is in use if a row of the manifest has it, or had its object written under it.
    In a directory, a key that differs from one in use only in case, Unicode form or dots is also in use: both may name
    the same file. Several rows may have had one key (`{sha256}`). That is one copy, described by the latest of their
    outcomes.

    Few copies have no row, as a rule, so these are found first, and all other keys are compared with theirs alone. Row
    IDs are compared by hashes of 64 bits, which take less memory. Should a removed row's be that of a listed row, its
    copy stays: with a hundred million rows and a million removed ones, that happens once in 180,000 times.
    """
    key = FOLDED_KEY if to_directory else "key"
    con.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE lost AS
        SELECT hash(row_id) AS id FROM latest l WHERE {_HAS_OBJECT} AND hash(row_id) NOT IN (
            SELECT hash(row_id) FROM manifest
        );
        CREATE OR REPLACE TEMP TABLE unlisted AS
        SELECT *, {key} AS used_key FROM {_copies("hash(row_id) IN (FROM lost)")};
        CREATE OR REPLACE TEMP TABLE wanted AS SELECT DISTINCT used_key FROM unlisted;
        CREATE OR REPLACE TEMP TABLE writers AS
        SELECT row_id, used_key FROM (SELECT row_id, {key} AS used_key FROM latest) SEMI JOIN wanted USING (used_key);
        CREATE OR REPLACE TEMP TABLE used AS
        SELECT used_key FROM (SELECT {key} AS used_key FROM manifest) SEMI JOIN wanted USING (used_key)
        UNION ALL
        SELECT used_key FROM writers
        SEMI JOIN (SELECT row_id FROM manifest SEMI JOIN writers USING (row_id)) listed USING (row_id);
        CREATE OR REPLACE TEMP TABLE last AS
        SELECT row_id FROM unlisted ANTI JOIN used USING (used_key) QUALIFY row_number()
            OVER (PARTITION BY key ORDER BY run_no DESC, attempt DESC, recorded_at DESC) = 1;
        CREATE OR REPLACE TEMP TABLE removed AS SELECT * FROM latest SEMI JOIN last USING (row_id)
        """
    )
    for name in ("lost", "unlisted", "wanted", "writers", "used", "last"):
        con.execute(f"DROP TABLE {name}")
    (removed,) = con.execute("SELECT count(*) FROM removed").fetchall()[0]
    return int(removed)


def count_copies(con: duckdb.DuckDBPyConnection) -> int:
    """Returns how many objects the copies of `latest` are, by their keys."""
    (copies,) = con.execute(f"SELECT count(DISTINCT hash(key)) FROM {_copies('true')}").fetchall()[0]
    return int(copies)


def _copies(condition: str) -> str:
    """Returns SQL for the outcomes that meet a condition, and whose object exists by the ledger, or may exist."""
    return f"""(
        SELECT row_id, key, run_no, attempt, recorded_at
        FROM (SELECT * FROM latest l WHERE {_HAS_OBJECT} AND {condition}) c
        ANTI JOIN (SELECT key, run_no FROM latest WHERE status = 'removed') d ON d.key = c.key AND d.run_no > c.run_no
    )"""
