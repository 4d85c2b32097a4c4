"""Decoders for Content-Encoding, so that Ferry stores the object itself.

Every layer has a size limit, not only the last one. A layer of padding or of empty gzip members decodes to no bytes,
but costs as much work as a decompression bomb.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from ferry.core import ErrorClass, ObjectError

_PIECE_BYTES = 256 * 1024
_TAKEN_BYTES = 16 * 1024  # of input at once: zlib copies the unused input for each piece of output and each member
_MAX_CODINGS = 3  # layers
_MAX_MEMBERS = 100_000  # of one gzip stream; bgzip writes one for each 64 KiB, servers write one in total


def truncated() -> ObjectError:
    """Return the error for a body that ended early."""
    return ObjectError(ErrorClass.TRUNCATED, "the body ended before it was complete")


def too_large(max_bytes: int) -> ObjectError:
    """Return the error for an object of more than ``max_bytes``."""
    return ObjectError(ErrorClass.TOO_LARGE, f"the object is larger than `max_bytes` ({max_bytes:,} bytes)")


class Inflater:
    """Decodes gzip (RFC 1952, any number of members) or deflate (zlib, or raw as some servers send it)."""

    __slots__ = ("_between", "_head", "_left", "_max_bytes", "_members", "_name", "_z")

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = self._left = max_bytes
        self._members = 0
        self._head = b""  # deflate: first bytes, held until they show the kind
        self._z: zlib._Decompress | None = zlib.decompressobj(31) if name == "gzip" else None
        self._between = False  # gzip: a member has ended, and the next has not begun

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield decoded pieces of at most 256 KiB, and an empty piece now and then during long work without output.

        Raises ObjectError: bad_encoding, or too_large if the total output exceeds ``max_bytes``.
        """
        for at in range(0, len(data), _TAKEN_BYTES):
            yield from self._decode(data[at : at + _TAKEN_BYTES])

    def _decode(self, data: bytes) -> Iterator[bytes]:
        if self._z is None:
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return
            self._head = b""
            is_zlib = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
            self._z = zlib.decompressobj(15 if is_zlib else -15)
        while data:
            if self._between:
                data = data.lstrip(b"\0")  # padding between members, which gzip accepts
                if not data:
                    return
                self._between = False
                self._z = zlib.decompressobj(31)
                self._members += 1
                if self._members > _MAX_MEMBERS:
                    raise self._bad(f"more than {_MAX_MEMBERS:,} members")
                if self._members % 1000 == 0:
                    yield b""
            if self._z.eof:
                raise self._bad("extra bytes follow its end")
            try:
                plain = self._z.decompress(data, _PIECE_BYTES)
                while plain:
                    self._left -= len(plain)
                    if self._left < 0:
                        raise too_large(self._max_bytes)
                    yield plain
                    plain = self._z.decompress(self._z.unconsumed_tail, _PIECE_BYTES)
            except zlib.error:
                raise self._bad("the data is corrupt") from None
            data = self._z.unused_data
            if self._z.eof and self._name == "gzip":
                self._between = True

    def finish(self) -> None:
        """Raise ObjectError (truncated) unless the end of the encoded data was reached."""
        if not self._between and (self._z is None or not self._z.eof):
            raise truncated()

    def _bad(self, why: str) -> ObjectError:
        return ObjectError(ErrorClass.BAD_ENCODING, f"the body cannot be decoded as {self._name}: {why}")


def decoders(values: list[str], max_bytes: int) -> list[Inflater]:
    """Return the decoders for Content-Encoding values, in the order to apply them.

    The header lists encodings in the order of their application (RFC 9110 section 8.4). No decoder gives more than
    ``max_bytes``. Raises ObjectError (bad_encoding) for encodings other than gzip and deflate, and for more than three.
    """
    names = [name.strip().lower() for value in values for name in value.split(",")]
    codings = [name.removeprefix("x-") for name in names if name not in ("", "identity")]
    for name in codings:
        if name not in ("gzip", "deflate"):
            shown = name if len(name) <= 20 and name.isascii() and name.isprintable() else "unknown"
            raise ObjectError(
                ErrorClass.BAD_ENCODING, f"the body has a Content-Encoding that Ferry does not decode ({shown})"
            )
    if len(codings) > _MAX_CODINGS:
        raise ObjectError(
            ErrorClass.BAD_ENCODING,
            f"the body has {len(codings)} content encodings; Ferry decodes up to {_MAX_CODINGS}",
        )
    return [Inflater(name, max_bytes) for name in reversed(codings)]


def decoded(inflaters: list[Inflater], piece: bytes) -> Iterator[bytes]:
    """Yield the fully decoded pieces, and an empty piece after each step without output, to let other tasks run."""
    if not inflaters:
        yield piece
        return
    for plain in inflaters[0].feed(piece):
        yield from decoded(inflaters[1:], plain) if plain else (b"",)
        if len(inflaters) > 1:
            yield b""
