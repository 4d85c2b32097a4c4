"""Destination keys: templates, the default, what a key may be, and how prefix and key are joined.

What the store client (obstore 0.12) keeps byte for byte, tried on memory and SeaweedFS, and local_files.py in a
directory: every character but `/` and ASCII control characters, `+ % # ? \\ * ~ { } | ^ [ ]`, spaces, NBSP and both
Unicode forms included. What it cannot represent is refused here: empty, `.` and `..` segments, control characters;
in a directory also the name that Ferry keeps for unfinished files. One server's own trait is left to it:
SeaweedFS 4.48 stores `a\\b` as `a/b`, and refuses names over 255 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import quote, unquote_to_bytes, urlsplit

from ferry.core import PARTS_DIRECTORY, UserError

MAX_KEY_BYTES = 1024  # S3 API, "Creating object key names"
MAX_SEGMENT_BYTES = 255  # ext4, xfs and most others

LATE_FIELDS = frozenset({"sha256", "ext"})
SOURCE_FIELDS = frozenset({"source.name", "source.stem", "source.ext", "source.path", "source.host"})

_LATE_MARK = re.compile(r"\{\{|\}\}|\{sha256\}|\{ext\}")
_PLAIN_KEY = re.compile(r"(?:[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]*)(?:/[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]*)*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class MissingValue(Exception):
    """A row has no value for a field of the template; the text is a sentence for its outcome."""


def _tokens(text: str, what: str) -> Iterable[tuple[bool, str]]:
    """``(is_field, text)`` in order; braces are doubled to stand for themselves."""
    at = 0
    while at < len(text):
        brace = re.compile(r"[{}]").search(text, at)
        if brace is None:
            yield False, text[at:]
            return
        start = brace.start()
        if start > at:
            yield False, text[at:start]
        if text[start : start + 2] in ("{{", "}}"):
            yield False, text[start]
            at = start + 2
            continue
        end = text.find("}", start)
        inner = text[start + 1 : end]
        if text[start] == "}" or end < 0 or "{" in inner:
            raise UserError(f"{what} `{text}` has a brace without its partner; write {{{{ or }}}} for a brace itself")
        if not inner.strip():
            raise UserError(f"{what} `{text}` has empty braces; name a column in them: {{id}}")
        yield True, inner.strip()
        at = end + 1


def _brace(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True, slots=True)
class Template:
    """A text with fields in braces, for keys (:meth:`parse`) or for `source.url` (:meth:`parse_url`)."""

    text: str
    parts: tuple[tuple[bool, str], ...]  # (is_field, text)
    for_url: bool = False

    @classmethod
    def parse(cls, text: str, columns: Collection[str] | None = None) -> Template:
        """A key template. ``columns``: the list's columns and roles, where known; UserError for others."""
        template = cls(text, tuple(_tokens(text, "key template")))
        for _, name in (part for part in template.parts if part[0]):
            if name.startswith("source.") and name not in SOURCE_FIELDS and name not in (columns or ()):
                raise UserError(f"key template names {{{name}}}; of a source there are {_braced(SOURCE_FIELDS)}")
            if columns is not None and name not in {*columns, *LATE_FIELDS, *SOURCE_FIELDS}:
                near = get_close_matches(name, [*columns, *LATE_FIELDS, *SOURCE_FIELDS], n=1, cutoff=0.6)
                hint = f"; did you mean {{{near[0]}}}?" if near else ""
                raise UserError(f"key template names {{{name}}}; the columns are {', '.join(columns)}{hint}")
        if not text.strip("/ "):
            raise UserError("the key template is empty")
        return template

    @classmethod
    def parse_url(cls, text: str, columns: Collection[str] | None = None) -> Template:
        """A `source.url` template: only columns, at least one; their values are percent-encoded."""
        template = cls(text, tuple(_tokens(text, "source.url")), for_url=True)
        names = [name for is_field, name in template.parts if is_field]
        if not names:
            raise UserError(f"source.url `{text.partition('?')[0]}` names no column; write {{id}} where the ID goes")
        for name in names:
            if name in SOURCE_FIELDS:
                raise UserError(f"source.url names {{{name}}}, which is known only once there is an address")
            if columns is not None and name not in columns:
                near = get_close_matches(name, list(columns), n=1, cutoff=0.6)
                hint = f"; did you mean {{{near[0]}}}?" if near else ""
                raise UserError(f"source.url names {{{name}}}; the columns are {', '.join(columns)}{hint}")
        return template

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(name for is_field, name in self.parts if is_field)

    @property
    def needed(self) -> frozenset[str]:
        """The columns or roles that a list must have for it."""
        return self.fields - SOURCE_FIELDS - (frozenset() if self.for_url else LATE_FIELDS)

    @property
    def late(self) -> bool:
        """Whether the key is known only after the fetch."""
        return not self.for_url and not self.fields.isdisjoint(LATE_FIELDS)

    def render(self, values: Mapping[str, str | None]) -> str:
        """One row's text. A late key is a template again: its late fields stay, other braces are doubled.

        Raises MissingValue where the row has no value for a field.
        """
        text = self.render_many({name: [value] for name, value in values.items()}, 1)[0]
        if text is None:
            raise MissingValue(self.missing(values))
        return text

    def missing(self, values: Mapping[str, str | None]) -> str:
        """Why a row cannot be rendered."""
        names = sorted(
            name for name in self.fields if not values.get(name) and (self.for_url or name not in LATE_FIELDS)
        )
        return f"the row has no {_braced(names)} for {'source.url' if self.for_url else 'the key template'}"

    def render_many(self, columns: Mapping[str, Sequence[str | None]], rows: int) -> list[str | None]:
        """Texts of many rows at once, from columns; None where a value is missing."""
        late = self.late
        pattern = ""
        used: list[Sequence[str | None]] = []
        for is_field, text in self.parts:
            if not is_field:
                pattern += (_brace(text) if late else text).replace("%", "%%")
            elif late and text in LATE_FIELDS:
                pattern += f"{{{text}}}"
            else:
                pattern += "%s"
                values = columns.get(text) or [None] * rows
                if self.for_url:
                    # "/" stays: IDs like `2024/a1` are paths at their origin.
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
    """The key that a late key stands for, once the body is known."""
    values = {"{{": "{", "}}": "}", "{sha256}": sha256, "{ext}": ext}
    return _LATE_MARK.sub(lambda mark: values[mark.group()], deferred_key)


def decode_path(path: str) -> str:
    """Percent-decoded once as UTF-8; as written where that fails."""
    if "%" not in path:
        return path
    try:
        return unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return path


def default_key(source: str) -> str:
    """The path of an HTTP address without leading slashes, percent-decoded; of s3:// and file:// sources,
    which are written literally, what follows the bucket or the root directory.

    Raises ValueError for what is no address.
    """
    scheme, mark, rest = source.partition("://")
    if not mark:
        raise ValueError("no address")
    if scheme.lower() in ("s3", "file"):
        return rest.partition("/")[2].lstrip("/")
    return decode_path(urlsplit(source).path).lstrip("/")


def source_field(field: str, source: str, path: str | None = None) -> str | None:
    """The value of a `source.…` field; ``path`` is the source's default key where that is known."""
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
    """Prefix and key with exactly one `/` between them."""
    return f"{prefix.rstrip('/')}/{key.lstrip('/')}" if prefix.strip("/") else key.lstrip("/")


def key_problem(key: str, *, for_directory: bool, prefix: str = "") -> str | None:
    """Why a key cannot be used, as a sentence; None when it can.

    ``prefix`` is the destination's, for the limit of 1,024 bytes on both together.
    """
    if len(key) + len(prefix) <= 250 and key.isascii() and _PLAIN_KEY.fullmatch(key):
        return None  # nearly all keys
    if not key:
        return "the key is empty"
    if control := _CONTROL.search(key):
        return f"the key holds a control character (0x{ord(control.group()):02x})"
    try:
        size = len(join_key(prefix, key).encode())
    except UnicodeEncodeError:
        return "the key holds half of a surrogate pair, which is no text"
    if size > MAX_KEY_BYTES:
        return f"the key is {size:,} bytes long with its prefix; {MAX_KEY_BYTES:,} are allowed"
    segments = key.split("/")
    if not segments[0]:
        return "the key begins with `/`"
    if not segments[-1]:
        return "the key ends in `/`, so it names no object"
    if "" in segments:
        return "the key holds `//`, an empty name"
    if "." in segments or ".." in segments:
        return "the key holds `.` or `..` as a name"
    if for_directory:
        if any(len(segment.encode()) > MAX_SEGMENT_BYTES for segment in segments):
            return f"a name in the key is longer than {MAX_SEGMENT_BYTES} bytes, which no directory takes"
        # one and the same name where the file system does not tell case apart
        if any(segment.casefold().startswith(PARTS_DIRECTORY) for segment in segments):
            return f"a name in the key begins with `{PARTS_DIRECTORY}`, as those of unfinished files do"
    return None
