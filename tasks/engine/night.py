"""What a night came to: the figures of its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.engine.gone import DELETED, find_gone
from tasks.engine.history import FOLDER
from tasks.engine.ledger import run_of
from tasks.engine.state import State

if TYPE_CHECKING:
    import duckdb

NAMES = ("new", "changed", "unchanged", "failed", "failed_again", "requests", "bytes_saved", "gone", "deleted")


def figures(
    con: duckdb.DuckDBPyConnection, state: State, manifest: str, run_no: int, *, to_directory: bool
) -> dict[str, int]:
    """Rows that were new, replaced, and looked at for nothing; failures, and those that are not the first of their
    row; requests; the bytes of what was looked at and not read; copies that belong to no row of the list any more, and
    those that were deleted. ``latest``: the folded ledger."""
    found = con.execute(
        """
        SELECT count(*) FILTER (status = 'copied'), count(*) FILTER (status = 'unchanged'),
               count(*) FILTER (status = 'failed'), count(*) FILTER (status = 'failed' AND nights > 1),
               coalesce(sum(requests), 0),
               coalesce(sum(size) FILTER (status = 'unchanged' AND checked IN ('condition', 'head', 'size')), 0)
        FROM latest WHERE run_no = ?
        """,
        [run_no],
    ).fetchall()
    copied, unchanged, failed, again, requests, saved = map(int, found[0])
    changed = 0
    if names := [name for name in state.list(FOLDER) if run_of(name) == run_no]:
        # With what a killed run before it replaced, which no fold had noted yet; and a row that came back is new.
        (changed,) = con.execute(
            """
            SELECT count(*) FROM latest SEMI JOIN read_parquet($names) h ON h.row_id = latest.row_id
                AND h.replaced_by = $run_no WHERE run_no = $run_no AND status = 'copied' AND reason <> 'new'
            """,
            {"names": [str(state.local(name)) for name in names], "run_no": run_no},
        ).fetchall()[0]
    gone, _ = find_gone(con, manifest, to_directory=to_directory)
    (deleted,) = con.execute(
        "SELECT count(*) FROM latest WHERE run_no = ? AND status = 'dropped' AND message = ?", [run_no, DELETED]
    ).fetchall()[0]
    values = (copied - changed, changed, unchanged, failed, again, requests, saved, gone, int(deleted))
    return dict(zip(NAMES, values, strict=True))
