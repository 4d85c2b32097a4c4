"""Content-Encoding, undone piece by piece: a body is stored as the object that it is."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from tasks.engine.errors import ObjectError
from tasks.engine.objects import ErrorClass

_PIECE_BYTES = 256 * 1024
_MAX_CODINGS = 3


def truncated() -> ObjectError:
    return ObjectError(ErrorClass.TRUNCATED, "the body ended before it was complete")


class Inflater:
    """Undoes gzip (RFC 1952, any number of members) or deflate (zlib, or bare as some servers send it)."""

    __slots__ = ("_between", "_head", "_name", "_z")

    def __init__(self, name: str) -> None:
        self._name = name
        self._head = b""  # deflate: bytes held until they tell which kind it is
        self._z: zlib._Decompress | None = zlib.decompressobj(31) if name == "gzip" else None
        self._between = False  # gzip: a member has ended, and nothing has come since

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most 256 KiB. Raises ObjectError(bad_encoding)."""
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
            if self._z.eof:
                raise self._bad("there are bytes behind its end")
            try:
                plain = self._z.decompress(data, _PIECE_BYTES)
                while plain:
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


def decoders(values: list[str]) -> list[Inflater]:
    """What undoes a Content-Encoding, in the order to apply it (RFC 9110 section 8.4: listed as applied)."""
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
    return [Inflater(name) for name in reversed(codings)]


def decoded(undo: list[Inflater], piece: bytes) -> Iterator[bytes]:
    if not undo:
        yield piece
        return
    for plain in undo[0].feed(piece):
        yield from decoded(undo[1:], plain)
