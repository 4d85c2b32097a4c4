"""A job's state: named files in a directory or under a bucket's prefix (names: docs/reference/state.md).

Every write is atomic: a reader finds the old file or the new one, never a part. In a directory the
bytes are synced before the rename and the directory after it, so that a power cut keeps that promise.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from ferry.core import Damaged, Fatal, ObjectError, UserError, disk_error, short
from ferry.storage import Access, BucketControl

PART = ".part-"  # begins the name of a file that is being written; those of killed runs are deleted by the next

LASTING = ("chunks/", "ledger/")  # names whose content never changes
OLD_PART_S = 3600.0  # of an unfinished copy: who made it was killed
OTHER_ETAG = '"00000000000000000000000000000000"'  # no file's


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
    def check_conditions(self) -> None: ...
    def forget_copies(self) -> None: ...


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

    def check_conditions(self) -> None:
        """A file system keeps two runs apart."""

    def forget_copies(self) -> None:
        """Nothing is copied."""

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

    def __init__(self, bucket: BucketControl, uri: str, prefix: str, cache: Path) -> None:
        self.uri = uri
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._cache = cache
        self.spool_dir = cache / "spool"

    def read(self, name: str) -> bytes:
        with self._fatal(name):
            found = self._bucket.read(self._prefix + name)
        if found is None:
            raise FileNotFoundError(name)
        return found[0]

    def write(self, name: str, data: bytes) -> None:
        self._forget_copy(name)
        with self._fatal(name):
            self._bucket.put(self._prefix + name, data)

    def write_file(self, name: str, path: Path) -> None:
        self._forget_copy(name)
        with self._fatal(name):
            self._bucket.upload(self._prefix + name, path)
        path.unlink()

    def create(self, name: str, data: bytes) -> bool:
        """As :meth:`DirectoryState.create`. A file that is there already and holds ``data`` was written by a try whose
        answer was lost: what is created is always one of a kind."""
        with self._fatal(name):
            return self._put_if(name, data, {"if-none-match": "*"})

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        with self._fatal(name):
            found = self._bucket.read(self._prefix + name)
            if found is None or found[0] != old:
                return False
            return self._put_if(name, new, {"if-match": found[1]})

    def _put_if(self, name: str, data: bytes, condition: Mapping[str, str]) -> bool:
        """False where the condition does not hold, and what stands there was not written by a try before."""
        reply = self._bucket.put(self._prefix + name, data, condition, ok=(200, 404, 412))
        if reply.status == 200:
            return True
        found = self._bucket.read(self._prefix + name)
        return found is not None and found[0] == data

    def drop(self, name: str, old: bytes, instead: bytes) -> bool:
        """As :meth:`DirectoryState.drop`: S3 deletes on no condition, so ``instead`` stands there afterwards."""
        return self.swap(name, old, instead)

    def check_conditions(self) -> None:
        """Tries whether the store keeps two runs apart: it must refuse to create what is there, and to replace what has
        another ETag. Raises UserError where it does not; such a store cannot hold a state."""
        name = f"probe-{secrets.token_hex(8)}"
        key = self._prefix + name

        def put(data: bytes, **condition: str) -> int:
            headers = {header.replace("_", "-"): value for header, value in condition.items()}
            return self._bucket.put(key, data, headers, ok=(200, 400, 404, 405, 412, 501)).status

        try:
            with self._fatal(name):
                # Of the first 412 is as good as 200: an answer was lost.
                if put(b"first", if_none_match="*") not in (200, 412) or put(b"second", if_none_match="*") != 412:
                    raise self._lacks("If-None-Match")
                _, etag = self._bucket.read(key) or (b"", "")
                if not etag or put(b"third", if_match=OTHER_ETAG) != 412:
                    raise self._lacks("If-Match")
                if put(b"fourth", if_match=etag) != 200 and (self._bucket.read(key) or (b"", ""))[0] != b"fourth":
                    raise self._lacks("If-Match")
        finally:
            with contextlib.suppress(Fatal):
                self.delete([name])

    def _lacks(self, header: str) -> UserError:
        return UserError(
            f"state {self.uri}: the store at {self._bucket.endpoint} does not keep the condition {header} of a PUT, so "
            "two runs of this job could not be kept apart. It cannot hold a state: set `state` to a directory, or to a "
            "bucket of a store with conditional writes"
        )

    def list(self, folder: str) -> list[str]:
        below = self._prefix + (f"{folder}/" if folder else "")
        with self._fatal(folder):
            keys = [found.key for page in self._bucket.pages(below) for found in page]
        return sorted(key[len(self._prefix) :] for key in keys)

    def delete(self, names: Iterable[str]) -> None:
        """Also deletes the local copies."""
        gone = list(names)
        for name in gone:
            _below(self._cache, name).unlink(missing_ok=True)
        with self._fatal("old files"):
            self._bucket.delete([self._prefix + name for name in gone])

    def local(self, name: str, *, anew: bool = False) -> Path:
        """A copy, for the owner alone. Chunks and the ledger never change under a name; what else may is read anew."""
        target = _below(self._cache, name)
        if anew or not target.exists() or not name.startswith(LASTING):
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd, temporary = tempfile.mkstemp(prefix=PART, dir=target.parent)  # mode 0600
            try:
                with os.fdopen(fd, "wb") as file, self._fatal(name):
                    there = self._bucket.download(self._prefix + name, file.write)
                if not there:
                    raise FileNotFoundError(name)
                Path(temporary).replace(target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        return target

    def forget_copies(self) -> None:
        """Deletes local copies of what the bucket does not hold any more: another machine may have deleted it."""
        there = set(self.list(""))
        for path in self._cache.rglob("*"):
            name = path.relative_to(self._cache).as_posix()
            if name in there or not path.is_file() or path.is_relative_to(self.spool_dir):
                continue
            if not path.name.startswith(PART) or time.time() - path.stat().st_mtime > OLD_PART_S:
                path.unlink(missing_ok=True)

    def _forget_copy(self, name: str) -> None:
        """What never changes and is written again under its name was damaged before."""
        if name.startswith(LASTING):
            (self._cache / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _fatal(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if isinstance(exc, FileNotFoundError):
                raise
            raise disk_error(exc, f"copy of the state file {name} in {self._cache}") from exc
        except ObjectError as exc:
            raise Fatal(f"state {self.uri}: {name}: {exc}") from None
        except Fatal as exc:
            raise Fatal(f"state {self.uri}: {name}: {exc}") from None


def open_state(uri: str, access: Access, cache_root: Path) -> State:
    """The state at a directory or an ``s3://bucket/prefix``; ``cache_root`` is for copies of the latter."""
    if not uri.startswith("s3://"):
        return DirectoryState(Path(uri))
    parts = urlsplit(uri)
    place = hashlib.sha256(f"{access.endpoint_url} {uri.rstrip('/')}".encode()).hexdigest()[:16]
    cache = cache_root / f"{parts.netloc}-{place}"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    return BucketState(BucketControl(parts.netloc, access, side="state"), uri, parts.path.strip("/"), cache)
