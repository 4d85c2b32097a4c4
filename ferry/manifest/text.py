"""Text manifests as a stream of complete lines, decompressed and decoded, with limits for any input."""

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
# A compressed manifest may decompress to MAX_UNPACKED_BYTES plus MAX_RATIO times its size.
MAX_UNPACKED_BYTES, MAX_RATIO = 64 << 20, 250
_CHUNK_BYTES = 1 << 19  # at most MAX_LINE_BYTES, so that only the first line of a block can be too long
_EXCERPT_CHARS = 80
_SPACED_PASSWORD = re.compile(r"(//[^\s/@]*:)\s[^\s@]*@")  # a password after a space
_WORD = re.compile(r"""[^\s,;|"'<>]+""")

Compression = Literal["", "gz", "zst"]


@dataclass(frozen=True, slots=True)
class Block:
    """Complete lines, with their line ends. If ``too_long``, the start of one line that exceeds MAX_LINE_BYTES."""

    first_line: int
    text: str
    too_long: bool = False

    def lines(self) -> list[str]:
        """Returns the lines without their line feeds. Carriage returns stay."""
        return self.text.removesuffix("\n").split("\n")


def excerpt(text: str) -> str:
    """Returns the start of a line for a message, without query and user info, control characters escaped."""
    shown, query, _ = text[: 4 * _EXCERPT_CHARS].rstrip("\r\n").partition("?")
    shown = _WORD.sub(lambda found: redact(found.group()), _SPACED_PASSWORD.sub(r"\1…@", shown))
    shortened = bool(query) or len(shown) > _EXCERPT_CHARS
    return f"`{escaped(shown[:_EXCERPT_CHARS])}{'…' if shortened else ''}`"


def _open_decompressed(path: Path, compression: Compression) -> Any:
    """Opens a file to read its decompressed bytes."""
    if compression == "gz":  # Arrow's gzip reader rejects files that are padded with zeros
        return gzip.open(path, "rb")
    return pa.input_stream(str(path), compression="zstd" if compression else None)


def head_bytes(path: Path, compression: Compression, shown: str, size: int = 4096) -> bytes:
    """Returns the first bytes of the decompressed file, which show its format."""
    return next(_chunks(path, compression, shown, size), b"")


def _chunks(path: Path, compression: Compression, shown: str, size: int = _CHUNK_BYTES) -> Iterator[bytes]:
    done = 0
    max_bytes = MAX_UNPACKED_BYTES + MAX_RATIO * path.stat().st_size
    with _open_decompressed(path, compression) as stream:
        while True:
            try:
                chunk = stream.read(size)
            except (EOFError, OSError, zlib.error) as error:
                what = f"cannot be decompressed after {done:,} bytes" if compression else "cannot be read"
                raise UserError(f"{shown} {what}: {_reason(error)}; download or write it again") from None
            if not chunk:
                return
            done += len(chunk)
            if compression and done > max_bytes:
                raise UserError(
                    f"{shown} decompresses to more than {done >> 20:,} MiB, over {MAX_RATIO} times its size, which is "
                    "unusual for a manifest. If it is one, decompress it yourself"
                )
            yield chunk


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError) or "runcated" in str(error):
        return "it is truncated"
    return str(error).partition("\n")[0]


def _utf8(chunks: Iterator[bytes], shown: str) -> Iterator[bytes]:
    """Yields the bytes without a byte order mark. UTF-16 with a byte order mark becomes UTF-8."""
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
        raise UserError(f"{shown} begins as UTF-16 and is invalid near line {lines}: {error.reason}") from None


def _decode(data: bytes, line: int, shown: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        start = data.rfind(b"\n", 0, error.start) + 1
        # The excerpt begins at the line's start: the characters just before the byte may be a part of a signature.
        before = excerpt(data[start : min(error.start, start + 4 * _EXCERPT_CHARS)].decode(errors="replace"))
        raise UserError(
            f"{shown} is not UTF-8: line {line} contains the byte 0x{data[error.start]:02x} after {before}; "
            "convert it: `iconv -f windows-1252 -t utf-8 OLD > NEW`, with the encoding that it has"
        ) from None


def blocks(path: Path, compression: Compression, shown: str) -> Iterator[Block]:
    """Yields the file's lines, half a MiB at a time. Memory is limited for any content.

    Raises UserError for bytes that are not UTF-8 (or UTF-16 with a byte order mark), with the line and the byte.
    """
    rest, line, skipping = b"", 1, False
    for chunk in _utf8(_chunks(path, compression, shown), shown):
        if skipping:  # the rest of a line that is too long
            end = chunk.find(b"\n") + 1
            if not end:
                continue
            chunk, skipping = chunk[end:], False
            line += 1
        data = rest + chunk
        if (data.find(b"\n") if b"\n" in data else len(data)) > MAX_LINE_BYTES:
            yield Block(line, data[: 4 * _EXCERPT_CHARS].decode(errors="replace"), too_long=True)
            end = data.find(b"\n") + 1
            if not end:
                rest, skipping = b"", True
                continue
            data = data[end:]
            line += 1
        end = data.rfind(b"\n") + 1
        if end:
            yield Block(line, _decode(data[:end], line, shown))
            line += data.count(b"\n", 0, end)
        rest = data[end:]
    if rest:
        yield Block(line, _decode(rest, line, shown))
