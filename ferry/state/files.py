"""Named files of a job's state, in a directory or under a bucket's prefix (names: docs/reference/state.md).

Every write is atomic: a reader finds the old file or the new one, never a part. In a directory this also holds after a
power cut: the bytes are synced before the rename, and the directory after it.
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

PART = ".part-"  # name prefix of unfinished files

IMMUTABLE = ("chunks/", "ledger/")  # the content of a file here never changes
OLD_PART_S = 3600.0  # an older unfinished copy was left by a killed process
OTHER_ETAG = '"00000000000000000000000000000000"'  # an ETag that no file has


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
    def list(self, folder: str) -> list[str]: ...
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

    def list(self, folder: str) -> list[str]:
        """Returns the sorted names under a folder, without unfinished files."""
        base = self.root / folder
        names = [
            str(Path(directory).relative_to(self.root) / file)
            for directory, _, files in os.walk(base)
            for file in files
            if not file.startswith(".")
        ]
        return sorted(names)

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files; a missing one is not an error.

        Nothing is synced: after a power cut a deleted name may exist again, and readers tolerate that.
        """
        for name in names:
            with self._disk(name):
                (self.root / name).unlink(missing_ok=True)

    def local(self, name: str, *, refresh: bool = False) -> Path:  # noqa: ARG002
        """Returns the file's path, which may not exist. ``refresh`` is for states that copy files."""
        return _path_below(self.root, name)

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


def _path_below(root: Path, name: str) -> Path:
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


class BucketState:
    """A state under a bucket's prefix, which several machines may share. Files are downloaded to be read."""

    def __init__(self, bucket: BucketControl, uri: str, prefix: str, cache: Path) -> None:
        self.uri = uri
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._cache = cache
        self._bare_etags: bool | None = None  # whether If-Match takes ETags without quotes only; None: not known yet
        self.spool_dir = cache / "spool"

    def read(self, name: str) -> bytes:
        with self._fatal(name):
            found = self._bucket.read(self._prefix + name)
        if found is None:
            raise FileNotFoundError(name)
        return found[0]

    def write(self, name: str, data: bytes) -> None:
        self._delete_immutable_copy(name)
        with self._fatal(name):
            self._bucket.put(self._prefix + name, data)

    def write_file(self, name: str, path: Path) -> None:
        self._delete_immutable_copy(name)
        with self._fatal(name):
            self._bucket.upload(self._prefix + name, path)
        path.unlink()

    def create(self, name: str, data: bytes) -> bool:
        """Creates a file as :meth:`DirectoryState.create` does.

        An existing file with the same content counts as created: an earlier try wrote it and its response was lost.
        Callers create unique content only.
        """
        with self._fatal(name):
            return self._put_if(name, data, {"if-none-match": "*"})

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        with self._fatal(name):
            found = self._bucket.read(self._prefix + name)
            if found is None or found[0] != old:
                return False
            if self._put_if(name, new, {"if-match": self._etag(found[1])}):
                return True
            if self._bare_etags is not None or self._bucket.read(self._prefix + name) != found:
                return False
        self.check_conditions()  # the store refused to replace an unchanged file
        return bool(self._bare_etags) and self.swap(name, old, new)

    def _etag(self, etag: str) -> str:
        """Returns an ETag as this store's If-Match takes it."""
        return etag.strip('"') if self._bare_etags else etag

    def _put_if(self, name: str, data: bytes, condition: Mapping[str, str]) -> bool:
        """Returns whether the file has ``data`` now: written under the condition, or by an earlier try of this PUT."""
        reply = self._bucket.put(self._prefix + name, data, condition, ok=(200, 404, 412))
        if reply.status == 200:
            return True
        found = self._bucket.read(self._prefix + name)
        return found is not None and found[0] == data

    def drop(self, name: str, old: bytes, instead: bytes) -> bool:
        """Replaces a file's content by ``instead`` if it is still ``old``: S3 has no conditional delete."""
        return self.swap(name, old, instead)

    def check_conditions(self) -> None:
        """Checks that the store honours `If-None-Match` and `If-Match`, which exclude a second run.

        It must refuse to create an existing file, and to replace one with another ETag. Raises UserError if it does
        not: such a store cannot hold a state. Ceph RGW 16 refuses the right ETag in quotes and takes it without (RFC
        9110 section 13.1.1 has quotes), so both forms are tried.
        """
        name = f"probe-{secrets.token_hex(8)}"
        key = self._prefix + name

        def put(data: bytes, **condition: str) -> int:
            headers = {header.replace("_", "-"): value for header, value in condition.items()}
            return self._bucket.put(key, data, headers, ok=(200, 400, 404, 405, 412, 501)).status

        try:
            with self._fatal(name):
                # 412 to the first PUT also passes: the PUT was repeated after a lost response
                if put(b"first", if_none_match="*") not in (200, 412) or put(b"second", if_none_match="*") != 412:
                    raise self._unsupported("If-None-Match")
                _, etag = self._bucket.read(key) or (b"", "")
                for self._bare_etags in (False, True):
                    if not etag or put(b"third", if_match=self._etag(OTHER_ETAG)) != 412:
                        break
                    if put(b"fourth", if_match=self._etag(etag)) == 200:
                        return
                    if (self._bucket.read(key) or (b"", ""))[0] == b"fourth":
                        return
                raise self._unsupported("If-Match")
        finally:
            with contextlib.suppress(Fatal):
                self.delete([name])

    def _unsupported(self, header: str) -> UserError:
        return UserError(
            f"state {self.uri}: the store at {self._bucket.endpoint} ignores the header {header} of a PUT, so two runs "
            "of this job could write at once. It cannot hold a state: set `state` to a directory, or to a bucket of a "
            "store with conditional writes"
        )

    def list(self, folder: str) -> list[str]:
        prefix = self._prefix + (f"{folder}/" if folder else "")
        with self._fatal(folder):
            keys = [found.key for page in self._bucket.pages(prefix) for found in page]
        return sorted(key[len(self._prefix) :] for key in keys)

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files and their local copies; a missing one is not an error."""
        deleted = list(names)
        for name in deleted:
            _path_below(self._cache, name).unlink(missing_ok=True)
        with self._fatal("old files"):
            self._bucket.delete([self._prefix + name for name in deleted])

    def local(self, name: str, *, refresh: bool = False) -> Path:
        """Returns the path of a local copy, mode 0600. Raises FileNotFoundError for a missing file.

        A copy of an immutable file is used again unless ``refresh``; any other file is downloaded each time.
        """
        target = _path_below(self._cache, name)
        if refresh or not target.exists() or not name.startswith(IMMUTABLE):
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd, temporary = tempfile.mkstemp(prefix=PART, dir=target.parent)  # mode 0600
            try:
                with os.fdopen(fd, "wb") as file, self._fatal(name):
                    exists = self._bucket.download(self._prefix + name, file.write)
                if not exists:
                    raise FileNotFoundError(name)
                Path(temporary).replace(target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        return target

    def delete_stale_copies(self) -> None:
        """Deletes local copies of files that the bucket no longer has: another machine may have deleted them."""
        in_bucket = set(self.list(""))
        for path in self._cache.rglob("*"):
            name = path.relative_to(self._cache).as_posix()
            if name in in_bucket or not path.is_file() or path.is_relative_to(self.spool_dir):
                continue
            if not path.name.startswith(PART) or time.time() - path.stat().st_mtime > OLD_PART_S:
                path.unlink(missing_ok=True)

    def _delete_immutable_copy(self, name: str) -> None:
        """Deletes the local copy of an immutable file that is written again, since the old bytes were damaged."""
        if name.startswith(IMMUTABLE):
            (self._cache / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _fatal(self, name: str) -> Iterator[None]:
        """Raises Fatal for an error of the bucket or of the local disk in the block."""
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
    """Returns the state in a directory or at ``s3://bucket/prefix``; the latter's local copies go to ``cache_root``."""
    if not uri.startswith("s3://"):
        return DirectoryState(Path(uri))
    parts = urlsplit(uri)
    digest = hashlib.sha256(f"{access.endpoint_url} {uri.rstrip('/')}".encode()).hexdigest()[:16]
    cache = cache_root / f"{parts.netloc}-{digest}"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    return BucketState(BucketControl(parts.netloc, access, side="state"), uri, parts.path.strip("/"), cache)
