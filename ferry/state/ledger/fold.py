"""The fold of the ledger at the end of a run (docs/decisions/0063-a-ledger-in-ranges.md)."""

from __future__ import annotations

import time

from ferry.state.checksums import checked_file_name, digest_in
from ferry.state.files import State
from ferry.state.ledger.connection import connect, scratch_path
from ferry.state.ledger.files import is_folded, ledger_files
from ferry.state.ledger.history import record_replaced
from ferry.state.ledger.merge import Merge
from ferry.state.ledger.sources import local_sources


def compact_ledger(state: State, run_no: int) -> list[str]:
    """Folds all outcomes into `ledger/`, deletes the files that it replaces, and returns the names of those that stay.

    That is one file with the latest outcome of each row; or a large one that stays as it is, and one of the rows that
    changed since. The copies that this run replaced are written to `history/` first. A crash before the deletion leaves
    old and new files, which readers merge to the same rows. A ledger that is folded already stays as it is.
    """
    old = ledger_files(state)
    if is_folded(old):
        return old
    con = connect(state.spool_dir)
    target = scratch_path(con, "ledger.parquet")
    try:
        with local_sources(con, state, old) as sources, Merge(con, sources) as merge:
            unfolded = [source.path for source in sources if source.name.startswith("outcomes/")]
            old += record_replaced(con, state, run_no, merge, unfolded)
            merge.write_latest(target)
            base = merge.base.name if merge.base else ""
        over = f"-over-{digest_in(base)}" if base else ""
        name = checked_file_name(f"ledger/{run_no:06d}-{time.time_ns():019d}{over}", target)
        state.write_file(name, target)
    finally:
        con.close()
        target.unlink(missing_ok=True)
    state.delete(each for each in old if each != base)
    return [base, name] if base else [name]
