"""Counts of the manifests that lacked each copy without a row, and which rows may still belong to it.

The rules for users: docs/how-to/delta-runs.md.

`plan/missing-<run>-<digest>.parquet` has a count per copy, by its key: how many manifests in a row lacked it. Only a
delta run that may delete increases it. A plan whose manifest has the copy again removes the copy from the file.

A count stays open until its run has ended. If that run is killed or interrupted, the next run has the same manifest
and does not count it again. Nor does a flow run of Prefect count twice, however often it is started.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from ferry.core import redact
from ferry.state.checksums import checked_name, is_intact
from ferry.state.files import State
from ferry.state.parquet import to_bytes

if TYPE_CHECKING:
    import duckdb

STEM = "plan/missing"
_SCHEMA = pa.schema([("key", pa.string()), ("lists", pa.int64()), ("open", pa.bool_()), ("flow_run", pa.string())])


@dataclass(frozen=True, slots=True)
class Missing:
    """The facts that decide whether a copy without a row may be deleted."""

    lists: int  # manifests in a row that lacked the copy, this one included
    shares: str  # what a row without an object at the destination shares with the copy: "id", "source" (or another
    # address), or ""
    unidentified: bool  # the manifest has a row without id, usable address or key, to which any copy may belong


def missing_files(state: State) -> list[str]:
    """Returns the names of the files with counts; normally there is one, or none."""
    return [name for name in state.list("plan") if name.startswith(f"{STEM}-")]


def load_counts(con: duckdb.DuckDBPyConnection, state: State) -> None:
    """Fills `last_counts` from the latest file; a damaged or lost file makes all counts begin again."""
    con.execute("CREATE OR REPLACE TEMP TABLE last_counts (key VARCHAR, lists BIGINT, open BOOLEAN, flow_run VARCHAR)")
    if (names := missing_files(state)) and is_intact(state, max(names)):
        con.execute("INSERT INTO last_counts BY NAME FROM read_parquet(?)", [str(state.local(max(names)))])


def forget_returned(con: duckdb.DuckDBPyConnection, state: State, run_no: int) -> None:
    """Removes the counts of copies that belong to a row again, which are those not in `removed`."""
    load_counts(con, state)
    con.execute("DELETE FROM last_counts WHERE key NOT IN (SELECT key FROM removed)")
    _write(con, state, run_no, "last_counts")


def count_lists(con: duckdb.DuckDBPyConnection, state: State, run_no: int) -> None:
    """Writes the counts in `missing`, open until :func:`close_missing`; to be called before any deletion."""
    _write(con, state, run_no, "missing")


def close_missing(con: duckdb.DuckDBPyConnection, state: State, run_no: int) -> None:
    """Closes the counts at the end of a run, so that the next manifest counts again."""
    load_counts(con, state)
    con.execute("UPDATE last_counts SET open = false")
    _write(con, state, run_no, "last_counts")


def _write(con: duckdb.DuckDBPyConnection, state: State, run_no: int, table: str) -> None:
    old = missing_files(state)
    counts = con.table(table).project("key, lists, open, flow_run").order("key").to_arrow_table().cast(_SCHEMA)
    if counts.num_rows:
        data = to_bytes(counts)
        name = checked_name(f"{STEM}-{run_no:06d}", data)
        state.write(name, data)
        old = [other for other in old if other != name]
    state.delete(old)


def find_missing(con: duckdb.DuckDBPyConnection, state: State, flow_run: str) -> None:
    """Fills `missing`: for each copy in `removed` its key, the columns of the file, and the facts of :class:`Missing`.

    A copy may belong, under another address or id, to a row that failed, is unusable or is pending. So a copy that
    shares its `id` or an address with such a row is kept, and all copies are while an unusable row has neither. A key
    that a row has is in use, and its copy is not in `removed`. ``flow_run`` is Prefect's ID, or "".
    """
    load_counts(con, state)
    con.create_function("redact", redact, ["VARCHAR"], "VARCHAR")
    con.execute(
        """
        CREATE OR REPLACE TEMP TABLE unresolved AS
        SELECT nullif(m.id, '') AS id, m.source, l.source AS redacted_source, m.alternatives,
               m.error_class IN ('bad_url', 'bad_line') AND nullif(m.id, '') IS NULL AND m.key IS NULL AS unidentified
        FROM manifest m LEFT JOIN (SELECT * FROM latest ANTI JOIN waiting USING (row_id)) l ON l.row_id = m.row_id
        WHERE m.error_class IS NOT NULL OR l.row_id IS NULL OR l.status NOT IN ('copied', 'unchanged', 'skipped')
        """
    )
    con.execute(
        """
        CREATE OR REPLACE TEMP TABLE unresolved_sources AS
        SELECT source FROM (SELECT source FROM unresolved UNION ALL SELECT redacted_source FROM unresolved UNION ALL
                            SELECT redact(address) FROM (SELECT unnest(alternatives) AS address FROM unresolved))
        WHERE source IS NOT NULL
        """
    )
    con.execute(
        """
        CREATE OR REPLACE TEMP TABLE missing AS
        SELECT r.key, coalesce(c.lists, 0) + CASE WHEN c.open OR c.flow_run = $own THEN 0 ELSE 1 END AS lists,
               true AS open, $own::VARCHAR AS flow_run,
               CASE WHEN r.id IN (SELECT id FROM unresolved WHERE id IS NOT NULL) THEN 'id'
                    WHEN r.source IN (FROM unresolved_sources) OR r.address IN (FROM unresolved_sources)
                    THEN 'source' ELSE '' END AS shares,
               coalesce((SELECT bool_or(unidentified) FROM unresolved), false) AS unidentified
        FROM removed r LEFT JOIN last_counts c ON c.key = r.key
        """,
        {"own": flow_run or None},
    )


def missing_cases(con: duckdb.DuckDBPyConnection) -> Iterator[tuple[Missing, int]]:
    """Yields each combination of facts in `missing`, and how many copies have it."""
    for *values, copies in con.execute(
        "SELECT lists, shares, unidentified, count(*) FROM missing GROUP BY ALL ORDER BY ALL"
    ).fetchall():
        yield Missing(*values), copies
