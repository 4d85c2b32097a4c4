"""Opened manifests of any format, as a stream of batches."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from ferry.core import UserError, redact, short
from ferry.job import OFF, ROLES, Columns, Template
from ferry.manifest.cells import NUMBER, split_cells
from ferry.manifest.columns import Batch, ColumnMap, NoSource, Opened, Request
from ferry.manifest.csv import open_csv
from ferry.manifest.lines import open_jsonl, open_txt
from ferry.manifest.plausible import Reading, are_addresses, first_rows, sample, settle
from ferry.manifest.sources import is_bare_address
from ferry.manifest.text import Compression, head_bytes
from ferry.manifest.typed import open_parquet, open_xlsx

SAMPLE_CHARS = 60
Format = Literal["csv", "tsv", "txt", "jsonl", "parquet", "xlsx"]

_EXTENSIONS: dict[str, Format] = {
    "csv": "csv", "tsv": "tsv", "tab": "tsv", "txt": "txt", "jsonl": "jsonl", "ndjson": "jsonl",
    "parquet": "parquet", "xlsx": "xlsx",
}  # fmt: skip
_API: tuple[Format, Compression] = ("jsonl", "")
_COMPRESSIONS: dict[str, Compression] = {"gz": "gz", "zst": "zst"}
_KNOWN = "csv, tsv, txt, jsonl, ndjson (each also as .gz or .zst), parquet, xlsx"
_UNSUPPORTED = {
    "json": "a .json file is one document; write one object per line and name it .jsonl",
    "xls": "the old Excel format; save it as .xlsx or .csv",
    "ods": "save it as .xlsx or .csv",
    "zip": "extract it first",
    "bz2": "compress it with gzip or zstd instead",
    "xz": "compress it with gzip or zstd instead",
}

# First bytes of formats that are not text.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
    (b"PAR1", "Parquet"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook (.xls)"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"%PDF-", "a PDF"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """An opened manifest. ``recognised`` has the column of each role; ``batches`` reads from the first row on.

    ``unread`` are the other roles. ``left`` says which columns could have had one, and why they have none. ``samples``
    has the first value of each role, for messages, once ``batches`` has yielded it. ``bare_hosts``: the sources are
    addresses without a scheme. ``others`` are the columns that cannot have a role.
    """

    recognised: dict[str, str]
    unread: frozenset[str]
    left: list[str]
    shown: str
    samples: dict[str, str]
    bare_hosts: bool
    others: tuple[str, ...]
    _read: Callable[[], Iterator[Batch]]

    def batches(self) -> Iterator[Batch]:
        """Yields the rows in their order. Raises UserError for a line that cannot be read, or if there are no rows."""
        rows = 0
        for batch in self._read():
            rows += len(batch)
            for role in self.recognised.keys() - self.samples.keys():
                if value := next(filter(None, batch.values.get(role) or ()), None):
                    self.samples[role] = short(redact(value), SAMPLE_CHARS)
            yield batch
        if not rows:
            raise UserError(f"{self.shown} contains no rows; nothing would be transferred")


def open_manifest(
    path: Path,
    name: str,
    columns: Columns,
    needed: Collection[str] = (),
    bad_lines: Literal["error", "skip"] = "error",
    url_template: str | None = None,
    decided: Reading | None = None,
    *,
    keys_from_column: bool = True,
    from_api: bool = False,
) -> Manifest:
    """Opens a manifest, and recognises its format and columns.

    ``path`` is a local file. ``name`` is the manifest's name in the job; its extension decides the format, unless
    the file holds the rows of an API (``from_api``), which are JSON Lines. ``needed`` are the columns that the key
    template names, to which those of ``url_template`` (`source.url`) are added.
    ``decided`` is how the job's last plan read its manifest, None before the first. With ``keys_from_column``, a
    manifest that lacks its key column is refused. Raises UserError if the manifest is unusable.
    """
    shown = redact(name)
    if path.is_dir() or (name.endswith("/") and not from_api):
        raise UserError(f"{shown} is a directory; to transfer its files, write `manifest: file://{path.absolute()}/`")
    if not path.exists():
        raise UserError(f"{shown} does not exist")
    format_, compression = _API if from_api else _format_of(name, shown)
    _check_content(path, shown, format_, compression)
    url = None if url_template is None else Template.parse_url(url_template)
    url_needed = frozenset() if url is None else url.needed
    request = Request(
        shown=shown,
        columns=columns,
        needed=frozenset(needed) - ({NUMBER} if columns.split else set()) | url_needed,
        url_fields=None if url is None else url_needed,
        skip_bad_lines=bad_lines == "skip",
    )
    try:
        opened = _open(path, format_, compression, request)
    except NoSource as error:
        first: list[Batch] = []
        with contextlib.suppress(UserError):
            whole = replace(request, needed=frozenset(error.columns), url_fields=frozenset())
            first = first_rows(_open(path, format_, compression, whole)[1]())
        if found := next((name for name in error.columns if are_addresses(sample(first, name))), None):
            raise error.proposing(found) from None
        raise
    if decided is not None and keys_from_column:
        _refuse_lost_key(decided, opened[0], request)
    return _settled(*opened, request, decided)


def _refuse_lost_key(decided: Reading, mapped: ColumnMap, request: Request) -> None:
    """Raises UserError if the column with the earlier rows' keys is missing."""
    key = decided.roles.get("key")
    if key is None or request.columns.key is not None or "key" in mapped.roles or key in mapped.maybe.get("key", ()):
        return
    raise UserError(
        f"{request.shown} lacks the column `{short(key)}`, from which the earlier rows have their keys: all rows would "
        "get other keys. Complete the manifest, or run with `--replan`"
    )


def _open(path: Path, format_: Format, compression: Compression, request: Request) -> Opened:
    match format_:
        case "csv":
            return open_csv(path, compression, request, None)
        case "tsv":
            return open_csv(path, compression, request, "\t")
        case "txt":
            return open_txt(path, compression, request)
        case "jsonl":
            return open_jsonl(path, compression, request)
        case "parquet":
            return open_parquet(path, request)
        case "xlsx":
            return open_xlsx(path, request)


def _settled(
    mapped: ColumnMap, read: Callable[[], Iterator[Batch]], request: Request, decided: Reading | None
) -> Manifest:
    """Returns the manifest, with what its columns' names leave open decided by the first rows."""
    started: list[tuple[list[Batch], Iterator[Batch]]] = []
    rest = read()
    first = first_rows(rest)
    started.append((first, rest))
    unsure, left = settle(mapped, first, decided)
    recognised = {role: column for role in ROLES if (column := mapped.roles.get(role) or unsure.get(role))}
    if more := request.columns.more_sources:
        recognised["source"] = ", then ".join([recognised["source"], *more])

    def batches() -> Iterator[Batch]:
        first, rest = started.pop() if started else ([], read())
        rows = (
            replace(batch, values={**batch.values, **{role: batch.values[column] for role, column in unsure.items()}})
            for batch in chain(first, rest)
        )
        return split_cells(rows, request.columns.split) if request.columns.split else rows

    bare = decided.bare_hosts if decided is not None else _are_bare(sample(first, "source"))
    switched_off = {role for role in ("source", "id") if getattr(request.columns, role) == OFF}
    unread = frozenset(ROLES) - recognised.keys() - ({"source", "id"} - switched_off)
    bare = bare and request.url_fields is None
    return Manifest(recognised, unread, left, request.shown, {}, bare, mapped.others, batches)


def _are_bare(sources: Sequence[str]) -> bool:
    return bool(sources) and all(map(is_bare_address, sources))


def _format_of(name: str, shown: str) -> tuple[Format, Compression]:
    """Returns the format that a name's extension means. Raises UserError."""
    path = unquote(urlsplit(name).path) if name.startswith(("http://", "https://")) else name
    parts = path.rpartition("/")[2].lower().split(".")
    compression: Compression = ""
    if len(parts) > 2 and parts[-1] in _COMPRESSIONS:
        compression = _COMPRESSIONS[parts.pop()]
    extension = parts[-1] if len(parts) > 1 else ""
    if extension in _EXTENSIONS:
        format_ = _EXTENSIONS[extension]
        if compression and format_ in ("parquet", "xlsx"):
            raise UserError(f"{shown}: .{extension} is compressed already; decompress the .{compression} first")
        return format_, compression
    if extension in _UNSUPPORTED:
        raise UserError(f"{shown}: {_UNSUPPORTED[extension]}")
    nearest = get_close_matches(extension, _EXTENSIONS, n=1, cutoff=0.6) if extension else []
    hint = f"; did you mean .{nearest[0]}?" if nearest else ""
    what = (
        f"the extension .{extension} is unknown" if extension else "the name has no extension, which gives the format"
    )
    raise UserError(f"{shown}: {what}{hint}; known are {_KNOWN}")


def _identify(head: bytes) -> str:
    """Returns what a file is by its first bytes; "" if it may be a text manifest."""
    for signature, what in _SIGNATURES:
        if head.startswith(signature):
            return what
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return ""
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:200].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if start.startswith((b"<?xml", b"<error>", b"<listbucketresult")):
        return "an XML document"
    if start.startswith(b"<"):
        return "HTML or XML"
    if b"\0" in head:
        return "UTF-16 without a byte order mark" if head[:200].count(b"\0") * 3 >= len(head[:200]) else "binary"
    if start.startswith((b'{"', b"{\n", b"{\r", b"{ ", b"[{", b"[\n", b'["', b"[ ")):
        return "JSON"
    return ""


def _check_content(path: Path, shown: str, format_: Format, compression: Compression) -> None:
    """Raises UserError, which says what the file is, if it is not what its extension says."""
    head = head_bytes(path, "", shown)
    if not head:
        raise UserError(f"{shown} is empty")
    if compression:
        expected, found = {"gz": "gzip", "zst": "zstd"}[compression], _identify(head)
        if found != expected:
            raise UserError(
                f"{shown} is not {expected} but {found or 'plain text'}; remove .{compression} from its name"
            )
        head = head_bytes(path, compression, shown)
    found = _identify(head)
    if found == {"parquet": "Parquet", "xlsx": "zip"}.get(format_, "") or (format_ == "jsonl" and found == "JSON"):
        return
    what = {"zip": "a zip archive or an Excel workbook", "": "plain text"}.get(found, found)
    raise UserError(f"{shown} ends in .{format_}, but is {what}; {_advice(found)}")


def _advice(found: str) -> str:
    match found:
        case "gzip":
            return "name it .gz (list.csv.gz)"
        case "zstd":
            return "name it .zst (list.csv.zst)"
        case "zip":
            return "name it .xlsx if it is a workbook, otherwise extract it"
        case "Parquet":
            return "name it .parquet"
        case "JSON":
            return "write one object per line and name it .jsonl"
        case "":
            return "name it .csv, .tsv, .txt or .jsonl"
        case "an HTML page" | "an XML document" | "HTML or XML":
            return "probably an error page was saved in its place; download it again"
        case "UTF-16 without a byte order mark":
            return "convert it: `iconv -f utf-16le -t utf-8 OLD > NEW`"
        case _:
            return f"the formats of manifests are {_KNOWN}"
