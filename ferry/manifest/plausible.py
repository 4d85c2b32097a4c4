"""Whether a column whose name could mean a role has values of that role: 38 and XL are not lengths in bytes."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from statistics import median

from ferry.core import redact, short
from ferry.manifest.columns import Batch, ColumnMap
from ferry.manifest.normalize import MEDIA_TYPE, read_size
from ferry.manifest.sources import is_bare_address

SAMPLE_ROWS = 1000
SMALLEST_BYTES = 200  # half of all images are larger; clothes, shoes and screens are not
_FILE = re.compile(r"(?:[^/\0]*/)*[^/\0]+\.[A-Za-z0-9]{1,5}")
_FILES = 0.95  # the share of paths that end in a file name with an extension
_ADDRESSES = 0.9
WHAT = {
    "key": "paths of files, such as shoes/1.jpg",
    "size": "lengths of files in bytes",
    "last_modified": "dates",
    "content_type": "media types, such as image/jpeg",
}


def is_plausible(role: str, values: Sequence[str]) -> bool:
    """Returns whether values, all of them or a sample, look like the role's.

    | role | values | |
    |---|---|---|
    | size | 48213, 51877 | yes |
    | size | 38, 39, 45 | no: no image is so small |
    | size | M, XL; 1.2 MB | no |
    | key | shoes/1.jpg | yes |
    | key | Home/Shoes | no: no file name |
    | key | https://img.example/1.jpg | no: an address |
    | last_modified | 2026-11-29T10:00:00Z; Sun, 29 Nov 2026 10:00:00 GMT | yes |
    | content_type | image/jpeg | yes |
    | content_type | product | no |
    | any | none | no |
    """
    if not values:
        return False
    match role:
        case "size":
            sizes = [read_size(value) for value in values]
            return None not in sizes and median([size for size in sizes if size] or [0]) > SMALLEST_BYTES
        case "key":
            files = sum(1 for value in values if "://" not in value and _FILE.fullmatch(value.strip()))
            return files >= _FILES * len(values)
        case "last_modified":
            return all(_is_date(value.strip()) for value in values)
        case _:
            return all(MEDIA_TYPE.fullmatch(value.strip()) for value in values)


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return email.utils.parsedate(text) is not None
    return True


def are_addresses(values: Sequence[str]) -> bool:
    """Returns whether most values are web addresses, with or without their scheme."""
    found = sum(1 for value in values if value.strip()[:8].lower().startswith(("http://", "https://", "//")))
    found = found or sum(map(is_bare_address, values))
    return bool(values) and found >= _ADDRESSES * len(values)


def first_rows(batches: Iterator[Batch]) -> list[Batch]:
    """Takes the batches with the first SAMPLE_ROWS rows, or all if there are fewer."""
    taken: list[Batch] = []
    while sum(map(len, taken)) < SAMPLE_ROWS and (batch := next(batches, None)) is not None:
        taken.append(batch)
    return taken


@dataclass(frozen=True, slots=True)
class Reading:
    """How a manifest is read: the column of each role, and whether its sources are addresses without a scheme."""

    roles: Mapping[str, str]
    bare_hosts: bool


def settle(mapped: ColumnMap, first: Sequence[Batch], decided: Reading | None) -> tuple[dict[str, str], list[str]]:
    """Returns the roles of the columns with ambiguous names, and a sentence about each that got none.

    ``decided`` is how the job's last plan read its manifest, None before the first plan. It stays so: a manifest whose
    first rows differ must not give every row another key.
    """
    roles: dict[str, str] = {}
    left: list[str] = []
    for role, columns in mapped.maybe.items():
        samples = {column: sample(first, column) for column in columns}
        if decided is not None:
            chosen = decided.roles.get(role) if decided.roles.get(role) in columns else None
        else:
            chosen = next((column for column in columns if is_plausible(role, samples[column])), None)
        if chosen is not None:
            roles[role] = chosen
        elif decided is None:
            left += [_left(role, column, samples[column]) for column in columns]
    return roles, left


def sample(first: Sequence[Batch], column: str) -> list[str]:
    """Returns the values of a column in a manifest's first rows."""
    values = (value for batch in first for value in batch.values.get(column) or ())
    return [value for value in islice(values, SAMPLE_ROWS) if value is not None]


def _left(role: str, column: str, values: Sequence[str]) -> str:
    examples = ", ".join(f"`{short(redact(value), 40)}`" for value in list(dict.fromkeys(values))[:3])
    why = f"its values, such as {examples}, are not {WHAT[role]}" if values else "the first rows have no value there"
    return (
        f"the column `{short(column)}` is not read as the {role}: {why}. If it is, write `columns: {{{role}: "
        f"{short(column)}}}`"
    )
