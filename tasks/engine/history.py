"""Versions that are no more: what the copy of a row was before a later run wrote another one (docs/state.md).

The ledger has one line a row, the latest. This has one for each that was replaced, so it grows by what changes, and not
by what is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from tasks.engine.seal import sealed
from tasks.engine.state import State
from tasks.engine.tables import HISTORY, to_bytes

if TYPE_CHECKING:
    import duckdb

FOLDER = "history"


def note_replaced(
    con: duckdb.DuckDBPyConnection, state: State, run_no: int, files: Sequence[str], outcomes: Sequence[str]
) -> int:
    """Before a fold: writes what its outcomes replaced, and returns how many versions. ``files``: all of the ledger,
    ``outcomes`` among them those that are not folded yet; local paths.

    After a crash a version may be noted again, by the fold that comes next.
    """
    if not outcomes:
        return 0
    con.execute(
        "CREATE OR REPLACE TABLE written AS SELECT DISTINCT row_id FROM read_parquet(?, union_by_name = true) "
        "WHERE status = 'copied' AND attempt > 1",
        [outcomes],
    )
    if con.execute("SELECT count(*) FROM written").fetchall()[0] == (0,):
        return 0  # nothing was there before: the ledger, a million rows perhaps, is not read for it
    found = con.execute(
        """
        WITH lines AS (
            SELECT DISTINCT row_id, source, key, id, status, size, md5, sha256, content_type, source_etag,
                   source_last_modified, dest_etag, recorded_at, run_no, attempt
            FROM read_parquet(?, union_by_name = true) SEMI JOIN written USING (row_id)
            WHERE dest_etag IS NOT NULL AND coalesce(sha256, md5) IS NOT NULL
        ), followed AS (
            SELECT *, lead(status) OVER next AS by_status, lead(sha256) OVER next AS by_sha256,
                   lead(md5) OVER next AS by_md5, lead(run_no) OVER next AS replaced_by,
                   lead(recorded_at) OVER next AS replaced_at
            FROM lines WINDOW next AS (PARTITION BY row_id ORDER BY run_no, attempt, recorded_at)
        )
        SELECT row_id, source, key, id, size, md5, sha256, content_type, source_etag, source_last_modified, dest_etag,
               recorded_at, run_no, replaced_at, replaced_by
        FROM followed WHERE by_status = 'copied' AND NOT coalesce(by_sha256 = sha256, by_md5 = md5, false)
        ORDER BY key, row_id
        """,
        [files],
    ).fetchall()
    if found:
        columns = zip(zip(*found, strict=True), HISTORY, strict=True)
        arrays = [pa.array(column, type=field.type) for column, field in columns]
        data = to_bytes(pa.Table.from_arrays(arrays, schema=HISTORY))
        state.write(sealed(f"{FOLDER}/{run_no:06d}", data), data)
    return len(found)
