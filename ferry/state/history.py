"""History of replaced copies: what a row's copy was before a later run replaced it (docs/reference/state.md).

The ledger has one line per row, the latest. The history has one line per replaced copy, so it grows with changed
objects, not with rechecked ones.
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


_CREATE_REPLACED = """
    CREATE OR REPLACE TABLE replaced AS
    WITH copies AS (
        SELECT DISTINCT * FROM (
            SELECT * FROM no_outcomes UNION ALL BY NAME SELECT * FROM read_parquet($files, union_by_name = true)
        ) SEMI JOIN written_again USING (row_id)
        WHERE (dest_etag IS NOT NULL OR status = 'removed') AND coalesce(sha256, md5) IS NOT NULL
    ), with_next AS (
        SELECT *, lead(status) OVER next AS next_status, lead(sha256) OVER next AS next_sha256,
               lead(md5) OVER next AS next_md5, lead(key) OVER next AS next_key, lead(run_no) OVER next AS replaced_by,
               lead(recorded_at) OVER next AS replaced_at
        FROM copies WINDOW next AS (PARTITION BY row_id ORDER BY run_no, attempt, recorded_at)
    )
    SELECT * FROM with_next
    WHERE next_status IN ('copied', 'unchanged') AND NOT coalesce(next_sha256 = sha256, next_md5 = md5, false)
"""
# With a key such as `{sha256}.jpg`, a changed object gets another key, and the old object is a copy without a row. It
# gets a ledger line of its own, under an ID that no row has. Copies whose rows were removed from the manifest have
# such lines anyway, so pruning, compaction, damage checks and `--replan` treat both kinds alike. A separate table of
# these objects would need each of these steps a second time, and an outcome of its own when it is deleted.
_SELECT_ORPHANS = """
    SELECT {columns} FROM (
        SELECT * REPLACE (sha256(row_id || chr(0) || key) AS row_id, 'copied' AS status) FROM replaced
        WHERE key <> next_key AND status <> 'removed'
    )
"""


def create_empty(con: duckdb.DuckDBPyConnection) -> None:
    """Creates `no_outcomes`, an empty DuckDB table with all columns of an outcome.

    It is not an Arrow table: a query that reads one while its own result is read in batches may deadlock on the GIL.
    """
    con.register("no_outcomes_in_arrow", OUTCOME_SCHEMA.empty_table())
    con.execute("CREATE OR REPLACE TEMP TABLE no_outcomes AS SELECT * FROM no_outcomes_in_arrow")
    con.unregister("no_outcomes_in_arrow")


def record_replaced(
    con: duckdb.DuckDBPyConnection, state: State, run_no: int, files: Sequence[str], outcomes: Sequence[str]
) -> list[Outcome]:
    """Writes the copies that new outcomes replaced to `history/`; to be called before a fold.

    ``files`` are the local paths of the whole ledger, ``outcomes`` those of them that are not folded yet. Returns an
    outcome for each object that still exists under a key that its row no longer has. After a crash the next fold may
    write a copy to the history again.
    """
    if not outcomes:
        return []
    con.execute(
        # `unchanged` after reading the body: the row's new key already had another row's object with these bytes.
        "CREATE OR REPLACE TABLE written_again AS SELECT DISTINCT row_id FROM read_parquet(?, union_by_name = true) "
        "WHERE attempt > 1 AND (status = 'copied' OR (status = 'unchanged' AND checked_by = 'body'))",
        [outcomes],
    )
    if con.execute("SELECT count(*) FROM written_again").fetchall()[0] == (0,):
        return []  # nothing was replaced, so a ledger of perhaps a million rows need not be read
    create_empty(con)
    con.execute(_CREATE_REPLACED, {"files": files})
    columns = ", ".join(HISTORY_SCHEMA.names)
    table = con.sql(f"SELECT {columns} FROM replaced ORDER BY key, row_id").to_arrow_table()
    if table.num_rows:
        data = to_bytes(table.cast(HISTORY_SCHEMA))
        state.write(checked_name(f"{HISTORY_FOLDER}/{run_no:06d}", data), data)
    columns = ", ".join(f'"{name}"' for name in OUTCOME_SCHEMA.names)
    orphans = con.sql(_SELECT_ORPHANS.format(columns=columns)).to_arrow_table()
    return list(outcomes_of(orphans))
