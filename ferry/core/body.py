"""The bytes of one object on their way: in memory while small, in a spool file when large."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from ferry.core.errors import disk_error
from ferry.core.quota import Share

BATCH_BYTES = 1024 * 1024
POOLED_BYTES = 256 * 1024  # from this size on a body is hashed in a thread: the loop has others to see to
ONE_PUT_BYTES = 200 * 1024 * 1024  # larger ones go up in parts (docs/decisions/0014)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Mapped(mmap.mmap):
    """A mapped file that a process can open by its name."""

    path: Path


@dataclass(slots=True)
class Body:
    """A complete body with its digests. Exactly one of ``data`` and ``path`` is set.

    ``share`` is what it holds of the budget; :meth:`discard` gives it back.
    """

    size: int
    md5: str
    sha256: str
    data: bytes | None = None
    path: Path | None = None
    share: Share | None = None
    on_progress: Callable[[], None] = lambda: None  # hears of each piece that is sent from the spool

    @contextlib.contextmanager
    def buffer(self) -> Iterator[bytes | mmap.mmap]:
        """The bytes for reading; a spooled body is mapped, not loaded."""
        if self.data is not None:
            yield self.data
            return
        assert self.path is not None
        with self.path.open("rb") as file, Mapped(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
            m.path = self.path
            yield m

    @contextlib.contextmanager
    def upload(self) -> Iterator[bytes | Spooled]:
        """The bytes for sending: a spooled body is read on the way."""
        if self.data is not None:
            yield self.data
            return
        assert self.path is not None
        with self.path.open("rb") as file:
            yield Spooled(file.fileno(), self.size, self.on_progress)

    def discard(self) -> None:
        """Remove the spool file and give the memory back. Safe to call twice."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self.data = None
        if self.share is not None:
            self.share.end()


class Spooled:
    """A spool file as a request's body. Read in a thread: it may have gone to the disk since it was written."""

    __slots__ = ("_file", "_on_progress", "_size", "_start")

    def __init__(self, file: int, size: int, on_progress: Callable[[], None] = lambda: None, start: int = 0) -> None:
        self._file = file
        self._size = size
        self._on_progress = on_progress
        self._start = start

    def __len__(self) -> int:
        return self._size

    def slice(self, start: int, size: int) -> Spooled:
        """A part of it, as a body of its own."""
        return Spooled(self._file, size, self._on_progress, self._start + start)

    async def read(self, offset: int) -> bytes:
        """Raises Fatal where the disk fails."""
        most = min(BATCH_BYTES, self._size - offset)
        read = asyncio.get_running_loop().run_in_executor(None, os.pread, self._file, most, self._start + offset)
        try:
            if piece := await read:
                self._on_progress()
                return piece
            raise OSError(errno.EIO, "the file has become shorter")
        except OSError as exc:
            raise disk_error(exc, "spool file") from exc


def small_body(data: bytes) -> Body:
    """A body that came in one piece."""
    return Body(
        len(data),
        hashlib.md5(data, usedforsecurity=False).hexdigest(),
        hashlib.sha256(data).hexdigest(),
        data,
    )


async def whole_body(data: bytes, pool: Executor | None) -> Body:
    """As :func:`small_body`; in a thread where the hop costs less than the hashing (benchmarks/digests.py)."""
    if len(data) < POOLED_BYTES:
        return small_body(data)
    return await asyncio.get_running_loop().run_in_executor(pool, small_body, data)


class Batches:
    """Hands pieces of a body on a MiB at a time: hashing and writing those is work for a thread, not for the loop.

    What is less than 256 KiB in the end is written at once: a hop to a thread costs more (benchmarks/digests.py).
    """

    __slots__ = ("_pieces", "_pool", "_size", "_write")

    def __init__(self, write: Callable[[bytes], None], pool: Executor | None) -> None:
        self._write = write
        self._pool = pool
        self._pieces: list[bytes] = []
        self._size = 0

    async def add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= BATCH_BYTES:
            await self.push()

    async def flush(self) -> None:
        """What is left."""
        if self._size >= POOLED_BYTES:
            await self.push()
        elif batch := self._batch():
            self._write(batch)

    async def push(self) -> None:
        """What there is, in a thread."""
        batch = self._batch()
        work = asyncio.get_running_loop().run_in_executor(self._pool, self._write, batch)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})  # its file must not be written to once it is given up
            raise

    def _batch(self) -> bytes:
        batch = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return batch


class BodyWriter:
    """Collects a body piece by piece, hashing each once: in memory, or after :meth:`spool` in a file under
    ``spool_dir``.

    The caller bounds the size. Raises OSError when the spool disk is full.
    """

    def __init__(self, spool_dir: Path) -> None:
        self._spool_dir = spool_dir
        self._pieces: list[bytes] = []
        self._to_file = False
        self._file: BinaryIO | None = None
        self._path: Path | None = None
        self._md5: _Hash = hashlib.md5(usedforsecurity=False)
        self._sha256: _Hash = hashlib.sha256()
        self.size = 0

    def spool(self) -> None:
        """The next piece goes to a file, and what came before it too."""
        self._to_file = True

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        self._md5.update(piece)
        self._sha256.update(piece)
        if self._file is not None:
            self._file.write(piece)
            return
        self._pieces.append(piece)
        if self._to_file:
            self._spool_dir.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(prefix="body-", dir=self._spool_dir)
            self._path = Path(name)
            self._file = os.fdopen(fd, "wb")
            self._file.writelines(self._pieces)
            self._pieces.clear()

    def finish(self) -> Body:
        md5, sha256 = self._md5.hexdigest(), self._sha256.hexdigest()
        if self._file is not None:
            self._file.close()
            return Body(self.size, md5, sha256, path=self._path)
        return Body(self.size, md5, sha256, data=b"".join(self._pieces))

    def abandon(self) -> None:
        """Give up on this body and remove what was spooled."""
        try:
            if self._file is not None:
                self._file.close()  # flushes, and so fails on a full disk
        except OSError:
            pass
        finally:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
            self._pieces.clear()


Charge = Callable[[int], float]  # so many bytes came: how many seconds to wait before more are read


def no_delay(_: int) -> float:
    return 0.0


def to_disk(write: Callable[[bytes], object], what: str) -> Callable[[bytes], None]:
    """``write``, whose failures are the disk's and not the origin's."""

    def checked(piece: bytes) -> None:
        try:
            write(piece)
        except OSError as exc:
            raise disk_error(exc, what) from exc

    return checked
