"""Destination keys: templates, default keys, and the rules for valid keys.

Stores and directories keep every character of a key except `/` and ASCII control characters. That includes
`+ % # ? \\ * ~ { } | ^ [ ]`, spaces, NBSP and both Unicode forms. This module refuses keys that some of them change:
empty, `.` and `..` segments, which are mistakes of a list or a template, and control characters. In a directory it also
refuses the name that Ferry reserves for unfinished files. Limits of single servers are not checked here: SeaweedFS 4.48
stores `a\\b` as `a/b` and refuses names over 255 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import quote, unquote_to_bytes, urlsplit

from ferry.core import PARTS_DIRECTORY, UserError, in_bucket, is_printable_ascii, short

MAX_KEY_BYTES = 1024  # S3 API, "Creating object key names"
MAX_SEGMENT_BYTES = 255  # the limit of ext4, XFS and most other file systems

DEFERRED_FIELDS = frozenset({"sha256", "ext"})
SOURCE_FIELDS = frozenset({"source.name", "source.stem", "source.ext", "source.path", "source.host"})

_DEFERRED_MARK = re.compile(r"\{\{|\}\}|\{sha256\}|\{ext\}")
_PLAIN_KEY = re.compile(r"(?:[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]*)(?:/[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]*)*")
_PLAIN_CHARS = 250  # of prefix and key, so that no limit on bytes is met
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# In plain keys with a slash before and after each: one of these is where _PLAIN_KEY does not match.
_NEVER_IN_PLAIN = ("//", "/.")


class MissingValue(Exception):
    """Raised if a row has no value for a field of the template. The message is used for the row's outcome."""


FIELD_FORMATS = "`{id:06d}` (zeros in front), `{id|lower}` and `{id|upper}`"
_FORMAT = re.compile(r"(?P<name>.+?)\s*(?::0(?P<width>[1-9][0-9]?)d?)?\s*(?:\|\s*(?P<case>lower|upper))?")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a template: a column's name, and how its values are written."""

    name: str
    width: int = 0  # numbers get zeros in front up to this length
    case: str = ""  # `lower` or `upper`

    @classmethod
    def parse(cls, text: str) -> Field:
        """Returns the field of the text between two braces.

        | text | name | a value | written |
        |---|---|---|---|
        | `id` | id | `A 7` | `A 7` |
        | `id:06d`, `id:06` | id | `7` | `000007` |
        | `sku|lower` | sku | `AB-7` | `ab-7` |
        | `id:06d|upper` | id | `7` | `000007` |
        | `a:b` | a:b | `x` | `x` |
        """
        match = _FORMAT.fullmatch(text)
        assert match is not None
        return cls(match["name"], int(match["width"] or 0), match["case"] or "")

    def __str__(self) -> str:
        width = f":0{self.width}d" if self.width else ""
        return f"{{{self.name}{width}{f'|{self.case}' if self.case else ''}}}"

    @property
    def is_plain(self) -> bool:
        """Returns whether values are written as they are."""
        return not self.width and not self.case

    def written(self, value: str | None) -> str | None:
        """Returns a value as the template writes it, None if there is none, or if it should be a number and is not."""
        if not value or self.is_plain:
            return value
        if self.width:
            value = value.strip()
            if not (value.isascii() and value.isdigit()):
                return None
            value = value.zfill(self.width)
        return {"lower": value.lower(), "upper": value.upper()}.get(self.case, value)


def tokens(text: str, what: str) -> Iterable[str | Field]:
    """Yields texts and fields in order. Doubled braces are literal braces. Raises UserError for invalid syntax."""
    at = 0
    while at < len(text):
        brace = re.compile(r"[{}]").search(text, at)
        if brace is None:
            yield text[at:]
            return
        start = brace.start()
        if start > at:
            yield text[at:start]
        if text[start : start + 2] in ("{{", "}}"):
            yield text[start]
            at = start + 2
            continue
        end = text.find("}", start)
        inner = text[start + 1 : end]
        if text[start] == "}" or end < 0 or "{" in inner:
            raise UserError(f"{what} `{text}` has an unbalanced brace; write {{{{ or }}}} for a literal brace")
        if not inner.strip():
            raise UserError(f"{what} `{text}` has empty braces; write a column name in them: {{id}}")
        yield Field.parse(inner.strip())
        at = end + 1


def _brace(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True, slots=True)
class Template:
    """A template with fields in braces, for keys (:meth:`parse`) or for `source.url` (:meth:`parse_url`)."""

    text: str
    parts: tuple[str | Field, ...]
    for_url: bool = False

    @classmethod
    def parse(cls, text: str, columns: Collection[str] | None = None) -> Template:
        """Parses a key template. Raises UserError for invalid syntax, and for a field not in ``columns`` if given.

        ``columns`` are the manifest's columns and roles.
        """
        template = cls(text, tuple(tokens(text, "key template")))
        for name, plain in ((field.name, field.is_plain) for field in template._fields):
            if name in DEFERRED_FIELDS and not plain:
                raise UserError(f"key template `{text}`: write {{{name}}} without a format")
            if name.startswith("source.") and name not in SOURCE_FIELDS and name not in (columns or ()):
                raise UserError(f"key template names {{{name}}}; the source fields are {_braced(SOURCE_FIELDS)}")
            if columns is not None and name not in {*columns, *DEFERRED_FIELDS, *SOURCE_FIELDS}:
                near = get_close_matches(name, [*columns, *DEFERRED_FIELDS, *SOURCE_FIELDS], n=1, cutoff=0.6)
                hint = f"; did you mean {{{near[0]}}}?" if near else ""
                raise UserError(f"key template names {{{name}}}; the columns are {', '.join(columns)}{hint}")
        if not text.strip("/ "):
            raise UserError("the key template is empty; write a template such as `{id}.jpg`, or remove `key`")
        return template

    @classmethod
    def parse_url(cls, text: str, columns: Collection[str] | None = None) -> Template:
        """Parses a `source.url` template. Its fields are columns, at least one; values are percent-encoded."""
        template = cls(text, tuple(tokens(text, "source.url")), for_url=True)
        names = [field.name for field in template._fields]
        if not names:
            raise UserError(f"source.url `{text.partition('?')[0]}` names no column; write {{id}} where the ID goes")
        for name in names:
            if name in SOURCE_FIELDS:
                raise UserError(f"source.url names {{{name}}}, which is taken from the URL itself; name only columns")
            if columns is not None and name not in columns:
                near = get_close_matches(name, list(columns), n=1, cutoff=0.6)
                hint = f"; did you mean {{{near[0]}}}?" if near else ""
                raise UserError(f"source.url names {{{name}}}; the columns are {', '.join(columns)}{hint}")
        return template

    @property
    def fields(self) -> frozenset[str]:
        """Returns the names of all fields."""
        return frozenset(field.name for field in self._fields)

    @property
    def _fields(self) -> list[Field]:
        return [part for part in self.parts if isinstance(part, Field)]

    @property
    def needed(self) -> frozenset[str]:
        """Returns the columns or roles that the manifest must have."""
        return self.fields - SOURCE_FIELDS - (frozenset() if self.for_url else DEFERRED_FIELDS)

    @property
    def late(self) -> bool:
        """Returns whether the key is deferred: known only after the download."""
        return not self.for_url and not self.fields.isdisjoint(DEFERRED_FIELDS)

    def render(self, values: Mapping[str, str | None]) -> str:
        """Returns one row's text. Raises MissingValue if the row has no value for a field.

        A deferred key is a template for :func:`finish_key`: its deferred fields stay, and literal braces are doubled.
        """
        text = self.render_many({name: [value] for name, value in values.items()}, 1)[0]
        if text is None:
            raise MissingValue(self.missing(values))
        return text

    def missing(self, values: Mapping[str, str | None]) -> str:
        """Returns the message for a row that lacks a value."""
        names = sorted(
            name for name in self.fields if not values.get(name) and (self.for_url or name not in DEFERRED_FIELDS)
        )
        what = "source.url" if self.for_url else "the key template"
        for field in self._fields:
            value = values.get(field.name)
            if not names and value and field.written(value) is None:
                return f"the row's {field.name} is `{short(value)}`, not a whole number, as {field} in {what} needs"
        return f"the row has no {_braced(names)} for {what}"

    def render_many(self, columns: Mapping[str, Sequence[str | None]], rows: int) -> list[str | None]:
        """Returns the texts of many rows from columns of values, or None for a row that lacks a value."""
        late = self.late
        pattern = ""
        used: list[Sequence[str | None]] = []
        for part in self.parts:
            if isinstance(part, str):
                pattern += (_brace(part) if late else part).replace("%", "%%")
            elif late and part.name in DEFERRED_FIELDS:
                pattern += str(part)
            else:
                pattern += "%s"
                values = columns.get(part.name) or [None] * rows
                if not part.is_plain:
                    values = [part.written(value) for value in values]
                if self.for_url:
                    # "/" is not encoded, since IDs such as `2024/a1` are paths at the origin.
                    values = [value and quote(value.strip(), safe="/") for value in values]
                elif late:
                    values = [_brace(value) if value and ("{" in value or "}" in value) else value for value in values]
                used.append(values)
        if not used:
            return [pattern % ()] * rows
        return [pattern % row if all(row) else None for row in zip(*used, strict=True)]


def _braced(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names))


def finish_key(deferred_key: str, sha256: str, ext: str) -> str:
    """Returns the key for a deferred key and the values of its body."""
    values = {"{{": "{", "}}": "}", "{sha256}": sha256, "{ext}": ext}
    return _DEFERRED_MARK.sub(lambda mark: values[mark.group()], deferred_key)


def needs_sha256(deferred_key: str) -> bool:
    """Returns whether a deferred key contains the SHA-256 of its body."""
    return any(mark.group() == "{sha256}" for mark in _DEFERRED_MARK.finditer(deferred_key))


def decode_path(path: str) -> str:
    """Returns the path percent-decoded once as UTF-8, unchanged if it is not valid UTF-8."""
    if "%" not in path:
        return path
    try:
        return unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return path


def default_key(source: str) -> str:
    """Returns the default key of a source. Raises ValueError for text without a scheme.

    For an HTTP URL it is the percent-decoded path without leading slashes. For sources in buckets and `file://`, which
    are not percent-encoded, it is the part after the bucket, after Azure's container, or after the root directory.
    """
    scheme, mark, rest = source.partition("://")
    if not mark:
        raise ValueError("the source is not an address")
    kind = scheme.lower()
    if kind == "file" or in_bucket(f"{kind}://"):
        if kind == "az":
            rest = rest.partition("/")[2]
        return rest.partition("/")[2].lstrip("/")
    return decode_path(urlsplit(source).path).lstrip("/")


def source_field(field: str, source: str, path: str | None = None) -> str | None:
    """Returns the value of a `source.…` field. ``path`` is the source's default key if already known."""
    if field == "source.host":
        return urlsplit(source).hostname
    path = default_key(source) if path is None else path
    if field == "source.path":
        return path or None
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    if dot <= 0:  # `.hidden` has no extension
        dot = len(name)
    match field:
        case "source.name":
            return name or None
        case "source.stem":
            return name[:dot] or None
        case _:
            return name[dot + 1 :] or None


def join_key(prefix: str, key: str) -> str:
    """Returns prefix and key joined by exactly one `/`."""
    return f"{prefix.rstrip('/')}/{key.lstrip('/')}" if prefix.strip("/") else key.lstrip("/")


def are_plain_keys(keys: Sequence[str], prefix: str) -> bool:
    """Returns whether all keys are plain, which nearly all are: :func:`key_problem` has nothing to say of such keys.

    A few searches in all of them take a tenth of the time of a regular expression for each.
    """
    text = "/".join(["", *keys, ""])
    return (
        is_printable_ascii(text) and len(prefix) + max(map(len, keys), default=0) <= _PLAIN_CHARS
        and not any(mark in text for mark in _NEVER_IN_PLAIN)
    )  # fmt: skip


def key_problem(key: str, *, for_directory: bool, prefix: str = "", as_listed: bool = False) -> str | None:
    """Returns why a key is not valid, as a sentence, or None if it is valid.

    ``prefix`` is the destination's, since the limit of 1,024 bytes applies to prefix and key together. A key
    ``as_listed`` is that of a bucket's object, and may have empty segments, `.` and `..`: they are no mistake there.
    """
    if len(key) + len(prefix) <= _PLAIN_CHARS and key.isascii() and _PLAIN_KEY.fullmatch(key):
        return None  # the fast path for most keys
    if not key:
        return "the key is empty"
    if control := _CONTROL.search(key):
        return f"the key holds a control character (0x{ord(control.group()):02x})"
    try:
        size = len(join_key(prefix, key).encode())
    except UnicodeEncodeError:
        return "the key holds an unpaired surrogate, which is not valid text"
    if size > MAX_KEY_BYTES:
        return f"the key is {size:,} bytes long with its prefix; {MAX_KEY_BYTES:,} are allowed"
    if as_listed:
        return None
    segments = key.split("/")
    if not segments[0]:
        return "the key begins with `/`"
    if not segments[-1]:
        return "the key ends in `/`, so it names no object"
    if "" in segments:
        return "the key holds `//`, an empty path segment"
    if "." in segments or ".." in segments:
        return "the key holds `.` or `..` as a path segment"
    if for_directory:
        if any(len(segment.encode()) > MAX_SEGMENT_BYTES for segment in segments):
            return f"a path segment of the key is longer than {MAX_SEGMENT_BYTES} bytes, the limit of file systems"
        # A file system that ignores case treats other spellings as the same name.
        if any(segment.casefold().startswith(PARTS_DIRECTORY) for segment in segments):
            return (
                f"a path segment of the key begins with `{PARTS_DIRECTORY}`, which Ferry reserves for unfinished files"
            )
    return None
