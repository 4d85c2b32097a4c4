"""Columns of a manifest: their roles, their usual names, and the batches of rows that readers make."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from ferry.core import UserError, short
from ferry.job import FIELD_FORMATS, OFF, ROLES, Columns

# Names that mean a role whatever the values are. Compared by normal_name(). `key` and `name` never mean the source. A
# bare `name` is not a key either: in product lists it is the product's name.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "source": (
        "source", "source_url", "url", "image_url", "src", "link", "image_link", "href", "image", "uri", "image_uri",
        "address", "download_url", "download_link", "file_url", "photo_url", "media_url", "image_src",
    ),
    "key": ("key", "object_key", "dest_key", "destination_key", "target_key", "s3_key"),
    "size": ("content_length", "size_bytes", "size_in_bytes"),
    "md5": ("md5", "md5sum", "content_md5", "md5_hash"),
    "sha256": ("sha256", "sha256sum", "sha256_hash"),
    "etag": ("etag",),
    "last_modified": ("last_modified",),
    "content_type": ("mime_type",),
    "id": ("id", "sku", "product_id", "asset_id", "item_id", "image_id", "uuid", "guid"),
}  # fmt: skip

# Names that mean a role only if a sample of their values does (plausible.py): a shop's `size` is 38 or XL, its `path` a
# category. A product's `updated_at` is no date of its image, so it means nothing.
AMBIGUOUS_NAMES: dict[str, tuple[str, ...]] = {
    "key": ("path", "dest", "destination", "target", "file_name"),
    "size": ("size", "bytes", "length", "file_size"),
    "last_modified": ("modified", "mtime"),
    "content_type": ("content_type", "mime"),
}


MAX_COLUMNS = 16_384  # Excel's limit
MAX_CELL_CHARS = 1 << 20  # the limit of a line of text, in bytes


def refuse_many_columns(count: int, request: Request) -> None:
    """Raises UserError if the manifest has more than MAX_COLUMNS columns."""
    if count > MAX_COLUMNS:
        raise UserError(f"{request.shown} has more than {MAX_COLUMNS:,} columns; remove those that are not needed")


def normal_name(name: str) -> str:
    """Returns a column name in the form in which names are compared: without case, spaces, `_` and `-`."""
    return name.strip().casefold().replace(" ", "").replace("_", "").replace("-", "")


_ORDER = {
    normal_name(name): at
    for by_role in (USUAL_NAMES, AMBIGUOUS_NAMES)
    for names in by_role.values()
    for at, name in enumerate(names)
}
_ROLE_OF = {normal_name(name): role for role, names in USUAL_NAMES.items() for name in names}
_MAYBE_ROLE_OF = {normal_name(name): role for role, names in AMBIGUOUS_NAMES.items() for name in names}


def role_of(name: str) -> str | None:
    """Returns the role for which a column name is usual, or None."""
    return _ROLE_OF.get(normal_name(name))


def more_source(number: int) -> str:
    """Returns the name in Batch.values of the row's second, third, ... address. No column has such a name."""
    return f"source\0{number}"


@dataclass(frozen=True, slots=True)
class Batch:
    """A few thousand consecutive rows of a manifest, column by column. All values are text; an empty one is None.

    ``values`` has the recognised roles under the role's name, and the columns that templates name under their own.
    ``row_no`` counts data rows from 1, bad lines included. ``line_no`` is the line of the file where the row begins,
    None if the format has no lines. ``problems`` has the reason for each line that could not be read, by index in the
    batch; the values of such a row are None.
    """

    row_no: Sequence[int]
    line_no: Sequence[int] | None
    values: Mapping[str, Sequence[str | None]]
    problems: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row_no)


@dataclass(frozen=True, slots=True)
class Request:
    """What a reader needs from the job. ``shown`` is the manifest's name in messages."""

    shown: str
    columns: Columns
    needed: frozenset[str]  # fields of the key template and of source.url
    url_fields: frozenset[str] | None  # fields of source.url; None without source.url
    skip_bad_lines: bool

    def named_columns(self) -> dict[str, str]:
        """Returns the columns that the job names in `columns`, as role -> column; of several sources the first."""
        return {role: name for role in ROLES if (name := self.columns.of(role))}

    def bad_line(self, line: int, why: str) -> str:
        """Returns the problem of a line that becomes a failed row. Raises UserError unless the job skips such lines."""
        if not self.skip_bad_lines:
            raise UserError(
                f"{self.shown}, line {line}: {why}. Fix the line, or set `bad_lines: skip` to record such lines as "
                "failed rows"
            )
        return f"line {line}: {why}"


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """The columns to read: ``roles`` (role -> column) and ``wanted`` (name in Batch.values -> column).

    ``maybe`` has the columns with an ambiguous name by role, in order of preference. They are wanted under their own
    names. ``required``: columns that a template names. ``others``: columns without a role.
    """

    roles: dict[str, str]
    wanted: dict[str, str]
    maybe: dict[str, tuple[str, ...]] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    others: tuple[str, ...] = ()


# What a reader returns: the columns, and a function that reads the rows from the first one on.
Opened = tuple[ColumnMap, Callable[[], Iterator[Batch]]]


def without_maybe(mapped: ColumnMap, names: Collection[str]) -> ColumnMap:
    """Returns the columns without those of ``names`` that only may have a role, since their type cannot be read."""
    maybe = {role: tuple(name for name in columns if name not in names) for role, columns in mapped.maybe.items()}
    dropped = {name for columns in mapped.maybe.values() for name in columns if name in names} - mapped.required
    return replace(
        mapped, maybe=maybe, wanted={key: name for key, name in mapped.wanted.items() if name not in dropped}
    )


def count_known_names(names: Iterable[str], request: Request) -> int:
    """Returns how many names have a meaning: usual names, and names in the job or in a template."""
    named = {*request.named_columns().values(), *request.columns.more_sources, *request.needed}
    known = _ROLE_OF.keys() | _MAYBE_ROLE_OF.keys()
    return sum(1 for name in names if normal_name(name) in known or name.strip() in named)


def _quoted(names: Sequence[str], limit: int = 30) -> str:
    """Returns column names for a message, escaped, ``limit`` of them at most."""
    shown = ", ".join(f"`{_escaped(name)}`" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _escaped(name: str) -> str:
    return short(name) + ("…" if len(name) > 60 else "")


def _missing(what: str, names: Sequence[str], nearest: str | None) -> UserError:
    hint = f"; did you mean {nearest}?" if nearest else ""
    return UserError(f"{what}; the columns are {_quoted(names)}{hint}")


def _nearest(name: str, names: Sequence[str]) -> str | None:
    same = [other for other in names if normal_name(other) == normal_name(name)]
    return same[0] if same else next(iter(get_close_matches(name, names, n=1, cutoff=0.6)), None)


def map_columns(names: Sequence[str], request: Request, *, seen_in: str = "") -> ColumnMap:
    """Returns which column has which role. ``seen_in`` says how far a format without a header was read.

    If two columns fit one role, the first in USUAL_NAMES is used, except for source and key. Raises UserError for a
    column name that occurs twice, two columns for source or key, a missing column that the job or a template names, and
    a manifest without a source.
    """
    shown = request.shown
    refuse_many_columns(len(names), request)
    duplicates = {name for name, times in Counter(names).items() if name and times > 1}
    if duplicates:
        raise UserError(f"{shown} has more than one column named {_quoted(sorted(duplicates))}; rename or remove one")
    roles, more = request.named_columns(), request.columns.more_sources
    for role, column in [*roles.items(), *(("source", column) for column in more)]:
        if column not in names:
            nearest = _nearest(column, names)
            raise _missing(f"{shown} has no column `{column}`, which `columns: {{{role}: {column}}}` names{seen_in}",
                           names, nearest and f"`{_escaped(nearest)}`")  # fmt: skip
    taken = {*roles.values(), *more}
    maybe: dict[str, tuple[str, ...]] = {}
    for role in ROLES:
        if role in roles or getattr(request.columns, role) == OFF:
            continue
        found = [name for name in names if _ROLE_OF.get(normal_name(name)) == role and name not in taken]
        if not found:
            if unsure := [
                name for name in names if _MAYBE_ROLE_OF.get(normal_name(name)) == role and name not in taken
            ]:
                maybe[role] = tuple(sorted(unsure, key=lambda name: _ORDER[normal_name(name)]))
            continue
        if len(found) > 1 and role not in ("source", "key"):
            # A shop's manifest has an id and a sku. The choice changes no copy, and Ferry prints it.
            found.sort(key=lambda name: _ORDER[normal_name(name)])
        elif len(found) > 1:
            every = ", ".join(map(_escaped, found))
            both = (
                f", or, if they are addresses of the same object, name them in order: `columns: {{source: [{every}]}}`"
            )
            raise UserError(
                f"{shown}: {' and '.join(f'`{_escaped(name)}`' for name in found)} could each be the {role}; "
                f"choose one with `columns: {{{role}: {_escaped(found[0])}}}`{both if role == 'source' else ''}"
            )
        roles[role] = found[0]
    wanted = {name: name for names_of_role in maybe.values() for name in names_of_role} | roles
    wanted |= {more_source(number): name for number, name in enumerate(more, 2)}
    for name in sorted(request.needed - roles.keys()):
        if name in names:
            wanted[name] = name
        elif not (name == "id" and "source" in roles and name in (request.url_fields or ())):
            # A source that is not a URL is used for {id}, so the manifest needs no column of that name.
            by = "source.url" if name in (request.url_fields or ()) else "the key template"
            column = re.split("[:|]", name)[0].strip()
            if column != name and column in {*names, *roles}:
                raise UserError(f"{by} has `{{{short(name)}}}`; the formats of a field are {FIELD_FORMATS}")
            nearest = _nearest(name, [*names, *roles])
            raise _missing(f"{by} names {{{name}}}, and {shown} has no such column{seen_in}",
                           names, nearest and f"{{{_escaped(nearest)}}}")  # fmt: skip
    if "source" not in roles and request.url_fields is None:
        raise NoSource(names, has_ids="id" in roles, request=request, seen_in=seen_in)
    used = {*wanted.values()}
    return ColumnMap(roles, wanted, maybe, request.needed, tuple(name for name in names if name not in used))


class NoSource(UserError):
    """No column has the name of a source. ``columns`` are those that there are."""

    def __init__(self, columns: Sequence[str], *, has_ids: bool, request: Request, seen_in: str) -> None:
        self.columns = tuple(columns)
        self._said = (
            f"{request.shown}: no column is recognised as the source{seen_in}; the columns are: {_quoted(columns)}"
        )
        self._else = ", or build addresses from IDs with `source: {url: 'https://.../{id}.jpg'}`" if has_ids else ""
        super().__init__(f"{self._said}; name it with `columns: {{source: ...}}`{self._else}")

    def proposing(self, column: str) -> SourceProposed:
        """Returns the error with a column that contains addresses."""
        name = _escaped(column)
        return SourceProposed(
            f"{self._said}. `{name}` contains addresses: write `columns: {{source: {name}}}`{self._else}", column
        )


class SourceProposed(UserError):
    """No column has the name of a source, and ``column`` contains addresses."""

    def __init__(self, text: str, column: str) -> None:
        super().__init__(text)
        self.column = column


def split_addresses(values: Sequence[str | None], request: Request) -> dict[str, list[str | None]]:
    """Returns the values of a manifest without columns: with `source.url`, sources contain `://` and others are ids."""
    if request.url_fields is None:
        return {"source": list(values)}
    return {
        "source": [value if value is not None and "://" in value else None for value in values],
        "id": [None if value is None or "://" in value else value for value in values],
    }
