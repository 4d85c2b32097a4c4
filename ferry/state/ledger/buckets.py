"""Outcomes in any order, put into files by range of row IDs, so that each range can be merged by itself.

DuckDB's `COPY ... PARTITION_BY` needs more memory than it may have for this.
"""

from __future__ import annotations

import contextlib
import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ferry.core import Damaged, disk_error
from ferry.state.id_ranges import RowRange
from ferry.state.old_schemas import renamed_table
from ferry.state.parquet import OUTCOME_SCHEMA, add_missing_columns, with_schema

ROWS_AT_ONCE = 65_536  # in memory, about 600 bytes each
# Each part of a file is compressed as a whole. To compress each column of a few dozen rows takes five times as long.
_CODEC = pa.Codec("zstd")
_LENGTHS = struct.Struct(">II")  # in front of each part: of its bytes in the file, and uncompressed


class Buckets:
    """A file of outcomes for each range below ``folder``, which is made when the first one is written."""

    def __init__(self, folder: Path, ranges: Sequence[RowRange]) -> None:
        self._folder, self._ranges = folder, ranges
        self._in_memory: list[pa.Table] = []  # of a single range, which needs no file

    def add(self, paths: Sequence[Path]) -> None:
        """Adds the outcomes of Parquet files. Raises Damaged, and Fatal for a full disk."""
        with _full_disk():
            for table in _tables(paths):
                if len(self._ranges) == 1:
                    self._in_memory.append(table)
                else:
                    self._split(table)

    def _split(self, table: pa.Table) -> None:
        import pyarrow.compute as pc  # imported here, since it loads NumPy, which quick commands do without

        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        ids = table.column("row_id").combine_chunks()
        digits = pc.utf8_slice_codeunits(ids, 0, max(len(each.low) for each in self._ranges))
        order = pc.array_sort_indices(digits)
        ordered, digits = table.take(order), digits.take(order)
        places = range(len(digits))
        starts = [bisect_left(places, each.low, key=lambda at: digits[at].as_py()) for each in self._ranges]
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(digits)], strict=True)):
            if end > start:
                with self._path(number).open("ab") as file:
                    for batch in ordered.slice(start, end - start).to_batches():
                        raw = batch.serialize()
                        data = _CODEC.compress(raw, asbytes=True)
                        file.write(_LENGTHS.pack(len(data), len(raw)) + data)

    def read(self, number: int) -> pa.Table:
        """Returns the outcomes of a range, in any order."""
        tables = list(self._in_memory)
        with contextlib.suppress(FileNotFoundError), self._path(number).open("rb") as file:
            while lengths := file.read(_LENGTHS.size):
                size, raw_size = _LENGTHS.unpack(lengths)
                raw = _CODEC.decompress(file.read(size), decompressed_size=raw_size)
                tables.append(pa.Table.from_batches([pa.ipc.read_record_batch(raw, OUTCOME_SCHEMA)]))
        return pa.concat_tables(tables or [OUTCOME_SCHEMA.empty_table()])

    def delete(self, number: int) -> None:
        """Deletes the outcomes of a range."""
        self._in_memory.clear()
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.parts"


def _tables(paths: Sequence[Path]) -> Iterator[pa.Table]:
    """Yields the outcomes of the files as tables of about ROWS_AT_ONCE lines with today's columns."""
    parts: list[pa.Table] = []
    for path in paths:
        for part in _parts(path):
            parts.append(part)
            if sum(map(len, parts)) >= ROWS_AT_ONCE:
                yield pa.concat_tables(parts).combine_chunks()
                parts = []
    if parts:
        yield pa.concat_tables(parts).combine_chunks()


def _parts(path: Path) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows <= ROWS_AT_ONCE:  # batches take half as long again
                yield as_outcomes(renamed_table(file.read()))
                return
            for batch in file.iter_batches(ROWS_AT_ONCE):
                yield as_outcomes(renamed_table(pa.Table.from_batches([batch])))
    except pa.ArrowInvalid as exc:
        raise Damaged(f"state file {path} is damaged ({str(exc).splitlines()[0]})") from None


def as_outcomes(table: pa.Table) -> pa.Table:
    """Returns the table with the columns of an outcome, empty where an earlier version did not write them."""
    return with_schema(add_missing_columns(table, OUTCOME_SCHEMA).select(OUTCOME_SCHEMA.names), OUTCOME_SCHEMA)


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if isinstance(exc, FileNotFoundError):  # deleted by a fold meanwhile: the reader lists again
            raise
        raise disk_error(exc, "a temporary file of the ledger") from exc
