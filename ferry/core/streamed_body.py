"""Bodies that the spool cannot hold: downloaded in parts, each in a file of its own until it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from pathlib import Path

from ferry.core.body import ONE_PUT_BYTES, Batches, Body, BodyWriter, Charge, Hash, no_delay, pace, to_disk
from ferry.core.errors import Fatal, FerryError, ObjectError, disk_error
from ferry.core.memory_budget import PART_BYTES, Budget, part_bytes
from ferry.core.quota import Share


def must_stream(size: int, budget: Budget, spool_dir: Path) -> bool:
    """Returns whether the spool cannot hold a body: by `spool_bytes`, or with the free bytes of its disk."""
    if size > budget.spool.capacity:
        return True
    if size <= ONE_PUT_BYTES:
        return False
    with contextlib.suppress(OSError):
        folder = next(path for path in (spool_dir, *spool_dir.parents) if path.exists())
        return size > shutil.disk_usage(folder).free
    return False


async def begin_stream(
    pieces: AsyncGenerator[bytes, None],
    close: Callable[[], object],
    size: int,
    budget: Budget,
    spool_dir: Path,
    pool: Executor | None,
    host: str,
) -> StreamedBody:
    """Returns a body whose first part has been read. Raises ObjectError and Fatal; TOO_LARGE if no part has a place."""
    each = part_bytes(size, PART_BYTES)
    share, at_once = await budget.take_parts(host, each)
    body = StreamedBody(pieces, close, size, each, at_once, spool_dir, pool, share)
    try:
        await body.begin()
    except BaseException:
        body.discard()
        raise
    return body


class StreamedBody(Body):
    """A body whose parts are read one after the other while earlier ones are sent (docs/decisions/0057).

    MD5 and SHA-256 are empty until the last part has been read. ``part_bytes`` is the size of all parts but the last;
    ``at_once`` of them have a place on the disk.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        close: Callable[[], object],
        size: int,
        part_bytes: int,
        at_once: int,
        spool_dir: Path,
        pool: Executor | None,
        share: Share,
    ) -> None:
        """``pieces`` are the bytes of the body, ``size`` altogether. Its errors are the source's. ``close`` ends it."""
        super().__init__(size, "", "", share=share)
        self.part_bytes = part_bytes
        self.at_once = at_once
        self.error: ObjectError | Fatal | None = None  # of reading: the source's or the disk's, not the destination's
        self.check: Callable[[], None] = lambda: None  # called with all digests known, before the last part is sent
        self.charge: Charge = no_delay  # takes the number of bytes that are sent
        self.compared = False  # its bytes were read before, and the object at the destination has others
        self._pieces = pieces
        self._close = close
        self._spool_dir = spool_dir
        self._pool = pool
        self._hash = Hash()
        self._rest = b""  # of a piece, for the next part
        self._first: Body | None = None  # it was read, and waits to be sent
        self._reading = asyncio.Lock()
        self.taken = 0  # parts

    async def begin(self) -> None:
        """Reads the first part. Raises ObjectError or Fatal."""
        self._first = await self._read()

    @property
    def first(self) -> Body:
        """The first part, which shows the body's type. It is there until it is taken."""
        assert self._first is not None
        return self._first

    async def part(self) -> tuple[int, Body] | None:
        """Returns the next part and its index, or None after the last one. The caller discards it.

        Raises ObjectError and Fatal: those of the source, of the disk, and of :attr:`check`. They are :attr:`error`.
        """
        async with self._reading:
            part, self._first = self._first or await self._read(), None
            if part is None:
                return None
            self.taken += 1
            part.on_progress = self.on_progress
            return self.taken - 1, part

    async def read_to_end(self) -> None:
        """Reads what is left for its digests alone. Nothing of it can be sent any more. Raises as :meth:`part` does."""
        while (found := await self.part()) is not None:
            found[1].discard()

    async def paths(self) -> AsyncGenerator[Path, None]:
        """Yields the file of each part, which is deleted afterwards. Raises as :meth:`part` does."""
        while (found := await self.part()) is not None:
            _, part = found
            assert part.path is not None
            try:
                await pace(self.charge, part.size)
                yield part.path
            finally:
                part.discard()

    async def _read(self) -> Body | None:
        if self.error is not None:
            raise self.error
        try:
            return await self._read_part()
        except (ObjectError, Fatal) as error:
            self.error = error
            raise

    async def _read_part(self) -> Body | None:
        left = min(self.part_bytes, self.size - self._hash.size)
        if not left:
            return None
        writer = BodyWriter(self._spool_dir)
        writer.spool()

        def write(data: bytes) -> None:
            self._hash.update(data)
            writer.write(data)

        batches = Batches(to_disk(write, "spool file"), self._pool)
        try:
            while left:
                piece = self._rest or await anext(self._pieces)
                piece, self._rest = piece[:left], piece[left:]
                await batches.add(piece)
                left -= len(piece)
            await batches.flush()
            if self._hash.size == self.size:
                await self._end()
            return writer.finish()
        except BaseException as exc:
            writer.abandon()
            if isinstance(exc, OSError) and not isinstance(exc, FerryError):
                raise disk_error(exc, "spool file") from exc
            raise

    async def _end(self) -> None:
        """Waits for the end of the body, which shows that it is whole, and checks its digests."""
        async for _ in self._pieces:
            pass  # no byte comes: the pieces raise an error for more than the size
        self._close = lambda: None  # the connection may have another request by now
        whole = self._hash.digests
        self.md5, self.sha256 = whole.md5, whole.sha256
        self.check()

    def discard(self) -> None:
        """Ends the source's response, and removes the part that was not taken. Safe to call twice."""
        self._close()
        if self._first is not None:
            self._first.discard()
            self._first = None
        super().discard()
