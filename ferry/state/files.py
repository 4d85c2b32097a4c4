"""Named files of a job's state, in a directory or under a bucket's prefix (names: docs/reference/state.md).

Every write is atomic: a reader finds the old file or the new one, never a part. In a directory this also holds after a
power cut: the bytes are synced before the rename, and the directory after it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from ferry.core import Damaged, UserError, disk_error, short

PART = ".part-"  # name prefix of unfinished files


class State(Protocol):
    """Files by name, such as `chunks/ab12.parquet`; directories are created when needed."""

    uri: str
    spool_dir: Path  # local directory for temporary files

    def read(self, name: str) -> bytes: ...
    def write(self, name: str, data: bytes) -> None: ...
    def write_file(self, name: str, path: Path) -> None: ...
    def create(self, name: str, data: bytes) -> bool: ...
    def swap(self, name: str, old: bytes, new: bytes) -> bool: ...
    def drop(self, name: str, old: bytes, instead: bytes) -> bool: ...
    def list(self, folder: str, start: str = "") -> list[str]: ...
    def delete(self, names: Iterable[str]) -> None: ...
    def local(self, name: str, *, refresh: bool = False) -> Path: ...
    def check_conditions(self) -> None: ...
    def delete_stale_copies(self) -> None: ...


class DirectoryState:
    """A state in a local directory. When a method that writes returns, file and directory entry are synced to disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)
        self.spool_dir = root / "spool"
        try:
            _make_directory(root)
            root.chmod(0o700)  # plan/ and chunks/ contain unredacted addresses, signatures included
        except OSError as exc:
            raise UserError(
                f"state: cannot use the directory {root}: {exc.strerror}. Set `state` to a directory that you own"
            ) from None

    def read(self, name: str) -> bytes:
        """Returns a file's bytes. Raises FileNotFoundError, and Fatal for a failing disk."""
        with self._disk(name, may_be_missing=True):
            return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        target = self.root / name
        with self._disk(name):
            _make_directory(target.parent)
            temporary = _write_temporary(target.parent, data)
            try:
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_directory(target.parent)

    def write_file(self, name: str, path: Path) -> None:
        """Moves a finished local file into the state; it must be on the same file system (`spool_dir`)."""
        target = self.root / name
        with self._disk(name):
            _make_directory(target.parent)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.chmod(0o600)
            path.replace(target)
            _sync_directory(target.parent)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file that must not exist yet; returns False if it does."""
        target = self.root / name
        with self._disk(name):
            _make_directory(target.parent)
            temporary = _write_temporary(target.parent, data)
            try:
                os.link(temporary, target)  # fails if the name exists, and never shows a part of the file
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            _sync_directory(target.parent)
        return True

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        """Replaces a file's content if it is still ``old``, else returns False. A lock file makes this exclusive."""
        with self._locked(name) as content:
            if content != old:
                return False
            self.write(name, new)
        return True

    def drop(self, name: str, old: bytes, instead: bytes) -> bool:  # noqa: ARG002
        """Deletes a file if its content is still ``old``, else returns False.

        A bucket has no conditional delete: there the file contains ``instead`` afterwards.
        """
        with self._locked(name) as content:
            if content != old:
                return False
            self.delete([name])
        return True

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[bytes | None]:
        """Yields the file's content, None for a missing file, and holds the lock that :meth:`swap` also takes."""
        import fcntl

        with self._disk(name):
            lock = os.open(self.root / f".{Path(name).name}.lock", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                content: bytes | None = self.read(name)
            except FileNotFoundError:
                content = None
            yield content
        finally:
            os.close(lock)

    def list(self, folder: str, start: str = "") -> list[str]:
        """Returns the sorted names under a folder, without unfinished files; those that begin with ``start`` in it."""
        base = self.root / folder
        names = [
            str(Path(directory).relative_to(self.root) / file)
            for directory, _, files in os.walk(base)
            for file in files
            if not file.startswith(".")
        ]
        return sorted(name for name in names if name.startswith(f"{folder}/{start}" if start else ""))

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files; a missing one is not an error.

        Nothing is synced: after a power cut a deleted name may exist again, and readers tolerate that.
        """
        for name in names:
            with self._disk(name):
                (self.root / name).unlink(missing_ok=True)

    def local(self, name: str, *, refresh: bool = False) -> Path:  # noqa: ARG002
        """Returns the file's path, which may not exist. ``refresh`` is for states that copy files."""
        return path_below(self.root, name)

    def check_conditions(self) -> None:
        """Does nothing: links and lock files of a file system are exclusive."""

    def delete_stale_copies(self) -> None:
        """Does nothing: a directory is read in place."""

    @contextlib.contextmanager
    def _disk(self, name: str, *, may_be_missing: bool = False) -> Iterator[None]:
        """Raises Fatal for an OSError of the block, but FileNotFoundError as it is if the file ``may_be_missing``."""
        try:
            yield
        except OSError as exc:
            if may_be_missing and isinstance(exc, FileNotFoundError):
                raise
            raise disk_error(exc, f"state file {self.root / name}") from exc


def path_below(root: Path, name: str) -> Path:
    """Returns the path of ``name`` below ``root``. Raises Damaged for a name that leads out of it.

    Names come from the state's JSON files, which another user of a shared bucket may have written.
    """
    if any(part in ("", ".", "..") or "\0" in part for part in name.split("/")):
        raise Damaged(
            f"the state names `{short(name)}` as one of its files, which leads out of the state. Restore the state "
            "from a copy, or plan again with `ferry run --replan`"
        )
    return root / name


def _write_temporary(directory: Path, data: bytes) -> Path:
    """Writes and syncs a new file, mode 0600, under a name that :meth:`State.list` leaves out; returns its path."""
    fd, name = tempfile.mkstemp(prefix=PART, dir=directory)
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _make_directory(directory: Path) -> None:
    """Makes a directory and its parents, each with mode 0700, and syncs each new entry."""
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
