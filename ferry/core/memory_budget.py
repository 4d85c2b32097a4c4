"""Limits on the bytes of bodies in memory and on the number of spooled bodies, for one process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from ferry.core.errors import ObjectError
from ferry.core.quota import Quota, Share, Space
from ferry.core.records import ErrorClass

MIB = 1024 * 1024
SPOOL_OVER_BYTES = 8 * MIB
SMALL_BYTES = 256 * 1024  # a body up to this size reserves its whole length before it is read
FIRST_BYTES = 64 * 1024  # first reservation of a larger body, or of one of unknown length
FILE_BYTES = 8 * MIB  # the budget allows one spool file for each 8 MiB; the buffers of one take 2 MiB
PART_BYTES = 8 * MIB
MAX_PARTS = 10_000  # of one upload: S3 API, multipart upload limits; others allow as many or more
PARTS_AT_ONCE = 4
_UPLOADS = "\0uploads"  # the name under which uploads in parts hold memory; hosts have other names


class Budget:
    """Memory for bodies, and spool files for large bodies, for one event loop (docs/decisions/0028).

    A body waits for its share before it is read. A body that holds memory never waits for more memory: it takes a spool
    file instead. A spooled body waits for nothing. Therefore every share is released in the end, without deadlock.
    """

    def __init__(
        self, capacity_bytes: int = sys.maxsize, spool_bytes: int = sys.maxsize, max_bytes: int = sys.maxsize
    ) -> None:
        """``spool_bytes`` limits all spool files together. ``max_bytes`` is the size that no body exceeds."""
        self.memory = Quota(capacity_bytes)
        self.files = Quota(_files(capacity_bytes))
        self.spool = Space(spool_bytes)
        self._max_bytes = max_bytes
        self._one_upload = asyncio.Lock()
        self._capacity_bytes = capacity_bytes

    def resize(self, capacity_bytes: int) -> None:
        """Change the capacity of the memory, and of the spool with it."""
        self._capacity_bytes = capacity_bytes
        self.memory.resize(capacity_bytes)
        self.files.resize(_files(capacity_bytes))

    @property
    def in_memory_bytes(self) -> int:
        """The largest body that stays in memory, in bytes."""
        return min(SPOOL_OVER_BYTES, self._capacity_bytes // 8)

    @property
    def small_bytes(self) -> int:
        """The largest body that reserves its whole length before it is read, in bytes."""
        return min(SMALL_BYTES, self.in_memory_bytes)

    async def take(self, host: str, length: int | None) -> Share:
        """Wait for the share that a body needs before it is read: some memory, or one spool file.

        Raises ObjectError as :meth:`take_file` does.
        """
        if length is not None and length > self.in_memory_bytes:
            return await self.take_file(host, length)
        if length is None or length > self.small_bytes:
            length = min(FIRST_BYTES, self.in_memory_bytes)
        return await self.memory.take(host, length)

    async def take_file(self, host: str, length: int | None) -> Share:
        """Wait for one spool file, and for the space that it will take.

        A body of unknown length takes what it may need at most, and gives the rest back once it has arrived: two of
        them that grew step by step could wait for each other. Raises ObjectError (TOO_LARGE) for one without a place.
        """
        if length is not None and length > self.spool.capacity:
            raise over_spool_bytes(self.spool.capacity)
        file = await self.files.take(host, 1)
        try:
            file.beside = await self.spool.take(host, length or min(self._max_bytes, self.spool.capacity))
        except BaseException:
            file.end()
            raise
        return file

    async def take_parts(self, host: str, part_bytes: int) -> tuple[Share, int]:
        """Wait for the space of some parts of a body that is larger than the spool. Return the share, and how many.

        One more than is sent at once, if there is space: it is read meanwhile. Raises ObjectError (TOO_LARGE) if not
        even one has a place.
        """
        at_once = min(PARTS_AT_ONCE + 1, max(1, self.spool.capacity // part_bytes))
        return await self.take_file(host, at_once * part_bytes), at_once

    @contextlib.asynccontextmanager
    async def upload_in_parts(self) -> AsyncIterator[int]:
        """Yield how many parts of one upload may be in memory at once.

        The number is 4 if memory for 5 parts is free now; the block then holds that memory. Otherwise the number is 1,
        and such uploads run one at a time.
        """
        share = self.memory.offer(_UPLOADS, (PARTS_AT_ONCE + 1) * PART_BYTES)
        if share is None:
            async with self._one_upload:
                yield 1
            return
        try:
            yield PARTS_AT_ONCE
        finally:
            share.end()


def over_spool_bytes(spool_bytes: int) -> ObjectError:
    """Return the error for a body that is larger than the spool may be."""
    text = f"the object needs more of the spool disk than `spool_bytes` ({spool_bytes:,} bytes for each process) allows"
    return ObjectError(ErrorClass.TOO_LARGE, f"{text}; raise it, and run with --retry-failed=too_large")


def part_bytes(size: int, least: int = PART_BYTES) -> int:
    """Return the size of each part of a body: ``least``, or more whole MiB if there would be over 10,000 parts."""
    return max(least, -(-size // (MAX_PARTS * MIB)) * MIB) if size > MAX_PARTS * least else least


def _files(capacity_bytes: int) -> int:
    return max(2, capacity_bytes // FILE_BYTES)
