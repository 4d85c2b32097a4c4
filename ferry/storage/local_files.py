"""A directory as a store. No path leads out of it, and a file has its name only once it is whole and on disk.

Names are opened one after the other below the directory's own file descriptor, links not followed (openat(2)), so that
nothing that changes meanwhile leads elsewhere. A write goes to a file of its own in `.ferry-parts`, is synced, and is
renamed; its directories are synced before anybody calls it done, those of many writes at once (docs/decisions/0019).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import stat
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from errno import EINVAL, ELOOP, ENOENT, ENOTDIR, ENOTSUP, EPERM, ESTALE, EXDEV
from pathlib import Path
from typing import Literal

from ferry.core import PARTS_DIRECTORY

WRITERS = 16  # files that wait for the disk at once
MOST_KNOWN = 100_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a named pipe must not hold us up
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = {EPERM, ENOTSUP}  # of a file system without hard links (FAT)

Names = tuple[str, ...]
FoldedName = Literal["case", "form", "dots"]
_TRIED: dict[FoldedName, tuple[str, str]] = {"case": ("a", "A"), "form": ("\u00e9", "e\u0301"), "dots": ("b", "b.")}


@dataclass(frozen=True, slots=True)
class Entry:
    """What a name stands for: a file. ``etag`` changes when the file does."""

    size: int
    etag: str
    modified_s: float


def entry_of(fd: int) -> Entry:
    """Of an open file."""
    found = os.fstat(fd)
    return Entry(found.st_size, f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}", found.st_mtime)


def names_of(key: str) -> Names:
    """The names of a key, one below the other. Raises OSError (EINVAL) for what leads elsewhere: `..` is no link."""
    names = tuple(key.split("/"))
    if any(name in ("", ".", "..") or "\0" in name or name.casefold().startswith(PARTS_DIRECTORY) for name in names):
        raise OSError(EINVAL, "no name below a directory")
    return names


class Folder:
    """Raises OSError. Reading follows links that stay inside the directory; writing follows none."""

    def __init__(self, root: Path, mark: str, *, create: bool) -> None:
        """``mark`` begins the names of unfinished files: the job's, so that another's are left alone."""
        self.root = root
        self._mark = mark
        self._create = create
        self._fd: int | None = None
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="ferry-folder")
        self._known: set[Names] = set()  # folders whose own names are on disk
        self._sync = Together(self._sync_all, self._pool)

    # --- writing

    async def put(self, key: str, source: bytes | Path, *, create: bool) -> str:
        """Writes a file and returns its etag once it is on disk, name and all.

        Raises FileExistsError where there is something and ``create`` is asked for.
        """
        *above, name = names_of(key)
        folder = tuple(above)
        etag = await asyncio.get_running_loop().run_in_executor(self._pool, self._write, folder, name, source, create)
        gone = await self._sync(self._not_on_disk(folder))
        if folder in gone:
            raise OSError(ESTALE, "the folder went away")
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        self._known.update(folder[:depth] for depth in range(len(folder) + 1))
        return etag

    def _write(self, folder: Names, name: str, source: bytes | Path, create: bool) -> str:
        below = self._open_folder(folder, make=True)
        try:
            with self._temporary() as (parts, temporary, fd):
                with os.fdopen(fd, "wb") as file:
                    if isinstance(source, bytes):
                        file.write(source)
                    else:
                        with source.open("rb") as spooled:
                            shutil.copyfileobj(spooled, file, 1 << 20)
                    file.flush()
                    os.fsync(file.fileno())
                    etag = entry_of(file.fileno()).etag
                place(parts, temporary, below, name, create=create)
            return etag
        finally:
            os.close(below)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, str, int]]:
        """A new file in `.ferry-parts`: that folder, the name, the open file. What is still there at the end, goes."""
        name = f"{self._mark}-{secrets.token_hex(8)}"
        for again in (True, False):
            parts = self._open_folder((PARTS_DIRECTORY,), make=True)
            try:
                fd = os.open(name, _WRITE, 0o666, dir_fd=parts)
                break
            except FileNotFoundError:  # another run found the folder empty, and removed it
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
        """May we write here at all?"""
        try:
            with self._temporary() as (_, _, fd):
                os.close(fd)
        except OSError:
            return False
        return True

    def twins(self) -> frozenset[FoldedName]:
        """Which names are one here though they differ, by trying: FAT, NTFS, SMB and macOS have such."""
        found = set()
        for twin, (one, other) in _TRIED.items():
            with self._temporary() as (parts, name, fd):
                os.close(fd)
                first = f"{name}-{one}"
                os.rename(name, first, src_dir_fd=parts, dst_dir_fd=parts)
                try:
                    with contextlib.suppress(OSError):
                        os.stat(f"{name}-{other}", dir_fd=parts, follow_symlinks=False)
                        found.add(twin)
                finally:
                    os.unlink(first, dir_fd=parts)
        return frozenset(found)

    def clean(self) -> int:
        """Deletes what killed runs of this job left unfinished; returns how many. While no other run of it is on."""
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
        """Removes `.ferry-parts` where it is empty."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._fd is not None and self._create:
            with contextlib.suppress(OSError):
                os.rmdir(PARTS_DIRECTORY, dir_fd=self._fd)

    def remove(self, key: str) -> None:
        """Removes a file for good, not its folder; nothing there is fine. Follows no link, and removes none."""
        names = names_of(key)
        try:
            above = self._open_folder(names[:-1], make=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(os.stat(names[-1], dir_fd=above, follow_symlinks=False).st_mode):
                    os.unlink(names[-1], dir_fd=above)
                    _sync_fd(above)
        finally:
            os.close(above)

    # --- reading

    def find(self, key: str) -> Entry | None:
        """The file under a key, or None. What is no file, and a link that leads out, is none."""
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
        """Opens a file for reading. Raises FileNotFoundError where there is none, and OSError (ELOOP) for a link that
        leads out."""
        names = names_of(key)
        try:
            return self._open_file(names)
        except OSError:
            inside = self._behind_links(names)
            if inside is None:
                raise
        return self._open_file(inside)

    def _open_file(self, names: Names) -> int:
        above = self._open_folder(names[:-1], make=False)
        try:
            if not stat.S_ISREG(os.stat(names[-1], dir_fd=above, follow_symlinks=False).st_mode):
                raise FileNotFoundError(ENOENT, "no file")
            return os.open(names[-1], _READ, dir_fd=above)
        finally:
            os.close(above)

    def _behind_links(self, names: Names) -> Names | None:
        """The same file by its real name, where there are links on the way and all stay inside the directory.

        Raises OSError (ELOOP) where they lead to something else.
        """
        try:
            root = self.root.resolve()
            real = root.joinpath(*names).resolve()
        except (OSError, RuntimeError):  # links that lead in a circle
            return None
        if not real.is_relative_to(root) and real.exists():
            raise OSError(ELOOP, "a link leads out of the directory")
        if not real.is_relative_to(root) or real.parts[len(root.parts) :] == names:
            return None
        return real.parts[len(root.parts) :]

    # --- folders

    def _root(self) -> int:
        """The directory itself, kept open: a disk that is unmounted must not be mistaken for an empty directory."""
        if self._fd is None:
            if self._create:
                self.root.mkdir(parents=True, exist_ok=True)
                for above in self.root.resolve().parents:  # whoever made it just now
                    with contextlib.suppress(OSError):
                        _sync_folder(above)
            self._fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._fd)
        return self._fd

    def _open_folder(self, names: Sequence[str], *, make: bool) -> int:
        """A file descriptor, which the caller closes. NotADirectoryError where a link or a file is in the way."""
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

    def _not_on_disk(self, folder: Names) -> set[Names]:
        """What is to be synced after a write: the folder, and those above it of which nobody knows."""
        wanted = {folder}
        while folder and folder not in self._known:
            folder = folder[:-1]
            wanted.add(folder)
        return wanted

    def _sync_all(self, folders: set[Names]) -> set[Names]:
        """Has the disk keep the folders' names. Returns those that are gone."""
        gone = set()
        for folder in folders:
            try:
                fd = self._open_folder(folder, make=False)
            except (FileNotFoundError, NotADirectoryError):
                gone.add(folder)
                continue
            try:
                _sync_fd(fd)
            finally:
                os.close(fd)
        return gone


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync_fd(fd)
    finally:
        os.close(fd)


def _sync_fd(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in (EINVAL, ENOTSUP):  # some file systems have no such call for folders (SMB, FUSE)
            raise


def place(parts: int, temporary: str, below: int, name: str, *, create: bool) -> None:
    """Gives a finished file its name: by link(2), which fails where there is something, or by rename(2).

    A directory that is another file system (a mount below the destination) gets the file beside its name.
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
    """Where the file system has no call that creates or fails: looked at just before."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=below, follow_symlinks=False)
        raise FileExistsError(name)


class Together:
    """One call for many: while it runs, the next one's items are collected. Lives in one loop."""

    def __init__(self, work: Callable[[set[Names]], set[Names]], pool: ThreadPoolExecutor) -> None:
        self._work = work
        self._pool = pool
        self._next: set[Names] = set()
        self._round: asyncio.Task[set[Names]] | None = None
        self._one: asyncio.Lock = asyncio.Lock()

    async def __call__(self, items: set[Names]) -> set[Names]:
        """Returns what ``work`` says, of a call that began after this one."""
        self._next |= items
        if self._round is None:
            self._round = asyncio.create_task(self._go())
        return await asyncio.shield(self._round)

    async def _go(self) -> set[Names]:
        async with self._one:
            items, self._next, self._round = self._next, set(), None
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._work, items)
