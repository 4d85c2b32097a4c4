"""The latest outcomes of a ledger as the view `latest`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ferry.state.files import State
from ferry.state.id_ranges import EVERY_ROW, RowRange
from ferry.state.ledger.connection import release_freed, scan, scratch_path
from ferry.state.ledger.files import is_folded, ledger_files
from ferry.state.ledger.merge import Merge
from ferry.state.ledger.sources import Source, local_sources
from ferry.state.parquet import SCHEMA_VERSION

if TYPE_CHECKING:
    import duckdb


class OpenLedger:
    """A ledger's latest outcomes, one range of row IDs after the other (:func:`open_ledger`)."""

    def __init__(self, con: duckdb.DuckDBPyConnection, rows: int) -> None:
        self._con = con
        self.rows = rows  # at most this many rows have an outcome

    def create_latest(self, rows: RowRange = EVERY_ROW) -> None:
        """Creates `latest`: the latest outcome of each row of the range. It replaces the view of another range."""
        release_freed(self._con)  # of that range
        self._con.execute(f"CREATE OR REPLACE TEMP VIEW latest AS SELECT * FROM every_latest WHERE {rows.condition()}")


@contextlib.contextmanager
def open_ledger(con: duckdb.DuckDBPyConnection, state: State, since_run: int = 0) -> Iterator[OpenLedger]:
    """Opens the ledger for the block, with the outcomes of the runs since ``since_run``.

    A range of a folded ledger is read from its files, which are sorted by row ID. What a fold has not merged yet is
    merged into a temporary file first, in bounded memory, or into a table if there are few rows.

    What was listed stays readable until the block ends, even if another run compacts the ledger meanwhile. Raises
    NewerVersion for a file that a newer Ferry wrote, and Damaged for one whose digest is wrong.
    """
    with contextlib.ExitStack() as open_files:
        yield OpenLedger(con, _create_view(con, state, "every_latest", since_run, open_files))


def create_latest(
    con: duckdb.DuckDBPyConnection,
    state: State,
    since_run: int = 0,
    *,
    open_files: contextlib.ExitStack | None = None,
) -> None:
    """Creates `latest`: the latest outcome of each row, as :func:`open_ledger` does, of all ranges at once.

    It is readable until ``open_files`` are closed. Without them it is a table, for a ledger of few rows.
    """
    if open_files is not None:
        _create_view(con, state, "latest", since_run, open_files)
        return
    with open_ledger(con, state, since_run):
        con.execute("CREATE OR REPLACE TABLE latest AS SELECT * FROM every_latest")


def keep_readable(path: Path, open_files: contextlib.ExitStack) -> str:
    """Returns a path under which the file can be read until ``open_files`` closes, even if its name is deleted.

    The path is that of an open descriptor (proc(5), `fd`): the kernel frees the bytes of an unlinked file only when
    the last descriptor is closed (unlink(2)).
    """
    return f"/dev/fd/{open_files.enter_context(path.open('rb')).fileno()}"


def _create_view(
    con: duckdb.DuckDBPyConnection, state: State, name: str, since_run: int, open_files: contextlib.ExitStack
) -> int:
    """Creates the view ``name``, and returns how many rows it has at most."""
    names = ledger_files(state)
    with local_sources(con, state, names) as sources:
        whole, changes = _parts(con, names, sources, open_files)
        rows = sum(source.rows for source in sources)
    sql = f"SELECT * FROM {whole}"
    if changes:
        sql = f"{sql} w ANTI JOIN {changes} c USING (row_id) UNION ALL BY NAME SELECT * FROM {changes}"
    con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT * FROM ({sql}) WHERE run_no >= {since_run}")
    return rows


def _parts(
    con: duckdb.DuckDBPyConnection, names: list[str], sources: list[Source], open_files: contextlib.ExitStack
) -> tuple[str, str]:
    """Returns SQL for the whole fold, or for everything, and for the rows that replace some of its rows, or ""."""
    if is_folded(names) and all(source.schema == SCHEMA_VERSION for source in sources):
        whole, *changes = (scan([keep_readable(source.path, open_files)]) for source in sources)
        return whole, "".join(changes)
    with Merge(con, sources) as merge:
        if merge.small:
            sql, given = merge.latest_sql()
            con.execute(f"CREATE OR REPLACE TEMP TABLE merged AS {sql}", given)
            return "merged", ""
        base = scan([keep_readable(merge.base.path, open_files)]) if merge.base else ""
        path = scratch_path(con, "merged.parquet")
        open_files.callback(path.unlink, missing_ok=True)
        merge.write_latest(path)
    merged = scan([str(path)])
    return (base, merged) if base else (merged, "")
