"""An answer's body on its way in: bounded in bytes, its encoding undone, hashed once, spooled when large."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from concurrent.futures import Executor
from pathlib import Path

from tasks.engine.body import SPOOL_OVER_BYTES, Batches, Body, BodyWriter, weight, whole_body
from tasks.engine.budget import Budget
from tasks.engine.codings import decoded, decoders, too_large, truncated
from tasks.engine.errors import disk_error
from tasks.engine.wire import Answer

Charge = Callable[[int], float]  # so many bytes came: how many seconds to wait before more are read


def for_nothing(_: int) -> float:
    return 0.0


async def spooled(pieces: AsyncIterable[bytes], spool_dir: Path, pool: Executor | None, charge: Charge | None) -> Body:
    """A large body that a store's client reads."""
    writer = BodyWriter(spool_dir)
    try:
        batches = Batches(writer.write, pool)
        async for piece in pieces:
            await batches.add(bytes(piece))
            if charge is not None and (delay_s := charge(len(piece))):
                await asyncio.sleep(delay_s)
        await batches.flush()
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise


class Reader:
    """Reads bodies. ``budget`` bounds those in memory, ``pool`` hashes large ones, ``max_bytes`` bounds each."""

    def __init__(self, spool_dir: Path, budget: Budget | None, pool: Executor | None, max_bytes: int) -> None:
        self._spool_dir = spool_dir
        self._budget = budget or Budget(2**62)
        self._pool = pool
        self._max_bytes = max_bytes

    async def body(self, response: Answer, charge: Charge, *, undo: bool = True) -> Body:
        """The whole body, its Content-Encoding undone unless the store's bytes are the object. Raises ObjectError."""
        headers = response.headers
        length = response.length
        if (undo and "Content-Encoding" in headers) or response.chunked:
            length = None
        budget = self._budget
        held = await budget.take(weight(length))
        try:
            if length is not None and length <= SPOOL_OVER_BYTES and length <= self._max_bytes:
                data = await response.body()
                if len(data) != length:
                    raise truncated()
                if delay_s := charge(length):
                    await asyncio.sleep(delay_s)
                body = await whole_body(data, self._pool)
            else:
                body = await self._spooled(response, charge, undo)
        except BaseException:
            budget.give_back(held)
            raise
        body.budget, body.held = budget, held
        return body

    async def _spooled(self, response: Answer, charge: Charge, undo: bool) -> Body:
        """A body that is large, or may be."""
        writer = BodyWriter(self._spool_dir)
        try:
            batches = Batches(to_disk(writer.write, "spool file"), self._pool)
            await pour(response, batches, self._max_bytes, charge, undo=undo)
            try:
                return writer.finish()
            except OSError as exc:
                raise disk_error(exc, "spool file") from exc
        except BaseException:
            _abandon(writer)
            raise


def to_disk(write: Callable[[bytes], object], what: str) -> Callable[[bytes], None]:
    """``write``, whose failures are the disk's and not the origin's."""

    def checked(piece: bytes) -> None:
        try:
            write(piece)
        except OSError as exc:
            raise disk_error(exc, what) from exc

    return checked


def _abandon(writer: BodyWriter) -> None:
    """Removes what was spooled, also when the disk is so full that the file cannot be closed cleanly."""
    try:
        writer.abandon()
    except OSError:
        writer.abandon()  # the file is closed by now


async def pour(response: Answer, batches: Batches, max_bytes: int, charge: Charge, *, undo: bool = True) -> None:
    """Hands on a body piece by piece, its encoding undone. Neither side of that passes ``max_bytes``."""
    length = response.length
    if length is not None and length > max_bytes:
        raise too_large(max_bytes)
    codings = decoders(response.headers.getall("Content-Encoding", []), max_bytes) if undo else []
    came = 0
    while piece := await response.piece():
        came += len(piece)
        if came > max_bytes:
            raise too_large(max_bytes)
        if delay_s := charge(len(piece)):
            await asyncio.sleep(delay_s)
        if not codings:
            await batches.add(piece)
            continue
        for plain in decoded(codings, piece):
            if plain:
                await batches.add(plain)
            await asyncio.sleep(0)  # a little that unpacks to much must not hold the loop
    if length is not None and came != length:
        raise truncated()
    if came:
        for decoder in codings:
            decoder.finish()
    await batches.flush()
