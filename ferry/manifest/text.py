"""Text lists as a stream of whole lines: unpacking, decoding, and limits that hold for any input."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from ferry.core import UserError, escaped, redact

MAX_LINE_BYTES = 1 << 20
MAX_UNPACKED_BYTES, MAX_RATIO = 64 << 20, 250  # a packed list: the first plus its size times the second
_CHUNK_BYTES = 1 << 19  # at most MAX_LINE_BYTES, so that only the first line of a block can be too long
_EXCERPT_CHARS = 80
_TORN = re.compile(r"(//[^\s/@]*:)\s[^\s@]*@")  # a password with a blank in front
_WORD = re.compile(r"""[^\s,;|"'<>]+""")

Compression = Literal["", "gz", "zst"]


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of a list, line ends included; or, ``too_long``, the beginning of one line past the limit."""

    first_line: int
    text: str
    too_long: bool = False

    def lines(self) -> list[str]:
        """Returns the lines without their line feeds; a carriage return stays."""
        return self.text.removesuffix("\n").split("\n")


def excerpt(text: str) -> str:
    """The beginning of a line for a message: no query, no user info, control characters escaped."""
    shown, query, _ = text[: 4 * _EXCERPT_CHARS].rstrip("\r\n").partition("?")
    shown = _WORD.sub(lambda found: redact(found.group()), _TORN.sub(r"\1…@", shown))
    cut = bool(query) or len(shown) > _EXCERPT_CHARS
    return f"`{escaped(shown[:_EXCERPT_CHARS])}{'…' if cut else ''}`"


def _unpacked(path: Path, compression: Compression) -> Any:
    """Opens a file to read its unpacked bytes."""
    if compression == "gz":  # Arrow's gzip refuses files that are padded with zeros
        return gzip.open(path, "rb")
    return pa.input_stream(str(path), compression="zstd" if compression else None)


def head_bytes(path: Path, compression: Compression, shown: str, size: int = 4096) -> bytes:
    """The first bytes of the unpacked file, to see what it is."""
    return next(_chunks(path, compression, shown, size), b"")


def _chunks(path: Path, compression: Compression, shown: str, size: int = _CHUNK_BYTES) -> Iterator[bytes]:
    done = 0
    most = MAX_UNPACKED_BYTES + MAX_RATIO * path.stat().st_size
    with _unpacked(path, compression) as stream:
        while True:
            try:
                chunk = stream.read(size)
            except (EOFError, OSError, zlib.error) as error:
                what = f"cannot be unpacked after {done:,} bytes" if compression else "cannot be read"
                raise UserError(f"{shown} {what}: {_why(error)}; fetch or write it again") from None
            if not chunk:
                return
            done += len(chunk)
            if compression and done > most:
                raise UserError(
                    f"{shown} unpacks to more than {done >> 20:,} MiB, over {MAX_RATIO} times its size. A list does "
                    "not pack that well; unpack it yourself if it is one"
                )
            yield chunk


def _why(error: Exception) -> str:
    if isinstance(error, EOFError) or "runcated" in str(error):
        return "it ends too early"
    return str(error).partition("\n")[0]


def _utf8(chunks: Iterator[bytes], shown: str) -> Iterator[bytes]:
    """The bytes without a mark; UTF-16 that begins with its mark becomes UTF-8."""
    first = next(chunks, b"")
    if not first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield first.removeprefix(codecs.BOM_UTF8)
        yield from chunks
        return
    lines = 1
    try:
        for text in codecs.iterdecode(chain([first], chunks), "utf-16"):
            lines += text.count("\n")
            yield text.encode()
    except UnicodeDecodeError as error:
        raise UserError(f"{shown} begins as UTF-16 and breaks near line {lines}: {error.reason}") from None


def _decode(data: bytes, line: int, shown: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        start = data.rfind(b"\n", 0, error.start) + 1
        # From the line's start on: the end of what stands before the byte may be half of a signature.
        before = excerpt(data[start : min(error.start, start + 4 * _EXCERPT_CHARS)].decode(errors="replace"))
        raise UserError(
            f"{shown} is not UTF-8: line {line} holds the byte 0x{data[error.start]:02x} after {before}; "
            "convert it: `iconv -f windows-1252 -t utf-8 OLD > NEW` (or whatever its encoding is)"
        ) from None


def blocks(path: Path, compression: Compression, shown: str) -> Iterator[Block]:
    """The file's lines, half a MiB at a time. Memory stays bounded whatever the file holds.

    Raises UserError for what is not UTF-8 (or UTF-16 with a mark), with the line and the byte.
    """
    rest, line, dropping = b"", 1, False
    for chunk in _utf8(_chunks(path, compression, shown), shown):
        if dropping:  # the tail of a line that is too long
            end = chunk.find(b"\n") + 1
            if not end:
                continue
            chunk, dropping = chunk[end:], False
            line += 1
        data = rest + chunk
        if (data.find(b"\n") if b"\n" in data else len(data)) > MAX_LINE_BYTES:
            yield Block(line, data[: 4 * _EXCERPT_CHARS].decode(errors="replace"), too_long=True)
            end = data.find(b"\n") + 1
            if not end:
                rest, dropping = b"", True
                continue
            data = data[end:]
            line += 1
        cut = data.rfind(b"\n") + 1
        if cut:
            text = _decode(data[:cut], line, shown)
            yield Block(line, text)
            line += data.count(b"\n", 0, cut)
        rest = data[cut:]
    if rest:
        yield Block(line, _decode(rest, line, shown))
