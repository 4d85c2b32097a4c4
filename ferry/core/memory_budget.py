"""How many bytes of bodies may lie in memory at once, and how many bodies in the spool: what bounds the process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from ferry.core.quota import Quota, Share

MIB = 1024 * 1024
SPOOL_OVER_BYTES = 8 * MIB
SMALL_BYTES = 256 * 1024  # of memory for a body that is no larger, before it came
FIRST_BYTES = 64 * 1024  # for one that is, or may be
FILE_BYTES = 8 * MIB  # of memory for bodies, for each that may lie in the spool; its own buffers take 2 MiB
PART_BYTES = 8 * MIB
PARTS_AT_ONCE = 4
_UPLOADS = "\0uploads"  # holds memory as a host does


class Budget:
    """Memory for bodies, and files for those that are large. One event loop's (docs/decisions/0028).

    A body waits for a share of either before it is read, and never for more memory while it holds some: it goes to the
    spool instead. A body in the spool waits for nothing. So whatever is held is given back.
    """

    def __init__(self, capacity_bytes: int = sys.maxsize) -> None:
        self.memory = Quota(capacity_bytes)
        self.files = Quota(_files(capacity_bytes))
        self._one_upload = asyncio.Lock()
        self._capacity_bytes = capacity_bytes

    def resize(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self.memory.resize(capacity_bytes)
        self.files.resize(_files(capacity_bytes))

    @property
    def in_memory_bytes(self) -> int:
        """The largest body that stays in memory."""
        return min(SPOOL_OVER_BYTES, self._capacity_bytes // 8)

    @property
    def small_bytes(self) -> int:
        """The largest body that takes its length before it comes."""
        return min(SMALL_BYTES, self.in_memory_bytes)

    async def take(self, host: str, length: int | None) -> Share:
        """Waits for what a body needs before it comes: a little memory, or a file in the spool."""
        if length is not None and length > self.in_memory_bytes:
            return await self.files.take(host, 1)
        if length is None or length > self.small_bytes:
            length = min(FIRST_BYTES, self.in_memory_bytes)
        return await self.memory.take(host, length)

    @contextlib.asynccontextmanager
    async def upload_in_parts(self) -> AsyncIterator[int]:
        """How many parts of one body may be in memory at once while it goes up: several where memory is free at this
        moment, else one, one such upload after the other. The memory is this upload's in the block."""
        share = self.memory.offer(_UPLOADS, (PARTS_AT_ONCE + 1) * PART_BYTES)
        if share is None:
            async with self._one_upload:
                yield 1
            return
        try:
            yield PARTS_AT_ONCE
        finally:
            share.end()


def _files(capacity_bytes: int) -> int:
    return max(2, capacity_bytes // FILE_BYTES)
