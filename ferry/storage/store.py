"""The one object-store client: S3 behind obstore and the short way, directories behind local_files.py.

Every call maps its errors through :func:`ferry.core.errors.from_store` (from_folder) and raises ObjectError or
Fatal only. The library's own retries are off: the object's retry is the engine's (DESIGN: decisions).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import obstore
from obstore.store import S3Store

from ferry.core import (
    ONE_PUT_BYTES,
    PART_BYTES,
    Body,
    Budget,
    Charge,
    Confirmed,
    ErrorClass,
    ObjectError,
    Refused,
    Tries,
    UserError,
    no_delay,
)
from ferry.http import Algorithm
from ferry.storage.confirmation import Proof, Told, Trust, confirm, of_size
from ferry.storage.credentials import Access, s3_client, short_client, upload_s
from ferry.storage.downloads import Downloads
from ferry.storage.errors import ALREADY_THERE, NOT_FOUND, from_store, key_refused, no_condition
from ferry.storage.local import Directory, walk
from ferry.storage.local_files import Folder
from ferry.storage.multipart import Multipart, Notes, Parts
from ferry.storage.object_info import ObjectInfo, Sent, md5_of_etag, multipart_etag
from ferry.storage.s3 import BucketHttp, NotPlain
from ferry.storage.s3_control import BucketControl

__all__ = ["ObjectInfo", "Sent", "Store", "md5_of_etag", "multipart_etag", "open_store", "walk"]

REFUSED_IN_A_ROW = 50  # single keys refused, one after the other: it is not the keys

Request = Literal["head", "read", "write"]  # of one object: a store may allow the one and not the other


class AlreadyThere(ObjectError):
    """The key has an object, and `create` was asked for. ``maybe_ours``: this very upload may have put it there."""

    def __init__(self, *, maybe_ours: bool = False) -> None:
        super().__init__(ErrorClass.EXISTS, "the destination already has this key")
        self.maybe_ours = maybe_ours


class Store:
    """One root: a bucket with a prefix, or a directory."""

    def __init__(
        self,
        uri: str,
        clients: tuple[S3Store, S3Store] | None,
        prefix: str,
        kind: Literal["s3", "file"],
        spool_dir: Path,
        folder: Folder | None = None,
        *,
        in_byte_order: bool = False,
        budget: Budget | None = None,
        pool: Executor | None = None,
        http: Callable[[], BucketHttp] | None = None,
        access: Access | None = None,
        notes: Notes | None = None,
        read_s: float = 30.0,
    ) -> None:
        """``clients`` are obstore's, for what is asked and for uploads."""
        self.uri = uri
        self.kind = kind
        self.prefix = prefix
        self.backend: Any
        self._uploads: Any
        self.backend, self._uploads = clients or (None, None)
        self._read_s = read_s
        self._budget = budget or Budget()
        self._make_http = http
        self._access = access
        bucket = urlsplit(uri).netloc
        self._parts = Parts(bucket, notes, self.control, self._hasty)
        self._controls: dict[str, BucketControl] = {}
        self._http: BucketHttp | None = None
        self._directory = Directory(folder, spool_dir, self._budget, pool) if folder is not None else None
        self._downloads = Downloads(bucket, self.backend, self._short_way, spool_dir, self._budget, pool)
        self.in_byte_order = in_byte_order  # does a listing come in the order of the keys' bytes?
        self._refused: Counter[Request] = Counter()  # in a row
        self.trust = Trust()

    def path(self, key: str) -> str:
        """The key inside the backend: prefix and key joined by exactly one slash."""
        return f"{self.prefix}/{key}" if self.prefix else key

    async def put(
        self,
        key: str,
        body: Body,
        attributes: Mapping[str, str],
        *,
        create: bool = False,
    ) -> Sent:
        """Writes one object and returns the store's answer.

        With ``create`` an existing key is EXISTS. Parts know no such condition: for them it is looked for just before.
        """
        try:
            async with self._one_key("write"):
                return await self._put(key, body, attributes, create)
        except ObjectError as error:
            if create and error.status_code == 501:
                raise no_condition() from None
            raise

    @contextlib.asynccontextmanager
    async def _one_key(self, kind: Request) -> AsyncIterator[None]:
        """A refusal in the block is Fatal, unless other keys are taken: then it is this row's own failure (forbidden),
        and Fatal when that happens to many in a row."""
        try:
            yield
        except Refused as refused:
            self._refused[kind] += 1
            if self._refused[kind] > REFUSED_IN_A_ROW or not await self._may_write():
                raise
            raise key_refused(refused, kind) from None
        self._refused[kind] = 0

    async def _may_write(self) -> bool:
        """Does the destination take other keys?"""
        if self._directory is not None:
            return await self._directory.may_write()
        return (await asyncio.to_thread(self.control().may_write, self.prefix)).status < 300

    async def _put(self, key: str, body: Body, attributes: Mapping[str, str], create: bool) -> Sent:
        if self._directory is not None:
            return Sent(await self._directory.put(key, body, create))
        if body.size <= ONE_PUT_BYTES and (http := self._short_way()) is not None:
            with contextlib.suppress(NotPlain), body.upload() as data:
                sent = await http.put(self.path(key), data, body.sha256, attributes, create)
                if sent.exists:
                    raise AlreadyThere(maybe_ours=sent.sent_twice)
                return sent
        if body.path is not None:
            return await self._put_parts(key, body, body.path, attributes, create)
        assert body.data is not None
        extra: dict[str, Any] = (
            {"mode": "create"} if create else {"use_multipart": False}
        )  # one part: the ETag is the MD5
        return Sent(await self._put_long_way(key, body.data, attributes, extra))

    async def _put_parts(self, key: str, body: Body, file: Path, attributes: Mapping[str, str], create: bool) -> Sent:
        """A multipart upload, which is aborted where it fails; one that is broken off has a note for the next run."""
        if create and await self.head(key) is not None:
            raise AlreadyThere
        http, path = self._short_way(), self.path(key)
        async with self._budget.upload_in_parts() as at_once:

            async def work() -> Sent:
                if http is not None:
                    with contextlib.suppress(NotPlain):
                        return await Multipart(http, path, body).send(attributes, at_once, create=create)
                extra = {"use_multipart": True, "chunk_size": PART_BYTES, "max_concurrency": at_once}
                return Sent(await self._put_long_way(key, file, attributes, extra), in_parts=True)

            sent = await self._parts.upload(path, work)
        if sent.exists:
            raise AlreadyThere(maybe_ours=sent.sent_twice)
        return sent

    async def _put_long_way(
        self, key: str, source: bytes | Path, attributes: Mapping[str, str], extra: dict[str, Any]
    ) -> str | None:
        try:
            extra |= {"attributes": attributes}
            async with asyncio.timeout(upload_s(len(source), self._read_s) if isinstance(source, bytes) else None):
                result = await obstore.put_async(self._uploads, self.path(key), source, **extra)
        except ALREADY_THERE:
            raise AlreadyThere from None
        except Exception as exc:
            raise from_store(exc) from None
        etag: str | None = result["e_tag"]
        return etag

    def can_copy_from(self, source: Store) -> bool:
        """Both are buckets of one server, for one set of credentials."""
        both = self.kind == source.kind == "s3" and self._make_http is not None
        return both and self._access is not None and self._access == source._access

    async def copy_from(
        self,
        source: Store,
        source_key: str,
        key: str,
        *,
        size: int,
        etag: str,
        moved: Callable[[], object] = lambda: None,
    ) -> Proof:
        """Has the server copy an object that was listed with this size and ETag.

        | both ETags look like MD5s | they are equal | confirmed by |
        |---|---|---|
        | yes | yes | digest |
        | yes | no | what the source's ETag says, and the copy that is read back has; else NotPlain |
        | no | | size |

        Raises NotPlain where the server does not copy, too: reading and writing the bytes shows what is wrong.
        """
        http = self._short_way()
        assert http is not None
        bucket = urlsplit(source.uri).netloc
        copied = await http.copy(self.path(key), f"{bucket}/{source.path(source_key)}", etag, size)
        md5, listed = md5_of_etag(copied), md5_of_etag(etag)
        if md5 is not None and md5 == listed:
            return Proof(Confirmed.DIGEST, copied)
        if md5 is not None and listed is not None and self.trust.reads_back(Told.MAYBE_OTHER, key):
            stored, _ = await self.digest(key, max_bytes=size, algorithm="md5", moved=moved)
            if stored != listed:
                raise NotPlain
            return Proof(Confirmed.READ_BACK, copied)
        await of_size(self, key, size)
        return Proof(Confirmed.SIZE, copied)

    async def head(self, key: str, *, side: str = "destination") -> ObjectInfo | None:
        """What stands under a key, or None."""
        if side == "source":
            return await self._head(key, side)
        async with self._one_key("head"):
            return await self._head(key, side)

    async def _head(self, key: str, side: str) -> ObjectInfo | None:
        if self._directory is not None:
            return await self._directory.head(key, side)
        try:
            meta = await obstore.head_async(self.backend, self.path(key))
        except NOT_FOUND:
            return None
        except Exception as exc:
            raise from_store(exc, side=side) from None
        return self._found(meta)

    async def delete(self, key: str) -> None:
        """Removes what stands under a key; nothing there is fine. Raises ObjectError and Fatal."""
        if self._directory is not None:
            await self._directory.delete(key)
        elif (http := self._short_way()) is not None:
            await http.delete(self.path(key))
        else:
            try:
                await obstore.delete_async(self.backend, self.path(key))
            except FileNotFoundError:
                return
            except Exception as exc:
                raise from_store(exc) from None

    async def get(
        self, key: str, *, max_bytes: int, side: str = "source", charge: Charge | None = None
    ) -> tuple[Body, ObjectInfo, dict[str, str]]:
        """One object with its digests and attributes (Content-Type, Content-Encoding, metadata).

        ``charge`` says how long to wait after so many bytes.
        """
        if self._directory is not None:
            return await self._directory.get(key, max_bytes, side, charge or no_delay)
        return await self._downloads.get(key, self.path(key), max_bytes, side, charge or no_delay)

    async def digest(
        self,
        key: str,
        *,
        max_bytes: int,
        algorithm: Algorithm = "sha256",
        moved: Callable[[], object] = lambda: None,
    ) -> tuple[str, ObjectInfo]:
        """The digest of an object's bytes, read through: however large it is, hardly any of it is in memory.

        ``moved`` hears of each piece.
        """
        async with self._one_key("read"):
            if self._directory is not None:
                return await self._directory.digest(key, max_bytes, algorithm, moved)
            return await self._downloads.digest(key, self.path(key), max_bytes, algorithm, moved)

    def control(self, side: str = "destination") -> BucketControl:
        """Asks the bucket for everything that is not an object; not in an event loop."""
        if side not in self._controls:
            assert self._access is not None
            self._controls[side] = BucketControl(
                urlsplit(self.uri).netloc, self._access, side=side, read_s=self._read_s
            )
        return self._controls[side]

    def _hasty(self) -> BucketControl:
        """Asks once, and no longer than the store may be silent."""
        assert self._access is not None
        bucket = urlsplit(self.uri).netloc
        return BucketControl(bucket, self._access, read_s=self._read_s, tries=Tries(attempts=1))

    def _short_way(self) -> BucketHttp | None:
        if self._http is None and self._make_http is not None:
            self._http = self._make_http()
        return self._http

    @property
    def connections_opened(self) -> int:
        """Connections that the short way opened so far."""
        return self._http.connections_opened if self._http is not None else 0

    async def clean(self) -> None:
        """Ends what killed runs of this job left unfinished; while no other run of it is on."""
        if self._directory is not None:
            await self._directory.clean()
        else:
            await self._parts.clean(self.prefix)

    async def close(self) -> None:
        if self._directory is not None:
            await asyncio.to_thread(self._directory.folder.close)
        if self._http is not None:
            await self._http.close()

    def list(self, *, start_after: str | None = None, side: str = "destination") -> Iterator[list[ObjectInfo]]:
        """Pages of objects under the prefix, in key order from ``start_after`` on (S3 ListObjectsV2)."""
        if self._directory is not None:
            yield from walk(self._directory.folder.root, links=side == "source")
            return
        below = f"{self.prefix}/" if self.prefix else ""
        for page in self.control(side).pages(below, below + start_after if start_after is not None else None):
            yield [replace(found, key=found.key[len(below) :]) for found in page]

    async def confirm(self, key: str, body: Body, sent: Sent) -> Proof:
        """Compares the store's answer with what was sent (confirmation.py). Raises UPLOAD_UNCONFIRMED."""
        if self.kind == "file":
            await of_size(self, key, body.size)
            return Proof(Confirmed.SIZE, sent.etag)
        return await confirm(self, self.trust, key, body, sent)

    def _found(self, meta: Any) -> ObjectInfo:
        path = str(meta["path"])
        key = path[len(self.prefix) + 1 :] if self.prefix else path
        return ObjectInfo(key, int(meta["size"]), meta["e_tag"], meta["last_modified"])


def open_store(
    uri: str,
    access: Access,
    spool_dir: Path,
    *,
    timeout_s: float = 600.0,
    read_s: float = 30.0,
    create: bool = False,
    budget: Budget | None = None,
    pool: Executor | None = None,
    short_way: bool = False,
    mark: str = "ferry",
    notes: Notes | None = None,
) -> Store:
    """The store that a URI names: ``s3://bucket/prefix`` or ``file:///directory``.

    ``timeout_s`` bounds a request, ``read_s`` the silence of a bucket. ``budget`` bounds the bytes of bodies read,
    ``pool`` hashes large ones. With ``short_way`` single objects of a
    bucket go through the loop's own HTTP client; the store then belongs to one loop, and is closed at the end. ``mark``
    is the job's: what it leaves unfinished in a directory is known by it; ``notes`` has what it begins in a bucket.
    Raises UserError for another scheme, and for a directory that does not exist (unless ``create``).
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        clients = (
            s3_client(parts.netloc, access, timeout_s, read_s),
            s3_client(parts.netloc, access, upload_s(PART_BYTES, read_s)),
        )
        # Amazon promises it (ListObjectsV2); of other stores nothing is known.
        at_amazon = access.endpoint_url is None or ".amazonaws.com" in access.endpoint_url
        prefix = parts.path.strip("/")
        http = None
        if short_way and not access.proxied:
            http = partial(short_client, parts.netloc, access, timeout_s, read_s)
        return Store(
            uri, clients, prefix, "s3", spool_dir, in_byte_order=at_amazon, budget=budget, pool=pool, http=http,
            access=access, notes=notes, read_s=read_s,
        )  # fmt: skip
    if parts.scheme == "file":
        directory = Path(unquote(parts.path))
        if not directory.is_dir() and not create:
            raise UserError(f"the directory {directory} does not exist")
        folder = Folder(directory, mark, create=create)
        return Store(uri, None, "", "file", spool_dir, folder, budget=budget, pool=pool)
    raise UserError(f"`{uri}` is neither `s3://bucket/prefix/` nor `file:///directory/`")
