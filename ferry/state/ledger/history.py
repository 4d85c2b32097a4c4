"""History of replaced copies: what a row's copy was before a later run replaced it (docs/reference/state.md).

The ledger has one line per row, the latest. The history has one line per replaced copy, so it grows with changed
objects, not with rechecked ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from ferry.state.checksums import checked_file_name
from ferry.state.files import State
from ferry.state.ledger.connection import scan, scratch_path
from ferry.state.ledger.files import write_outcomes
from ferry.state.ledger.merge import ORDER, Merge
from ferry.state.parquet import HISTORY_SCHEMA, OUTCOME_SCHEMA, to_bytes

if TYPE_CHECKING:
    import duckdb

HISTORY_FOLDER = "history"
_CREATE_REPLACED = f"""
    CREATE OR REPLACE TEMP TABLE replaced AS
    WITH copies AS (
        SELECT DISTINCT * FROM (SELECT * FROM lines {{base}})
        SEMI JOIN (SELECT row_id FROM written_again WHERE {{rows}}) again USING (row_id)
        WHERE (dest_etag IS NOT NULL OR status = 'removed') AND coalesce(sha256, md5) IS NOT NULL
    ), with_next AS (
        SELECT *, lead(status) OVER next AS next_status, lead(sha256) OVER next AS next_sha256,
               lead(md5) OVER next AS next_md5, lead(key) OVER next AS next_key, lead(run_no) OVER next AS replaced_by,
               lead(recorded_at) OVER next AS replaced_at
        FROM copies WINDOW next AS (PARTITION BY row_id ORDER BY {ORDER})
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


def record_replaced(
    con: duckdb.DuckDBPyConnection, state: State, run_no: int, merge: Merge, unfolded: Sequence[Path]
) -> list[str]:
    """Writes the copies that new outcomes replaced to `history/`; to be called before a fold.

    ``unfolded`` are the local files of outcomes that are not folded yet; ``merge`` has them and the rest of the ledger.
    Adds an outcome for each object that still exists under a key that its row no longer has, to the state and to
    ``merge``, and returns the names of their files. After a crash the next fold may write a copy to the history again.
    """
    if not unfolded or not _find_written_again(con, unfolded):
        return []  # nothing was replaced, so the whole ledger need not be read
    history, orphans = scratch_path(con, "history.parquet"), []
    try:
        with pq.ParquetWriter(history, HISTORY_SCHEMA, compression="zstd") as writer:
            written = 0
            for number in range(len(merge.ranges)):
                replaced, left = _replaced(con, merge, number)
                if len(replaced):
                    writer.write_table(replaced)
                    written += len(replaced)
                if len(left):
                    orphans.append(write_outcomes(state, to_bytes(left), run_no, "left", number))
        if written:
            state.write_file(checked_file_name(f"{HISTORY_FOLDER}/{run_no:06d}", history), history)
    finally:
        history.unlink(missing_ok=True)
    merge.add([state.local(name) for name in orphans])
    return orphans


def _find_written_again(con: duckdb.DuckDBPyConnection, unfolded: Sequence[Path]) -> bool:
    """Creates `written_again`, the IDs of rows whose object was written after the first attempt; False without any."""
    con.execute(
        # `unchanged` after reading the body: the row's new key already had another row's object with these bytes.
        """
        CREATE OR REPLACE TEMP TABLE written_again AS SELECT row_id FROM (
            SELECT * FROM no_outcomes UNION ALL BY NAME SELECT * FROM read_parquet(?, union_by_name = true)
        ) WHERE attempt > 1 AND (status = 'copied' OR (status = 'unchanged' AND checked_by = 'body'))
        """,
        [[str(path) for path in unfolded]],
    )
    return con.execute("SELECT count(*) FROM written_again").fetchall()[0] != (0,)


def _replaced(con: duckdb.DuckDBPyConnection, merge: Merge, number: int) -> tuple[pa.Table, pa.Table]:
    """Returns the replaced copies of a range, and the outcomes of those that still exist under another key."""
    rows = merge.ranges[number].condition()
    with merge.lines(number):
        base = f"UNION ALL BY NAME SELECT * FROM {scan([str(merge.base.path)])} WHERE {rows}" if merge.base else ""
        con.execute(_CREATE_REPLACED.format(base=base, rows=rows))
    columns = ", ".join(HISTORY_SCHEMA.names)
    replaced = con.sql(f"SELECT {columns} FROM replaced ORDER BY key, row_id").to_arrow_table()
    columns = ", ".join(f'"{name}"' for name in OUTCOME_SCHEMA.names)
    left = con.sql(_SELECT_ORPHANS.format(columns=columns)).to_arrow_table()
    return replaced.cast(HISTORY_SCHEMA), left.cast(OUTCOME_SCHEMA)
