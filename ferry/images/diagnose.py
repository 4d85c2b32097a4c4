"""Descriptions of bodies that are not images: "an HTML page (“Not found”)"."""

from __future__ import annotations

import codecs
import html
import re

from ferry.images.slices import Data
from ferry.images.svg import PROLOG, utf8_head

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "an EPS document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"BZh", "bzip2-compressed data"),
    (b"\xfd7zXZ\0", "xz-compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (b"\x1aE\xdf\xa3", "a WebM or Matroska video"),
    (b"\0\0\x01\xba", "an MPEG video"),
    (b"\0\0\x01\xb3", "an MPEG video"),
    (b"FLV\x01", "a Flash video"),
    (b"FWS", "a Flash film"),
    (b"CWS", "a Flash film"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"fLaC", "a FLAC file"),
    (b"wOFF", "a web font"),
    (b"wOF2", "a web font"),
    (b"OTTO", "a font"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
    (b"\0asm", "a WebAssembly module"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office document"),
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"\xff\x4f\xff\x53", "a damaged JPEG 2000 code stream"),
)
_ANY_CASE = re.IGNORECASE
_TITLE = re.compile(rb"<title[^>]{0,99}>([^<]{1,400})</title", _ANY_CASE)
_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|title|script|meta|div|p|h1|center|table|iframe)\b", _ANY_CASE)
_ELEMENT = re.compile(rb"<([A-Za-z_][\w.:-]{0,39})[\s/>]")
_STORE_CODE = re.compile(rb"<Code>([A-Za-z]{1,60})</Code>")
_JSON = re.compile(rb"\s*+(?:\{\s*+[\"}]|\[\s*+[\[{\"\]\d tfn-])")


def describe(data: Data) -> str:
    """Returns what a body without an image's signature is: "an HTML page (“Not found”)"; "" if it is unknown."""
    head = data[:4096]
    if head[4:8] == b"ftyp":
        return "a QuickTime video" if head[8:12] == b"qt  " else "an MP4 video or other media file"
    if head[:4] == b"RIFF" and len(head) >= 12:
        return {b"AVI ": "an AVI video", b"WAVE": "a WAV sound"}.get(head[8:12], "a RIFF file")
    if head[:2] == b"\x1f\x8b":
        return "gzip-compressed data"
    for signature, noun in _SIGNATURES:
        if head.startswith(signature):
            return noun
    if not head.strip(b"\0"):
        return "a run of zero bytes"
    return _describe_text(utf8_head(data)[:16384])


def _describe_text(head: bytes) -> str:
    prolog = PROLOG.match(head)
    assert prolog is not None
    start = head.lstrip()
    if not start:
        return "nothing but white space"
    if _HTML.match(head, prolog.end()) or _HTML.match(start) or b"<!doctype html" in prolog[0].lower():
        return "an HTML page" + _title(head)
    if element := _ELEMENT.match(head, prolog.end()):
        code = _STORE_CODE.search(head)  # in S3's response instead of an object
        return f"an XML document (<{element[1].decode('ascii', 'replace')}>{f': {code[1].decode()}' if code else ''})"
    if start.startswith((b"<?xml", b"<!--", b"<!DOCTYPE")):
        return "an XML document"
    if _JSON.match(start):
        return "JSON"
    sample = head[:1024]
    if not sample.translate(None, b"\t\n\r\f" + bytes(range(32, 127)) + bytes(range(128, 256))):
        try:
            codecs.getincrementaldecoder("utf-8")().decode(sample)
        except UnicodeDecodeError:
            return ""
        return "plain text"
    return ""


def _title(head: bytes) -> str:
    """Returns the page's title in brackets; "" if it quotes an address, which may contain a secret."""
    if (m := _TITLE.search(head)) is None:
        return ""
    words = " ".join(html.unescape(m[1].decode("utf-8", "replace")).split())
    words = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    if not words or "://" in words or "=" in words:
        return ""
    return f" (“{words if len(words) <= 60 else words[:59] + '…'}”)"
