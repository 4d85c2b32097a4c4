"""The list of what to move, in any format, as a stream of batches."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from ferry.core import UserError, redact
from ferry.job import Columns, Template
from ferry.manifest.columns import Batch, Request
from ferry.manifest.csv import open_csv
from ferry.manifest.lines import open_jsonl, open_txt
from ferry.manifest.text import Compression, head_bytes
from ferry.manifest.typed import open_parquet, open_xlsx

Format = Literal["csv", "tsv", "txt", "jsonl", "parquet", "xlsx"]

_ENDINGS: dict[str, Format] = {
    "csv": "csv", "tsv": "tsv", "tab": "tsv", "txt": "txt", "jsonl": "jsonl", "ndjson": "jsonl",
    "parquet": "parquet", "xlsx": "xlsx",
}  # fmt: skip
_PACKED: dict[str, Compression] = {"gz": "gz", "zst": "zst"}
_KNOWN = "csv, tsv, txt, jsonl, ndjson (each also as .gz or .zst), parquet, xlsx"
_INSTEAD = {
    "json": "a .json file is one document; write one object a line and name it .jsonl",
    "xls": "the old Excel format; save it as .xlsx or .csv",
    "ods": "save it as .xlsx or .csv",
    "zip": "unpack it first",
    "bz2": "pack it with gzip or zstd instead",
    "xz": "pack it with gzip or zstd instead",
}

# What a file is by its first bytes, where that is not text.
_MAGIC: tuple[tuple[bytes, str], ...] = (
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
    """An opened list. ``recognised`` says which column plays which role; ``batches`` reads it from the start."""

    recognised: dict[str, str]
    shown: str
    _read: Callable[[], Iterator[Batch]]

    def batches(self) -> Iterator[Batch]:
        """Rows in the list's order. Raises UserError for a line that cannot be read and for a list without rows."""
        rows = 0
        for batch in self._read():
            rows += len(batch)
            yield batch
        if not rows:
            raise UserError(f"{self.shown} holds no rows; nothing would be moved")


def open_manifest(
    path: Path,
    name: str,
    columns: Columns,
    needed: Collection[str] = (),
    bad_lines: Literal["error", "skip"] = "error",
    url_template: str | None = None,
) -> Manifest:
    """Find out what a list is and what its columns mean.

    ``path`` is a local file; ``name`` is how the user calls it, and its ending decides the format.
    ``needed`` are the columns that the key template names; those of ``url_template`` (`source.url`) are
    added to them. Raises UserError for anything that makes the list as a whole unusable.
    """
    shown = redact(name)
    if path.is_dir() or name.endswith("/"):
        raise UserError(f"{shown} is a directory; to move what lies in it, write `manifest: file://{path.absolute()}/`")
    if not path.exists():
        raise UserError(f"{shown} does not exist")
    format_, packed = _by_ending(name, shown)
    _check_content(path, shown, format_, packed)
    url = None if url_template is None else Template.parse_url(url_template)
    url_needed = frozenset() if url is None else url.needed
    request = Request(
        shown=shown,
        columns=columns,
        needed=frozenset(needed) | url_needed,
        url_fields=None if url is None else url_needed,
        skip_bad_lines=bad_lines == "skip",
    )
    match format_:
        case "csv":
            opened = open_csv(path, packed, request, None)
        case "tsv":
            opened = open_csv(path, packed, request, "\t")
        case "txt":
            opened = open_txt(path, packed, request)
        case "jsonl":
            opened = open_jsonl(path, packed, request)
        case "parquet":
            opened = open_parquet(path, request)
        case "xlsx":
            opened = open_xlsx(path, request)
    return Manifest(opened[0], shown, opened[1])


def _by_ending(name: str, shown: str) -> tuple[Format, Compression]:
    path = unquote(urlsplit(name).path) if name.startswith(("http://", "https://")) else name
    parts = path.rpartition("/")[2].lower().split(".")
    packed: Compression = ""
    if len(parts) > 2 and parts[-1] in _PACKED:
        packed = _PACKED[parts.pop()]
    ending = parts[-1] if len(parts) > 1 else ""
    if ending in _ENDINGS:
        format_ = _ENDINGS[ending]
        if packed and format_ in ("parquet", "xlsx"):
            raise UserError(f"{shown}: .{ending} is compressed already; unpack the .{parts[-1]}.{packed} first")
        return format_, packed
    if ending in _INSTEAD:
        raise UserError(f"{shown}: {_INSTEAD[ending]}")
    near = get_close_matches(ending, _ENDINGS, n=1, cutoff=0.6) if ending else []
    hint = f"; did you mean .{near[0]}?" if near else ""
    what = f"the ending .{ending} is not known" if ending else "the name has no ending that says what it is"
    raise UserError(f"{shown}: {what}{hint}; known are {_KNOWN}")


def _looks(head: bytes) -> str:
    """What the first bytes are; "" for what may be a list in text."""
    for magic, what in _MAGIC:
        if head.startswith(magic):
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


def _check_content(path: Path, shown: str, format_: Format, packed: Compression) -> None:
    """Refuse a file that is not what its ending says, and say what it is."""
    plain = head_bytes(path, "", shown)
    if not plain:
        raise UserError(f"{shown} is empty")
    outside = _looks(plain)
    ending = f".{format_}" if not packed else f".{packed}"
    wanted = {"gz": "gzip", "zst": "zstd"}.get(packed) or {"parquet": "Parquet", "xlsx": "zip"}.get(format_, "")
    if packed and outside != wanted:
        raise UserError(f"{shown} is not {wanted}, it is {outside or 'plain text'}; drop the .{packed} from its name")
    looks = _looks(head_bytes(path, packed, shown)) if packed else outside
    if packed:
        wanted, ending = "", f".{format_}"
    if looks == wanted or (format_ == "jsonl" and looks == "JSON"):
        return
    what = {"zip": "a zip archive or an Excel workbook", "": "plain text"}.get(looks, looks)
    raise UserError(f"{shown} ends in {ending}, but is {what}; {_advice(looks)}")


def _advice(looks: str) -> str:
    match looks:
        case "gzip":
            return "name it .gz (list.csv.gz)"
        case "zstd":
            return "name it .zst (list.csv.zst)"
        case "zip":
            return "name it .xlsx if it is a workbook, else unpack it"
        case "Parquet":
            return "name it .parquet"
        case "JSON":
            return "write one object a line and name it .jsonl"
        case "":
            return "name it .csv, .tsv, .txt or .jsonl"
        case "an HTML page" | "an XML document" | "HTML or XML":
            return "most likely an error page was saved in its place; fetch it again"
        case "UTF-16 without a byte order mark":
            return "convert it: `iconv -f utf-16le -t utf-8 OLD > NEW`"
        case _:
            return f"a list is one of {_KNOWN}"
