"""Reader of delimited manifests (RFC 4180 with any of four delimiters). Each problem names the line where it begins."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ferry.core import UserError
from ferry.manifest.columns import (
    Batch,
    ColumnMap,
    Opened,
    Request,
    count_known_names,
    map_columns,
    split_addresses,
)
from ferry.manifest.sources import is_address
from ferry.manifest.text import MAX_LINE_BYTES, Block, Compression, blocks, excerpt

MAX_REREAD_CHARS = 256 << 20
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SEP_LINE = re.compile(rf"sep=([{''.join(_DELIMITERS)}])\s*", re.IGNORECASE)

# A part of the message of a csv.Error -> Ferry's message.
_PROBLEMS = {
    "new-line character": "a bare carriage return (convert the line endings: `tr '\\r' '\\n' < OLD > NEW`)",
    "unexpected end": "a quote opens and is not closed",
    "field larger": "a quote opens and is not closed",
    "expected after": 'text follows a closing quote (inside a quoted field, a quote is written twice: "")',
}

# Records of a block, the line where each begins, and the problems of unusable ones (by index).
Records = tuple[list[list[str]], Sequence[int], dict[int, str]]


def _lines(text: str) -> list[str]:
    """Splits a text at line feeds only. Each line keeps its line feed."""
    return io.StringIO(text, newline="\n").readlines()


def _reader(lines: list[str], at: int, delimiter: str) -> Any:
    """Returns a reader of the records from line ``at`` on. Its `line_num` is the number of lines that it has read."""
    return csv.reader(map(lines.__getitem__, range(at, len(lines))), delimiter=delimiter, strict=True)


def _problem(error: csv.Error) -> str:
    return next(problem for part, problem in _PROBLEMS.items() if part in str(error))


class RecordReader:
    """Reads the records of a delimited text, block by block. ``fields`` is the number that each record must have."""

    def __init__(self, delimiter: str, fields: int, request: Request) -> None:
        self._delimiter, self._fields, self._request = delimiter, fields, request
        self._blank = [""] * fields  # shared by all bad records, since both records and fields may be many
        # Fields with their delimiters, up to the first malformed field.
        self._good_fields = re.compile(
            rf'(?:(?:"(?:[^"]++|"")*+"|[^"{delimiter}\r\n][^{delimiter}\r\n]*+)?+(?:[{delimiter}]|\r*\n))*+'
        )
        self._reread_chars = 0

    def records(self, text_blocks: Iterator[Block]) -> Iterator[Records]:
        """Yields the records of each block. A record that continues in the next block comes with that one's."""
        first, left = 1, list[str]()
        for block in text_blocks:
            if block.too_long:
                yield self._split(left, first, final=True)[0]
                why = self._request.bad_line(block.first_line, f"longer than 1 MiB: {excerpt(block.text)}")
                yield [self._blank], [block.first_line], {0: why}
                left = []
                continue
            if not left:
                first = block.first_line
                if not block.text.strip("\r\n"):  # nothing but blank lines, of which there may be many
                    continue
            lines = left + _lines(block.text)
            records, left = self._split(lines, first, final=False)
            yield records
            first += len(lines) - len(left)
        yield self._split(left, first, final=True)[0]

    def _split(self, lines: list[str], first: int, *, final: bool) -> tuple[Records, list[str]]:
        """Returns the records of lines that are numbered from ``first``, and the lines of an unfinished last record."""
        rows: list[list[str]] = []
        numbers: list[int] = []
        bad: dict[int, str] = {}

        def refuse(line: int, why: str) -> None:
            bad[len(rows)] = self._request.bad_line(line, why)
            rows.append(self._blank)
            numbers.append(line)

        begin = 0  # where the current record begins
        while begin < len(lines):
            start = begin
            reader = _reader(lines, start, self._delimiter)
            try:
                for row in reader:
                    if len(row) == self._fields:
                        rows.append(row)
                        numbers.append(first + begin)
                    elif row:
                        count = f"{len(row)} field{'s' * (len(row) > 1)}"
                        refuse(first + begin, f"{count} where the header has {self._fields}: {excerpt(lines[begin])}")
                    begin = start + reader.line_num
            except csv.Error as error:
                record = lines[begin : start + reader.line_num]
                size = sum(map(len, record))
                if "unexpected end" in str(error) and not final and size <= MAX_LINE_BYTES:
                    return (rows, numbers, bad), record
                at = 0  # if bad lines are skipped, reading continues after the record's first line
                if not self._request.skip_bad_lines:
                    text = "".join(record)
                    good = self._good_fields.match(text)
                    at = text.count("\n", 0, good.end() if good else 0)
                refuse(first + begin + at, f"{_problem(error)}: {excerpt(record[at])}")
                self._count_reread(size, first + begin)
                begin += 1
        return (rows, numbers, bad), []

    def _count_reread(self, size: int, line: int) -> None:
        """Counts the characters of a bad record, which are read again from its second line on. Raises UserError.

        A manifest of nothing but open quotes would take days.
        """
        self._reread_chars += size
        if self._reread_chars > MAX_REREAD_CHARS:
            raise UserError(
                f"{self._request.shown}, line {line}: {MAX_REREAD_CHARS >> 20:,} million characters follow quotes that "
                "open and are not closed. Fix the quotes, and check the delimiter"
            )


@dataclass(frozen=True, slots=True)
class _Header:
    names: list[str]
    delimiter: str
    first_line: int
    last_line: int


def _find_header(path: Path, compression: Compression, request: Request, delimiter: str | None) -> _Header:
    """Returns the first record that is not blank. Raises UserError if there is none."""
    for block in blocks(path, compression, request.shown):
        if block.too_long:
            raise UserError(f"{request.shown}, line 1: the header row is longer than 1 MiB: {excerpt(block.text)}")
        lines = _lines(block.text)
        at = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
        if at == len(lines):
            continue
        if delimiter is None and (excel := _SEP_LINE.fullmatch(lines[at])):
            delimiter = excel[1]
            at += 1
        if not any(lines[at : at + 1]):
            break
        delimiter = delimiter or _detect_delimiter(lines[at], request)
        reader = _reader(lines, at, delimiter)
        line = block.first_line + at
        try:
            names = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            why = f"{_problem(error)}: {excerpt(lines[at])}"
            raise UserError(f"{request.shown}, line {line}, its header: {why}") from None
        if names:
            return _Header(names, delimiter, line, line + reader.line_num - 1)
        break
    raise UserError(f"{request.shown} is empty")


def _detect_delimiter(line: str, request: Request) -> str:
    """Returns the delimiter that gives the header most known names, and of equal ones most names."""

    def score(delimiter: str) -> tuple[int, int]:
        try:
            names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
        except csv.Error:
            names = []
        return count_known_names(names, request), len(names)

    return max(_DELIMITERS, key=score)


def open_csv(path: Path, compression: Compression, request: Request, delimiter: str | None) -> Opened:
    """Returns the recognised columns, and a function that reads the rows.

    If ``delimiter`` is None, the header line decides.
    """
    csv.field_size_limit(2 * MAX_LINE_BYTES)  # lines are limited before csv reads them
    header = _find_header(path, compression, request, delimiter)
    names = header.names
    headerless = not count_known_names(names, request) and (len(names) == 1 or any("://" in name for name in names))
    if headerless:
        mapped = ColumnMap({_headerless_role(header, request): "(one column)"}, {})
        columns, skip = {"source": 0}, header.first_line - 1
    else:
        mapped = map_columns(names, request)
        skip = header.last_line
        columns = {name: names.index(column) for name, column in mapped.wanted.items()}

    def batches() -> Iterator[Batch]:
        data = _after_line(blocks(path, compression, request.shown), skip)
        read = _batches(RecordReader(header.delimiter, len(names), request).records(data), columns)
        if not headerless:
            return read
        return (replace(batch, values=split_addresses(batch.values["source"], request)) for batch in read)

    return mapped, batches


def _headerless_role(first: _Header, request: Request) -> str:
    """Returns the role of the only column, `source` or `id`. Raises UserError if there are more columns."""
    names = first.names
    if len(names) > 1:
        raise UserError(
            f"{request.shown} has no header row: its first line is {excerpt(', '.join(names))}, split at each "
            f"{_DELIMITERS[first.delimiter]}. Add a first line with the columns' names, or, if each line "
            "is one URL, name the file .txt"
        )
    has_address = is_address(names[0])
    if request.named_columns() or request.needed - {"id"} or not (has_address or request.url_fields is not None):
        map_columns(names, request)  # raises UserError: no column is recognised
    return "source" if has_address else "id"


def _after_line(text_blocks: Iterator[Block], line: int) -> Iterator[Block]:
    """Yields the text after a line."""
    for block in text_blocks:
        skip = line + 1 - block.first_line
        yield block if skip <= 0 else Block(line + 1, "".join(_lines(block.text)[skip:]))


def _batches(records: Iterator[Records], columns: Mapping[str, int]) -> Iterator[Batch]:
    row_no = 1
    for rows, lines, problems in records:
        if rows:
            values = {name: [row[at] or None for row in rows] for name, at in columns.items()}
            yield Batch(range(row_no, row_no + len(rows)), lines, values, problems)
            row_no += len(rows)
