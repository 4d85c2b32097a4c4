"""A job's state: named files in a directory or under a bucket's prefix (names: docs/state.md).

Every write is atomic: a reader finds the old file or the new one, never a part. In a directory the
bytes are synced before the rename and the directory after it, so that a power cut keeps that promise.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import obstore

from tasks.engine.access import Access
from tasks.engine.errors import Damaged, Fatal, UserError, disk_error, from_store
from tasks.engine.store import Store, open_store
from tasks.engine.urls import short

PART = ".part-"  # begins the name of a file that is being written; those of killed runs are deleted by the next

LASTING = ("chunks/", "ledger/")  # names whose content never changes


class State(Protocol):
    """Files by name (`chunks/ab12.parquet`); directories come and go by themselves."""

    uri: str
    spool_dir: Path  # local scratch space

    def read(self, name: str) -> bytes: ...
    def write(self, name: str, data: bytes) -> None: ...
    def write_file(self, name: str, path: Path) -> None: ...
    def create(self, name: str, data: bytes) -> bool: ...
    def swap(self, name: str, old: bytes, new: bytes) -> bool: ...
    def drop(self, name: str, old: bytes, instead: bytes) -> bool: ...
    def list(self, folder: str) -> list[str]: ...
    def delete(self, names: Iterable[str]) -> None: ...
    def local(self, name: str, *, anew: bool = False) -> Path: ...


class DirectoryState:
    """The state in a local directory. A name is safe on disk when its method returns, directories included."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)
        self.spool_dir = root / "spool"
        try:
            _make_directory(root)
            root.chmod(0o700)  # plan/ and chunks/ hold addresses as they are, signatures included
        except OSError as exc:
            raise UserError(f"state: cannot use the directory {root}: {exc.strerror}") from None

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError, and Fatal for a disk that fails."""
        with self._disk(name, may_miss=True):
            return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        target = self.root / name
        with self._disk(name):
            _make_directory(target.parent)
            temporary = _written(target.parent, data)
            try:
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_directory(target.parent)

    def write_file(self, name: str, path: Path) -> None:
        """Moves a finished local file into the state; it must lie on the same file system (`spool_dir`)."""
        target = self.root / name
        with self._disk(name):
            _make_directory(target.parent)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.chmod(0o600)
            path.replace(target)
            _sync_directory(target.parent)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file that must not exist yet; False when it does. Whole from its first moment (link)."""
        target = self.root / name
        with self._disk(name):
            _make_directory(target.parent)
            temporary = _written(target.parent, data)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            _sync_directory(target.parent)
        return True

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        """Replaces a file's content if it is still ``old``; False when it is not. Exclusive by a lock file."""
        with self._locked(name) as content:
            if content != old:
                return False
            self.write(name, new)
        return True

    def drop(self, name: str, old: bytes, instead: bytes) -> bool:  # noqa: ARG002
        """Deletes a file if its content is still ``old``; False when it is not.

        Where nothing can be deleted on a condition (a bucket) it holds ``instead`` afterwards.
        """
        with self._locked(name) as content:
            if content != old:
                return False
            self.delete([name])
        return True

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[bytes | None]:
        """The file's content, None where there is none; nobody else changes it meanwhile."""
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

    def list(self, folder: str) -> list[str]:
        """Names under a folder, sorted; unfinished files are not there."""
        base = self.root / folder
        names = [
            str(Path(where).relative_to(self.root) / file)
            for where, _, files in os.walk(base)
            for file in files
            if not file.startswith(".")
        ]
        return sorted(names)

    def delete(self, names: Iterable[str]) -> None:
        """Missing ones are no error. Nobody waits for the disk here: a name that comes back is read as before."""
        for name in names:
            with self._disk(name):
                (self.root / name).unlink(missing_ok=True)

    def local(self, name: str, *, anew: bool = False) -> Path:  # noqa: ARG002
        """A local path with the file's content. ``anew``: of one that had been copied, a new copy."""
        return _below(self.root, name)

    @contextlib.contextmanager
    def _disk(self, name: str, *, may_miss: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if may_miss and isinstance(exc, FileNotFoundError):
                raise
            raise disk_error(exc, f"state file {self.root / name}") from exc


def _below(root: Path, name: str) -> Path:
    """Raises Damaged for what leads elsewhere: names stand in the state's JSON files, and others may write those."""
    if any(part in ("", ".", "..") or "\0" in part for part in name.split("/")):
        raise Damaged(f"the state names `{short(name)}` as one of its files, which leads out of the state")
    return root / name


def _written(directory: Path, data: bytes) -> Path:
    """A new file with these bytes, on disk, under a name that :meth:`State.list` leaves out. Mode 0600."""
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
    """Makes a directory and those above it, for the owner alone; each name is on disk afterwards."""
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


class BucketState:
    """The state under a bucket's prefix, for workers that share it. Files are copied down to be read."""

    def __init__(self, store: Store, cache: Path) -> None:
        self.uri = store.uri
        self._store = store
        self._backend: Any = store.backend
        self._cache = cache
        self.spool_dir = cache / "spool"

    def read(self, name: str) -> bytes:
        try:
            return bytes(obstore.get(self._backend, self._store.path(name)).bytes())
        except (FileNotFoundError, obstore.exceptions.NotFoundError):
            raise FileNotFoundError(name) from None
        except Exception as exc:
            raise self._fatal(exc, name) from None

    def write(self, name: str, data: bytes) -> None:
        self._forget_copy(name)
        try:
            obstore.put(self._backend, self._store.path(name), data)
        except Exception as exc:
            raise self._fatal(exc, name) from None

    def write_file(self, name: str, path: Path) -> None:
        self._forget_copy(name)
        try:
            obstore.put(self._backend, self._store.path(name), path)
        except Exception as exc:
            raise self._fatal(exc, name) from None
        path.unlink()

    def create(self, name: str, data: bytes) -> bool:
        try:
            obstore.put(self._backend, self._store.path(name), data, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return False
        except Exception as exc:
            raise self._fatal(exc, name) from None
        return True

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        try:
            result = obstore.get(self._backend, self._store.path(name))
            etag = result.meta["e_tag"]
            if bytes(result.bytes()) != old:
                return False
            obstore.put(self._backend, self._store.path(name), new, mode={"e_tag": etag})
        except (FileNotFoundError, obstore.exceptions.NotFoundError, obstore.exceptions.PreconditionError):
            return False
        except Exception as exc:
            raise self._fatal(exc, name) from None
        return True

    def drop(self, name: str, old: bytes, instead: bytes) -> bool:
        """As :meth:`DirectoryState.drop`: S3 deletes on no condition, so ``instead`` stands there afterwards."""
        return self.swap(name, old, instead)

    def list(self, folder: str) -> list[str]:
        names: list[str] = []
        try:
            for page in obstore.list(self._backend, self._store.path(folder)):
                names += [
                    str(meta["path"])[len(self._store.prefix) + 1 if self._store.prefix else 0 :] for meta in page
                ]
        except Exception as exc:
            raise self._fatal(exc, folder) from None
        return sorted(names)

    def delete(self, names: Iterable[str]) -> None:
        paths = [self._store.path(name) for name in names]
        if not paths:
            return
        try:
            obstore.delete(self._backend, paths)
        except (FileNotFoundError, obstore.exceptions.NotFoundError):
            pass
        except Exception as exc:
            raise self._fatal(exc, "old files") from None

    def local(self, name: str, *, anew: bool = False) -> Path:
        """A copy, for the owner alone. Chunks and the ledger never change under a name; what else may is read anew."""
        target = _below(self._cache, name)
        if anew or not target.exists() or not name.startswith(LASTING):
            data = self.read(name)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd, temporary = tempfile.mkstemp(prefix=PART, dir=target.parent)  # mode 0600
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            Path(temporary).replace(target)
        return target

    def _forget_copy(self, name: str) -> None:
        """What never changes and is written again under its name was damaged before."""
        if name.startswith(LASTING):
            (self._cache / name).unlink(missing_ok=True)

    def _fatal(self, exc: Exception, name: str) -> Fatal:
        return Fatal(f"state {self.uri}: {name}: {from_store(exc, side='state')}")


def open_state(uri: str, access: Access, cache_root: Path) -> State:
    """The state at a directory or an ``s3://bucket/prefix``; ``cache_root`` is for copies of the latter."""
    if not uri.startswith("s3://"):
        return DirectoryState(Path(uri))
    parts = urlsplit(uri)
    place = hashlib.sha256(f"{access.endpoint_url} {uri.rstrip('/')}".encode()).hexdigest()[:16]
    cache = cache_root / f"{parts.netloc}-{place}"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    return BucketState(open_store(uri, access, cache / "spool"), cache)
