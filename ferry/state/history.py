"""Versions that are no more: what the copy of a row was before a later run wrote another one (docs/reference/state.md).

The ledger has one line a row, the latest. This has one for each that was replaced, so it grows by what changes, and not
by what is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ferry.core import Outcome
from ferry.state.checksums import checked_name
from ferry.state.files import State
from ferry.state.parquet import HISTORY_SCHEMA, OUTCOME_SCHEMA, outcomes_of, to_bytes

if TYPE_CHECKING:
    import duckdb

HISTORY_FOLDER = "history"


_VERSIONS = """
    CREATE OR REPLACE TABLE replaced AS
    WITH lines AS (
        SELECT DISTINCT * FROM (
            SELECT * FROM no_outcomes UNION ALL BY NAME SELECT * FROM read_parquet($files, union_by_name = true)
        ) SEMI JOIN written USING (row_id)
        WHERE (dest_etag IS NOT NULL OR status = 'removed') AND coalesce(sha256, md5) IS NOT NULL
    ), followed AS (
        SELECT *, lead(status) OVER next AS by_status, lead(sha256) OVER next AS by_sha256,
               lead(md5) OVER next AS by_md5, lead(key) OVER next AS by_key, lead(run_no) OVER next AS replaced_by,
               lead(recorded_at) OVER next AS replaced_at
        FROM lines WINDOW next AS (PARTITION BY row_id ORDER BY run_no, attempt, recorded_at)
    )
    SELECT * FROM followed
    WHERE by_status IN ('copied', 'unchanged') AND NOT coalesce(by_sha256 = sha256, by_md5 = md5, false)
"""
# An object that its row has left behind under another key (`{sha256}.jpg`) is a copy without a row: it has a line of
# its own in the ledger, as those have whose rows left the list.
_LEFT_BEHIND = """
    SELECT {columns} FROM (
        SELECT * REPLACE (sha256(row_id || chr(0) || key) AS row_id, 'copied' AS status) FROM replaced
        WHERE key <> by_key AND status <> 'removed'
    )
"""


def create_empty(con: duckdb.DuckDBPyConnection) -> None:
    """Makes `no_outcomes`, a table with all columns and no line. One of DuckDB's own: a query whose lines are read one
    after the other, and that reads an Arrow table itself, has two sides that may wait for Python's lock."""
    con.register("no_outcomes_in_arrow", OUTCOME_SCHEMA.empty_table())
    con.execute("CREATE OR REPLACE TEMP TABLE no_outcomes AS SELECT * FROM no_outcomes_in_arrow")
    con.unregister("no_outcomes_in_arrow")


def note_replaced(
    con: duckdb.DuckDBPyConnection, state: State, run_no: int, files: Sequence[str], outcomes: Sequence[str]
) -> list[Outcome]:
    """Before a fold: writes what its outcomes replaced, and returns a line for each object that stands under a key
    which its row has no more. ``files``: all of the ledger, ``outcomes`` among them those that are not folded yet;
    local paths.

    After a crash a version may be noted again, by the fold that comes next.
    """
    if not outcomes:
        return []
    con.execute(
        # Another object may also have been found under its new key already, which another row had: it was read then.
        "CREATE OR REPLACE TABLE written AS SELECT DISTINCT row_id FROM read_parquet(?, union_by_name = true) "
        "WHERE attempt > 1 AND (status = 'copied' OR (status = 'unchanged' AND checked_by = 'body'))",
        [outcomes],
    )
    if con.execute("SELECT count(*) FROM written").fetchall()[0] == (0,):
        return []  # nothing was there before: the ledger, a million rows perhaps, is not read for it
    create_empty(con)
    con.execute(_VERSIONS, {"files": files})
    columns = ", ".join(HISTORY_SCHEMA.names)
    table = con.sql(f"SELECT {columns} FROM replaced ORDER BY key, row_id").to_arrow_table()
    if table.num_rows:
        data = to_bytes(table.cast(HISTORY_SCHEMA))
        state.write(checked_name(f"{HISTORY_FOLDER}/{run_no:06d}", data), data)
    left = con.sql(
        _LEFT_BEHIND.format(columns=", ".join(f'"{name}"' for name in OUTCOME_SCHEMA.names))
    ).to_arrow_table()
    return list(outcomes_of(left))
