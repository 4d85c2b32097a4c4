"""Files of a directory store: paths stay inside it, and a file gets its name when it is complete and on disk.

A key's names are opened one by one from the root's file descriptor without following links (openat(2)). A concurrent
change therefore cannot redirect a path. Each write goes to a temporary file in `.ferry-parts`, which is synced and
renamed. Its directories are synced before the write counts as done; many writes share a sync (docs/decisions/0019).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import stat
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from errno import EINVAL, ELOOP, ENOENT, ENOTDIR, ENOTSUP, EPERM, ESTALE, EXDEV
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from ferry.core import PARTS_DIRECTORY
from ferry.storage.directory.sync import BatchedSync, Names, sync_fd, sync_folder

T = TypeVar("T")
WRITERS = 16  # files that are written and synced at a time
MAX_SYNCED = 100_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # opening a named pipe must not block
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = {EPERM, ENOTSUP}  # from a file system without hard links (FAT)

FoldedName = Literal["case", "form", "dots"]
_FOLDING_PROBES: dict[FoldedName, tuple[str, str]] = {
    "case": ("a", "A"),
    "form": ("\u00e9", "e\u0301"),
    "dots": ("b", "b."),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Size, etag and modification time of a file. ``etag`` changes when the file does."""

    size: int
    etag: str
    modified_s: float


def entry_of(fd: int) -> Entry:
    """Returns the Entry of an open file."""
    found = os.fstat(fd)
    return Entry(found.st_size, f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}", found.st_mtime)


def names_of(key: str) -> Names:
    """Returns a key's path segments. Raises OSError (EINVAL) for segments such as `..` and Ferry's own file names."""
    names = tuple(key.split("/"))
    if any(name in ("", ".", "..") or "\0" in name or name.casefold().startswith(PARTS_DIRECTORY) for name in names):
        raise OSError(EINVAL, "not a valid path below the directory")
    return names


class Folder:
    """File operations of a directory store. Reading follows links that stay inside it; writing follows no link.

    All methods raise OSError.
    """

    def __init__(self, root: Path, mark: str, *, create: bool) -> None:
        """``mark`` begins the names of this job's unfinished files, so that cleaning skips those of other jobs."""
        self.root = root
        self._mark = mark
        self._create = create
        self._fd: int | None = None
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="ferry-folder")
        self._synced: set[Names] = set()  # directories whose own names are on disk
        self._sync = BatchedSync(self._sync_all, self._pool)

    # --- writing

    async def put(self, key: str, source: bytes | Path, *, create: bool) -> str:
        """Writes a file and returns its etag when the file and its name are on disk.

        With ``create``, raises FileExistsError if the name exists.
        """
        *above, name = names_of(key)
        folder = tuple(above)
        etag = await asyncio.get_running_loop().run_in_executor(self._pool, self._write, folder, name, source, create)
        await self._sync_name(folder)
        return etag

    async def put_parts(self, key: str, paths: AsyncIterator[Path], *, create: bool) -> str:
        """Writes a file from parts that come one after the other, as :meth:`put` does."""
        *above, name = names_of(key)
        folder = tuple(above)

        async def run(function: Callable[..., T], *given: object) -> T:
            work = asyncio.get_running_loop().run_in_executor(self._pool, function, *given)
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait({work})  # the file is closed next
                raise

        with contextlib.ExitStack() as stack:
            below = await run(partial(self._open_folder, folder, make=True))
            stack.callback(os.close, below)
            parts, temporary, fd = await run(stack.enter_context, self._temporary())
            file = stack.enter_context(os.fdopen(fd, "wb"))
            async for path in paths:
                await run(_append, path, file)
            etag = await run(_finish, file)
            await run(partial(rename_into_place, parts, temporary, below, name, create=create))
        await self._sync_name(folder)
        return etag

    async def _sync_name(self, folder: Names) -> None:
        """Returns when the name of a file in a folder is on disk."""
        deleted = await self._sync(self._unsynced(folder))
        if folder in deleted:
            raise OSError(ESTALE, "the directory was deleted during the write")
        if len(self._synced) > MAX_SYNCED:
            self._synced.clear()
        self._synced.update(folder[:depth] for depth in range(len(folder) + 1))

    def _write(self, folder: Names, name: str, source: bytes | Path, create: bool) -> str:
        below = self._open_folder(folder, make=True)
        try:
            with self._temporary() as (parts, temporary, fd):
                with os.fdopen(fd, "wb") as file:
                    if isinstance(source, bytes):
                        file.write(source)
                    else:
                        _append(source, file)
                    etag = _finish(file)
                rename_into_place(parts, temporary, below, name, create=create)
            return etag
        finally:
            os.close(below)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, str, int]]:
        """Creates a file in `.ferry-parts`, and deletes it at the end of the block unless it was renamed.

        Yields the directory's file descriptor, the file's name and its file descriptor.
        """
        name = f"{self._mark}-{secrets.token_hex(8)}"
        for again in (True, False):
            parts = self._open_folder((PARTS_DIRECTORY,), make=True)
            try:
                fd = os.open(name, _WRITE, 0o666, dir_fd=parts)
                break
            except FileNotFoundError:  # another run removed the empty directory
                os.close(parts)
                if not again:
                    raise
            except BaseException:
                os.close(parts)
                raise
        try:
            yield parts, name, fd
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parts)
            os.close(parts)

    def may_write(self) -> bool:
        """Returns whether a file can be created in the directory."""
        try:
            with self._temporary() as (_, _, fd):
                os.close(fd)
        except OSError:
            return False
        return True

    def folded_names(self) -> frozenset[FoldedName]:
        """Returns how the file system folds names, found by creating files: as FAT, NTFS, SMB and macOS may do."""
        found = set()
        for folding, (one, other) in _FOLDING_PROBES.items():
            with self._temporary() as (parts, name, fd):
                os.close(fd)
                first = f"{name}-{one}"
                os.rename(name, first, src_dir_fd=parts, dst_dir_fd=parts)
                try:
                    with contextlib.suppress(OSError):
                        os.stat(f"{name}-{other}", dir_fd=parts, follow_symlinks=False)
                        found.add(folding)
                finally:
                    os.unlink(first, dir_fd=parts)
        return frozenset(found)

    def clean(self) -> int:
        """Deletes unfinished files of killed runs of this job and returns their number. No other run may be active."""
        cleaned = 0
        try:
            parts = self._open_folder((PARTS_DIRECTORY,), make=False)
        except OSError:
            return 0
        try:
            with os.scandir(parts) as entries:
                left = [entry.name for entry in entries if entry.name.startswith(f"{self._mark}-")]
            for name in left:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=parts)
                    cleaned += 1
        finally:
            os.close(parts)
        return cleaned

    def close(self) -> None:
        """Stops the writers and removes `.ferry-parts` if it is empty."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._fd is not None and self._create:
            with contextlib.suppress(OSError):
                os.rmdir(PARTS_DIRECTORY, dir_fd=self._fd)

    def remove(self, key: str) -> None:
        """Deletes a file and syncs its directory. A missing file is not an error; a link is not deleted or followed."""
        names = names_of(key)
        try:
            above = self._open_folder(names[:-1], make=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(os.stat(names[-1], dir_fd=above, follow_symlinks=False).st_mode):
                    os.unlink(names[-1], dir_fd=above)
                    sync_fd(above)
        finally:
            os.close(above)

    # --- reading

    def find(self, key: str) -> Entry | None:
        """Returns the file under a key, or None if there is none, it is not a file, or a link points outside."""
        try:
            fd = self.open(key)
        except OSError as exc:
            if exc.errno in (ENOENT, ENOTDIR, ELOOP):
                return None
            raise
        try:
            return entry_of(fd)
        finally:
            os.close(fd)

    def open(self, key: str) -> int:
        """Opens a file for reading and returns its file descriptor.

        Raises FileNotFoundError if it does not exist, OSError (ELOOP) if a link points outside the directory.
        """
        names = names_of(key)
        try:
            return self._open_file(names)
        except OSError:
            inside = self._resolve_inside(names)
            if inside is None:
                raise
        return self._open_file(inside)

    def _open_file(self, names: Names) -> int:
        above = self._open_folder(names[:-1], make=False)
        try:
            if not stat.S_ISREG(os.stat(names[-1], dir_fd=above, follow_symlinks=False).st_mode):
                raise FileNotFoundError(ENOENT, "not a file")
            return os.open(names[-1], _READ, dir_fd=above)
        finally:
            os.close(above)

    def _resolve_inside(self, names: Names) -> Names | None:
        """Returns the real path of a file behind links inside the directory, or None without links or if one is broken.

        Raises OSError (ELOOP) if they lead to something outside.
        """
        try:
            root = self.root.resolve()
            real = root.joinpath(*names).resolve()
        except (OSError, RuntimeError):  # a cycle of links
            return None
        if not real.is_relative_to(root) and real.exists():
            raise OSError(ELOOP, "a link points outside the directory")
        if not real.is_relative_to(root) or real.parts[len(root.parts) :] == names:
            return None
        return real.parts[len(root.parts) :]

    # --- directories

    def _root(self) -> int:
        """Returns the root's file descriptor, which stays open so that an unmounted disk does not look empty."""
        if self._fd is None:
            if self._create:
                self.root.mkdir(parents=True, exist_ok=True)
                for above in self.root.resolve().parents:  # this run or another may have created them just now
                    with contextlib.suppress(OSError):
                        sync_folder(above)
            self._fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._fd)
        return self._fd

    def _open_folder(self, names: Sequence[str], *, make: bool) -> int:
        """Opens a directory and returns its file descriptor, which the caller closes.

        Raises NotADirectoryError if a name on the path is a link or a file.
        """
        fd = os.dup(self._root())
        try:
            for name in names:
                try:
                    below = os.open(name, _FOLDER, dir_fd=fd)
                except FileNotFoundError:
                    if not make:
                        raise
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=fd)
                    below = os.open(name, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _unsynced(self, folder: Names) -> set[Names]:
        """Returns the directories to sync after a write: its own, and the parents that are not known to be on disk."""
        wanted = {folder}
        while folder and folder not in self._synced:
            folder = folder[:-1]
            wanted.add(folder)
        return wanted

    def _sync_all(self, folders: set[Names]) -> set[Names]:
        """Syncs directories to disk and returns those that do not exist any more."""
        deleted = set()
        for folder in folders:
            try:
                fd = self._open_folder(folder, make=False)
            except (FileNotFoundError, NotADirectoryError):
                deleted.add(folder)
                continue
            try:
                sync_fd(fd)
            finally:
                os.close(fd)
        return deleted


def _append(path: Path, file: BinaryIO) -> None:
    with path.open("rb") as spooled:
        shutil.copyfileobj(spooled, file, 1 << 20)


def _finish(file: BinaryIO) -> str:
    """Returns the etag of a file whose bytes are on disk then."""
    file.flush()
    os.fsync(file.fileno())
    return entry_of(file.fileno()).etag


def rename_into_place(parts: int, temporary: str, below: int, name: str, *, create: bool) -> None:
    """Gives a finished file its name, by rename(2), or with ``create`` by link(2), which fails if the name exists.

    On another file system (a mount below the destination) the file is first copied beside its final name.
    """
    try:
        if create:
            os.link(temporary, name, src_dir_fd=parts, dst_dir_fd=below, follow_symlinks=False)
        else:
            os.replace(temporary, name, src_dir_fd=parts, dst_dir_fd=below)
        return
    except OSError as exc:
        if exc.errno == EXDEV:
            beside = f"{PARTS_DIRECTORY}-{secrets.token_hex(8)}"
        elif create and exc.errno in _NO_LINKS and not isinstance(exc, FileExistsError):
            beside = ""
        else:
            raise
    if not beside:
        _refuse_existing(below, name)
        os.replace(temporary, name, src_dir_fd=parts, dst_dir_fd=below)
        return
    try:
        with (
            os.fdopen(os.open(temporary, _READ, dir_fd=parts), "rb") as whole,
            os.fdopen(os.open(beside, _WRITE, 0o666, dir_fd=below), "wb") as copy,
        ):
            shutil.copyfileobj(whole, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        if create:
            _refuse_existing(below, name)
        os.replace(beside, name, src_dir_fd=below, dst_dir_fd=below)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside, dir_fd=below)


def _refuse_existing(below: int, name: str) -> None:
    """Raises FileExistsError if the name exists. For file systems without a call that creates atomically."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=below, follow_symlinks=False)
        raise FileExistsError(name)
