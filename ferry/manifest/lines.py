"""Readers of manifests with one row per line: plain text (an ID or a URL) and JSON Lines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ferry.core import UserError, short
from ferry.manifest.columns import (
    MAX_CELL_CHARS,
    MAX_COLUMNS,
    Batch,
    ColumnMap,
    Opened,
    Request,
    map_columns,
    refuse_many_columns,
    role_of,
    split_addresses,
)
from ferry.manifest.sources import is_address
from ferry.manifest.text import Compression, blocks, excerpt

SAMPLE_LINES = 1000  # JSON Lines has no header: the columns are the names in these lines


def open_txt(path: Path, compression: Compression, request: Request) -> Opened:
    """Opens a text file, whose lines are sources if they contain `://`, and IDs otherwise. Raises UserError."""
    others = sorted({*request.named_columns().values(), *(request.needed - {"id", "source"})})
    if others:
        raise UserError(
            f"{request.shown} has no columns, and the job names {', '.join(f'`{name}`' for name in others)}; "
            "give the manifest a header row and name it .csv"
        )
    lines = (line.strip() for block in blocks(path, compression, request.shown) for line in block.lines())
    first = next(filter(None, lines), "")
    has_address = is_address(first)
    if first and not has_address and request.url_fields is None:
        what = "if that is a header, name the file .csv" if role_of(first) else "if these are IDs, set `source.url`"
        raise UserError(f"{request.shown}: its first line, {excerpt(first)}, is not a URL; {what}")
    role = "source" if has_address else "id"
    return ColumnMap({role: "(line)"}, {}), lambda: _txt_batches(path, compression, request)


def _txt_batches(path: Path, compression: Compression, request: Request) -> Iterator[Batch]:
    row_no = 1
    for block in blocks(path, compression, request.shown):
        numbered = enumerate(map(str.strip, block.lines()), block.first_line)
        found: list[tuple[int, str | None]] = [(number, text) for number, text in numbered if text]
        problems: dict[int, str] = {}
        if block.too_long:
            found = [(block.first_line, None)]
            problems[0] = request.bad_line(block.first_line, f"longer than 1 MiB: {excerpt(block.text)}")
        if found:
            lines, values = zip(*found, strict=True)
            yield Batch(range(row_no, row_no + len(found)), lines, split_addresses(values, request), problems)
            row_no += len(found)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object's members. Raises ValueError for a duplicate name, undefined by RFC 8259 section 4."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        twice = next(name for name, times in names.items() if times > 1)
        raise ValueError(f"`{ascii(twice)[1:-1][:60]}` is given twice")
    return found


# Numbers stay the text that the manifest has.
decode_json = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=_refuse_constant, object_pairs_hook=_unique_names
).decode


def _parse_object(line: str) -> dict[str, Any]:
    """Returns the object in a line. Raises ValueError with a reason for messages."""
    try:
        value = decode_json(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if isinstance(value, dict):
        return value
    raise ValueError(f"{'an array' if isinstance(value, list) else 'a bare value'} where an object is expected")


def _value(found: dict[str, Any], column: str) -> str | None:
    value = found.get(column)
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    kind = "an array" if isinstance(value, list) else "an object"
    raise ValueError(f"`{column}` contains {kind}, not text or a number")


def open_jsonl(path: Path, compression: Compression, request: Request) -> Opened:
    """Opens JSON Lines. The columns are the names in the first lines; a bad line is reported when its row is read."""
    found_blocks = blocks(path, compression, request.shown)
    lines = (line for block in found_blocks if not block.too_long for line in block.lines() if line.strip())
    names: dict[str, None] = {}
    failure, characters = "", 0
    for line in islice(lines, SAMPLE_LINES):
        try:
            found = _parse_object(line)
        except ValueError as error:
            failure = failure or f"{error}: {excerpt(line)}"
            continue
        characters += sum(len(name) for name in found if name not in names)
        if characters > MAX_CELL_CHARS:  # a name may be as long as its line, and all names stay in memory
            raise UserError(
                f"{request.shown}: the names of columns in its first lines have more than {MAX_CELL_CHARS:,} "
                "characters in total; remove columns that are not needed"
            )
        names.update(dict.fromkeys(found))
        refuse_many_columns(len(names), request)
    if not names:
        if failure:
            raise UserError(f"{request.shown} contains no JSON objects; its first line: {failure}")
        raise UserError(f"{request.shown} is empty")
    mapped = map_columns(list(names), request, seen_in=f" in its first {SAMPLE_LINES:,} lines")
    return mapped, lambda: _jsonl_batches(path, compression, request, mapped, set(names))


def _check_new_names(found: dict[str, Any], known: set[str], roles: Mapping[str, str], line: int, shown: str) -> None:
    """Raises UserError if a name that no earlier line has would have a role.

    Ferry would otherwise ignore a digest or a key that only later lines have.
    """
    for name in found.keys() - known:
        role = role_of(name)
        if role is not None and role not in roles and found[name] is not None:
            raise UserError(
                f"{shown}, line {line}: `{short(name)}` would be the {role}, but none of the first {SAMPLE_LINES:,} "
                "lines has it, so Ferry does not read it. Move this line to the top of the manifest, or rename the name"
            )
        if len(known) < MAX_COLUMNS:
            known.add(name)


_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _row(line: str, found: dict[str, Any], columns: list[str], maybe: set[str]) -> tuple[str | None, ...]:
    """Returns the object's values. Raises ValueError with a reason for messages.

    An array in a column that only may have a role, such as the sizes of a shoe, counts as an empty cell.
    """
    row = tuple(
        [None if column in maybe and isinstance(found.get(column), list | dict) else _value(found, column)
         for column in columns]
    )  # fmt: skip
    if _SURROGATE_ESCAPE.search(line) and any(_SURROGATE.search(value or "") for value in row):
        raise ValueError("an unpaired surrogate, which is not valid text")
    return row


def _jsonl_batches(
    path: Path, compression: Compression, request: Request, mapped: ColumnMap, known: set[str]
) -> Iterator[Batch]:
    row_no = 1
    columns = list(mapped.wanted.values())
    source, separator = mapped.roles.get("source"), request.columns.split
    maybe = {name for names in mapped.maybe.values() for name in names} - mapped.required
    blank: tuple[str | None, ...] = (None,) * len(columns)
    for block in blocks(path, compression, request.shown):
        numbers: list[int] = []
        rows: list[tuple[str | None, ...]] = []
        bad: dict[int, str] = {}
        for number, line in enumerate(block.lines(), block.first_line):
            if not block.too_long and (not line or line.isspace()):
                continue
            numbers.append(number)
            try:
                if block.too_long:
                    raise ValueError("longer than 1 MiB")
                found = _parse_object(line)
                if not found.keys() <= known:
                    _check_new_names(found, known, mapped.roles, number, request.shown)
                if separator and source and isinstance(addresses := found.get(source), list):
                    found[source] = separator.join(address for address in addresses if isinstance(address, str))
                rows.append(_row(line, found, columns, maybe))
            except ValueError as error:
                bad[len(rows)] = request.bad_line(number, f"{error}: {excerpt(line)}")
                rows.append(blank)
        if rows:
            values = dict(zip(mapped.wanted, zip(*rows, strict=True), strict=True)) if columns else {}
            yield Batch(range(row_no, row_no + len(rows)), numbers, values, bad)
            row_no += len(rows)
