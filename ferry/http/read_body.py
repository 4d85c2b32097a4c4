"""Readers of response bodies, which limit the size, decode, hash and spool."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal, Protocol

from ferry.core import (
    FIRST_BYTES,
    ONE_PUT_BYTES,
    POOLED_BYTES,
    Batches,
    Body,
    BodyWriter,
    Budget,
    Charge,
    Share,
    begin_stream,
    disk_error,
    must_stream,
    over_spool_bytes,
    pace,
    to_disk,
    whole_body,
)
from ferry.core import part_bytes as part_bytes_of
from ferry.http.connection import Response
from ferry.http.content_encoding import decoded, decoders, too_large, truncated

Algorithm = Literal["md5", "sha256", "sha256+md5"]
Mapped = Callable[[Exception], Exception]  # returns Ferry's error for one of a connection


class Hash(Protocol):
    """A hash of :mod:`hashlib`, or several in one."""

    def update(self, piece: bytes, /) -> object: ...
    def hexdigest(self) -> str: ...


class BodySink(Protocol):
    """Takes a body piece by piece."""

    async def add(self, piece: bytes) -> None: ...
    async def flush(self) -> None: ...


class Reader:
    """Reads bodies. ``budget`` limits their memory, ``pool`` hashes large ones, ``max_bytes`` limits each body."""

    def __init__(self, spool_dir: Path, budget: Budget, pool: Executor | None, max_bytes: int) -> None:
        self._spool_dir = spool_dir
        self._budget = budget
        self._pool = pool
        self._max_bytes = max_bytes

    async def body(
        self,
        response: Response,
        charge: Charge,
        host: str,
        *,
        decode: bool = True,
        part_bytes: int = 0,
        streamed: Mapped | None = None,
    ) -> Body:
        """Return the complete body. Raises ObjectError.

        Content-Encoding is decoded, unless ``decode`` is False because the stored bytes are the object. The budget
        counts the body's share for ``host``. A body that will be sent in parts has their digests. With ``part_bytes``
        it is the rest of one: spooled, with parts of this size. With ``streamed``, which maps the errors of reading, a
        body that the spool cannot hold is a StreamedBody.
        """
        length = response.length
        if length is not None and length > self._max_bytes:
            raise too_large(self._max_bytes)
        if decode and "Content-Encoding" in response.headers:
            length = None
        if length is not None and length <= self._budget.small_bytes and not part_bytes:
            return await self._in_memory(response, length, charge, host)
        if streamed is not None and length is not None and must_stream(length, self._budget, self._spool_dir):
            pieces = _pieces(response, self._max_bytes, charge, streamed)
            return await begin_stream(pieces, response.close, length, self._budget, self._spool_dir, self._pool, host)
        share = await (self._budget.take_file if part_bytes else self._budget.take)(host, length)
        if length is not None and length > ONE_PUT_BYTES:
            part_bytes = part_bytes or part_bytes_of(length)
        arriving = Arriving(self._spool_dir, self._budget, self._pool, host, share, part_bytes)
        try:
            await stream_body(response, arriving, self._max_bytes, charge, decode=decode)
            return arriving.finish()
        except BaseException:
            arriving.abandon()
            raise

    async def _in_memory(self, response: Response, length: int, charge: Charge, host: str) -> Body:
        share = await self._budget.take(host, length)
        try:
            pieces: list[bytes] = []
            while piece := await response.read_chunk():
                pieces.append(piece)
                charge(0)  # reports progress; the bytes are booked below
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if len(data) != length:
                raise truncated()
            await pace(charge, length)
            body = await whole_body(data, self._pool)
        except BaseException:
            share.end()
            raise
        body.share = share
        return body


class Arriving:
    """A sink for a body that is large, or of unknown length.

    Its share of memory grows as it arrives. If the share cannot grow, the body moves to a spool file
    (docs/decisions/0028).
    """

    def __init__(
        self, spool_dir: Path, budget: Budget, pool: Executor | None, host: str, share: Share, part_bytes: int = 0
    ) -> None:
        """``share`` is the result of :meth:`Budget.take` for this body. ``part_bytes``: BodyWriter has them."""
        self._budget = budget
        self._host = host
        self._share = share
        self._writer = BodyWriter(spool_dir, part_bytes)
        self._batches = Batches(to_disk(self._writer.write, "spool file"), pool)
        self.size = 0
        self._spooled = share.quota is budget.files
        if self._spooled:
            self._writer.spool()

    async def add(self, piece: bytes) -> None:
        """Take the next piece, in memory or in the spool file. Raises ObjectError, or Fatal if the spool disk fails."""
        self.size += len(piece)
        if self.size > (self._budget.spool.capacity if self._spooled else self._share.size):
            await self._make_room()
        await self._batches.add(piece)

    async def _make_room(self) -> None:
        most = self._budget.in_memory_bytes
        wanted = max(FIRST_BYTES, self._share.size)  # 0 for a source file that was empty at first
        while wanted < self.size:
            wanted *= 2
        in_memory = not self._spooled and self.size <= most
        if in_memory and (self._share.grow(min(wanted, most)) or self._share.grow(self.size)):
            return
        if self.size > self._budget.spool.capacity:
            raise over_spool_bytes(self._budget.spool.capacity)
        file = await self._budget.take_file(self._host, None)
        memory, self._share, self._spooled = self._share, file, True
        try:
            self._writer.spool()
            await self._batches.push()
        finally:
            memory.end()

    async def flush(self) -> None:
        """Hash and write all pieces."""
        await self._batches.flush()

    def finish(self) -> Body:
        """Return the body, which now owns the share."""
        try:
            body = self._writer.finish()
        except OSError as exc:
            raise disk_error(exc, "spool file") from exc
        (self._share.beside or self._share).shrink(body.size)
        body.share = self._share
        return body

    def abandon(self) -> None:
        """Discard the body and release its share, also if a full disk keeps the spool file from closing cleanly."""
        try:
            self._writer.abandon()
        except OSError:
            self._writer.abandon()  # the first call has closed the file
        finally:
            self._share.end()


class _Both:
    """SHA-256 and MD5 of the same bytes, as one hash: 64 hex digits, then 32."""

    def __init__(self) -> None:
        self._hashes = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    def update(self, piece: bytes, /) -> None:
        for each in self._hashes:
            each.update(piece)

    def hexdigest(self) -> str:
        return "".join(each.hexdigest() for each in self._hashes)


def new_hash(algorithm: Algorithm) -> Hash:
    """Return a hash without any bytes yet. The digest of `sha256+md5` is 64 hex digits, then 32."""
    return _Both() if algorithm == "sha256+md5" else hashlib.new(algorithm, usedforsecurity=False)


class Hashing:
    """A sink that only computes the digest of a body."""

    def __init__(self, pool: Executor | None, algorithm: Algorithm, on_progress: Callable[[], object]) -> None:
        """``on_progress`` is called for each piece."""
        self._pool = pool
        self._on_progress = on_progress
        self._hash = new_hash(algorithm)
        self.size = 0

    async def add(self, piece: bytes) -> None:
        """Hash the next piece."""
        self.size += len(piece)
        self._on_progress()
        if len(piece) < POOLED_BYTES:
            self._hash.update(piece)
        else:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._hash.update, piece)

    async def flush(self) -> None: ...

    @property
    def digest(self) -> str:
        """The digest of all pieces, in hex."""
        return self._hash.hexdigest()


async def stream_body(
    response: Response, into: BodySink, max_bytes: int, charge: Charge, *, decode: bool = True
) -> None:
    """Pass the body of a response to ``into`` piece by piece, decoded.

    Raises ObjectError: too_large if the encoded or the decoded body exceeds ``max_bytes``, truncated, or bad_encoding.
    """
    codings = decoders(response.headers.getall("Content-Encoding", []), max_bytes) if decode else []
    received = False
    async for piece in _pieces(response, max_bytes, charge):
        received = True
        if not codings:
            await into.add(piece)
            continue
        for plain in decoded(codings, piece):
            if plain:
                await into.add(plain)
            await asyncio.sleep(0)  # a decompression bomb must not block the event loop
    if received:
        for decoder in codings:
            decoder.finish()
    await into.flush()


async def _pieces(
    response: Response, max_bytes: int, charge: Charge, mapped: Mapped = lambda exc: exc
) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of a body as they come, each counted by ``charge``. Its errors pass through ``mapped``.

    Raises ObjectError: too_large, or truncated.
    """
    length, received = response.length, 0
    try:
        if length is not None and length > max_bytes:
            raise too_large(max_bytes)
        while piece := await response.read_chunk():
            received += len(piece)
            if received > max_bytes:
                raise too_large(max_bytes)
            await pace(charge, len(piece))
            yield piece
        if length is not None and received != length:
            raise truncated()
    except Exception as exc:  # noqa: BLE001 - mapped by the caller
        raise mapped(exc) from None
