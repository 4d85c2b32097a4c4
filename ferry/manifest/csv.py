"""CSV lists (RFC 4180, any of four delimiters), with each error at the line where it begins."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ferry.core import UserError
from ferry.manifest.columns import Batch, Picked, Request, known_names, pick
from ferry.manifest.text import MAX_LINE_BYTES, Block, Compression, blocks, excerpt

_DELIMITERS = ",;\t|"
MAX_AGAIN = 256 << 20
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}

Rows = list[list[str]]


class BadLine(Exception):
    """A line that cannot be delimited: its number and why."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(f"line {line}: {why}")


class _Cursor:
    """Physical lines for csv.reader, which can be set back to any of them."""

    def __init__(self, lines: list[str]) -> None:
        self.lines, self.at, self.ended = lines, 0, False

    def __iter__(self) -> _Cursor:
        return self

    def __next__(self) -> str:
        if self.at >= len(self.lines):
            self.ended = True
            raise StopIteration
        self.at += 1
        return self.lines[self.at - 1]


def _quote_line(lines: Sequence[str], delimiter: str) -> int:
    """Index of the line where the last quoted field opens, in a record that cannot be delimited."""
    opened, quoted, start = 0, False, True
    for index, line in enumerate(lines):
        at = 0
        while at < len(line):
            char = line[at]
            if quoted:
                end = line.find('"', at)
                if end < 0:
                    break
                if line[end + 1 : end + 2] == '"':
                    at = end + 2
                    continue
                after = line[end + 1 : end + 2]
                if after and after not in (delimiter, "\r", "\n"):
                    return opened
                quoted, at = False, end + 1
                continue
            if char == '"' and start:
                quoted, opened = True, index
            start = char in (delimiter, "\n")
            at += 1
    return opened


class Delimited:
    """Records of a delimited text, block by block. ``fields`` is the number that each record must have."""

    def __init__(self, delimiter: str, fields: int, request: Request) -> None:
        self._delimiter, self._fields, self._request = delimiter, fields, request
        self._carry: list[str] = []  # lines of a record that the last block left open
        self._carry_line = 1
        self._again = 0

    def take(self, block: Block) -> tuple[Rows, list[int] | range, dict[int, str]]:
        """The block's records, the line of each, and the bad ones (index -> why; the record is empty)."""
        if block.too_long:
            rows, lines, bad = self.finish()
            why = f"longer than 1 MiB: {excerpt(block.text)}"
            self._report(rows, lines, bad, block.first_line, why)
            return rows, lines, bad
        if not self._carry:
            if not block.text.strip("\r\n"):
                return [], [], {}  # blank lines: of these there may be many
            try:
                rows = list(csv.reader(io.StringIO(block.text, newline="\n"), delimiter=self._delimiter, strict=True))
            except csv.Error:
                rows = []
            # One record a line and all of one width: nothing to look at more closely.
            if len(rows) == block.text.count("\n") + (not block.text.endswith("\n")) and {
                self._fields
            } == set(map(len, rows)):  # fmt: skip
                return rows, range(block.first_line, block.first_line + len(rows)), {}
            self._carry_line = block.first_line
        self._carry += io.StringIO(block.text, newline="\n")
        return self._careful(final=False)

    def finish(self) -> tuple[Rows, list[int], dict[int, str]]:
        """What is left when no line follows."""
        return self._careful(final=True)

    def _careful(self, *, final: bool) -> tuple[Rows, list[int], dict[int, str]]:
        rows: Rows = []
        lines: list[int] = []
        bad: dict[int, str] = {}
        first = self._carry_line
        cursor = _Cursor(self._carry)
        reader = csv.reader(cursor, delimiter=self._delimiter, strict=True)
        while cursor.at < len(cursor.lines):
            start = cursor.at
            cursor.ended = False
            try:
                row = next(reader)
            except csv.Error as error:
                record = cursor.lines[start : cursor.at]
                size = sum(map(len, record))
                if cursor.ended and not final and size <= MAX_LINE_BYTES:
                    self._carry, self._carry_line = record, first + start
                    return rows, lines, bad
                self._report(rows, lines, bad, first + start, self._why(error, record, ended=cursor.ended), record)
                self._read_again(size, first + start)
                cursor.at = start + 1
                continue
            if not row:
                continue  # a blank line
            if len(row) != self._fields:
                why = (
                    f"{len(row)} {'field' if len(row) == 1 else 'fields'} where the header has {self._fields}: "
                    f"{excerpt(cursor.lines[start])}"
                )
                self._report(rows, lines, bad, first + start, why)
                continue
            lines.append(first + start)
            rows.append(row)
        self._carry = []
        return rows, lines, bad

    def _read_again(self, size: int, line: int) -> None:
        """Behind a bad record's first line everything is read once more: a list of nothing but open quotes would take
        days."""
        self._again += size
        if self._again > MAX_AGAIN:
            raise UserError(
                f"{self._request.shown}, line {line}: {MAX_AGAIN >> 20:,} million characters lie behind quotes that "
                "open and are not closed. Mend the quotes; is the delimiter right?"
            )

    @staticmethod
    def _why(error: csv.Error, record: list[str], *, ended: bool) -> str:
        if "new-line character" in str(error):
            return f"a bare carriage return: {excerpt(record[0])}; convert the line ends: `tr '\\r' '\\n' < OLD > NEW`"
        if ended or "field larger" in str(error):
            return "a quote opens and is not closed"
        return 'text follows a closing quote (inside a quoted field, a quote is written twice: "")'

    def _report(
        self,
        rows: Rows,
        lines: list[int] | range,
        bad: dict[int, str],
        line: int,
        why: str,
        record: list[str] | None = None,
    ) -> None:
        if record:
            at = 0
            if not self._request.skip_bad_lines:  # to skip means to go on behind the record's first line
                at = _quote_line(record, self._delimiter)
            line, why = line + at, f"{why}: {excerpt(record[at])}" if "carriage" not in why else why
        problem = BadLine(line, why)
        if not self._request.skip_bad_lines:
            raise UserError(
                f"{self._request.shown}, {problem}. Mend the line, or set `bad_lines: skip` to list such lines "
                "as failed rows"
            )
        bad[len(rows)] = str(problem)
        assert isinstance(lines, list)
        lines.append(line)
        rows.append([])


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _sniff(line: str, request: Request) -> str:
    """The delimiter whose header makes most sense: most known names, then most names."""

    def score(delimiter: str) -> tuple[int, int]:
        names = _fields(line, delimiter)
        return (known_names(names, request), len(names))

    return max(_DELIMITERS, key=score)


def open_csv(
    path: Path, compression: Compression, request: Request, delimiter: str | None
) -> tuple[dict[str, str], Callable[[], Iterator[Batch]]]:
    """Recognised roles and a function that reads the rows. ``delimiter`` None: from the header line."""
    csv.field_size_limit(2 * MAX_LINE_BYTES)  # lines are bounded before csv sees them
    header: list[str] = []
    header_lines = skip_lines = 0
    for block in blocks(path, compression, request.shown):
        if block.too_long:
            raise UserError(f"{request.shown}, line 1: longer than 1 MiB: {excerpt(block.text)}; it is no header row")
        lines, skip_lines = list(io.StringIO(block.text, newline="\n")), 0
        while skip_lines < len(lines) and not lines[skip_lines].strip():
            skip_lines += 1
        if skip_lines == len(lines):
            continue
        first = lines[skip_lines]
        if delimiter is None and first[:4].lower() == "sep=" and first.strip()[4:] in tuple(_DELIMITERS):
            delimiter = first.strip()[4:]  # Excel's own line in front of the header
            skip_lines += 1
        if skip_lines == len(lines):
            break
        if delimiter is None:
            delimiter = _sniff(lines[skip_lines], request)
        cursor = _Cursor(lines)
        cursor.at = skip_lines
        try:
            header = [name.strip() for name in next(csv.reader(cursor, delimiter=delimiter, strict=True), [])]
        except csv.Error as error:
            why = Delimited._why(error, lines[skip_lines : cursor.at], ended=cursor.ended)
            line = block.first_line + skip_lines
            raise UserError(f"{request.shown}, line {line}, its header: {why}: {excerpt(lines[skip_lines])}") from None
        header_lines = block.first_line - 1 + cursor.at
        skip_lines += block.first_line - 1
        break
    if not header:
        raise UserError(f"{request.shown} is empty")
    if not known_names(header, request) and (len(header) == 1 or any("://" in name for name in header)):
        return _without_header(path, compression, request, delimiter or ",", header, skip_lines)
    picked = pick(header, request)
    return picked.roles, lambda: _batches(path, compression, request, delimiter or ",", header, picked, header_lines)


def _without_header(
    path: Path, compression: Compression, request: Request, delimiter: str, first: list[str], skip_lines: int
) -> tuple[dict[str, str], Callable[[], Iterator[Batch]]]:
    """A list of one column that begins with data; else an error that says so."""
    if len(first) > 1:
        raise UserError(
            f"{request.shown} has no header row: its first line is {excerpt(', '.join(first))}, split at each "
            f"{_NAMES.get(delimiter, delimiter)}. Put the columns' names into a first line, or, if each line is "
            "one URL, name the file .txt"
        )
    is_address = "://" in first[0]
    others = sorted(request.needed - {"id"})
    if request.named() or others or not (is_address or request.url_fields is not None):
        pick(first, request)  # raises: nothing is recognised
    role = "source" if is_address else "id"
    picked = Picked({role: first[0]}, {"source": "", "id": ""})
    return {role: "(one column)"}, lambda: _batches(path, compression, request, delimiter, [""], picked, skip_lines)


def _batches(
    path: Path,
    compression: Compression,
    request: Request,
    delimiter: str,
    header: list[str],
    picked: Picked,
    header_lines: int,
) -> Iterator[Batch]:
    text = Delimited(delimiter, len(header), request)
    index = {name: header.index(column) for name, column in picked.wanted.items()}
    row_no = 1

    def batch(rows: Rows, lines: Sequence[int], bad: dict[int, str]) -> Batch:
        nonlocal row_no
        for at in bad:
            rows[at] = [""] * len(header)
        values: dict[str, list[str | None]] = {
            name: [row[column] or None for row in rows] for name, column in index.items()
        }
        if header == [""]:  # a list without a header: each value says itself what it is
            values = split_addresses(values["source"])
        numbers = range(row_no, row_no + len(rows))
        row_no += len(rows)
        return Batch(numbers, lines, values, bad)

    for block in blocks(path, compression, request.shown):
        if block.first_line <= header_lines:
            lines = list(io.StringIO(block.text, newline="\n"))
            behind = header_lines + 1 - block.first_line
            block = Block(block.first_line + behind, "".join(lines[behind:]))
            if not block.text:
                continue
        found = text.take(block)
        if found[0]:
            yield batch(*found)
    found = text.finish()
    if found[0]:
        yield batch(*found)


def split_addresses(values: Sequence[str | None]) -> dict[str, list[str | None]]:
    """A bare list: what contains `://` is a source, anything else an ID."""
    return {
        "source": [value if value is not None and "://" in value else None for value in values],
        "id": [None if value is None or "://" in value else value for value in values],
    }
