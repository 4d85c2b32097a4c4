"""Lists with typed cells: Parquet and Excel workbooks. Every value becomes the text that a CSV would have."""

from __future__ import annotations

import datetime as dt
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import python_calamine

from tasks.engine.errors import UserError
from tasks.engine.manifest_columns import Batch, Request, known_names, pick

_BATCH_ROWS = 8192
_MAX_SHEET_BYTES = 1 << 30  # of XML; Excel's own limit of 1,048,576 rows stays below it

Opened = tuple[dict[str, str], Callable[[], Iterator[Batch]]]


def open_parquet(path: Path, request: Request) -> Opened:
    """Any plain column type is taken as text; binary and nested columns are refused when they are needed."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{request.shown} is damaged or no Parquet file: {str(error).partition(chr(10))[0]}") from None
    with file:
        schema = file.schema_arrow
        rows = file.metadata.num_rows
    picked = pick(list(schema.names), request)
    for column in picked.wanted.values():
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_nested(kind):
            raise UserError(f"{request.shown}: column `{column}` is nested ({kind}); write a plain column of text")
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            raise UserError(f"{request.shown}: column `{column}` is binary; write it as text (hex for digests)")
    if not rows:
        return picked.roles, lambda: iter(())
    return picked.roles, lambda: _parquet_batches(path, request, picked.wanted)


def _texts(array: pa.Array) -> list[str | None]:
    kind = array.type
    if pa.types.is_floating(kind):
        return [_cell(value) for value in array.to_pylist()]
    if pa.types.is_boolean(kind) or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        array = array.cast(pa.string())
    return [value or None for value in array.to_pylist()]


def _parquet_batches(path: Path, request: Request, wanted: dict[str, str]) -> Iterator[Batch]:
    row_no = 1
    columns = sorted(set(wanted.values()))
    try:
        with pq.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False) as file:
            for found in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
                texts = {column: _texts(found.column(column)) for column in columns}
                values = {name: texts[column] for name, column in wanted.items()}
                yield Batch(range(row_no, row_no + found.num_rows), None, values)
                row_no += found.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{request.shown} cannot be read after row {row_no - 1:,}: {str(error).partition(chr(10))[0]}"
        ) from None


def open_xlsx(path: Path, request: Request) -> Opened:
    """The first sheet; its first row that is not empty is the header.

    A sheet cannot be streamed: it is held in memory once (about 500 bytes a row of three columns), which
    Excel's limit of 1,048,576 rows bounds.
    """
    first = next(_sheet(path, request), None)
    if first is None:
        raise UserError(f"{request.shown}: the first sheet is empty")
    header_line, cells = first
    header = [(_cell(cell) or "").strip() for cell in cells]
    while header and not header[-1]:
        header.pop()
    if not known_names(header, request) and any("://" in name for name in header):
        raise UserError(f"{request.shown} has no header row; put the columns' names into the first row")
    picked = pick(header, request)
    return picked.roles, lambda: _xlsx_batches(path, request, header, picked.wanted, header_line)


def _sheet(path: Path, request: Request) -> Iterator[tuple[int, Sequence[Any]]]:
    """Rows that hold anything, with their numbers in the sheet."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist() if part.filename.startswith("xl/"))
        if unpacked > _MAX_SHEET_BYTES:
            raise UserError(f"{request.shown} unpacks to {unpacked / 2**30:.1f} GiB; save the sheet as .csv")
        with python_calamine.CalamineWorkbook.from_path(path) as book:
            sheet = book.get_sheet_by_index(0)
            for number, cells in enumerate(sheet.iter_rows(), 1):
                if any(cell != "" for cell in cells):
                    yield number, cells
    except (python_calamine.CalamineError, zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{request.shown} is damaged or no workbook: {error}; save it again, or as .csv") from None


def _cell(value: Any) -> str | None:
    """A cell as text: whole numbers without a fraction (Excel and pandas hold integers as floats)."""
    if value is None:
        return None
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 1e17 else repr(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    return str(value)


def _xlsx_batches(
    path: Path, request: Request, header: list[str], wanted: dict[str, str], header_line: int
) -> Iterator[Batch]:
    index = {name: header.index(column) for name, column in wanted.items()}
    rows = (row for row in _sheet(path, request) if row[0] > header_line)
    row_no = 1
    while found := list(islice(rows, _BATCH_ROWS)):
        values = {
            name: [_cell(cells[column]) if column < len(cells) else None for _, cells in found]
            for name, column in index.items()
        }
        yield Batch(range(row_no, row_no + len(found)), [number for number, _ in found], values)
        row_no += len(found)
