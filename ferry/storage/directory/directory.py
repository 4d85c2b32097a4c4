"""A directory as a store: bodies, object information and errors. files.py reads and writes the files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from datetime import UTC, datetime
from errno import ENOENT, ENOTDIR
from pathlib import Path
from typing import BinaryIO

from ferry.core import (
    BATCH_BYTES,
    PARTS_DIRECTORY,
    Body,
    Budget,
    Charge,
    ErrorClass,
    FerryError,
    ObjectError,
    StreamedBody,
    begin_stream,
    must_stream,
    pace,
    short,
)
from ferry.http import Algorithm, Arriving, new_hash
from ferry.storage.directory.files import Entry, Folder, entry_of
from ferry.storage.errors import from_folder
from ferry.storage.object_info import ObjectInfo

CLOCK_TICK_S = 0.02  # two writes within one clock tick leave the same modification time; a tick is at most 10 ms


class Directory:
    """A source or destination directory. Raises ObjectError and Fatal."""

    def __init__(self, folder: Folder, spool_dir: Path, budget: Budget, pool: Executor | None) -> None:
        self.folder = folder
        self._spool_dir = spool_dir
        self._budget = budget
        self._pool = pool

    async def put(self, key: str, body: Body, create: bool) -> str:
        source: bytes | Path = body.data if body.data is not None else body.path  # type: ignore[assignment]
        try:
            if isinstance(body, StreamedBody):
                async with contextlib.aclosing(body.paths()) as paths:  # the part that could not be written is deleted
                    return await self.folder.put_parts(key, paths, create=create)
            return await self.folder.put(key, source, create=create)
        except FileExistsError:
            raise ObjectError(ErrorClass.EXISTS, "the destination already has this key") from None
        except OSError as exc:
            raise from_folder(exc, "destination") from None

    async def head(self, key: str, side: str) -> ObjectInfo | None:
        try:
            entry = await asyncio.to_thread(self.folder.find, key)
        except OSError as exc:
            raise from_folder(exc, side) from None
        return _file_info(key, entry) if entry is not None else None

    async def delete(self, key: str) -> None:
        try:
            await asyncio.to_thread(self.folder.remove, key)
        except OSError as exc:
            raise from_folder(exc, "destination") from None

    async def may_write(self) -> bool:
        return await asyncio.to_thread(self.folder.may_write)

    async def clean(self) -> None:
        try:
            await asyncio.to_thread(self.folder.clean)
        except OSError as exc:
            raise from_folder(exc, "destination") from None

    async def get(
        self, key: str, max_bytes: int, side: str, charge: Charge, *, may_stream: bool
    ) -> tuple[Body, ObjectInfo, dict[str, str]]:
        body: Body | None = None
        try:
            async with self._reading(key, max_bytes, side) as (file, found):
                if may_stream and must_stream(found.size, self._budget, self._spool_dir):
                    body = await self._streamed(key, found, side, charge)
                else:
                    body = await self._body(file, found.size, charge)
                if body.size != found.size:
                    raise _changed(side)
        except BaseException:
            if body is not None:
                body.discard()
            raise
        return body, found, {}

    async def digest(
        self, key: str, max_bytes: int, algorithm: Algorithm, moved: Callable[[], object]
    ) -> tuple[str, ObjectInfo]:
        """Returns the digest of a file's bytes and its information. ``moved`` is called after each block."""
        side = "destination"
        digest = new_hash(algorithm)

        def read(file: BinaryIO) -> int:
            piece = file.read(BATCH_BYTES)
            digest.update(piece)
            return len(piece)

        async with self._reading(key, max_bytes, side) as (file, found):
            read_bytes = 0
            while read_bytes <= found.size and (size := await asyncio.to_thread(read, file)):
                read_bytes += size
                moved()
            if read_bytes != found.size:
                raise _changed(side)
        return digest.hexdigest(), found

    @contextlib.asynccontextmanager
    async def _reading(self, key: str, max_bytes: int, side: str) -> AsyncIterator[tuple[BinaryIO, ObjectInfo]]:
        """Opens a file for the block. Raises ObjectError (TRUNCATED) if the file changes during the block.

        Otherwise the bytes read could mix the old and the new file.
        """
        try:
            with os.fdopen(await asyncio.to_thread(self._open, key, side), "rb") as file:
                before = entry_of(file.fileno())
                found = _file_info(key, before)
                if found.size > max_bytes:
                    raise ObjectError(
                        ErrorClass.TOO_LARGE, f"{found.size:,} bytes are more than max_bytes ({max_bytes:,})"
                    )
                if 0 <= time.time() - before.modified_s < CLOCK_TICK_S:
                    await asyncio.sleep(CLOCK_TICK_S)  # so that a later write changes the modification time
                yield file, found
                if entry_of(file.fileno()) != before:
                    raise _changed(side)
        except OSError as exc:
            if isinstance(exc, FerryError):
                raise
            raise from_folder(exc, side) from None

    async def _body(self, file: BinaryIO, size: int, charge: Charge) -> Body:
        """Returns the file's body. A large body is spooled, since the file may change during its upload."""
        share = await self._budget.take(str(self.folder.root), size)
        arriving = Arriving(self._spool_dir, self._budget, self._pool, str(self.folder.root), share)
        most = min(size + 1, BATCH_BYTES)
        try:
            while piece := await asyncio.to_thread(file.read, most):
                await arriving.add(piece)
                await pace(charge, len(piece))
                if len(piece) < most or arriving.size > size:
                    break
            await arriving.flush()
            return arriving.finish()
        except BaseException:
            arriving.abandon()
            raise

    async def _streamed(self, key: str, found: ObjectInfo, side: str, charge: Charge) -> StreamedBody:
        """Returns the file's body in parts. The file is opened again, and is open until the last part."""

        async def pieces() -> AsyncGenerator[bytes, None]:
            async with self._reading(key, sys.maxsize, side) as (file, again):  # a larger one is another file
                if again != found:
                    raise _changed(side)
                received = 0
                while piece := await asyncio.to_thread(file.read, BATCH_BYTES):
                    received += len(piece)
                    if received > found.size:
                        break
                    await pace(charge, len(piece))
                    yield piece
                if received != found.size:
                    raise _changed(side)

        host = str(self.folder.root)
        return await begin_stream(pieces(), lambda: None, found.size, self._budget, self._spool_dir, self._pool, host)

    def _open(self, key: str, side: str) -> int:
        """Opens a file. A missing file is ObjectError (NOT_FOUND), unless the whole directory is missing."""
        try:
            return self.folder.open(key)
        except FileNotFoundError:
            if not self.folder.root.is_dir():
                raise
            raise ObjectError(ErrorClass.NOT_FOUND, f"the {side} has no such object", status_code=404) from None


def _changed(side: str) -> ObjectError:
    return ObjectError(ErrorClass.TRUNCATED, f"the {side}'s file changed while it was being read")


def _file_info(key: str, entry: Entry) -> ObjectInfo:
    return ObjectInfo(key, entry.size, entry.etag, datetime.fromtimestamp(entry.modified_s, UTC))


def walk(directory: Path, *, links: bool = False) -> Iterator[list[ObjectInfo]]:
    """Yields pages of a directory's files in no fixed order, without Ferry's unfinished files.

    A link to a file inside the directory is listed like a file. A link to a directory inside is skipped, since its
    files are listed under their own names. With ``links``, links that point outside or nowhere are also listed, with
    size 0: Ferry does not read through them, but a source listing must not omit them silently. A link to a directory
    ends with `/`. Raises ObjectError for anything unreadable, so that no incomplete listing looks complete.
    """
    root = directory.resolve()

    def refused(exc: OSError) -> None:
        if not _was_deleted(exc):
            raise _unreadable(exc)

    for where, below, names in os.walk(root, onerror=refused):
        below[:] = [name for name in below if name != PARTS_DIRECTORY]
        page = []
        folders = {name for name in below if links and _is_link(Path(where, name))}
        for name in (*names, *folders):
            if name.startswith(PARTS_DIRECTORY):
                continue
            path = Path(where, name)
            # A name that is not UTF-8 is listed with escapes. No file has that name, so its row fails.
            key = os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace")
            try:
                if _is_link(path) and not _stays_inside(path, root):
                    if links:
                        slash = "/" if name in folders else ""
                        page.append(ObjectInfo(key + slash, 0, None, None))
                    continue
                if name in folders:
                    continue
                stat = path.stat()
            except OSError as exc:
                if _was_deleted(exc):
                    continue
                raise _unreadable(exc) from None
            page.append(ObjectInfo(key, stat.st_size, None, datetime.fromtimestamp(stat.st_mtime, UTC)))
        if page:
            yield page


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:  # reading the file raises the same error
        return False


def _stays_inside(link: Path, root: Path) -> bool:
    """Returns whether a link points to something that exists inside the directory."""
    try:
        return link.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # a broken link or a cycle
        return False


def _was_deleted(exc: OSError) -> bool:
    """Returns whether the error means that the file was deleted after its directory was read."""
    return exc.errno in (ENOENT, ENOTDIR)


def _unreadable(exc: OSError) -> ObjectError:
    what = os.fsencode(exc.filename or "").decode("utf-8", "backslashreplace")
    return ObjectError(ErrorClass.STORE_ERROR, f"{short(what, 300)} cannot be read ({exc.strerror})")
