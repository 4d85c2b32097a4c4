"""Control requests to a bucket: every request that does not move an object of the job, tried up to five times.

Listings, preflight, multipart control and the files of a state. Synchronous and safe to use from several threads;
objects go over BucketHttp in the event loop (docs/decisions/0031).
"""

from __future__ import annotations

import contextlib
import hashlib
from base64 import b64encode
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies
from uuid import uuid4
from xml.sax.saxutils import escape

import urllib3

from ferry.core import PERMANENT_STATUSES, RETRYABLE_STATUSES, ErrorClass, Fatal, ObjectError, Tries
from ferry.http import parse_retry_after, tls
from ferry.storage import s3_xml
from ferry.storage.credentials import Access, endpoint_of, keys_of, region_of
from ferry.storage.errors import HTTP_ERRORS, from_urllib3, redirected, s3_code, store_status
from ferry.storage.object_info import ObjectInfo, composite_etag, composite_of
from ferry.storage.s3 import Reply
from ferry.storage.sigv4 import EMPTY_SHA256, Signer, encoded

T = TypeVar("T")
CONNECT_S, READ_S = 15.0, 60.0
PART_BYTES = 16 << 20
MOST_PARTS = 10_000  # S3 API, multipart upload limits
KEYS_PER_DELETE = 1000  # S3 API, DeleteObjects
_ANSWER_BYTES = 64 << 20  # a page of 1,000 keys of 1,024 bytes, each written as %XX, is 3 MB; plan.json is 200 KB
_PIECE_BYTES = 1 << 20
# Answers that another try would not change.
_ANSWERS = (frozenset(range(200, 300)) | frozenset(range(400, 500)) | PERMANENT_STATUSES) - RETRYABLE_STATUSES | {
    200,
    404,
}


class BucketControl:
    """One bucket. Raises ObjectError and Fatal, naming ``side``: destination, source or state."""

    def __init__(
        self, bucket: str, access: Access, *, side: str = "destination", read_s: float = READ_S, tries: Tries = Tries()
    ) -> None:
        self.endpoint = endpoint_of(access)
        self._bucket = bucket
        self._access = access
        self._side = side
        self._timeout = urllib3.Timeout(connect=CONNECT_S, read=read_s)
        self._tries = tries
        self._deletes_many = True
        base = urlsplit(self.endpoint)
        self._origin = f"{base.scheme}://{base.netloc}"
        self._root = f"{base.path.rstrip('/')}/{bucket}/"
        port = "" if base.port in (None, {"http": 80, "https": 443}.get(base.scheme)) else f":{base.port}"
        self._host = f"{base.hostname}{port}"

    # --- the bucket

    def head_bucket(self) -> Reply:
        """What the store says of the bucket, a refusal too (S3 API: HeadBucket)."""
        return self.ask("HEAD", ok=_ANSWERS)

    def may_write(self, prefix: str) -> Reply:
        """Asks for the right to write below a prefix: begins an upload in parts and aborts it. No object stays."""
        key = _trial(prefix) + uuid4().hex

        def once() -> Reply:
            reply = self._once("POST", key, {"uploads": ""}, ok=_ANSWERS)
            if reply.status == 200:
                self._give_up(key, s3_xml.text(s3_xml.document(reply.body, self._side), "UploadId") or "")
            return reply

        return self._tries(once)

    def pages(self, prefix: str, start_after: str | None = None) -> Iterator[list[ObjectInfo]]:
        """Yields pages of objects whose whole keys begin with ``prefix`` (S3 API: ListObjectsV2).

        A page that says it is the last is believed only after one more request, which starts after the last key: some
        stores answer a listing that was cut as if it were whole. ``start_after`` is a whole key.
        """
        after, token = start_after, None
        first: str | None = None
        unfinished = False  # the page before said that more follows
        followed: set[int] = set()  # hashes of this listing's tokens: 100 million keys have 100,000 of them
        while True:
            page = self._page(prefix, after, token)
            objects = page.objects
            if token is None and objects and objects[0].key == after:  # some stores start at it
                objects = objects[1:]
            keys = [each.key for each in objects]
            from_the_start = token is None and first is not None and keys[:1] == [first]
            if token is None:
                followed.clear()
            else:
                followed.add(hash(token))
            stuck = unfinished and (from_the_start or hash(page.token) in followed)
            if stuck or (page.truncated and not page.token and not keys):
                raise ObjectError(ErrorClass.STORE_ERROR, f"the {self._side}'s listing does not say where it goes on")
            if from_the_start or not (keys or page.truncated):  # a store that does not know start-after begins again
                return
            if keys:
                first = first or keys[0]
                after = keys[-1]
                yield objects
            unfinished, token = page.truncated, page.token if page.truncated else None

    def _page(self, prefix: str, after: str | None, token: str | None) -> s3_xml.Page:
        query = {"encoding-type": "url", "list-type": "2", "prefix": prefix}
        if token is not None:
            query["continuation-token"] = token
        elif after is not None:
            query["start-after"] = after
        return self._tries(lambda: s3_xml.page(self._once("GET", "", query).body, self._side))

    # --- uploads in parts

    def _create(self, key: str, headers: Mapping[str, str]) -> str:
        """Begins an upload; returns its ID. One whose answer was lost stays begun: :meth:`abort` finds it."""

        def once() -> str:
            return s3_xml.begun(self._once("POST", key, {"uploads": ""}, headers).body, self._side)

        return self._tries(once)

    def _complete(self, key: str, upload_id: str, etags: list[str], size: int) -> None:
        """Ends an upload. An answer that was lost leaves no upload to end: then the object itself decides."""
        body = s3_xml.parts(etags)

        def once() -> None:
            reply = self._once("POST", key, {"uploadId": upload_id}, {}, body, ok=(200, 404))
            if reply.status == 200:
                s3_xml.document(reply.body, self._side)
                return
            there = self.ask("HEAD", key, ok=(200, 404))
            wanted, shown = composite_of(etags), composite_etag(there.headers.get("ETag"))
            same = shown is None or wanted is None or shown == wanted
            if there.status != 200 or there.headers.get("Content-Length") != str(size) or not same:
                raise s3_xml.upload_gone(reply.body, self._side)

        self._tries(once)

    def _give_up(self, key: str, upload_id: str) -> None:
        """Aborts an upload where the store lets us: some policies allow writing and not this."""
        with contextlib.suppress(ObjectError, Fatal):
            self.ask("DELETE", key, {"uploadId": upload_id}, ok=(200, 204, 404))

    def abort(self, key: str, *, below: bool = False) -> bool:
        """Aborts all multipart uploads to exactly this key, or to keys that begin so; True when none is left.

        S3 API: ListMultipartUploads, AbortMultipartUpload.
        """
        root = self._tries(
            lambda: s3_xml.document(self._once("GET", "", {"prefix": key, "uploads": ""}).body, self._side)
        )
        for upload in s3_xml.children(root, "Upload"):
            its_key, upload_id = s3_xml.text(upload, "Key") or "", s3_xml.text(upload, "UploadId")
            if upload_id and (its_key == key or (below and its_key.startswith(key))):
                self.ask("DELETE", its_key, {"uploadId": upload_id}, ok=(200, 204, 404))
        return s3_xml.text(root, "IsTruncated") != "true"

    def forget_trials(self, prefix: str) -> None:
        """Aborts what :meth:`may_write` began and, killed, did not end."""
        self.abort(_trial(prefix), below=True)

    # --- files of a state

    def read(self, key: str) -> tuple[bytes, str] | None:
        """A small object's bytes and its ETag; None where there is none."""

        def once() -> tuple[bytes, str] | None:
            reply = self._once("GET", key, {}, ok=(200, 404))
            if reply.status == 404:
                self._not_there(reply)
                return None
            return reply.body, reply.headers.get("ETag", "")

        return self._unless_missing(once, None)

    def download(self, key: str, write: Callable[[bytes], object]) -> bool:
        """Hands an object to ``write`` in pieces of 1 MiB; False where there is none.

        An answer that ends early is continued where it ended, if the object still has its ETag.
        """
        done, etag = 0, ""

        def once() -> bool:
            nonlocal done, etag
            headers = {"range": f"bytes={done}-"} if done else {}
            if done and etag:
                headers["if-match"] = etag
            with self._open("GET", key, {}, headers) as response:
                if response.status == 404 and not done:
                    self._not_there(self._reply(response))
                    return False
                if response.status != (206 if done else 200):
                    raise self._refused(self._reply(response))
                etag = response.headers.get("ETag", "")
                while piece := self._piece(response, _PIECE_BYTES):
                    write(piece)
                    done += len(piece)
            return True

        while True:
            before = done
            try:
                return self._unless_missing(once, False)
            except ObjectError:
                if done == before or not etag:  # five tries without a byte, or nothing to tell versions apart by
                    raise

    def put(self, key: str, data: bytes, headers: Mapping[str, str] = {}, ok: Container[int] = (200,)) -> Reply:
        return self.ask("PUT", key, {}, headers, data, ok=ok)

    def upload(self, key: str, path: Path) -> None:
        """Writes a local file as an object; a large one in parts, each of them tried up to five times."""
        size = path.stat().st_size
        part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))
        with path.open("rb") as file:
            if size <= part_bytes:
                self.put(key, file.read())
                return
            upload_id = self._create(key, {})
            try:
                etags: list[str] = []
                while piece := file.read(part_bytes):
                    query = {"partNumber": str(len(etags) + 1), "uploadId": upload_id}
                    etags.append(self.ask("PUT", key, query, {}, piece).headers.get("ETag", ""))
                self._complete(key, upload_id, etags, size)
            except (ObjectError, Fatal):
                self._give_up(key, upload_id)
                raise

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects; missing ones are no error. One by one where the store does not know DeleteObjects (GCS)."""
        left = list(keys)
        while left and self._deletes_many:
            batch, rest = left[:KEYS_PER_DELETE], left[KEYS_PER_DELETE:]
            try:
                self._tries(lambda batch=batch: self._delete_many(batch))  # type: ignore[misc]
                left = rest
            except ObjectError as error:
                if error.status_code not in (400, 405, 501):
                    raise
                self._deletes_many = False
        for key in left:
            self.ask("DELETE", key, ok=(200, 204, 404))

    def _delete_many(self, keys: list[str]) -> None:
        named = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in keys)
        body = f"<Delete><Quiet>true</Quiet>{named}</Delete>".encode()
        md5 = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        reply = self._once("POST", "", {"delete": ""}, {"content-md5": md5}, body)
        for error in s3_xml.children(s3_xml.document(reply.body, self._side), "Error"):
            raise store_status(500, s3_xml.text(error, "Code") or "", self._side)

    # --- one request

    def ask(
        self,
        method: str,
        key: str = "",
        query: Mapping[str, str] = {},
        headers: Mapping[str, str] = {},
        body: bytes | None = None,
        *,
        ok: Container[int] = (200,),
    ) -> Reply:
        """Up to five tries; raises for an answer whose status is not among ``ok``."""
        return self._tries(lambda: self._once(method, key, query, headers, body, ok=ok))

    def _once(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] = {},
        body: bytes | None = None,
        *,
        ok: Container[int] = (200,),
    ) -> Reply:
        with self._open(method, key, query, headers, body) as response:
            reply = self._reply(response)
        if reply.status not in ok:
            raise self._refused(reply)
        if reply.status == 200 and method != "GET" and (code := s3_code(reply.body)):
            raise store_status(200, code, self._side)  # nothing was carried out
        return reply

    def _open(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes | None = None
    ) -> Any:
        path = self._root + encoded(key)
        asked = "&".join(f"{name}={s3_xml.in_query(value)}" for name, value in sorted(query.items()))
        keys = self._keys()
        sent = dict(headers)
        if keys is not None:
            digest = hashlib.sha256(body).hexdigest() if body is not None else EMPTY_SHA256
            signer = Signer(self._host, self._region)
            sent = signer.headers(method, path, sent, digest, keys, datetime.now(UTC), asked)
        try:
            return self._pool.urlopen(
                method, f"{self._origin}{path}?{asked}" if asked else self._origin + path,
                headers=sent, body=body, retries=False, redirect=False, preload_content=False, decode_content=False,
                timeout=self._timeout,
            )  # fmt: skip
        except HTTP_ERRORS as exc:
            raise from_urllib3(exc, self._side) from None

    @cached_property
    def _keys(self) -> Callable[[], Any]:
        return keys_of(self._access)

    @cached_property
    def _region(self) -> str:
        return region_of(self._access)

    @cached_property
    def _pool(self) -> urllib3.PoolManager:
        common: dict[str, Any] = {"num_pools": 1, "maxsize": 8, "ssl_context": tls()}
        proxy = getproxies().get(urlsplit(self.endpoint).scheme) if self._access.proxied else None
        if proxy is None:
            return urllib3.PoolManager(**common)
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        user = f"{parts.username}:{parts.password or ''}" if parts.username else None
        headers = urllib3.make_headers(proxy_basic_auth=user) if user else None
        return urllib3.ProxyManager(
            f"{parts.scheme}://{parts.hostname}:{parts.port or 80}", proxy_headers=headers, **common
        )

    def _piece(self, response: Any, most: int) -> bytes:
        try:
            piece: bytes = response.read(most)
        except HTTP_ERRORS as exc:
            raise from_urllib3(exc, self._side) from None
        return piece

    def _reply(self, response: Any) -> Reply:
        pieces, size = [], 0
        while piece := self._piece(response, _PIECE_BYTES):  # to the end: only then a body that was cut is an error
            pieces.append(piece)
            size += len(piece)
            if size > _ANSWER_BYTES:
                raise ObjectError(ErrorClass.INTERNAL, f"an answer of the {self._side} is longer than it can be")
        return Reply(response.status, response.headers, b"".join(pieces))

    def _refused(self, reply: Reply) -> ObjectError | Fatal:
        if 300 <= reply.status < 400:
            location, region = reply.headers.get("Location"), reply.headers.get("x-amz-bucket-region")
            return redirected(reply.status, location, region, self._bucket, self._side)
        retry_after_s = parse_retry_after(reply.headers.get("Retry-After"), datetime.now(UTC))
        return store_status(reply.status, s3_code(reply.body), self._side, retry_after_s)

    def _not_there(self, reply: Reply) -> None:
        """A 404 to a GET is about the object where its document says so. Raises ObjectError for any other: a proxy
        answers so while the store behind it restarts. Raises Fatal for NoSuchBucket."""
        if s3_code(reply.body) != "NoSuchKey":
            raise store_status(404, s3_code(reply.body), self._side)

    def _unless_missing(self, work: Callable[[], T], missing: T) -> T:
        """Has the work done. A 404 without the store's own document is believed when it came five times."""
        try:
            return self._tries(work)
        except ObjectError as error:
            if error.status_code == 404:
                return missing
            raise


def _trial(prefix: str) -> str:
    return f"{prefix}/.ferry-preflight-".lstrip("/")
