"""The bytes of one object during its transfer: in memory while small, in a spool file when large."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ferry.core.errors import disk_error
from ferry.core.quota import Share

BATCH_BYTES = 1024 * 1024
POOLED_BYTES = 256 * 1024  # a body of this size or larger is hashed in a thread, so that the event loop stays free
ONE_PUT_BYTES = 200 * 1024 * 1024  # a larger body is a multipart upload (docs/decisions/0014)


class Digests(NamedTuple):
    """Digests of a body or of a part, in hex digits."""

    md5: str
    sha256: str
    whole_md5: str | None = None  # of a streamed body, with its last part: it was not known when the upload began


class Parts(NamedTuple):
    """Digests of parts of ``size`` bytes each, of the bytes that the body's own are of. The last one may be shorter."""

    size: int
    digests: list[Digests]


class Mapped(mmap.mmap):
    """A memory-mapped file with its path, so that another process can open the same file."""

    path: Path


@dataclass(slots=True)
class Body:
    """A complete body with its digests. Exactly one of ``data`` and ``path`` is set.

    ``share`` is the part of the memory budget that the body holds; :meth:`discard` releases it. With ``start`` the
    file has only the bytes from there on: the destination has those before, as parts of an unfinished upload.
    """

    size: int
    md5: str
    sha256: str
    data: bytes | None = None
    path: Path | None = None
    share: Share | None = None
    on_progress: Callable[[], None] = lambda: None  # called for each piece that is read from the spool to be sent
    parts: Parts | None = None  # of the bytes in the file
    start: int = 0
    about: Mapping[str, Any] | None = None  # what a later run must know to resume the upload; None: it cannot
    resumes: bool = False  # an upload of an earlier run may have parts of these bytes

    @contextlib.contextmanager
    def buffer(self) -> Iterator[bytes | mmap.mmap]:
        """Yield the bytes for reading. A spooled body is memory-mapped, not loaded."""
        if self.data is not None:
            yield self.data
            return
        assert self.path is not None
        with self.path.open("rb") as file, Mapped(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
            m.path = self.path
            yield m

    @contextlib.contextmanager
    def upload(self) -> Iterator[bytes | Spooled]:
        """Yield the bytes for sending. A spooled body is read while it is sent."""
        if self.data is not None:
            yield self.data
            return
        assert self.path is not None
        with self.path.open("rb") as file:
            yield Spooled(file.fileno(), self.size - self.start, self.on_progress)

    def discard(self) -> None:
        """Remove the spool file and release the share of the budget. Safe to call twice."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self.data = None
        if self.share is not None:
            self.share.end()


class Spooled:
    """A spool file as the body of a request. A thread reads it, because the read may have to wait for the disk."""

    __slots__ = ("_file", "_on_progress", "_size", "_start")

    def __init__(self, file: int, size: int, on_progress: Callable[[], None] = lambda: None, start: int = 0) -> None:
        self._file = file
        self._size = size
        self._on_progress = on_progress
        self._start = start

    def __len__(self) -> int:
        return self._size

    def slice(self, start: int, size: int) -> Spooled:
        """Return ``size`` bytes from ``start`` on, as a body of their own."""
        return Spooled(self._file, size, self._on_progress, self._start + start)

    async def read(self, offset: int) -> bytes:
        """Return up to 1 MiB from ``offset`` on. Raises Fatal if the disk fails."""
        most = min(BATCH_BYTES, self._size - offset)
        read = asyncio.get_running_loop().run_in_executor(None, os.pread, self._file, most, self._start + offset)
        try:
            if piece := await read:
                self._on_progress()
                return piece
            raise OSError(errno.EIO, "the file was truncated after Ferry wrote it")
        except OSError as exc:
            raise disk_error(exc, "spool file") from exc


def small_body(data: bytes) -> Body:
    """Return the body with these bytes, hashed in the calling thread."""
    return Body(
        len(data),
        hashlib.md5(data, usedforsecurity=False).hexdigest(),
        hashlib.sha256(data).hexdigest(),
        data,
    )


def file_body(path: Path, part_bytes: int = 0) -> Body:
    """Return the body that a file holds, with the digests of its parts if they have a size. Blocks for its reading."""
    hashes = _Hashes(part_bytes)
    with path.open("rb") as file:
        while block := file.read(BATCH_BYTES):
            hashes.update(block)
    return hashes.body(path=path)


async def whole_body(data: bytes, pool: Executor | None) -> Body:
    """Return the body with these bytes, hashed in a thread from 256 KiB on (benchmarks/digests.py has the costs)."""
    if len(data) < POOLED_BYTES:
        return small_body(data)
    return await asyncio.get_running_loop().run_in_executor(pool, small_body, data)


class Batches:
    """Collects pieces of a body and passes them to ``write`` in a thread, 1 MiB at a time.

    Hashing and writing would block the event loop. A rest of less than 256 KiB is written in the event loop, because
    the switch to a thread costs more (benchmarks/digests.py).
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
        """Write the rest."""
        if self._size >= POOLED_BYTES:
            await self.push()
        elif batch := self._batch():
            self._write(batch)

    async def push(self) -> None:
        """Write in a thread all that is collected so far."""
        batch = self._batch()
        work = asyncio.get_running_loop().run_in_executor(self._pool, self._write, batch)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})  # the caller abandons the file next, so the thread must not write to it
            raise

    def _batch(self) -> bytes:
        batch = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return batch


class Hash:
    """MD5 and SHA-256 of the same bytes."""

    __slots__ = ("_md5", "_sha256", "size")

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self.size = 0

    def update(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        self._md5.update(data)
        self._sha256.update(data)

    @property
    def digests(self) -> Digests:
        return Digests(self._md5.hexdigest(), self._sha256.hexdigest())


class _Hashes:
    """Digests of a body that comes piece by piece, and of its parts of ``part_bytes`` each; 0: of the whole alone."""

    __slots__ = ("_done", "_part", "_part_bytes", "whole")

    def __init__(self, part_bytes: int) -> None:
        self.whole = Hash()
        self._part = Hash()
        self._part_bytes = part_bytes
        self._done: list[Digests] = []

    def update(self, piece: bytes) -> None:
        self.whole.update(piece)
        left = memoryview(piece) if self._part_bytes else memoryview(b"")
        while left:
            room = self._part_bytes - self._part.size
            self._part.update(left[:room])
            left = left[room:]
            if self._part.size == self._part_bytes:
                self._done.append(self._part.digests)
                self._part = Hash()

    def body(self, *, data: bytes | None = None, path: Path | None = None) -> Body:
        last = [self._part.digests] if self._part.size else []
        parts = Parts(self._part_bytes, self._done + last) if self._part_bytes else None
        whole = self.whole.digests
        return Body(self.whole.size, whole.md5, whole.sha256, data, path, parts=parts)


class BodyWriter:
    """Collects and hashes a body piece by piece: in memory, or after :meth:`spool` in a file in ``spool_dir``.

    The caller limits the size. Raises OSError if the spool disk fails.
    """

    def __init__(self, spool_dir: Path, part_bytes: int = 0) -> None:
        self._spool_dir = spool_dir
        self._pieces: list[bytes] = []
        self._to_file = False
        self._file: BinaryIO | None = None
        self._path: Path | None = None
        self._hashes = _Hashes(part_bytes)

    def spool(self) -> None:
        """Write the next piece, and all pieces before it, to a file."""
        self._to_file = True

    def write(self, piece: bytes) -> None:
        self._hashes.update(piece)
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
        if self._file is not None:
            self._file.close()
            return self._hashes.body(path=self._path)
        return self._hashes.body(data=b"".join(self._pieces))

    def abandon(self) -> None:
        """Discard this body and remove its spool file."""
        try:
            if self._file is not None:
                self._file.close()  # flushes, and therefore fails on a full disk
        except OSError:
            pass
        finally:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
            self._pieces.clear()


Charge = Callable[[int], float]  # takes the number of bytes read, returns the seconds to wait before the next read


PACE_S = 1.0  # how often a long wait asks whether the limit has changed


async def pace(charge: Charge, n_bytes: int) -> None:
    """Count bytes that were read, and wait until the next read may begin. A limit that is raised shortens the wait."""
    left_s = charge(n_bytes)
    while left_s > PACE_S:
        await asyncio.sleep(PACE_S)
        left_s = min(left_s - PACE_S, charge(0))
    if left_s > 0:
        await asyncio.sleep(left_s)


def no_delay(_: int) -> float:
    """Return 0: a Charge for bytes that no limit covers."""
    return 0.0


def to_disk(write: Callable[[bytes], object], what: str) -> Callable[[bytes], None]:
    """Return ``write`` with its OSErrors mapped to the disk's errors, so that the origin is not blamed for them."""

    def checked(piece: bytes) -> None:
        try:
            write(piece)
        except OSError as exc:
            raise disk_error(exc, what) from exc

    return checked
