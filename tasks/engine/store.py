"""The one object-store client: S3 and directories behind obstore.

Every call maps its errors through :func:`tasks.engine.errors.from_store` and raises ObjectError or
Fatal only. The library's own retries are off: the object's retry is the engine's (DESIGN: decisions).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import obstore
from obstore.store import LocalStore, S3Store

from tasks.engine.access import Access, s3_client, short_client
from tasks.engine.body import (
    ONE_PUT_BYTES,
    PART_BYTES,
    PARTS_AT_ONCE,
    SPOOL_OVER_BYTES,
    Batches,
    Body,
    BodyWriter,
    weight,
    whole_body,
)
from tasks.engine.bucket_http import BucketHttp, NotPlain, attributes_of, last_modified
from tasks.engine.budget import Budget
from tasks.engine.errors import ObjectError, Refused, UserError, from_store, from_store_http, key_refused
from tasks.engine.incoming import Charge, Reader, for_nothing
from tasks.engine.objects import ErrorClass
from tasks.engine.wire import said

_SINGLE_PART_ETAG = re.compile(r'"?([0-9a-f]{32})"?\Z')
OPAQUE_AFTER = 8
REFUSED_IN_A_ROW = 50  # single keys refused, one after the other: it is not the keys
_MULTIPART_ETAG = re.compile(r'"?([0-9a-f]{32}-\d+)"?\Z')


@dataclass(frozen=True, slots=True)
class Found:
    """An object as a listing or a HEAD shows it. ``key`` is relative to the store's prefix."""

    key: str
    size: int
    etag: str | None
    last_modified: datetime | None


def md5_of_etag(etag: str | None) -> str | None:
    """The MD5 that a single-part S3 ETag is, or None (multipart, KMS and file ETags are no MD5)."""
    match = _SINGLE_PART_ETAG.match(etag or "")
    return match.group(1) if match else None


def multipart_etag(path: Path, part_bytes: int) -> str:
    """S3's composite ETag: MD5 over the parts' MD5s, and their number (S3 API, object integrity)."""
    parts = []
    with path.open("rb") as file:
        while piece := file.read(part_bytes):
            parts.append(hashlib.md5(piece, usedforsecurity=False).digest())
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


class Store:
    """One root: a bucket with a prefix, or a directory."""

    def __init__(
        self,
        uri: str,
        backend: S3Store | LocalStore,
        prefix: str,
        kind: Literal["s3", "file"],
        spool_dir: Path,
        directory: Path = Path(),
        *,
        in_byte_order: bool = False,
        budget: Budget | None = None,
        pool: Executor | None = None,
        http: Callable[[], BucketHttp] | None = None,
        access: Access | None = None,
    ) -> None:
        self.uri = uri
        self.kind = kind
        self.prefix = prefix
        self.backend = backend
        self._spool_dir = spool_dir
        self._budget = budget or Budget(2**62)
        self._pool = pool
        self._make_http = http
        self._access = access
        self._http: BucketHttp | None = None
        self.directory = directory
        self.in_byte_order = in_byte_order  # does a listing come in the order of the keys' bytes?
        self._refused_in_a_row = 0
        self._opaque = 0  # objects that were right under an ETag that is not their MD5
        self.md5_etags: bool | None = None  # are this store's single-part ETags MD5s? None: not seen yet

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
    ) -> str | None:
        """Writes one object and returns the store's ETag.

        With ``create`` an existing key is EXISTS. Parts know no such condition: for them it is looked for just before.
        A refusal is Fatal, unless other keys are taken: then it is this row's own failure (forbidden).
        """
        try:
            etag = await self._put(key, body, attributes, create)
        except Refused as refused:
            self._refused_in_a_row += 1
            if self._refused_in_a_row > REFUSED_IN_A_ROW or (http := self._short_way()) is None:
                raise
            status, _ = await http.may_write(self.prefix)
            if status >= 300:
                raise
            raise key_refused(refused) from None
        self._refused_in_a_row = 0
        return etag

    async def _put(self, key: str, body: Body, attributes: Mapping[str, str], create: bool) -> str | None:
        if body.size <= ONE_PUT_BYTES and (http := self._short_way()) is not None:
            with contextlib.suppress(NotPlain), body.upload() as data:
                sent = await http.put(self.path(key), data, body.sha256, attributes, create)
                if sent.exists:
                    raise ObjectError(ErrorClass.EXISTS, "the destination already has this key")
                return sent.etag
        source: bytes | Path = body.data if body.data is not None else body.path  # type: ignore[assignment]
        extra: dict[str, Any] = {"attributes": attributes} if self.kind == "s3" else {}
        if body.path is not None:
            if create and await self.head(key) is not None:
                raise ObjectError(ErrorClass.EXISTS, "the destination already has this key")
            extra |= {"use_multipart": True, "chunk_size": PART_BYTES, "max_concurrency": PARTS_AT_ONCE}
        elif create:
            extra["mode"] = "create"
        else:
            extra["use_multipart"] = False  # one part, so that the ETag is the MD5
        try:
            result = await obstore.put_async(self.backend, self.path(key), source, **extra)
        except obstore.exceptions.AlreadyExistsError:
            raise ObjectError(ErrorClass.EXISTS, "the destination already has this key") from None
        except Exception as exc:
            raise from_store(exc) from None
        return result["e_tag"]

    def can_copy_from(self, source: Store) -> bool:
        """Both are buckets of one server, for one set of credentials."""
        both = self.kind == source.kind == "s3" and self._make_http is not None
        return both and self._access is not None and self._access == source._access

    async def copy_from(self, source: Store, source_key: str, key: str, *, size: int, etag: str) -> str:
        """Has the server copy an object that was listed with this size and ETag; returns the copy's ETag.

        Confirmed by equal ETags where those are MD5s, else by its size. Raises NotPlain where the server does not copy.
        """
        http = self._short_way()
        assert http is not None
        bucket = urlsplit(source.uri).netloc
        copied = await http.copy(self.path(key), f"{bucket}/{source.path(source_key)}", etag)
        md5 = md5_of_etag(copied)
        if md5 is None or md5 != md5_of_etag(etag):
            found = await self.head(key)
            if found is None or found.size != size:
                raise ObjectError(
                    ErrorClass.UPLOAD_UNCONFIRMED,
                    f"the copy at the destination has not the {size:,} bytes of its source",
                )
        return copied

    async def head(self, key: str, *, side: str = "destination") -> Found | None:
        """What stands under a key, or None."""
        try:
            meta = await obstore.head_async(self.backend, self.path(key))
        except (obstore.exceptions.NotFoundError, FileNotFoundError):
            return None
        except Exception as exc:
            raise from_store(exc, side=side) from None
        return self._found(meta)

    async def get(
        self, key: str, *, max_bytes: int, side: str = "source", charge: Charge | None = None
    ) -> tuple[Body, Found, dict[str, str]]:
        """One object with its digests and attributes (Content-Type, Content-Encoding, metadata).

        ``charge`` says how long to wait after so many bytes.
        """
        if (http := self._short_way()) is not None:
            with contextlib.suppress(NotPlain):
                return await self._get_short(http, key, max_bytes, side, charge or for_nothing)
        held = 0
        try:
            result = await obstore.get_async(self.backend, self.path(key))
            found = self._found(result.meta)
            if found.size > max_bytes:
                raise ObjectError(ErrorClass.TOO_LARGE, f"{found.size:,} bytes are more than max_bytes ({max_bytes:,})")
            attributes = {str(name): str(value) for name, value in result.attributes.items()}
            held = await self._budget.take(weight(found.size))
            if found.size <= SPOOL_OVER_BYTES:
                body = await whole_body(bytes(await result.bytes_async()), self._pool)
                if charge is not None and (delay_s := charge(body.size)):
                    await asyncio.sleep(delay_s)
            else:
                body = await self._spooled(result, charge)
        except BaseException as exc:
            self._budget.give_back(held)
            if isinstance(exc, (obstore.exceptions.NotFoundError, FileNotFoundError)):
                raise ObjectError(ErrorClass.NOT_FOUND, f"the {side} has no such object", status_code=404) from None
            if not isinstance(exc, Exception) or isinstance(exc, ObjectError):
                raise
            raise from_store(exc, side=side) from None
        body.budget, body.held = self._budget, held
        if body.size != found.size:
            body.discard()
            raise ObjectError(ErrorClass.TRUNCATED, f"{body.size:,} of {found.size:,} bytes arrived")
        return body, found, attributes

    def _short_way(self) -> BucketHttp | None:
        if self._http is None and self._make_http is not None:
            self._http = self._make_http()
        return self._http

    @property
    def handshakes(self) -> int:
        """Connections that the short way opened so far."""
        return self._http.handshakes if self._http is not None else 0

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def _get_short(
        self, http: BucketHttp, key: str, max_bytes: int, side: str, charge: Charge
    ) -> tuple[Body, Found, dict[str, str]]:
        response = await http.get(self.path(key), side)
        try:
            reader = Reader(self._spool_dir, self._budget, self._pool, max_bytes)
            body = await reader.body(response, charge, undo=False)
        except BaseException as exc:
            response.close()
            if isinstance(exc, Exception):
                raise from_store_http(exc, side) from None
            raise
        found = Found(key, body.size, said(response.headers.get("ETag")), last_modified(response.headers))
        return body, found, attributes_of(response.headers)

    async def _spooled(self, result: Any, charge: Charge | None) -> Body:
        writer = BodyWriter(self._spool_dir)
        try:
            batches = Batches(writer.write, self._pool)
            async for piece in result.stream():
                await batches.add(bytes(piece))
                if charge is not None and (delay_s := charge(len(piece))):
                    await asyncio.sleep(delay_s)
            await batches.flush()
            return writer.finish()
        except BaseException:
            writer.abandon()
            raise

    def list(self, *, start_after: str | None = None, side: str = "destination") -> Iterator[list[Found]]:
        """Pages of objects under the prefix, in key order from ``start_after`` on (S3 ListObjectsV2)."""
        offset = self.path(start_after) if start_after is not None else None
        prefix = self.prefix or None
        if self.kind == "file":
            yield from walk(self.directory)
            return
        try:
            for page in obstore.list(self.backend, prefix, offset=offset, chunk_size=1000):
                yield [self._found(meta) for meta in page]
        except Exception as exc:
            raise from_store(exc, side=side) from None

    async def confirm(self, key: str, body: Body, etag: str | None) -> None:
        """Compares the store's answer with what was sent.

        | the answer's ETag | compared with | on difference |
        |---|---|---|
        | 32 hex digits, single-part | the body's MD5 | read back: upload_unconfirmed |
        | composite, and the body was spooled | MD5 over the parts' MD5s | HEAD |
        | anything else | HEAD: the length | upload_unconfirmed |
        """
        md5 = md5_of_etag(etag)
        if self.kind == "s3":
            if md5 is not None and md5 == body.md5:
                self.md5_etags = True
                return
            match = _MULTIPART_ETAG.match(etag or "") if body.path is not None else None
            if match and body.path and match.group(1) == await asyncio.to_thread(multipart_etag, body.path, PART_BYTES):
                return
        found = await self.head(key)
        if found is None:
            raise ObjectError(
                ErrorClass.UPLOAD_UNCONFIRMED, "the destination does not show the object after the upload"
            )
        if found.size != body.size:
            raise ObjectError(
                ErrorClass.UPLOAD_UNCONFIRMED,
                f"the destination shows {found.size:,} bytes where {body.size:,} were sent",
            )
        if self.kind == "s3" and md5 is not None and self.md5_etags is not False:
            await self._read_back(key, body)

    async def _read_back(self, key: str, body: Body) -> None:
        """An ETag that looks like an MD5 and is another: SSE-KMS, or another body. The bytes decide.

        Where they are right again and again, and no ETag of this store ever was an MD5, its ETags are not asked again.
        Once proves nothing: an answer that was lost, and a second one that was wrong, look the same.
        """
        stored, _, _ = await self.get(key, max_bytes=body.size, side="destination")
        try:
            if stored.sha256 != body.sha256:
                raise ObjectError(ErrorClass.UPLOAD_UNCONFIRMED, "the destination holds other bytes than were sent")
        finally:
            stored.discard()
        self._opaque += 1
        if self.md5_etags is None and self._opaque >= OPAQUE_AFTER:
            self.md5_etags = False

    def _found(self, meta: Any) -> Found:
        path = str(meta["path"])
        key = path[len(self.prefix) + 1 :] if self.prefix else path
        return Found(key, int(meta["size"]), meta["e_tag"], meta["last_modified"])


def walk(directory: Path) -> Iterator[list[Found]]:
    """A directory's files, page by page in no certain order. obstore's own listing leaves out names like `x#1`.

    Links are followed where they stay inside the directory.
    """
    root = directory.resolve()
    for where, _, names in os.walk(root):
        page = []
        for name in names:
            path = Path(where, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                continue
            # A name that is not UTF-8 is shown with escapes: nothing is found under it, so it is a failed row.
            key = os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace")
            try:
                stat = path.stat()
            except OSError:
                continue  # gone since, or a link to nowhere
            page.append(Found(key, stat.st_size, None, datetime.fromtimestamp(stat.st_mtime, UTC)))
        if page:
            yield page


def open_store(
    uri: str,
    access: Access,
    spool_dir: Path,
    *,
    timeout_s: float = 600.0,
    create: bool = False,
    budget: Budget | None = None,
    pool: Executor | None = None,
    short_way: bool = False,
) -> Store:
    """The store that a URI names: ``s3://bucket/prefix`` or ``file:///directory``.

    ``budget`` bounds the bytes of bodies read, ``pool`` hashes large ones. With ``short_way`` single objects of a
    bucket go through the loop's own HTTP client; the store then belongs to one loop, and is closed at the end.
    Raises UserError for another scheme, and for a directory that does not exist (unless ``create``).
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        backend = s3_client(parts.netloc, access, timeout_s)
        # Amazon promises it (ListObjectsV2); of other stores nothing is known.
        at_amazon = access.endpoint_url is None or ".amazonaws.com" in access.endpoint_url
        prefix = parts.path.strip("/")
        http = partial(short_client, parts.netloc, access, timeout_s) if short_way and not access.proxied else None
        return Store(
            uri, backend, prefix, "s3", spool_dir, in_byte_order=at_amazon, budget=budget, pool=pool, http=http,
            access=access,
        )  # fmt: skip
    if parts.scheme == "file":
        directory = Path(unquote(parts.path))
        if not directory.is_dir() and not create:
            raise UserError(f"the directory {directory} does not exist")
        local = LocalStore(directory, mkdir=create)
        return Store(uri, local, "", "file", spool_dir, directory, budget=budget, pool=pool)
    raise UserError(f"`{uri}` is neither `s3://bucket/prefix/` nor `file:///directory/`")
