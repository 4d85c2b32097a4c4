"""Merging of the ledger's files to the latest outcome of each row, one range of row IDs after the other."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ferry.core import disk_error
from ferry.state.id_ranges import EVERY_ROW, RowRange, row_ranges
from ferry.state.ledger.buckets import Buckets, as_outcomes
from ferry.state.ledger.connection import release_freed, scan, scratch_path
from ferry.state.ledger.sources import Source, choose_base, is_small
from ferry.state.parquet import FOLD_SCHEMA, OUTCOME_SCHEMA, with_schema

if TYPE_CHECKING:
    from types import TracebackType

    import duckdb

LINES_AT_ONCE = 125_000  # of one range (beside a base half of it), about 600 bytes each; also of a row group
# Of a row's outcomes the greatest by this SQL counts: the latest run's, of these the last attempt's. Of one attempt an
# object that was stored beats a failure whichever came later: a process that was taken for dead may fail where its
# successor has succeeded. Then the latest, since a clock may step back.
ORDER = "(run_no, attempt, status NOT IN ('failed', 'skipped'), recorded_at)"
_ORDER_COLUMNS = ("row_id", "run_no", "attempt", "status", "recorded_at")
_FEW_VALUES = (  # columns in which a dictionary saves space
    "status", "error_class", "status_code", "message", "retryable", "reason", "attempt", "requests", "content_type",
    "run_no", "chunk", "settings_digest", "checked_by", "consecutive_failures", "confirmed", "manifest_digest",
    "lost_attributes.list.element",
)  # fmt: skip
_WINNERS = f"SELECT row_id, arg_max(line, {ORDER}) AS line, max({ORDER}) AS best FROM lines GROUP BY row_id"
# Of few lines the winners are found in two steps, without temporary files. The first reads four columns and finds file
# and line of each row's latest outcome; sorting whole lines would take several times as long.
_POSITIONS = f"""
    CREATE OR REPLACE TEMP TABLE latest_positions AS SELECT latest.file, latest.line FROM (
        SELECT arg_max({{'file': file_index, 'line': file_row_number}}, {ORDER}) AS latest
        FROM read_parquet($paths, union_by_name = true, file_row_number = true) GROUP BY row_id
    )
"""
_AT_POSITIONS = """
    SELECT * FROM no_outcomes UNION ALL BY NAME
    SELECT l.* EXCLUDE (file_row_number) FROM read_parquet($paths, union_by_name = true, file_row_number = true) l
    JOIN latest_positions w ON w.file = l.file_index AND w.line = l.file_row_number
"""


class Merge:
    """All outcomes of some files by range of row IDs; a context, which deletes its temporary files.

    With a ``base`` (:func:`ferry.state.ledger.sources.choose_base`), ``ranges`` have the lines of all other files. Up
    to SMALL_LEDGER lines without a base are ``small``: they have one range, and their order is not changed.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, sources: Sequence[Source]) -> None:
        self._con = con
        self.base = choose_base(sources)
        changes = [source for source in sources if source is not self.base]
        lines = sum(source.rows for source in changes)
        self.small = self.base is None and is_small(lines)
        # The history of a range holds the base's lines of its rows too.
        at_once = LINES_AT_ONCE if self.base is None else LINES_AT_ONCE // 2
        self.ranges = [EVERY_ROW] if self.small else row_ranges(lines, at_once)
        self._paths = [str(source.path) for source in changes if self.small or source.readable_in_place]
        self._folder = scratch_path(con, "merge")
        self._buckets = Buckets(self._folder, self.ranges)
        self._unsorted = [] if self.small else [source.path for source in changes if not source.readable_in_place]
        create_empty(con)

    def __enter__(self) -> Merge:
        try:
            self._buckets.add(self._unsorted)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, paths: Sequence[Path]) -> None:
        """Adds the outcomes of more files."""
        if self.small:
            self._paths += map(str, paths)
        else:
            self._buckets.add(paths)

    @contextlib.contextmanager
    def lines(self, number: int) -> Iterator[None]:
        """Has `lines` for the block: all outcomes of a range, in any order and without those of the base."""
        if self.small:
            every = f"SELECT * FROM no_outcomes UNION ALL BY NAME SELECT * FROM {scan(self._paths)}"
            self._con.execute(f"CREATE OR REPLACE TEMP VIEW lines AS {every}")
            yield
            self._con.execute("DROP VIEW lines")
            return
        self._con.register("lines", self._lines(number))
        try:
            yield
        finally:
            self._con.unregister("lines")

    def _lines(self, number: int) -> pa.Table:
        lines = self._buckets.read(number)
        if self._paths:
            found = self._con.sql(f"SELECT * FROM {scan(self._paths)} WHERE {self.ranges[number].condition()}")
            lines = pa.concat_tables([lines, as_outcomes(found.to_arrow_table())])
        return lines.combine_chunks()

    def latest(self) -> Iterator[pa.Table]:
        """Yields the latest outcome of each row, sorted by row ID unless ``small``; with a base only those that are
        later than the base's. Deletes what it has read."""
        if self.small:
            sql, given = self.latest_sql()
            reader: Any = self._con.sql(sql, params=given).to_arrow_reader(50_000)
            for batch in reader:
                yield as_outcomes(pa.Table.from_batches([batch]))
            return
        for number, rows in enumerate(self.ranges):
            release_freed(self._con)  # of the range before
            lines = self._lines(number)
            self._buckets.delete(number)
            if len(lines):
                yield lines.take(self._winners(lines, rows))

    def latest_sql(self) -> tuple[str, dict[str, Any]]:
        """Returns a query for the latest outcome of each row of a ``small`` merge, and its parameters.

        The result has all of today's columns, empty where an earlier version did not write them.
        """
        if not self._paths:
            return "SELECT * FROM no_outcomes", {}
        given = {"paths": self._paths}
        self._con.execute(_POSITIONS, given)
        return _AT_POSITIONS, given

    def _winners(self, lines: pa.Table, rows: RowRange) -> pa.ChunkedArray:
        self._con.register("lines", lines.select(_ORDER_COLUMNS).append_column("line", pa.arange(0, len(lines))))
        try:
            if self.base is None:
                return self._con.sql(f"SELECT line FROM ({_WINNERS}) ORDER BY row_id").to_arrow_table()["line"]
            return self._con.sql(
                f"""
                SELECT w.line FROM ({_WINNERS}) w LEFT JOIN (
                    SELECT row_id, {ORDER} AS best FROM {scan([str(self.base.path)])} WHERE {rows.condition()}
                ) b USING (row_id) WHERE b.row_id IS NULL OR w.best > b.best ORDER BY row_id
                """
            ).to_arrow_table()["line"]
        finally:
            self._con.unregister("lines")

    def write_latest(self, target: Path) -> None:
        """Writes :meth:`latest` to a Parquet file with a row group for each range. Raises Fatal for a full disk."""
        target.parent.mkdir(parents=True, exist_ok=True)
        schema = OUTCOME_SCHEMA if self.small else FOLD_SCHEMA
        try:
            with (
                pq.ParquetWriter(
                    target, schema, compression="zstd", use_dictionary=list(_FEW_VALUES), write_statistics=["row_id"]
                ) as writer,
                ThreadPoolExecutor(1) as threads,  # encodes a range while the next one is merged
            ):
                written: Future[None] | None = None
                for table in self.latest():
                    if written is not None:
                        written.result()
                    written = threads.submit(writer.write_table, with_schema(table, schema))
                if written is not None:
                    written.result()
        except OSError as exc:
            raise disk_error(exc, "a temporary file of the ledger") from exc


def create_empty(con: duckdb.DuckDBPyConnection) -> None:
    """Creates `no_outcomes`, an empty DuckDB table with all columns of an outcome.

    It is not an Arrow table: a query that reads one while its own result is read in batches may deadlock on the GIL.
    """
    con.register("no_outcomes_in_arrow", OUTCOME_SCHEMA.empty_table())
    con.execute("CREATE OR REPLACE TEMP TABLE no_outcomes AS SELECT * FROM no_outcomes_in_arrow")
    con.unregister("no_outcomes_in_arrow")
