"""An answer's body on its way in: bounded in bytes, its encoding undone, hashed once, spooled when large."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterable, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal, Protocol

from ferry.core import (
    FIRST_BYTES,
    POOLED_BYTES,
    Batches,
    Body,
    BodyWriter,
    Budget,
    Charge,
    Share,
    disk_error,
    to_disk,
    whole_body,
)
from ferry.http.connection import Response
from ferry.http.content_encoding import decoded, decoders, too_large, truncated

Algorithm = Literal["md5", "sha256"]


class BodySink(Protocol):
    """What takes a body piece by piece."""

    async def add(self, piece: bytes) -> None: ...
    async def flush(self) -> None: ...


class Reader:
    """Reads bodies. ``budget`` bounds those in memory, ``pool`` hashes large ones, ``max_bytes`` bounds each."""

    def __init__(self, spool_dir: Path, budget: Budget, pool: Executor | None, max_bytes: int) -> None:
        self._spool_dir = spool_dir
        self._budget = budget
        self._pool = pool
        self._max_bytes = max_bytes

    async def body(self, response: Response, charge: Charge, host: str, *, decode: bool = True) -> Body:
        """The whole body, its Content-Encoding undone unless the store's bytes are the object. Raises ObjectError.

        ``host`` is charged for what it takes of the budget.
        """
        length = response.length
        if length is not None and length > self._max_bytes:
            raise too_large(self._max_bytes)
        if decode and "Content-Encoding" in response.headers:
            length = None
        if length is not None and length <= self._budget.small_bytes:
            return await self._in_memory(response, length, charge, host)
        share = await self._budget.take(host, length)
        arriving = Arriving(self._spool_dir, self._budget, self._pool, host, share)
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
                charge(0)  # for nothing yet: it is told that bytes move
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if len(data) != length:
                raise truncated()
            if delay_s := charge(length):
                await asyncio.sleep(delay_s)
            body = await whole_body(data, self._pool)
        except BaseException:
            share.end()
            raise
        body.share = share
        return body


class Arriving:
    """A body that is large, or may be: its share of memory grows as it comes. Where it cannot, the body goes to the
    spool (docs/decisions/0028).
    """

    def __init__(self, spool_dir: Path, budget: Budget, pool: Executor | None, host: str, share: Share) -> None:
        """``share`` is what :meth:`Budget.take` gave the host for it."""
        self._budget = budget
        self._host = host
        self._share = share
        self._writer = BodyWriter(spool_dir)
        self._batches = Batches(to_disk(self._writer.write, "spool file"), pool)
        self.size = 0
        self._spooled = share.quota is budget.files
        if self._spooled:
            self._writer.spool()

    async def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if not self._spooled and self.size > self._share.size:
            await self._make_room()
        await self._batches.add(piece)

    async def _make_room(self) -> None:
        most = self._budget.in_memory_bytes
        wanted = max(FIRST_BYTES, self._share.size)  # a file that was empty a moment ago has none
        while wanted < self.size:
            wanted *= 2
        if self.size <= most and (self._share.grow(min(wanted, most)) or self._share.grow(self.size)):
            return
        file = await self._budget.files.take(self._host, 1)
        memory, self._share, self._spooled = self._share, file, True
        try:
            self._writer.spool()
            await self._batches.push()
        finally:
            memory.end()

    async def flush(self) -> None:
        await self._batches.flush()

    def finish(self) -> Body:
        try:
            body = self._writer.finish()
        except OSError as exc:
            raise disk_error(exc, "spool file") from exc
        if not self._spooled:
            self._share.shrink(body.size)
        body.share = self._share
        return body

    def abandon(self) -> None:
        """Removes what was spooled, also when the disk is so full that the file cannot be closed cleanly."""
        try:
            self._writer.abandon()
        except OSError:
            self._writer.abandon()  # the file is closed by now
        finally:
            self._share.end()


class Hashing:
    """Takes a body for its digest alone: none of it is kept."""

    def __init__(self, pool: Executor | None, algorithm: Algorithm, on_progress: Callable[[], object]) -> None:
        """``on_progress`` hears of each piece."""
        self._pool = pool
        self._on_progress = on_progress
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self.size = 0

    async def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self._on_progress()
        if len(piece) < POOLED_BYTES:
            self._hash.update(piece)
        else:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._hash.update, piece)

    async def flush(self) -> None: ...

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


async def stream_plain(pieces: AsyncIterable[bytes], into: BodySink, charge: Charge) -> None:
    """As :func:`stream_body`, of what a store's client reads."""
    async for piece in pieces:
        await into.add(bytes(piece))
        if delay_s := charge(len(piece)):
            await asyncio.sleep(delay_s)
    await into.flush()


async def stream_body(
    response: Response, into: BodySink, max_bytes: int, charge: Charge, *, decode: bool = True
) -> None:
    """Hands on a body piece by piece, its encoding undone. Neither side of that passes ``max_bytes``."""
    length = response.length
    if length is not None and length > max_bytes:
        raise too_large(max_bytes)
    codings = decoders(response.headers.getall("Content-Encoding", []), max_bytes) if decode else []
    received = 0
    while piece := await response.read_chunk():
        received += len(piece)
        if received > max_bytes:
            raise too_large(max_bytes)
        if delay_s := charge(len(piece)):
            await asyncio.sleep(delay_s)
        if not codings:
            await into.add(piece)
            continue
        for plain in decoded(codings, piece):
            if plain:
                await into.add(plain)
            await asyncio.sleep(0)  # a little that unpacks to much must not hold the loop
    if length is not None and received != length:
        raise truncated()
    if received:
        for decoder in codings:
            decoder.finish()
    await into.flush()
