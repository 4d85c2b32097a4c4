"""A job's state under a prefix of a bucket."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ferry.core import Again, Fatal, ObjectError, Unreachable, UserError, disk_error
from ferry.state.files import PART, DirectoryState, State, path_below
from ferry.storage import Access, Control, bucket_of, open_control

IMMUTABLE = ("chunks/", "ledger/")  # the content of a file here never changes
OLD_PART_S = 3600.0  # an older unfinished copy was left by a killed process


class BucketState:
    """A state under a bucket's prefix, which several machines may share. Files are downloaded to be read."""

    def __init__(self, bucket: Control, uri: str, prefix: str, cache: Path) -> None:
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
        self._delete_immutable_copy(name)
        with self._fatal(name):
            self._bucket.write(self._prefix + name, data)

    def write_file(self, name: str, path: Path) -> None:
        self._delete_immutable_copy(name)
        with self._fatal(name):
            self._bucket.upload(self._prefix + name, path)
            if name.startswith(IMMUTABLE):  # the local copy, which need not be downloaded
                target = path_below(self._cache, name)
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                path.chmod(0o600)
                path.replace(target)
            else:
                path.unlink()

    def create(self, name: str, data: bytes) -> bool:
        """Creates a file as :meth:`DirectoryState.create` does.

        An existing file with the same content counts as created: an earlier try wrote it and its response was lost.
        Callers create unique content only.
        """
        with self._fatal(name):
            return self._write_if(name, data, None)

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        with self._fatal(name):
            found = self._bucket.read(self._prefix + name)
            return found is not None and found[0] == old and self._write_if(name, new, found[1])

    def _write_if(self, name: str, data: bytes, version: str | None) -> bool:
        """Returns whether the file has ``data`` now: written if it had the version, or by an earlier try of this."""
        if self._bucket.write_if(self._prefix + name, data, version):
            return True
        found = self._bucket.read(self._prefix + name)
        return found is not None and found[0] == data

    def drop(self, name: str, old: bytes, instead: bytes) -> bool:
        """Replaces a file's content by ``instead`` if it is still ``old``: not all stores have a conditional delete."""
        return self.swap(name, old, instead)

    def check_conditions(self) -> None:
        """Checks that the store honours the conditions of writes, which exclude a second run.

        It must refuse to create a file that exists, and to replace one by a version that it had before. Raises
        UserError if it does not: such a store cannot hold a state.
        """
        name = f"probe-{secrets.token_hex(8)}"
        key = self._prefix + name
        try:
            with self._fatal(name):
                self._try(key, b"first", None)  # also False: the request was repeated after a lost response
                if self._try(key, b"second", None) is not False:
                    raise self._unsupported("If-None-Match")
                _, version = self._bucket.read(key) or (b"", "")
                replaced = self._try(key, b"third", version) or (self._bucket.read(key) or (b"", ""))[0] == b"third"
                if not (version and replaced) or self._try(key, b"fourth", version) is not False:
                    raise self._unsupported("If-Match")
        finally:
            with contextlib.suppress(Fatal):
                self.delete([name])

    def _try(self, key: str, data: bytes, version: str | None) -> bool | None:
        """Returns whether a conditional write was done, or None if the store does not know the condition."""
        try:
            return self._bucket.write_if(key, data, version)
        except ObjectError as error:
            if error.status_code in (400, 405, 501):
                return None
            raise

    def _unsupported(self, header: str) -> UserError:
        return UserError(
            f"state {self.uri}: the store at {self._bucket.endpoint()} ignores the header {header} of a PUT, so two "
            "runs of this job could write at once. It cannot hold a state: set `state` to a directory, or to a bucket "
            "of a store with conditional writes"
        )

    def list(self, folder: str, start: str = "") -> list[str]:
        prefix = self._prefix + (f"{folder}/" if folder else "") + start
        with self._fatal(folder):
            keys = [found.key for page in self._bucket.pages(prefix) for found in page]
        return sorted(key[len(self._prefix) :] for key in keys)

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files and their local copies; a missing one is not an error."""
        deleted = list(names)
        for name in deleted:
            path_below(self._cache, name).unlink(missing_ok=True)
        with self._fatal("old files"):
            self._bucket.delete([self._prefix + name for name in deleted])

    def local(self, name: str, *, refresh: bool = False) -> Path:
        """Returns the path of a local copy, mode 0600. Raises FileNotFoundError for a missing file.

        A copy of an immutable file is used again unless ``refresh``; any other file is downloaded each time.
        """
        target = path_below(self._cache, name)
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
            kind = Unreachable if exc.again is Again.NOW else Fatal
            raise kind(f"state {self.uri}: {name}: {exc}") from None
        except Fatal as exc:
            raise Fatal(f"state {self.uri}: {name}: {exc}") from None


def open_state(uri: str, access: Access, cache_root: Path) -> State:
    """Returns the state in a directory or under a bucket's prefix; the latter's local copies go to ``cache_root``."""
    if "://" not in uri:
        return DirectoryState(Path(uri))
    where = bucket_of(uri)
    digest = hashlib.sha256(f"{access.endpoint_url} {uri.rstrip('/')}".encode()).hexdigest()[:16]
    cache = cache_root / f"{where.name}-{digest}"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    return BucketState(open_control(uri, access, side="state"), uri, where.prefix, cache)
