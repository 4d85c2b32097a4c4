"""Renaming of columns, keys and values in state files that earlier schemas wrote (docs/reference/state.md).

Schema 1 is from before delta runs, 2 adds the columns that they need, 3 adds `confirmed`, 4 renames, 5 adds the
columns of rows with several addresses, and 6 `copy_of` and those of attributes. A file keeps its names until a run
replaces it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import duckdb

RENAMED_IN = 4
COPIED_AS = 3  # the schema that a renamed copy claims: it lacks the columns that later schemas add
COLUMNS = {
    "late_key": "deferred_key", "how": "settings_digest", "said": "manifest_digest", "checked": "checked_by",
    "read_at": "bytes_read_at", "nights": "consecutive_failures",
}  # fmt: skip
KEYS = {"where": "location_digests", "believed": "expected_rows"}  # of the plan
KINDS = {"again": "retry"}  # of chunks
STATUSES = {"dropped": "removed"}


def renamed_table(table: pa.Table) -> pa.Table:
    """Returns a table of a chunk or outcomes file with today's column names."""
    if COLUMNS.keys().isdisjoint(table.column_names):
        return table
    renamed = table.rename_columns([COLUMNS.get(name, name) for name in table.column_names])
    return renamed.replace_schema_metadata(table.schema.metadata)


def renamed_keys(data: dict[str, Any]) -> dict[str, Any]:
    """Returns a plan, or its location, with today's keys."""
    renamed = {KEYS.get(key, key): value for key, value in data.items()}
    if "chunks" in renamed:
        renamed["chunks"] = [{**chunk, "kind": KINDS.get(chunk["kind"], chunk["kind"])} for chunk in renamed["chunks"]]
    return renamed


def copy_renamed(con: duckdb.DuckDBPyConnection, old: str, new: Path) -> None:
    """Copies a file of the ledger to ``new`` with today's names."""
    new.parent.mkdir(parents=True, exist_ok=True)
    statuses = " ".join(f"WHEN '{before}' THEN '{today}'" for before, today in STATUSES.items())
    columns = ", ".join(
        f"CASE status {statuses} ELSE status END AS status"
        if name == "status"
        else f'"{name}" AS "{COLUMNS.get(name, name)}"'
        for (name, *_) in con.execute("DESCRIBE SELECT * FROM read_parquet(?)", [old]).fetchall()
    )
    target = str(new).replace("'", "''")
    con.execute(
        f"COPY (SELECT {columns} FROM read_parquet(?)) TO '{target}' "
        f"(FORMAT parquet, KV_METADATA {{ferry_schema: '{COPIED_AS}'}})",
        [old],
    )
