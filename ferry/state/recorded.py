"""The outcomes that one run has recorded of one chunk, also in other processes: found by one listing."""

from __future__ import annotations

from ferry.state.checksums import verified_path
from ferry.state.files import State
from ferry.state.ledger import DAMAGE_ADVICE
from ferry.state.parquet import read_table

TRIES = 4  # another process may merge the chunk's files between the listing and the reading
Recorded = dict[str, tuple[str, str | None]]  # row ID -> status, error class


def recorded_of(state: State, run_no: int, chunk: str) -> Recorded:
    """Returns the outcome of each row that run ``run_no`` has recorded of the chunk with this digest.

    Of two outcomes of a row, a copy beats a failure, as in the ledger. Raises Damaged, and Fatal.
    """
    for left in reversed(range(TRIES)):
        try:
            return _read(state, state.list("outcomes", f"{run_no:06d}-{chunk[:32]}-"))
        except FileNotFoundError:
            if not left:
                raise
    raise AssertionError("unreachable")


def _read(state: State, names: list[str]) -> Recorded:
    found: Recorded = {}
    for name in names:
        table = read_table(verified_path(state, name, DAMAGE_ADVICE))
        columns = (table.column(column).to_pylist() for column in ("row_id", "status", "error_class"))
        for row_id, status, error_class in zip(*columns, strict=True):
            if row_id not in found or found[row_id][0] in ("failed", "skipped"):
                found[row_id] = (status, error_class)
    return found
