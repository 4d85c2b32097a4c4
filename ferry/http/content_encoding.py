"""Content-Encoding, undone piece by piece: a body is stored as the object that it is.

A little that unpacks to much is bounded at every layer, not at the last one alone: a layer of nothing but padding or of
empty gzip members gives no byte, and costs as much work as one of zeros.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from ferry.core import ErrorClass, ObjectError

_PIECE_BYTES = 256 * 1024
_TAKEN_BYTES = 16 * 1024  # zlib copies what it leaves of its input, for each piece of output and each member
_MAX_CODINGS = 3
_MAX_MEMBERS = 100_000  # of a gzip stream; bgzip makes one of each 64 KiB, servers make one in all


def truncated() -> ObjectError:
    return ObjectError(ErrorClass.TRUNCATED, "the body ended before it was complete")


def too_large(max_bytes: int) -> ObjectError:
    return ObjectError(ErrorClass.TOO_LARGE, f"the object is larger than `max_bytes` ({max_bytes:,} bytes)")


class Inflater:
    """Undoes gzip (RFC 1952, any number of members) or deflate (zlib, or bare as some servers send it)."""

    __slots__ = ("_between", "_head", "_left", "_max_bytes", "_members", "_name", "_z")

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = self._left = max_bytes
        self._members = 0
        self._head = b""  # deflate: bytes held until they tell which kind it is
        self._z: zlib._Decompress | None = zlib.decompressobj(31) if name == "gzip" else None
        self._between = False  # gzip: a member has ended, and nothing has come since

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most 256 KiB; an empty one now and then where there is much work and no byte.

        Raises ObjectError: bad_encoding, and too_large past ``max_bytes`` in all.
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
                data = data.lstrip(b"\0")  # padding, as gzip itself takes it
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
                raise self._bad("there are bytes behind its end")
            try:
                plain = self._z.decompress(data, _PIECE_BYTES)
                while plain:
                    self._left -= len(plain)
                    if self._left < 0:
                        raise too_large(self._max_bytes)
                    yield plain
                    plain = self._z.decompress(self._z.unconsumed_tail, _PIECE_BYTES)
            except zlib.error:
                raise self._bad("the data is damaged") from None
            data = self._z.unused_data
            if self._z.eof and self._name == "gzip":
                self._between = True

    def finish(self) -> None:
        """Raises ObjectError(truncated) if the end has not been reached."""
        if not self._between and (self._z is None or not self._z.eof):
            raise truncated()

    def _bad(self, why: str) -> ObjectError:
        return ObjectError(ErrorClass.BAD_ENCODING, f"the body's {self._name} encoding cannot be undone: {why}")


def decoders(values: list[str], max_bytes: int) -> list[Inflater]:
    """What undoes a Content-Encoding, in the order to apply it (RFC 9110 section 8.4: listed as applied).

    No layer gives more than ``max_bytes``. Raises ObjectError(bad_encoding) for what is not gzip or deflate, and for
    more than three layers.
    """
    names = [name.strip().lower() for value in values for name in value.split(",")]
    codings = [name.removeprefix("x-") for name in names if name not in ("", "identity")]
    for name in codings:
        if name not in ("gzip", "deflate"):
            shown = name if len(name) <= 20 and name.isascii() and name.isprintable() else "an unknown one"
            raise ObjectError(
                ErrorClass.BAD_ENCODING, f"the body comes in an encoding that was not asked for ({shown})"
            )
    if len(codings) > _MAX_CODINGS:
        raise ObjectError(ErrorClass.BAD_ENCODING, f"the body is encoded {len(codings)} times over")
    return [Inflater(name, max_bytes) for name in reversed(codings)]


def decoded(inflaters: list[Inflater], piece: bytes) -> Iterator[bytes]:
    """The pieces that come out at the end; an empty one after each step that gave none, so that others get a turn."""
    if not inflaters:
        yield piece
        return
    for plain in inflaters[0].feed(piece):
        yield from decoded(inflaters[1:], plain) if plain else (b"",)
        if len(inflaters) > 1:
            yield b""
