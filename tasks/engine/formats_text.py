"""Bodies that are text: SVG, which is an image, and all that is not one, named for people.

An SVG is walked tag by tag to the end of its root element, through comments and CDATA but without an
XML parser: a cut is found, an error of syntax is not (level `decode` parses).
"""

from __future__ import annotations

import codecs
import html
import re
import zlib

from tasks.engine.errors import ObjectError
from tasks.engine.formats import Data, cut, wrong
from tasks.engine.objects import ErrorClass
from tasks.engine.slices import SLICE_BYTES, Text, behind, find, search, steps, turn

HEAD_BYTES = 65_536  # a prolog (licence, doctype) longer than this is not looked through
MAX_SVG_BYTES = 64 * 1024 * 1024  # as it is, and decompressed
MAX_SVG_TOKENS = 500_000
_SVGZ_STEP = 1024 * 1024

_PROLOG = re.compile(
    rb"(?:\s++|<\?(?:[^?]++|\?(?!>))*+\?>|<!--(?:[^-]++|-(?!->))*+-->"
    rb"|<!DOCTYPE(?:[^\[<>\"']++|\"[^\"]*+\"|'[^']*+')*+(?:\[(?:[^\]]++|\](?!\s*+>))*+\]\s*+)?>)*+",
    re.IGNORECASE,
)
_ROOT = re.compile(rb"<((?:[A-Za-z_][\w.-]{0,63}:)?svg)(?=[\s/>])")
_TAG_PIECES = re.compile(rb"(?:[^<>\"']++|\"[^\"]*+\"|'[^']*+')*+")
_SPACE = re.compile(rb"\s*+")
_OPAQUE = {b"<!--": b"-->", b"<![CDATA[": b"]]>", b"<?": b"?>"}


def _utf16(data: Text) -> str | None:
    start = bytes(data[:4])
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    return {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}.get(start[:2])


def utf8_head(data: Data) -> bytes:
    """The start of a text without its byte order mark, as UTF-8 when it is UTF-16."""
    head = data[:HEAD_BYTES]
    if (coding := _utf16(head)) is not None:
        return head.decode(coding, "replace").encode("utf-8", "replace")
    return head.removeprefix(codecs.BOM_UTF8)


def _root(text: Text, start: int = 0) -> re.Match[bytes] | None:
    prolog = _PROLOG.match(text, start, HEAD_BYTES)
    assert prolog is not None  # it matches nothing at least
    return _ROOT.match(text, prolog.end())


def is_svg(data: Data) -> bool:
    """Whether the first element, after declaration, comments and doctype, is `svg`."""
    return _root(utf8_head(data)) is not None


def svg(data: Text) -> None:
    """XML 1.0: from the root element to its end, after which only comments may follow."""
    if len(data) > MAX_SVG_BYTES:
        raise ObjectError(ErrorClass.TOO_LARGE, "an SVG over 64 MB is not looked through; `checks: length` copies it")
    text: Text
    text, start = data, 0
    if (coding := _utf16(data)) is not None:
        try:
            text = utf8_of(data, coding)
        except UnicodeDecodeError as exc:
            if exc.reason == "truncated data" or exc.reason == "unexpected end of data":
                raise cut("SVG", "its closing </svg>") from None
            raise wrong("SVG", "it is not the UTF-16 that its start promises") from None
    elif data[:3] == codecs.BOM_UTF8:
        start = 3
    root = _root(text, start)
    if root is None:
        raise wrong("SVG", "it has no root element")
    _comments_alone(text, _element_end(text, root[1], root.start()))


def utf8_of(data: Text, coding: str) -> bytearray:
    """A text in UTF-16, in slices. Raises UnicodeDecodeError."""
    decoder, text = codecs.getincrementaldecoder(coding)(), bytearray()
    for at in range(0, len(data), SLICE_BYTES):
        text += decoder.decode(data[at : at + SLICE_BYTES], at + SLICE_BYTES >= len(data)).encode()
        turn()
    return text


def _comments_alone(text: Text, pos: int) -> None:
    """Raises ObjectError where anything but comments and white space stands from ``pos`` on."""
    for _ in steps(MAX_SVG_TOKENS):
        pos = behind(_SPACE, text, pos)
        start = bytes(text[pos : pos + 4])
        if not start:
            return
        opening = start if start == b"<!--" else start[:2]
        if opening not in _OPAQUE:
            if opening in (b"<", b"<!"):
                raise cut("SVG", "the end of its last comment")
            raise wrong("SVG", "something follows its closing </svg>")
        end = find(text, _OPAQUE[opening], pos + len(opening))
        if end < 0:
            raise cut("SVG", "the end of its last comment")
        pos = end + len(_OPAQUE[opening])
    raise wrong("SVG", f"more than {MAX_SVG_TOKENS:,} comments behind its closing </svg>")


def _element_end(text: Text, name: bytes, pos: int) -> int:
    """Where the element ends that begins at ``pos``."""
    token = re.compile(rb"<!--|<!\[CDATA\[|<\?|<(/?)" + re.escape(name) + rb"(?=[\s/>])")
    early = cut("SVG", "its closing </svg>")
    depth = 0
    for _ in steps(MAX_SVG_TOKENS):
        m = search(token, text, pos, 128)
        if m is None:
            raise early
        closing = _OPAQUE.get(m[0])
        if closing is not None:
            pos = find(text, closing, m.end()) + len(closing)
            if pos < m.end():
                raise early
            continue
        pos = _tag_end(text, m.end())
        if pos < 0:
            raise early
        if m[1]:
            depth -= 1
        elif text[pos - 2] != 0x2F:
            depth += 1
        if depth == 0:
            return pos
    raise wrong("SVG", f"more than {MAX_SVG_TOKENS:,} comments and nested drawings")


def _tag_end(text: Text, pos: int) -> int:
    """Behind the `>` that ends the tag; -1 where it does not end."""
    while True:
        pos = behind(_TAG_PIECES, text, pos)
        char = bytes(text[pos : pos + 1])
        if char == b">":
            return pos + 1
        if char in (b"", b"<"):
            return -1
        turn()
        pos = find(text, char, pos + 1) + 1  # of a value that is longer than a slice, or that does not end
        if not pos:
            return -1


def gunzip_head(data: Data) -> bytes | None:
    """The first bytes inside a gzip stream; None when it is none."""
    try:
        return zlib.decompressobj(31).decompress(data[:HEAD_BYTES], HEAD_BYTES)
    except zlib.error:
        return None


def gunzip(data: Data) -> bytearray:
    """A whole gzip stream (RFC 1952), bounded, its checksum verified. For SVGZ."""
    stream = zlib.decompressobj(31)
    plain = bytearray()
    for at in range(0, len(data), HEAD_BYTES):  # zlib copies what it leaves of its input: a body may be a gigabyte
        piece, full = data[at : at + HEAD_BYTES], True
        while full and not stream.eof:
            try:
                piece_of_it = stream.decompress(piece, _SVGZ_STEP)
            except zlib.error:
                raise wrong("SVGZ", "it does not decompress") from None
            plain += piece_of_it
            turn()
            if len(plain) > MAX_SVG_BYTES:
                raise ObjectError(ErrorClass.TOO_LARGE, "the SVGZ is larger than 64 MB when decompressed")
            piece, full = stream.unconsumed_tail, len(piece_of_it) == _SVGZ_STEP
        if stream.eof:
            return plain
    raise cut("SVGZ", "the end of its gzip stream")


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


def what(data: Data) -> str:
    """What a body that is no image is, as a noun: "an HTML page (“Not found”)"; "" when it is unknown."""
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
    return _text(utf8_head(data)[:16384])


def _text(head: bytes) -> str:
    prolog = _PROLOG.match(head)
    assert prolog is not None
    start = head.lstrip()
    if not start:
        return "nothing but white space"
    if _HTML.match(head, prolog.end()) or _HTML.match(start) or b"<!doctype html" in prolog[0].lower():
        return "an HTML page" + _title(head)
    if element := _ELEMENT.match(head, prolog.end()):
        code = _STORE_CODE.search(head)  # what S3 and its like answer with instead of an object
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
    """The page's title when it is short, printable and quotes no address (which may hold a secret)."""
    if (m := _TITLE.search(head)) is None:
        return ""
    words = " ".join(html.unescape(m[1].decode("utf-8", "replace")).split())
    words = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    if not words or "://" in words or "=" in words:
        return ""
    return f" (“{words if len(words) <= 60 else words[:59] + '…'}”)"
