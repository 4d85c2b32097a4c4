"""Delimited manifests (RFC 4180 with any of four delimiters); each problem names the line where it begins."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ferry.core import UserError
from ferry.manifest.columns import Batch, Request, known_names, pick, split_addresses
from ferry.manifest.text import MAX_LINE_BYTES, Block, Compression, blocks, excerpt

MAX_AGAIN = 256 << 20
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_EXCEL_LINE = re.compile(rf"sep=([{''.join(_DELIMITERS)}])\s*", re.IGNORECASE)

# What csv says of a record (a part of its message) -> what Ferry says.
_PROBLEMS = {
    "new-line character": "a bare carriage return (convert the line ends: `tr '\\r' '\\n' < OLD > NEW`)",
    "unexpected end": "a quote opens and is not closed",
    "field larger": "a quote opens and is not closed",
    "expected after": 'text follows a closing quote (inside a quoted field, a quote is written twice: "")',
}

# Records of a block, the line where each begins, and why some cannot be used (index -> problem).
Records = tuple[list[list[str]], Sequence[int], dict[int, str]]


def _lines(text: str) -> list[str]:
    """Splits at line feeds alone; each line keeps its own."""
    return io.StringIO(text, newline="\n").readlines()


def _reader(lines: list[str], at: int, delimiter: str) -> Any:
    """Reads records from line ``at`` on; what it has read is in `line_num`."""
    return csv.reader(map(lines.__getitem__, range(at, len(lines))), delimiter=delimiter, strict=True)


def _problem(error: csv.Error) -> str:
    return next(problem for part, problem in _PROBLEMS.items() if part in str(error))


class Delimited:
    """Records of a delimited text, block by block. ``fields`` is the number that each record must have."""

    def __init__(self, delimiter: str, fields: int, request: Request) -> None:
        self._delimiter, self._fields, self._request = delimiter, fields, request
        self._blank = [""] * fields  # one for all bad records: there may be many, and many fields
        # Fields and what ends them, up to the first field that spoils its record.
        self._good_fields = re.compile(
            rf'(?:(?:"(?:[^"]++|"")*+"|[^"{delimiter}\r\n][^{delimiter}\r\n]*+)?+(?:[{delimiter}]|\r*\n))*+'
        )
        self._again = 0

    def records(self, found: Iterator[Block]) -> Iterator[Records]:
        """Yields the records of each block; one that a block leaves open comes with the next block's."""
        first, left = 1, list[str]()
        for block in found:
            if block.too_long:
                yield self._split(left, first, final=True)[0]
                why = self._request.bad_line(block.first_line, f"longer than 1 MiB: {excerpt(block.text)}")
                yield [self._blank], [block.first_line], {0: why}
                left = []
                continue
            if not left:
                first = block.first_line
                if not block.text.strip("\r\n"):  # blank lines: of these there may be many
                    continue
            lines = left + _lines(block.text)
            records, left = self._split(lines, first, final=False)
            yield records
            first += len(lines) - len(left)
        yield self._split(left, first, final=True)[0]

    def _split(self, lines: list[str], first: int, *, final: bool) -> tuple[Records, list[str]]:
        """Returns the records of lines that are numbered from ``first``, and the lines of one that they leave open."""
        rows: list[list[str]] = []
        numbers: list[int] = []
        bad: dict[int, str] = {}

        def refuse(line: int, why: str) -> None:
            bad[len(rows)] = self._request.bad_line(line, why)
            rows.append(self._blank)
            numbers.append(line)

        begin = 0  # of the record that is read
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
                at = 0  # to skip a bad line means to read on behind its record's first line
                if not self._request.skip_bad_lines:
                    text = "".join(record)
                    good = self._good_fields.match(text)
                    at = text.count("\n", 0, good.end() if good else 0)
                refuse(first + begin + at, f"{_problem(error)}: {excerpt(record[at])}")
                self._read_again(size, first + begin)
                begin += 1
        return (rows, numbers, bad), []

    def _read_again(self, size: int, line: int) -> None:
        """Behind a bad record's first line everything is read once more: a list of nothing but open quotes would take
        days."""
        self._again += size
        if self._again > MAX_AGAIN:
            raise UserError(
                f"{self._request.shown}, line {line}: {MAX_AGAIN >> 20:,} million characters lie behind quotes that "
                "open and are not closed. Mend the quotes; is the delimiter right?"
            )


@dataclass(frozen=True, slots=True)
class _Header:
    names: list[str]
    delimiter: str
    first_line: int
    last_line: int


def _find_header(path: Path, compression: Compression, request: Request, delimiter: str | None) -> _Header:
    """Returns the first record. Raises UserError where there is none."""
    for block in blocks(path, compression, request.shown):
        if block.too_long:
            raise UserError(f"{request.shown}, line 1: longer than 1 MiB: {excerpt(block.text)}; it is no header row")
        lines = _lines(block.text)
        at = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
        if at == len(lines):
            continue
        if delimiter is None and (excel := _EXCEL_LINE.fullmatch(lines[at])):
            delimiter = excel[1]
            at += 1
        if not any(lines[at : at + 1]):
            break
        delimiter = delimiter or _sniff(lines[at], request)
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


def _sniff(line: str, request: Request) -> str:
    """The delimiter whose header makes most sense: most known names, then most names."""

    def score(delimiter: str) -> tuple[int, int]:
        try:
            names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
        except csv.Error:
            names = []
        return known_names(names, request), len(names)

    return max(_DELIMITERS, key=score)


def open_csv(
    path: Path, compression: Compression, request: Request, delimiter: str | None
) -> tuple[dict[str, str], Callable[[], Iterator[Batch]]]:
    """Recognised roles and a function that reads the rows. ``delimiter`` None: from the header line."""
    csv.field_size_limit(2 * MAX_LINE_BYTES)  # lines are bounded before csv sees them
    header = _find_header(path, compression, request, delimiter)
    names = header.names
    bare = not known_names(names, request) and (len(names) == 1 or any("://" in name for name in names))
    if bare:
        roles, columns, skip = {_bare_role(header, request): "(one column)"}, {"source": 0}, header.first_line - 1
    else:
        picked = pick(names, request)
        roles, skip = picked.roles, header.last_line
        columns = {name: names.index(column) for name, column in picked.wanted.items()}

    def batches() -> Iterator[Batch]:
        below = _below(blocks(path, compression, request.shown), skip)
        found = _batches(Delimited(header.delimiter, len(names), request).records(below), columns)
        if not bare:
            return found
        return (replace(batch, values=split_addresses(batch.values["source"])) for batch in found)

    return roles, batches


def _bare_role(first: _Header, request: Request) -> str:
    """What a list of one column that begins with data holds: `source` or `id`. Raises UserError for other lists."""
    names = first.names
    if len(names) > 1:
        raise UserError(
            f"{request.shown} has no header row: its first line is {excerpt(', '.join(names))}, split at each "
            f"{_DELIMITERS[first.delimiter]}. Put the columns' names into a first line, or, if each line is "
            "one URL, name the file .txt"
        )
    is_address = "://" in names[0]
    if request.named() or request.needed - {"id"} or not (is_address or request.url_fields is not None):
        pick(names, request)  # raises: nothing is recognised
    return "source" if is_address else "id"


def _below(found: Iterator[Block], line: int) -> Iterator[Block]:
    """Yields what follows a line."""
    for block in found:
        skip = line + 1 - block.first_line
        yield block if skip <= 0 else Block(line + 1, "".join(_lines(block.text)[skip:]))


def _batches(found: Iterator[Records], columns: Mapping[str, int]) -> Iterator[Batch]:
    row_no = 1
    for rows, lines, problems in found:
        if rows:
            values = {name: [row[at] or None for row in rows] for name, at in columns.items()}
            yield Batch(range(row_no, row_no + len(rows)), lines, values, problems)
            row_no += len(rows)
