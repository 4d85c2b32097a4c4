"""Which column of a list is what: roles, their usual names, and the batches that readers make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from ferry.core import UserError, short
from ferry.job import Columns

ROLES = ("source", "key", "size", "md5", "sha256", "etag", "last_modified", "content_type", "id")

# Compared without case, spaces, `_` and `-`. `key` and `name` never mean the source (SEMANTICS: keys),
# and a bare `name` is no key either: in product lists it is the product's name.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "source": (
        "source", "source_url", "url", "image_url", "src", "link", "image_link", "href", "image", "uri", "image_uri",
        "address", "download_url", "download_link", "file_url", "photo_url", "media_url", "image_src",
    ),
    "key": ("key", "object_key", "dest_key", "destination_key", "target_key", "path", "dest", "destination", "target",
            "file_name"),
    "size": ("size", "bytes", "length", "content_length", "file_size", "size_bytes"),
    "md5": ("md5", "md5sum", "content_md5", "md5_hash"),
    "sha256": ("sha256", "sha256sum", "sha256_hash"),
    "etag": ("etag",),
    "last_modified": ("last_modified", "modified", "mtime", "updated_at"),
    "content_type": ("content_type", "mime", "mime_type"),
    "id": ("id", "sku", "product_id", "asset_id", "item_id", "image_id", "uuid", "guid"),
}  # fmt: skip


MAX_COLUMNS = 16_384  # as Excel has
MAX_CELL = 1 << 20  # characters; a line of text is bounded to as many bytes


def refuse_many_columns(count: int, request: Request) -> None:
    """Raises UserError for a list that is wider than any list."""
    if count > MAX_COLUMNS:
        raise UserError(f"{request.shown} has more than {MAX_COLUMNS:,} columns; leave out those that are not needed")


def squash(name: str) -> str:
    """A column name as names are compared: without case, spaces, `_` and `-`."""
    return name.strip().casefold().replace(" ", "").replace("_", "").replace("-", "")


_ORDER = {squash(name): at for names in USUAL_NAMES.values() for at, name in enumerate(names)}
_ROLE_OF = {squash(name): role for role, names in USUAL_NAMES.items() for name in names}


def role_of(name: str) -> str | None:
    """The role that a column of this name usually has."""
    return _ROLE_OF.get(squash(name))


@dataclass(frozen=True, slots=True)
class Batch:
    """Some thousand consecutive rows of a list, column by column; all values are text, empty is None.

    ``values`` holds the recognised roles under their role's name, and the columns that templates name
    under their own. ``row_no`` counts data rows from 1, bad lines included. ``line_no`` is the line of
    the file where the row begins, None where the format has no lines. ``problems`` says, by index in
    the batch, why a line could not be read; its values are None.
    """

    row_no: Sequence[int]
    line_no: Sequence[int] | None
    values: Mapping[str, Sequence[str | None]]
    problems: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row_no)


@dataclass(frozen=True, slots=True)
class Request:
    """What a reader is asked for; ``shown`` is the list's name as messages show it."""

    shown: str
    columns: Columns
    needed: frozenset[str]  # fields of the key template and of source.url
    url_fields: frozenset[str] | None  # fields of source.url; None without one
    skip_bad_lines: bool

    def named(self) -> dict[str, str]:
        """The columns that the job names itself: role -> column."""
        return {role: name for role in ROLES if (name := getattr(self.columns, role)) is not None}

    def bad_line(self, line: int, why: str) -> str:
        """Returns the problem of a line that becomes a failed row. Raises UserError unless the job skips such lines."""
        if not self.skip_bad_lines:
            raise UserError(
                f"{self.shown}, line {line}: {why}. Mend the line, or set `bad_lines: skip` to list such lines as "
                "failed rows"
            )
        return f"line {line}: {why}"


@dataclass(frozen=True, slots=True)
class Picked:
    """The columns to read: ``roles`` (role -> column) and ``wanted`` (name in Batch.values -> column)."""

    roles: dict[str, str]
    wanted: dict[str, str]


def known_names(names: Iterable[str], request: Request) -> int:
    """How many of the names mean something: by their usual names, or because job or template name them."""
    named = {*request.named().values(), *request.needed}
    return sum(1 for name in names if squash(name) in _ROLE_OF or name.strip() in named)


def listed(names: Sequence[str], most: int = 30) -> str:
    """Column names for a message: escaped, and not all of a thousand."""
    shown = ", ".join(f"`{_plain(name)}`" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _plain(name: str) -> str:
    return short(name) + ("…" if len(name) > 60 else "")


def _missing(what: str, names: Sequence[str], near: str | None) -> UserError:
    hint = f"; did you mean {near}?" if near else ""
    return UserError(f"{what}; the columns are {listed(names)}{hint}")


def _nearest(name: str, names: Sequence[str]) -> str | None:
    same = [other for other in names if squash(other) == squash(name)]
    return same[0] if same else next(iter(get_close_matches(name, names, n=1, cutoff=0.6)), None)


def pick(names: Sequence[str], request: Request, *, seen_in: str = "") -> Picked:
    """Decide which column is what; ``seen_in`` says how far a format without a header was read.

    Of two columns for one role the first of USUAL_NAMES is taken, but for source and key.
    Raises UserError for doubled names, two columns for source or key, a named or template column that is
    missing, and when nothing says where an object is.
    """
    shown = request.shown
    refuse_many_columns(len(names), request)
    doubled = {name for name, times in Counter(names).items() if name and times > 1}
    if doubled:
        raise UserError(f"{shown} has more than one column named {listed(sorted(doubled))}; rename or drop one")
    named = request.named()
    roles: dict[str, str] = {}
    for role, column in named.items():
        if column not in names:
            near = _nearest(column, names)
            raise _missing(f"{shown} has no column `{column}`, which `columns: {{{role}: {column}}}` names{seen_in}",
                           names, near and f"`{_plain(near)}`")  # fmt: skip
        roles[role] = column
    taken = set(named.values())
    for role in ROLES:
        found = [name for name in names if _ROLE_OF.get(squash(name)) == role and name not in taken]
        if role in roles or not found:
            continue
        if len(found) > 1 and role not in ("source", "key"):
            # A shop's list has an id and a sku: nothing moves otherwise for the choice, and it is printed.
            found.sort(key=lambda name: _ORDER[squash(name)])
        elif len(found) > 1:
            raise UserError(
                f"{shown}: {' and '.join(f'`{_plain(name)}`' for name in found)} could each be the {role}; "
                f"choose one with `columns: {{{role}: {_plain(found[0])}}}`"
            )
        roles[role] = found[0]
    wanted = dict(roles)
    for name in sorted(request.needed - roles.keys()):
        if name in names:
            wanted[name] = name
        elif not (name == "id" and "source" in roles and name in (request.url_fields or ())):
            # A source that is no URL stands in for {id}: then the list needs no column of that name.
            by = "source.url" if name in (request.url_fields or ()) else "the key template"
            near = _nearest(name, [*names, *roles])
            raise _missing(f"{by} names {{{name}}}, and {shown} has no such column{seen_in}",
                           names, near and f"{{{_plain(near)}}}")  # fmt: skip
    if "source" not in roles and request.url_fields is None:
        also = ""
        if "id" in roles:
            also = ", or build addresses from IDs with `source: {url: 'https://.../{id}.jpg'}`"
        raise UserError(
            f"{shown}: no column is recognised as the source{seen_in}; the columns are: {listed(names)}; "
            f"name it with `columns: {{source: ...}}`{also}"
        )
    return Picked(roles, wanted)


def split_addresses(values: Sequence[str | None]) -> dict[str, list[str | None]]:
    """A bare list: what contains `://` is a source, anything else an ID."""
    return {
        "source": [value if value is not None and "://" in value else None for value in values],
        "id": [None if value is None or "://" in value else value for value in values],
    }
