"""The rows of manifest, listed chunks and ledger, one part after the other, so that memory does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ferry.planning.chunk_files import DESCRIBED, load_held, position_chunks, read_chunks, refuse_damaged_chunks
from ferry.state import EVERY_ROW, ChunkRef, OpenLedger, RowRange, Spooled, State, release_freed, row_ranges

if TYPE_CHECKING:
    import duckdb

_COLUMNS = f"""row_id, row_no, size, md5, sha256, etag, last_modified, error_class, {DESCRIBED} AS described,
               starts_with(lower(source), 'http') AS web"""
_NO_CHUNKS = "SELECT '' AS row_id, 0 AS attempt, 0 AS position, 0::UBIGINT AS described WHERE false"


class RowParts:
    """Parts of all rows. Each one fills `manifest_rows`, `latest` and `held` with its rows.

    Parts are ranges of row IDs, which is what manifest, chunks and ledger are joined by. So a manifest of several parts
    and its chunks are written to the spool, sorted by row ID. A first plan has nothing to join, and its parts are spans
    of the manifest.
    """

    def __init__(
        self, con: duckdb.DuckDBPyConnection, state: State, ledger: OpenLedger, chunks: Sequence[ChunkRef], at_once: int
    ) -> None:
        self._con, self._state, self._chunks, self.at_once = con, state, chunks, at_once
        # The first digits are compared faster than all 64, and ranges of IDs have four.
        self._rows = Spooled(con, "rows", "row_id[:4]", compress=False)
        self._held = Spooled(con, "held", "row_id[:4]", compress=False)
        self._filled = False
        (self._last_no,) = con.execute("SELECT coalesce(max(row_no), 0) FROM manifest").fetchall()[0]
        self.joined = bool(ledger.rows or chunks)  # else no row is in the ledger or in a chunk
        rows = max(self._last_no, ledger.rows, sum(chunk.rows for chunk in chunks))
        self.ledger = LedgerParts(ledger, row_ranges(rows, at_once) if self.joined else [EVERY_ROW])
        self._spooled = len(self.ledger.ranges) > 1
        if self._spooled:
            try:
                self._spool()
            except BaseException:  # a damaged chunk, or a full disk
                self.close()
                raise

    def _spool(self) -> None:
        position_chunks(self._con, self._chunks)
        for span in self.spans():
            self._rows.add(f"SELECT {_COLUMNS} FROM manifest WHERE {span}")
        with refuse_damaged_chunks():
            for sql, given in read_chunks(self._state, self._chunks, self.at_once):
                self._held.add(sql, given)

    def spans(self) -> list[str]:
        """Returns conditions on `row_no` that together every row of the manifest meets, for ``at_once`` rows each."""
        starts = range(1, self._last_no + 1, self.at_once)
        return [f"row_no BETWEEN {start} AND {start + self.at_once - 1}" for start in starts]

    def __iter__(self) -> Iterator[None]:
        """Yields for each part, once its relations are filled."""
        for part in self.ledger:
            if self._spooled:
                self._view("manifest_rows", f"FROM {self._rows.sql()} WHERE {part.condition()}")
                self._view("held", f"FROM {self._held.sql()} WHERE {part.condition()}" if self._held else _NO_CHUNKS)
                yield
                continue
            for span in ["true"] if self.joined else self.spans():
                release_freed(self._con)  # of the span before
                self._view("manifest_rows", f"SELECT {_COLUMNS} FROM manifest WHERE {span}")
                if not self._filled:
                    load_held(self._con, self._state, self._chunks)
                    self._filled = True
                yield

    def release(self) -> None:
        """Frees the memory of `held`, once no part is needed any more."""
        if not self._spooled:
            self._con.execute("DROP TABLE held")

    def _view(self, name: str, sql: str) -> None:
        self._con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {sql}")

    def close(self) -> None:
        """Deletes what is in the spool."""
        self._rows.close()
        self._held.close()


class LedgerParts:
    """The parts of the ledger alone. Each one fills `latest`."""

    def __init__(self, ledger: OpenLedger, ranges: Sequence[RowRange]) -> None:
        self._ledger, self.ranges = ledger, ranges

    def __iter__(self) -> Iterator[RowRange]:
        for part in self.ranges:
            self._ledger.create_latest(part)
            yield part

    def create_all(self) -> None:
        """Fills `latest` with the whole ledger."""
        self._ledger.create_latest(EVERY_ROW)
