"""The walk over SVG and SVGZ, and the parser of level `decode`.

The walk goes from tag to tag up to the end of the root element, through comments and CDATA but without an XML parser.
It finds truncation, not syntax errors. The parser runs in a child process (decode.py) with limits on memory and time,
so names, attributes and depth need no limits here. It expands nothing: an SVG that declares entities is refused, and
default attributes of a DTD are ignored (`specified_attributes`).
"""

from __future__ import annotations

import codecs
import re
import zlib
from xml.parsers import expat

from ferry.core import ErrorClass, ObjectError
from ferry.images.slices import SLICE_BYTES, Text, check_time, find, run_end, search, steps
from ferry.images.web import Data, corrupt, truncated

HEAD_BYTES = 65_536  # a longer prolog (licence, doctype) is not read
MAX_SVG_BYTES = 64 * 1024 * 1024  # of an SVG, and of a decompressed SVGZ
MAX_SVG_TOKENS = 500_000
_SVGZ_STEP = 1024 * 1024

PROLOG = re.compile(
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
    """Returns the start of a text without its byte order mark. UTF-16 becomes UTF-8."""
    head = data[:HEAD_BYTES]
    if (coding := _utf16(head)) is not None:
        return head.decode(coding, "replace").encode("utf-8", "replace")
    return head.removeprefix(codecs.BOM_UTF8)


def _root(text: Text, start: int = 0) -> re.Match[bytes] | None:
    prolog = PROLOG.match(text, start, HEAD_BYTES)
    assert prolog is not None  # it also matches an empty text
    if b"<!doctype html" in prolog[0].lower():
        return None
    return _ROOT.match(text, prolog.end())


def is_svg(data: Data) -> bool:
    """Returns whether the first element, after declaration, comments and a doctype (not HTML's), is `svg`."""
    return _root(utf8_head(data)) is not None


def svg(data: Text) -> None:
    """Checks an SVG (XML 1.0) from the root element to its end, after which only comments may follow."""
    if len(data) > MAX_SVG_BYTES:
        raise ObjectError(
            ErrorClass.TOO_LARGE, "the SVG is larger than 64 MB, the limit of this check; `checks: length` copies it"
        )
    text: Text
    text, start = data, 0
    if (coding := _utf16(data)) is not None:
        try:
            text = utf8_of(data, coding)
        except UnicodeDecodeError as exc:
            if exc.reason in ("truncated data", "unexpected end of data"):
                raise truncated("SVG", "its closing </svg>") from None
            raise corrupt("SVG", "it begins as UTF-16 but is not valid UTF-16") from None
    elif data[:3] == codecs.BOM_UTF8:
        start = 3
    root = _root(text, start)
    if root is None:
        raise corrupt("SVG", "it has no root element")
    _check_trailer(text, _element_end(text, root[1], root.start()))


def utf8_of(data: Text, coding: str) -> bytearray:
    """Returns a text in UTF-16 as UTF-8, converted in slices. Raises UnicodeDecodeError."""
    decoder, text = codecs.getincrementaldecoder(coding)(), bytearray()
    for at in range(0, len(data), SLICE_BYTES):
        text += decoder.decode(data[at : at + SLICE_BYTES], at + SLICE_BYTES >= len(data)).encode()
        check_time()
    return text


def _check_trailer(text: Text, pos: int) -> None:
    """Raises ObjectError if anything except comments and white space follows from ``pos`` on."""
    for _ in steps(MAX_SVG_TOKENS):
        pos = run_end(_SPACE, text, pos)
        start = bytes(text[pos : pos + 4])
        if not start:
            return
        opening = start if start == b"<!--" else start[:2]
        if opening not in _OPAQUE:
            if opening in (b"<", b"<!"):
                raise truncated("SVG", "the end of its last comment")
            raise corrupt("SVG", "something follows its closing </svg>")
        end = find(text, _OPAQUE[opening], pos + len(opening))
        if end < 0:
            raise truncated("SVG", "the end of its last comment")
        pos = end + len(_OPAQUE[opening])
    raise corrupt("SVG", f"more than {MAX_SVG_TOKENS:,} comments after its closing </svg>")


def _element_end(text: Text, name: bytes, pos: int) -> int:
    """Returns the end of the element that begins at ``pos``."""
    token = re.compile(rb"<!--|<!\[CDATA\[|<\?|<(/?)" + re.escape(name) + rb"(?=[\s/>])")
    early = truncated("SVG", "its closing </svg>")
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
    raise corrupt("SVG", f"more than {MAX_SVG_TOKENS:,} comments and nested drawings")


def _tag_end(text: Text, pos: int) -> int:
    """Returns the position after the `>` that ends the tag; -1 if it does not end."""
    while True:
        pos = run_end(_TAG_PIECES, text, pos)
        char = bytes(text[pos : pos + 1])
        if char == b">":
            return pos + 1
        if char in (b"", b"<"):
            return -1
        check_time()
        pos = find(text, char, pos + 1) + 1  # for a value that is longer than a slice, or does not end
        if not pos:
            return -1


def gunzip_head(data: Data) -> bytes | None:
    """Returns the first decompressed bytes of a gzip stream; None if the body is not one."""
    try:
        return zlib.decompressobj(31).decompress(data[:HEAD_BYTES], HEAD_BYTES)
    except zlib.error:
        return None


def svgz(data: Data) -> None:
    """Checks an SVG in a gzip stream, as :func:`svg`."""
    svg(gunzip(data))


def gunzip(data: Data) -> bytearray:
    """Returns the content of a complete gzip stream (RFC 1952) of an SVGZ, up to 64 MB, with its checksum verified."""
    stream = zlib.decompressobj(31)
    plain = bytearray()
    for at in range(0, len(data), HEAD_BYTES):  # zlib copies its unused input, and a body may be a gigabyte
        compressed, full = data[at : at + HEAD_BYTES], True
        while full and not stream.eof:
            try:
                plain_part = stream.decompress(compressed, _SVGZ_STEP)
            except zlib.error:
                raise corrupt("SVGZ", "it does not decompress") from None
            plain += plain_part
            check_time()
            if len(plain) > MAX_SVG_BYTES:
                raise ObjectError(ErrorClass.TOO_LARGE, "the SVGZ is larger than 64 MB when decompressed")
            compressed, full = stream.unconsumed_tail, len(plain_part) == _SVGZ_STEP
        if stream.eof:
            return plain
    raise truncated("SVGZ", "the end of its gzip stream")


_NO_MEMORY = expat.errors.codes[expat.errors.XML_ERROR_NO_MEMORY]
_UNFINISHED = frozenset(
    expat.errors.codes[text]
    for text in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
    )
)


def parse_svg(data: Text) -> None:
    """Parses an SVG. Raises ObjectError if it is not well-formed or declares entities, and MemoryError."""
    parser = expat.ParserCreate()
    parser.specified_attributes = True

    def start(tag: str, _attributes: dict[str, str]) -> None:
        parser.StartElementHandler = None  # only the root element is checked
        if tag.rpartition(":")[2] != "svg":
            raise corrupt("SVG", "its root element is not svg")

    def entity(*_declaration: object) -> None:
        raise corrupt("SVG", "it declares entities, which Ferry does not expand; `checks: image` accepts it")

    parser.StartElementHandler = start
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(data, True)
    except expat.ExpatError as exc:
        if exc.code == _NO_MEMORY:
            raise MemoryError from None
        if exc.code in _UNFINISHED:
            raise truncated("SVG", "its XML is complete") from None
        why = expat.ErrorString(exc.code)
        raise corrupt("SVG", f"its XML is not well-formed in line {exc.lineno} ({why})") from None
    except (LookupError, ValueError):  # raised for an encoding that Python does not know or cannot map
        raise corrupt("SVG", "it declares an unknown encoding") from None
