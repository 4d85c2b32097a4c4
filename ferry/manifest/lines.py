"""Lists of one row a line: plain text (an ID or a URL) and JSON Lines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ferry.core import UserError, short
from ferry.manifest.columns import (
    MAX_CELL,
    MAX_COLUMNS,
    USUAL_NAMES,
    Batch,
    Request,
    pick,
    refuse_many_columns,
    role_of,
    squash,
)
from ferry.manifest.csv import BadLine, split_addresses
from ferry.manifest.text import Block, Compression, blocks, excerpt

SAMPLE_LINES = 1000  # JSON Lines has no header: columns are what these lines name

Opened = tuple[dict[str, str], Callable[[], Iterator[Batch]]]


def _bad(request: Request, line: int, why: str) -> str:
    problem = BadLine(line, why)
    if not request.skip_bad_lines:
        raise UserError(
            f"{request.shown}, {problem}. Mend the line, or set `bad_lines: skip` to list such lines as failed rows"
        )
    return str(problem)


def _lines(block: Block) -> list[str]:
    lines = block.text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def open_txt(path: Path, compression: Compression, request: Request) -> Opened:
    """Each line is a source where it holds `://`, else the row's ID."""
    others = sorted({*request.named().values(), *(request.needed - {"id", "source"})})
    if others:
        raise UserError(
            f"{request.shown} has no columns, and the job names {', '.join(f'`{name}`' for name in others)}; "
            "give the list a header row and name it .csv"
        )
    first = ""
    for block in blocks(path, compression, request.shown):
        first = next((line.strip() for line in _lines(block) if line.strip()), "")
        if first:
            break
    if first and "://" not in first and request.url_fields is None:
        known = any(squash(first) == squash(name) for names in USUAL_NAMES.values() for name in names)
        what = "if that is a header, name the file .csv" if known else "if these are IDs, set `source.url`"
        raise UserError(f"{request.shown}: its first line, {excerpt(first)}, is no URL; {what}")
    role = "source" if "://" in first else "id"
    return {role: "(line)"}, lambda: _txt_batches(path, compression, request)


def _txt_batches(path: Path, compression: Compression, request: Request) -> Iterator[Batch]:
    row_no = 1
    for block in blocks(path, compression, request.shown):
        if block.too_long:
            why = _bad(request, block.first_line, f"longer than 1 MiB: {excerpt(block.text)}")
            yield Batch([row_no], [block.first_line], {"source": [None], "id": [None]}, {0: why})
            row_no += 1
            continue
        found = [
            (number, text) for number, line in enumerate(_lines(block), block.first_line) if (text := line.strip())
        ]
        if found:
            lines, values = zip(*found, strict=True)
            yield Batch(range(row_no, row_no + len(found)), lines, split_addresses(values))
            row_no += len(found)


class _NotPlain(ValueError):
    pass


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """RFC 8259 section 4 leaves to the reader what a name given twice means: here the line is refused."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        twice = next(name for name, times in names.items() if times > 1)
        raise ValueError(f"`{ascii(twice)[1:-1][:60]}` is given twice")
    return found


# Numbers keep the text that the list has for them.
_decode = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_constant, object_pairs_hook=_pairs).decode


def _object(line: str) -> dict[str, Any]:
    """Raises ValueError with a reason for people."""
    try:
        value = _decode(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if isinstance(value, dict):
        return value
    raise ValueError(f"{'a list' if isinstance(value, list) else 'a bare value'} where an object is due")


def _value(found: dict[str, Any], column: str) -> str | None:
    value = found.get(column)
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    raise _NotPlain(f"`{column}` holds {'a list' if isinstance(value, list) else 'an object'}, not text or a number")


def open_jsonl(path: Path, compression: Compression, request: Request) -> Opened:
    """Columns are what the first lines' objects name. Bad lines among them wait for the reading."""

    def sample() -> Iterator[str]:
        for block in blocks(path, compression, request.shown):
            if not block.too_long:
                yield from (line for line in _lines(block) if line.strip())

    names: dict[str, None] = {}
    failure, characters = "", 0
    for line in islice(sample(), SAMPLE_LINES):
        try:
            found = _object(line)
            characters += sum(len(name) for name in found if name not in names)
            if characters > MAX_CELL:  # each is as long as its line, and they are kept
                raise UserError(
                    f"{request.shown}: its first lines name columns of more than {MAX_CELL:,} characters in all; leave "
                    "out those that are not needed"
                )
            names.update(dict.fromkeys(found))
            refuse_many_columns(len(names), request)
        except ValueError as error:
            failure = failure or f"{error}: {excerpt(line)}"
    if not names:
        if failure:
            raise UserError(f"{request.shown} holds no JSON objects; its first line is {failure}")
        raise UserError(f"{request.shown} is empty")
    picked = pick(list(names), request, seen_in=f" in its first {SAMPLE_LINES:,} lines")
    seen = Names(picked.roles, set(names), request.shown)
    return picked.roles, lambda: _jsonl_batches(path, compression, request, picked.wanted, seen)


class Names:
    """What the first lines' objects name. A digest or a key that comes up later would be left out without a word."""

    def __init__(self, roles: Mapping[str, str], known: set[str], shown: str) -> None:
        self._roles, self._known, self._shown = roles, known, shown

    def look(self, found: dict[str, Any], line: int) -> None:
        """Raises UserError for a name that would have had a role."""
        if found.keys() <= self._known:
            return
        for name in found.keys() - self._known:
            role = role_of(name)
            if role is not None and role not in self._roles and found[name] is not None:
                raise UserError(
                    f"{self._shown}, line {line}: `{short(name)}` would be the {role}, and none of the first "
                    f"{SAMPLE_LINES:,} lines has it, so it is no column. Move this line to the top of the list, or "
                    "rename what it names"
                )
            if len(self._known) < MAX_COLUMNS:
                self._known.add(name)


_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def _jsonl_batches(
    path: Path, compression: Compression, request: Request, wanted: dict[str, str], seen: Names
) -> Iterator[Batch]:
    row_no = 1
    columns = list(wanted.values())
    empty: tuple[str | None, ...] = (None,) * len(columns)
    for block in blocks(path, compression, request.shown):
        numbers: list[int] = []
        rows: list[tuple[str | None, ...]] = []
        bad: dict[int, str] = {}
        if block.too_long:
            why = _bad(request, block.first_line, f"longer than 1 MiB: {excerpt(block.text)}")
            numbers, rows, bad = [block.first_line], [empty], {0: why}
        else:
            for number, line in enumerate(_lines(block), block.first_line):
                if not line or line.isspace():
                    continue
                numbers.append(number)
                try:
                    found = _object(line)
                    seen.look(found, number)
                    row = tuple([_value(found, column) for column in columns])
                    if _SURROGATE_ESCAPE.search(line):
                        for value in row:
                            (value or "").encode()
                except UnicodeEncodeError:
                    bad[len(rows)] = _bad(request, number, f"half of a surrogate pair in {excerpt(line)}")
                    row = empty
                except ValueError as error:
                    bad[len(rows)] = _bad(request, number, f"{error}: {excerpt(line)}")
                    row = empty
                rows.append(row)
        if rows:
            values = dict(zip(wanted, zip(*rows, strict=True), strict=True)) if wanted else {}
            yield Batch(range(row_no, row_no + len(rows)), numbers, values, bad)
            row_no += len(rows)
