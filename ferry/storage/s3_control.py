"""Control requests to a bucket: listings, preflight, multipart control and the files of a state.

Each request has up to five attempts. The client blocks, and is thread-safe: the requests are sent by a BucketHttp in a
loop of their own (docs/decisions/0031).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from base64 import b64encode
from collections.abc import Callable, Container, Coroutine, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4
from xml.sax.saxutils import escape

from ferry.core import PERMANENT_STATUSES, RETRYABLE_STATUSES, ErrorClass, Fatal, ObjectError, Tries
from ferry.http import Response, parse_retry_after
from ferry.storage import s3_xml
from ferry.storage.credentials import Access, credentials_of, endpoint_of, http_client
from ferry.storage.errors import from_store_http, redirected, s3_code, store_status
from ferry.storage.loop_thread import wait_for
from ferry.storage.object_info import ObjectInfo, composite_etag, composite_of
from ferry.storage.s3 import BucketHttp, Credentials, Reply

T = TypeVar("T")
READ_S = 60.0
TOTAL_S = 24 * 3600.0  # a state's largest file over the slowest line; low_speed.py ends what does not move
PART_BYTES = 16 << 20
MAX_PARTS = 10_000  # S3 API, multipart upload limits
KEYS_PER_DELETE = 1000  # S3 API, DeleteObjects
_MAX_RESPONSE_BYTES = 64 << 20  # a page of 1,000 keys of 1,024 bytes, written as %XX, has 3 MB; plan.json has 200 KB
_NO_PROGRESS = (
    "the {side}'s listing does not advance: its continuation token is missing or repeats. "
    "Check that `endpoint_url` serves ListObjectsV2"
)
# Statuses that another attempt would not change.
_FINAL_STATUSES = (
    frozenset(range(200, 300)) | frozenset(range(400, 500)) | PERMANENT_STATUSES
) - RETRYABLE_STATUSES | {200, 404}


class BucketControl:
    """Client for one bucket. Raises ObjectError and Fatal, which name ``side``: destination, source or state."""

    def __init__(
        self, bucket: str, access: Access, *, side: str = "destination", read_s: float = READ_S, tries: Tries = Tries()
    ) -> None:
        self.endpoint = endpoint_of(access)
        self._bucket = bucket
        self._access = access
        self._side = side
        self._read_s = read_s
        self._tries = tries
        self._deletes_many = True
        self._http: BucketHttp | None = None
        self._credentials: Credentials | None = None

    # --- the bucket

    def head_bucket(self) -> Reply:
        """Returns the response to HeadBucket, also one that refuses access (S3 API: HeadBucket)."""
        return self.ask("HEAD", ok=_FINAL_STATUSES)

    def may_write(self, prefix: str) -> Reply:
        """Checks write permission below a prefix by creating and aborting a multipart upload."""
        key = _preflight_key(prefix) + uuid4().hex

        def once() -> Reply:
            reply = self._once("POST", key, {"uploads": ""}, ok=_FINAL_STATUSES)
            if reply.status == 200:
                self._try_abort(key, s3_xml.text(s3_xml.parse_document(reply.body, self._side), "UploadId") or "")
            return reply

        return self._tries(once)

    def pages(self, prefix: str, start_after: str | None = None) -> Iterator[list[ObjectInfo]]:
        """Yields pages of the objects whose full keys begin with ``prefix`` (S3 API: ListObjectsV2).

        After a page marked as the last, one more request starts after its last key, because some stores mark a
        truncated listing as complete. ``start_after`` is a full key. Raises ObjectError if a listing does not advance.
        """
        after, token = start_after, None
        first: str | None = None
        more_expected = False  # the previous page was marked as truncated
        seen_tokens: set[int] = set()  # hashes of the tokens used: 100 million keys have 100,000 tokens
        while True:
            page = self._page(prefix, after, token)
            objects = page.objects
            if token is None and objects and objects[0].key == after:  # some stores include the start-after key
                objects = objects[1:]
            keys = [each.key for each in objects]
            restarted = token is None and first is not None and keys[:1] == [first]
            if token is None:
                seen_tokens.clear()
            else:
                seen_tokens.add(hash(token))
            stuck = more_expected and (restarted or hash(page.token) in seen_tokens)
            if stuck or (page.truncated and not page.token and not keys):
                raise ObjectError(ErrorClass.STORE_ERROR, _NO_PROGRESS.format(side=self._side))
            if restarted or not (keys or page.truncated):  # a store that ignores start-after lists from its first key
                return
            if keys:
                first = first or keys[0]
                after = keys[-1]
                yield objects
            more_expected, token = page.truncated, page.token if page.truncated else None

    def _page(self, prefix: str, after: str | None, token: str | None) -> s3_xml.Page:
        query = {"encoding-type": "url", "list-type": "2", "prefix": prefix}
        if token is not None:
            query["continuation-token"] = token
        elif after is not None:
            query["start-after"] = after
        return self._tries(lambda: s3_xml.parse_page(self._once("GET", "", query).body, self._side))

    # --- multipart uploads

    def _create(self, key: str, headers: Mapping[str, str]) -> str:
        """Creates an upload and returns its ID. If the response is lost, :meth:`abort` finds the upload."""

        def once() -> str:
            return s3_xml.upload_id(self._once("POST", key, {"uploads": ""}, headers).body, self._side)

        return self._tries(once)

    def _complete(self, key: str, upload_id: str, etags: list[str], size: int) -> None:
        """Completes an upload.

        After a lost response the store has no such upload any more. Then the object's size and ETag decide.
        """
        body = s3_xml.complete_document(etags)

        def once() -> None:
            reply = self._once("POST", key, {"uploadId": upload_id}, {}, body, ok=(200, 404))
            if reply.status == 200:
                s3_xml.parse_document(reply.body, self._side)
                return
            head = self.ask("HEAD", key, ok=(200, 404))
            expected, actual = composite_of(etags), composite_etag(head.headers.get("ETag"))
            same = actual is None or expected is None or actual == expected
            if head.status != 200 or head.headers.get("Content-Length") != str(size) or not same:
                raise s3_xml.upload_missing(reply.body, self._side)

        self._tries(once)

    def _try_abort(self, key: str, upload_id: str) -> None:
        """Aborts an upload and ignores errors, since some policies allow writing but not aborting."""
        with contextlib.suppress(ObjectError, Fatal):
            self.ask("DELETE", key, {"uploadId": upload_id}, ok=(200, 204, 404))

    def abort(self, key: str, *, below: bool = False) -> bool:
        """Aborts all multipart uploads to ``key``, or with ``below`` to all keys that begin with it.

        Returns False if the store has more uploads than one response lists (S3 API: ListMultipartUploads).
        """
        root = self._tries(
            lambda: s3_xml.parse_document(self._once("GET", "", {"prefix": key, "uploads": ""}).body, self._side)
        )
        for upload in s3_xml.children(root, "Upload"):
            its_key, upload_id = s3_xml.text(upload, "Key") or "", s3_xml.text(upload, "UploadId")
            if upload_id and (its_key == key or (below and its_key.startswith(key))):
                self.ask("DELETE", its_key, {"uploadId": upload_id}, ok=(200, 204, 404))
        return s3_xml.text(root, "IsTruncated") != "true"

    def abort_preflight_uploads(self, prefix: str) -> None:
        """Aborts the uploads that :meth:`may_write` left behind when its run was killed."""
        self.abort(_preflight_key(prefix), below=True)

    # --- files of a state

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Returns a small object's bytes and its ETag, or None if it does not exist."""

        def once() -> tuple[bytes, str] | None:
            reply = self._once("GET", key, {}, ok=(200, 404))
            if reply.status == 404:
                self._check_missing(reply)
                return None
            return reply.body, reply.headers.get("ETag", "")

        return self._unless_missing(once, None)

    def download(self, key: str, write: Callable[[bytes], object]) -> bool:
        """Passes an object to ``write`` in blocks as they arrive. Returns False if it does not exist.

        An interrupted response is resumed where it ended, if the object still has its ETag.
        """
        done, etag = 0, ""

        async def once() -> bool:
            nonlocal done, etag
            headers = {"range": f"bytes={done}-"} if done else {}
            if done and etag:
                headers["if-match"] = etag
            response = await self._ask("GET", key, {}, headers)
            if response.status == 404 and not done:
                self._check_missing(await self._read_reply(response))
                return False
            if response.status != (206 if done else 200):
                raise self._error_from(await self._read_reply(response))
            first = response.headers.get("Content-Range", f"bytes {done}-").partition("-")[0]
            if done and (response.headers.get("ETag", etag) != etag or first != f"bytes {done}"):
                response.close()
                raise ObjectError(ErrorClass.STORE_ERROR, f"the {self._side} sends another part than was asked for")
            etag = response.headers.get("ETag", "")
            try:
                while block := await self._read_block(response):
                    await asyncio.to_thread(write, block)  # the loop is that of all buckets
                    done += len(block)
            finally:
                response.close()
            return True

        while True:
            before = done
            try:
                return self._unless_missing(lambda: self._wait(once()), False)
            except ObjectError:
                if done == before or not etag:  # five attempts without a byte, or no ETag to tell versions apart
                    raise

    def put(self, key: str, data: bytes, headers: Mapping[str, str] = {}, ok: Container[int] = (200,)) -> Reply:
        """Writes an object and returns the response (S3 API: PutObject)."""
        return self.ask("PUT", key, {}, headers, data, ok=ok)

    def upload(self, key: str, path: Path) -> None:
        """Writes a local file as an object. A large file is a multipart upload with up to five attempts a part."""
        size = path.stat().st_size
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        with path.open("rb") as file:
            if size <= part_bytes:
                self.put(key, file.read())
                return
            upload_id = self._create(key, {})
            try:
                etags: list[str] = []
                while block := file.read(part_bytes):
                    query = {"partNumber": str(len(etags) + 1), "uploadId": upload_id}
                    etags.append(self.ask("PUT", key, query, {}, block).headers.get("ETag", ""))
                self._complete(key, upload_id, etags, size)
            except (ObjectError, Fatal):
                self._try_abort(key, upload_id)
                raise

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects. A missing object is not an error.

        If the store does not support DeleteObjects (GCS), each object has a request of its own.
        """
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
        for error in s3_xml.children(s3_xml.parse_document(reply.body, self._side), "Error"):
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
        """Sends a request with up to five attempts. Raises ObjectError or Fatal for a status that is not in ``ok``."""
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

        async def once() -> Reply:
            return await self._read_reply(await self._ask(method, key, query, headers, body))

        reply = self._wait(once())
        if reply.status not in ok:
            raise self._error_from(reply)
        if reply.status == 200 and method != "GET" and (code := s3_code(reply.body)):
            raise store_status(200, code, self._side)  # the store did not do it
        return reply

    async def _ask(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes | None = None
    ) -> Response:
        query_string = "&".join(f"{name}={s3_xml.query_value(value)}" for name, value in sorted(query.items()))
        return await self._client().send(method, key, query_string, headers, body, self._side)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._credentials is None:
            self._credentials = credentials_of(self._access)  # here, since boto3 may ask services for them
        return wait_for(work)

    def _client(self) -> BucketHttp:
        if self._http is None or not self._http.in_this_loop:  # only the one loop of loop_thread.py comes here
            self._http = http_client(self._bucket, self._access, TOTAL_S, self._read_s, self._credentials)
        return self._http

    async def _read_block(self, response: Response) -> bytes:
        try:
            return await response.read_chunk()
        except Exception as exc:  # noqa: BLE001 - errors.py knows them
            raise from_store_http(exc, self._side) from None

    async def _read_reply(self, response: Response) -> Reply:
        blocks, size = [], 0
        try:
            while block := await self._read_block(response):  # to the end: only then a truncated body raises
                blocks.append(block)
                size += len(block)
                if size > _MAX_RESPONSE_BYTES:
                    text = f"a response of the {self._side} exceeds {_MAX_RESPONSE_BYTES:,} bytes; please report it"
                    raise ObjectError(ErrorClass.INTERNAL, text)
        finally:
            response.close()
        return Reply(response.status, response.headers, b"".join(blocks))

    def _error_from(self, reply: Reply) -> ObjectError | Fatal:
        if 300 <= reply.status < 400:
            location, region = reply.headers.get("Location"), reply.headers.get("x-amz-bucket-region")
            return redirected(reply.status, location, region, self._bucket, self._side)
        retry_after_s = parse_retry_after(reply.headers.get("Retry-After"), datetime.now(UTC))
        return store_status(reply.status, s3_code(reply.body), self._side, retry_after_s)

    def _check_missing(self, reply: Reply) -> None:
        """Returns if a 404 names the object as missing. Raises Fatal for NoSuchBucket, ObjectError for any other 404.

        A proxy may answer 404 while the store behind it restarts.
        """
        if s3_code(reply.body) != "NoSuchKey":
            raise store_status(404, s3_code(reply.body), self._side)

    def _unless_missing(self, work: Callable[[], T], missing: T) -> T:
        """Returns the result of ``work``, or ``missing`` if its last attempt ends in a 404.

        A 404 that does not name the object may come from a proxy, so it is retried first.
        """
        try:
            return self._tries(work)
        except ObjectError as error:
            if error.status_code == 404:
                return missing
            raise


def _preflight_key(prefix: str) -> str:
    return f"{prefix}/.ferry-preflight-".lstrip("/")
