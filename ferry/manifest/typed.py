"""Readers of manifests with typed cells: Parquet and Excel. Each value becomes the text that a CSV would have."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ferry.core import UserError, short
from ferry.manifest.columns import (
    MAX_CELL_CHARS,
    Batch,
    Opened,
    Request,
    count_known_names,
    map_columns,
    without_maybe,
)
from ferry.manifest.excel_process import AnotherSheet, Unreadable, cell_text, rows

_BATCH_ROWS = 8192
MAX_BATCH_BYTES = 2 << 30  # of memory; the size of a Parquet page is known only when it is decompressed


def open_parquet(path: Path, request: Request) -> Opened:
    """Opens a Parquet file. Columns of plain types become text. Raises UserError, also for binary and nested ones."""
    try:
        with limited_memory(MAX_BATCH_BYTES):
            file = pq.ParquetFile(path)
        with file:
            schema = file.schema_arrow
            row_count, names = file.metadata.num_rows, list(schema.names)
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        why = short(str(error).partition("\n")[0], 200)
        raise UserError(f"{request.shown} is damaged or not a Parquet file: {why}") from None
    mapped = without_maybe(
        map_columns(names, request),
        {
            name
            for name in names
            if pa.types.is_nested(schema.field(name).type) or pa.types.is_binary(schema.field(name).type)
        },
    )
    for column in mapped.wanted.values():
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_nested(kind):
            raise UserError(
                f"{request.shown}: column `{column}` is nested ({short(str(kind))}); write a plain column of text"
            )
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            raise UserError(f"{request.shown}: column `{column}` is binary; write it as text (hex for digests)")
    if not row_count:
        return mapped, lambda: iter(())
    return mapped, lambda: _parquet_batches(path, request, mapped.wanted)


def _texts(array: pa.Array) -> list[str | None]:
    kind = array.type
    if pa.types.is_floating(kind):
        return [cell_text(value) for value in array.to_pylist()]
    if pa.types.is_boolean(kind) or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        array = array.cast(pa.string())
    return [value or None for value in array.to_pylist()]


def _parquet_batches(path: Path, request: Request, wanted: dict[str, str]) -> Iterator[Batch]:
    row_no = 1
    columns = sorted(set(wanted.values()))
    try:
        with pq.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False) as file:
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)
            while True:
                with limited_memory(MAX_BATCH_BYTES):
                    found = next(batches, None)
                    if found is None:
                        return
                    texts = {column: _texts(found.column(column)) for column in columns}
                _check_cells(texts, row_no, request)
                values = {name: texts[column] for name, column in wanted.items()}
                yield Batch(range(row_no, row_no + found.num_rows), None, values)
                row_no += found.num_rows
    except MemoryError:  # before ArrowException: Arrow's own is both
        raise UserError(
            f"{request.shown} takes more than {MAX_BATCH_BYTES >> 30} GiB of memory for the {_BATCH_ROWS:,} rows after "
            f"row {row_no - 1:,}; shorten the texts there"
        ) from None
    except UnicodeDecodeError:
        raise UserError(
            f"{request.shown} contains text that is not UTF-8, in one of the {_BATCH_ROWS:,} rows after row "
            f"{row_no - 1:,}; write it as UTF-8"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{request.shown} cannot be read after row {row_no - 1:,}: {short(str(error).partition(chr(10))[0], 200)}; "
            "write it again"
        ) from None


def _check_cells(texts: dict[str, list[str | None]], row_no: int, request: Request) -> None:
    """Raises UserError for a cell that is too long. In a text manifest the limit on lines does the same."""
    for column, values in texts.items():
        if max(map(len, filter(None, values)), default=0) <= MAX_CELL_CHARS:
            continue
        for at, value in enumerate(values):
            if value is not None and len(value) > MAX_CELL_CHARS:
                raise UserError(
                    f"{request.shown}, row {row_no + at:,}: `{short(column)}` has {len(value):,} characters; the limit "
                    f"is {MAX_CELL_CHARS:,}"
                )


def open_xlsx(path: Path, request: Request) -> Opened:
    """Opens a workbook's first sheet, whose first row that is not empty is the header. Raises UserError.

    A sheet cannot be streamed: a child process with limits keeps it in memory (about 500 bytes for a row of three
    columns; see excel_process.py).
    """
    sheet = _sheet(path, request)
    first = next(sheet, None)
    if first is None:
        raise UserError(f"{request.shown}: the first sheet is empty")
    header_line, cells = first
    header = [(text or "").strip() for text in cells]
    while header and not header[-1]:
        header.pop()
    if not count_known_names(header, request) and any("://" in name for name in header):
        raise UserError(f"{request.shown} has no header row; write the columns' names into the first row")
    mapped = map_columns(header, request)
    index = {name: header.index(column) for name, column in mapped.wanted.items()}
    opened = [sheet]  # the first reading continues after the header; later ones open the sheet again

    def batches() -> Iterator[Batch]:
        data = opened.pop() if opened else (row for row in _sheet(path, request) if row[0] > header_line)
        return _xlsx_batches(data, request, index)

    return mapped, batches


def _sheet(path: Path, request: Request) -> Iterator[tuple[int, list[str | None]]]:
    """Yields the rows that are not empty, with their numbers in the sheet. Raises UserError."""
    try:
        yield from rows(path)
    except AnotherSheet as error:
        raise UserError(
            f"{request.shown}: the sheet `{short(str(error))}` has the columns of the first one, but Ferry reads only "
            "the first sheet. Put all rows into one sheet, or save each as a .csv"
        ) from None
    except Unreadable as error:
        why = short(str(error), 200)
        raise UserError(f"{request.shown} is damaged or not a workbook: {why}; save it again, or as .csv") from None


def _xlsx_batches(
    data: Iterator[tuple[int, list[str | None]]], request: Request, index: dict[str, int]
) -> Iterator[Batch]:
    row_no = 1
    while found := list(islice(data, _BATCH_ROWS)):
        values = {
            name: [cells[column] if column < len(cells) else None for _, cells in found]
            for name, column in index.items()
        }
        _check_cells(values, row_no, request)
        yield Batch(range(row_no, row_no + len(found)), [number for number, _ in found], values)
        row_no += len(found)


@contextlib.contextmanager
def limited_memory(more_bytes: int) -> Iterator[None]:
    """Limits how much more address space this process gets in the block. Beyond it, allocations raise MemoryError.

    Only Linux enforces this limit (setrlimit(2), RLIMIT_AS); on other systems there is none.
    """
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = [limit for limit in (taken + more_bytes, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
