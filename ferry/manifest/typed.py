"""Lists with typed cells: Parquet and Excel workbooks. Every value becomes the text that a CSV would have."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ferry.core import UserError, short
from ferry.manifest.columns import MAX_CELL, Batch, Request, known_names, pick
from ferry.manifest.excel_process import AnotherSheet, Unreadable, cell, rows

_BATCH_ROWS = 8192
MOST_BYTES = 2 << 30  # for one batch: what a page packs is not known before it is unpacked

Opened = tuple[dict[str, str], Callable[[], Iterator[Batch]]]


def open_parquet(path: Path, request: Request) -> Opened:
    """Any plain column type is taken as text; binary and nested columns are refused when they are needed."""
    try:
        with at_most(MOST_BYTES):
            file = pq.ParquetFile(path)
        with file:
            schema = file.schema_arrow
            rows_in_all, names = file.metadata.num_rows, list(schema.names)
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        why = short(str(error).partition("\n")[0], 200)
        raise UserError(f"{request.shown} is damaged or no Parquet file: {why}") from None
    picked = pick(names, request)
    for column in picked.wanted.values():
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_nested(kind):
            raise UserError(
                f"{request.shown}: column `{column}` is nested ({short(str(kind))}); write a plain column of text"
            )
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            raise UserError(f"{request.shown}: column `{column}` is binary; write it as text (hex for digests)")
    if not rows_in_all:
        return picked.roles, lambda: iter(())
    return picked.roles, lambda: _parquet_batches(path, request, picked.wanted)


def _texts(array: pa.Array) -> list[str | None]:
    kind = array.type
    if pa.types.is_floating(kind):
        return [cell(value) for value in array.to_pylist()]
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
                with at_most(MOST_BYTES):
                    found = next(batches, None)
                    if found is None:
                        return
                    texts = {column: _texts(found.column(column)) for column in columns}
                _check_cells(texts, row_no, request)
                values = {name: texts[column] for name, column in wanted.items()}
                yield Batch(range(row_no, row_no + found.num_rows), None, values)
                row_no += found.num_rows
    except MemoryError:  # Arrow's is an ArrowException too
        raise UserError(
            f"{request.shown} takes more than {MOST_BYTES >> 30} GiB of memory for the {_BATCH_ROWS:,} rows after row "
            f"{row_no - 1:,}; write it anew with short texts"
        ) from None
    except UnicodeDecodeError:
        raise UserError(
            f"{request.shown} holds text that is not UTF-8 in one of the {_BATCH_ROWS:,} rows after row {row_no - 1:,}"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{request.shown} cannot be read after row {row_no - 1:,}: {short(str(error).partition(chr(10))[0], 200)}"
        ) from None


def _check_cells(texts: dict[str, list[str | None]], row_no: int, request: Request) -> None:
    """A line of text is bounded before it is read; here a cell is, before anything is made of it."""
    for column, values in texts.items():
        if max(map(len, filter(None, values)), default=0) <= MAX_CELL:
            continue
        for at, value in enumerate(values):
            if value is not None and len(value) > MAX_CELL:
                raise UserError(
                    f"{request.shown}, row {row_no + at:,}: `{short(column)}` holds {len(value):,} characters; "
                    f"{MAX_CELL:,} are read at most"
                )


def open_xlsx(path: Path, request: Request) -> Opened:
    """The first sheet; its first row that is not empty is the header.

    A sheet cannot be streamed: it is held in memory once (about 500 bytes a row of three columns), by a process with
    bounds (excel_process.py).
    """
    sheet = _sheet(path, request)
    first = next(sheet, None)
    if first is None:
        raise UserError(f"{request.shown}: the first sheet is empty")
    header_line, cells = first
    header = [(text or "").strip() for text in cells]
    while header and not header[-1]:
        header.pop()
    if not known_names(header, request) and any("://" in name for name in header):
        raise UserError(f"{request.shown} has no header row; put the columns' names into the first row")
    picked = pick(header, request)
    index = {name: header.index(column) for name, column in picked.wanted.items()}
    opened = [sheet]  # who reads it for the first time goes on where the header ended

    def batches() -> Iterator[Batch]:
        below = opened.pop() if opened else (row for row in _sheet(path, request) if row[0] > header_line)
        return _xlsx_batches(below, request, index)

    return picked.roles, batches


def _sheet(path: Path, request: Request) -> Iterator[tuple[int, list[str | None]]]:
    """Rows that hold anything, with their numbers in the sheet."""
    try:
        yield from rows(path)
    except AnotherSheet as error:
        raise UserError(
            f"{request.shown}: the sheet `{short(str(error))}` has the columns of the first one, and only the first is "
            "read: its rows would be left behind. Put all rows into one sheet, or save each as a .csv"
        ) from None
    except Unreadable as error:
        why = short(str(error), 200)
        raise UserError(f"{request.shown} is damaged or no workbook: {why}; save it again, or as .csv") from None


def _xlsx_batches(
    below: Iterator[tuple[int, list[str | None]]], request: Request, index: dict[str, int]
) -> Iterator[Batch]:
    row_no = 1
    while found := list(islice(below, _BATCH_ROWS)):
        values = {
            name: [cells[column] if column < len(cells) else None for _, cells in found]
            for name, column in index.items()
        }
        _check_cells(values, row_no, request)
        yield Batch(range(row_no, row_no + len(found)), [number for number, _ in found], values)
        row_no += len(found)


_PAGE = resource.getpagesize()


@contextlib.contextmanager
def at_most(more_bytes: int) -> Iterator[None]:
    """Inside the block this process gets so much more address space at most; what asks for more raises MemoryError.

    Only Linux keeps such a bound (setrlimit(2), RLIMIT_AS); elsewhere the block runs without.
    """
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    bounds = [bound for bound in (taken + more_bytes, soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
