"""Copies without a row: for how many lists each is missing, and which rows may still stand for it.

The rules for users: docs/how-to/delta-runs.md.

`plan/missing-<run>-<digest>.parquet` counts, for each copy by its key, the lists in a row that lacked it. Only a night
that may delete adds to it; a plan whose list has the copy takes it out. A night that was killed or interrupted after it
counted leaves its count open: the run that continues it has the same list, and adds nothing. Nor does one of Prefect's
runs count twice, however often it is started.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from ferry.state.checksums import checked_name, is_intact
from ferry.state.files import State
from ferry.state.parquet import to_bytes

if TYPE_CHECKING:
    import duckdb

STEM = "plan/missing"
_SCHEMA = pa.schema([("key", pa.string()), ("lists", pa.int64()), ("open", pa.bool_()), ("flow_run", pa.string())])


@dataclass(frozen=True, slots=True)
class Missing:
    """What decides whether a copy without a row may be deleted."""

    lists: int  # in a row that lacked it, with this one
    shares: str  # what it has in common with a row that is not at the destination: "id", "source", or "" for nothing
    nameless: bool  # the list has a row that says nothing of itself: it may be any copy's


def missing_files(state: State) -> list[str]:
    return [name for name in state.list("plan") if name.startswith(f"{STEM}-")]


def load(con: duckdb.DuckDBPyConnection, state: State) -> None:
    """Fills `was_missing` with the latest count; one that is damaged or lost counts from the beginning."""
    con.execute("CREATE OR REPLACE TEMP TABLE was_missing (key VARCHAR, lists BIGINT, open BOOLEAN, flow_run VARCHAR)")
    if (names := missing_files(state)) and is_intact(state, max(names)):
        con.execute("INSERT INTO was_missing BY NAME FROM read_parquet(?)", [str(state.local(max(names)))])


def forget_returned(con: duckdb.DuckDBPyConnection, state: State, run_no: int) -> None:
    """Takes copies out of the count that belong to a row of the list again. `gone`: those that do not."""
    load(con, state)
    con.execute("DELETE FROM was_missing WHERE key NOT IN (SELECT key FROM gone)")
    _write(con, state, run_no, "was_missing")


def count_lists(con: duckdb.DuckDBPyConnection, state: State, run_no: int) -> None:
    """One more list lacks the copies in `gone`. Written before anything is deleted; open until :func:`close`."""
    _write(con, state, run_no, "missing")


def close_missing(con: duckdb.DuckDBPyConnection, state: State, run_no: int) -> None:
    """The night has come to its end: the next list that lacks a copy is another one."""
    load(con, state)
    con.execute("UPDATE was_missing SET open = false")
    _write(con, state, run_no, "was_missing")


def _write(con: duckdb.DuckDBPyConnection, state: State, run_no: int, table: str) -> None:
    old = missing_files(state)
    found = con.table(table).project("key, lists, open, flow_run").order("key").to_arrow_table().cast(_SCHEMA)
    if found.num_rows:
        data = to_bytes(found)
        name = checked_name(f"{STEM}-{run_no:06d}", data)
        state.write(name, data)
        old = [other for other in old if other != name]
    state.delete(old)


def find_missing(con: duckdb.DuckDBPyConnection, state: State, manifest: str, flow_run: str) -> None:
    """Fills `missing`: of each copy in `gone` what :class:`Missing` has. ``flow_run``: of Prefect, or "".

    A row that failed, is unusable or is pending may be the copy's own under another address or another name: nothing
    that has its `id` or its source goes, and nothing at all while one has neither. (A key of the list is in use, and
    its copy not in `gone`.)
    """
    load(con, state)
    con.execute(
        """
        CREATE OR REPLACE TEMP TABLE troubled AS
        SELECT nullif(m.id, '') AS id, m.source, l.source AS shown,
               m.error_class IN ('bad_url', 'bad_line') AND nullif(m.id, '') IS NULL AND m.key IS NULL AS nameless
        FROM read_parquet($manifest) m LEFT JOIN (SELECT * FROM latest ANTI JOIN waiting USING (row_id)) l
             ON l.row_id = m.row_id
        WHERE m.error_class IS NOT NULL OR l.row_id IS NULL OR l.status NOT IN ('copied', 'unchanged', 'skipped')
        """,
        {"manifest": manifest},
    )
    con.execute(
        """
        CREATE OR REPLACE TEMP TABLE missing AS
        SELECT g.key, coalesce(w.lists, 0) + CASE WHEN w.open OR w.flow_run = $own THEN 0 ELSE 1 END AS lists,
               true AS open, $own::VARCHAR AS flow_run,
               CASE WHEN g.id IN (SELECT id FROM troubled WHERE id IS NOT NULL) THEN 'id'
                    WHEN g.source IN (SELECT source FROM troubled WHERE source IS NOT NULL
                                      UNION ALL SELECT shown FROM troubled WHERE shown IS NOT NULL) THEN 'source'
                    ELSE '' END AS shares,
               coalesce((SELECT bool_or(nameless) FROM troubled), false) AS nameless
        FROM gone g LEFT JOIN was_missing w ON w.key = g.key
        """,
        {"own": flow_run or None},
    )


def missing_cases(con: duckdb.DuckDBPyConnection) -> Iterator[tuple[Missing, int]]:
    """Each case that occurs, and how many copies it has."""
    for *values, copies in con.execute(
        "SELECT lists, shares, nameless, count(*) FROM missing GROUP BY ALL ORDER BY ALL"
    ).fetchall():
        yield Missing(*values), copies
