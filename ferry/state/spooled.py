"""Relations in Parquet files in the spool, for what must not be in memory as a whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

GROUP_ROWS = 8192  # rows that a query of a part reads too many of each file, at most twice


class Spooled:
    """A relation in Parquet files in the spool, each sorted by one column, so that queries of a part read a part.

    DuckDB reads only the row groups whose statistics a condition on that column meets.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, name: str, order: str, *, compress: bool = True) -> None:
        """``compress=False`` is for rows that are mostly digests, which hardly get smaller."""
        (scratch,) = con.execute("SELECT current_setting('temp_directory')").fetchall()[0]
        self._con, self.name, self._order = con, name, order
        self._folder = Path(f"{scratch}-{name}")  # a run deletes what a killed one left under such a name
        self._compression = "snappy" if compress else "uncompressed"
        self._files: list[str] = []

    def add(self, sql: str, given: dict[str, Any] | None = None) -> None:
        """Adds the rows of a query."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = str(self._folder / f"{len(self._files)}.parquet")
        quoted = path.replace("'", "''")
        self._con.execute(
            f"COPY ({sql} ORDER BY {self._order}) TO '{quoted}' "
            f"(FORMAT parquet, COMPRESSION {self._compression}, ROW_GROUP_SIZE {GROUP_ROWS})",
            given or {},
        )
        self._files.append(path)

    def __bool__(self) -> bool:
        return bool(self._files)

    def sql(self) -> str:
        """Returns SQL for the relation; to be called once there is a file."""
        files = ", ".join("'" + path.replace("'", "''") + "'" for path in self._files)
        return f"read_parquet([{files}])"

    def close(self) -> None:
        """Deletes the files."""
        shutil.rmtree(self._folder, ignore_errors=True)
