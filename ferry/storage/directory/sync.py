"""Syncs of directories (fsync(2)), which many writes share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from errno import EINVAL, ENOTSUP
from pathlib import Path

Names = tuple[str, ...]  # of a path below the root


def sync_folder(path: Path) -> None:
    """Syncs a directory, so that its names survive a power cut (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_fd(fd)
    finally:
        os.close(fd)


def sync_fd(fd: int) -> None:
    """Syncs a directory by its descriptor, if its file system can."""
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in (EINVAL, ENOTSUP):  # some file systems cannot sync a directory (SMB, FUSE)
            raise


class BatchedSync:
    """Batches calls: while one call of ``work`` runs, items for the next are collected. Belongs to one event loop."""

    def __init__(self, work: Callable[[set[Names]], set[Names]], pool: ThreadPoolExecutor) -> None:
        self._work = work
        self._pool = pool
        self._waiting: set[Names] = set()
        self._pending: asyncio.Task[set[Names]] | None = None
        self._lock: asyncio.Lock = asyncio.Lock()

    async def __call__(self, items: set[Names]) -> set[Names]:
        """Returns the result of a call of ``work`` that includes these items and began after this call."""
        self._waiting |= items
        if self._pending is None:
            self._pending = asyncio.create_task(self._run())
        return await asyncio.shield(self._pending)

    async def _run(self) -> set[Names]:
        async with self._lock:
            items, self._waiting, self._pending = self._waiting, set(), None
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._work, items)
