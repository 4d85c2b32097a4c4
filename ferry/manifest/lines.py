"""Manifests of one row a line: plain text (an ID or a URL) and JSON Lines."""

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
    Picked,
    Request,
    pick,
    refuse_many_columns,
    role_of,
    split_addresses,
    squash,
)
from ferry.manifest.text import Compression, blocks, excerpt

SAMPLE_LINES = 1000  # JSON Lines has no header: columns are what these lines name

Opened = tuple[dict[str, str], Callable[[], Iterator[Batch]]]


def open_txt(path: Path, compression: Compression, request: Request) -> Opened:
    """Each line is a source where it holds `://`, else the row's ID."""
    others = sorted({*request.named().values(), *(request.needed - {"id", "source"})})
    if others:
        raise UserError(
            f"{request.shown} has no columns, and the job names {', '.join(f'`{name}`' for name in others)}; "
            "give the list a header row and name it .csv"
        )
    lines = (line.strip() for block in blocks(path, compression, request.shown) for line in block.lines())
    first = next(filter(None, lines), "")
    if first and "://" not in first and request.url_fields is None:
        known = any(squash(first) == squash(name) for names in USUAL_NAMES.values() for name in names)
        what = "if that is a header, name the file .csv" if known else "if these are IDs, set `source.url`"
        raise UserError(f"{request.shown}: its first line, {excerpt(first)}, is no URL; {what}")
    role = "source" if "://" in first else "id"
    return {role: "(line)"}, lambda: _txt_batches(path, compression, request)


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
            yield Batch(range(row_no, row_no + len(found)), lines, split_addresses(values), problems)
            row_no += len(found)


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
    raise ValueError(f"`{column}` holds {'a list' if isinstance(value, list) else 'an object'}, not text or a number")


def open_jsonl(path: Path, compression: Compression, request: Request) -> Opened:
    """Columns are what the first lines' objects name. Bad lines among them wait for the reading."""
    found_blocks = blocks(path, compression, request.shown)
    lines = (line for block in found_blocks if not block.too_long for line in block.lines() if line.strip())
    names: dict[str, None] = {}
    failure, characters = "", 0
    for line in islice(lines, SAMPLE_LINES):
        try:
            found = _object(line)
        except ValueError as error:
            failure = failure or f"{error}: {excerpt(line)}"
            continue
        characters += sum(len(name) for name in found if name not in names)
        if characters > MAX_CELL:  # each is as long as its line, and they are kept
            raise UserError(
                f"{request.shown}: its first lines name columns of more than {MAX_CELL:,} characters in all; leave "
                "out those that are not needed"
            )
        names.update(dict.fromkeys(found))
        refuse_many_columns(len(names), request)
    if not names:
        if failure:
            raise UserError(f"{request.shown} holds no JSON objects; its first line is {failure}")
        raise UserError(f"{request.shown} is empty")
    picked = pick(list(names), request, seen_in=f" in its first {SAMPLE_LINES:,} lines")
    return picked.roles, lambda: _jsonl_batches(path, compression, request, picked, set(names))


def _look_at_new_names(found: dict[str, Any], known: set[str], roles: Mapping[str, str], line: int, shown: str) -> None:
    """Raises UserError where a name that no earlier line has would have a role: a digest or a key that comes late would
    be left out without a word."""
    for name in found.keys() - known:
        role = role_of(name)
        if role is not None and role not in roles and found[name] is not None:
            raise UserError(
                f"{shown}, line {line}: `{short(name)}` would be the {role}, and none of the first {SAMPLE_LINES:,} "
                "lines has it, so it is no column. Move this line to the top of the list, or rename what it names"
            )
        if len(known) < MAX_COLUMNS:
            known.add(name)


_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _row(line: str, found: dict[str, Any], columns: list[str]) -> tuple[str | None, ...]:
    """The object's values. Raises ValueError with a reason for people."""
    row = tuple([_value(found, column) for column in columns])
    if _SURROGATE_ESCAPE.search(line) and any(_SURROGATE.search(value or "") for value in row):
        raise ValueError("half of a surrogate pair")
    return row


def _jsonl_batches(
    path: Path, compression: Compression, request: Request, picked: Picked, known: set[str]
) -> Iterator[Batch]:
    row_no = 1
    columns = list(picked.wanted.values())
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
                found = _object(line)
                if not found.keys() <= known:
                    _look_at_new_names(found, known, picked.roles, number, request.shown)
                rows.append(_row(line, found, columns))
            except ValueError as error:
                bad[len(rows)] = request.bad_line(number, f"{error}: {excerpt(line)}")
                rows.append(blank)
        if rows:
            values = dict(zip(picked.wanted, zip(*rows, strict=True), strict=True)) if columns else {}
            yield Batch(range(row_no, row_no + len(rows)), numbers, values, bad)
            row_no += len(rows)
