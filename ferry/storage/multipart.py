"""Multipart uploads through Ferry's HTTP client, and the log of unfinished uploads.

Each request has up to five attempts, except after a timeout: the store was silent for `read_s`, and the run must learn
of that. MultipartUploads aborts an upload that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from ferry.core import BATCH_BYTES, PART_BYTES, Body, Fatal, ObjectError, Spooled, Tries
from ferry.storage import s3_xml
from ferry.storage.object_info import Sent, composite_etag, composite_of
from ferry.storage.s3 import COPY_BYTES_PER_S, BucketHttp, attribute_headers
from ferry.storage.s3_control import BucketControl

MAX_PARTS = 10_000  # S3 API, multipart upload limits
_SIDE = "destination"


def part_bytes(size: int) -> int:
    """Returns the part size for a body: 8 MiB, or larger if there would be more than 10,000 parts."""
    return max(PART_BYTES, -(-size // MAX_PARTS))


class Multipart:
    """One upload of a spooled body. Raises ObjectError and Fatal."""

    def __init__(self, http: BucketHttp, path: str, body: Body, tries: Tries = Tries()) -> None:
        assert body.path is not None
        self._http = http
        self._path = path
        self._body = body
        self._file = body.path
        self._size = body.size
        self._tries = tries
        self._create_requests = 0  # requests to create an upload, also those without a response
        self._complete_requests = 0  # requests to complete the upload
        step = part_bytes(body.size)
        self._offsets = range(0, body.size, step)
        self._md5s = [""] * len(self._offsets)
        self._etags = [""] * len(self._offsets)

    async def send(self, attributes: Mapping[str, str], at_once: int, *, create: bool) -> Sent:
        """Uploads the body, ``at_once`` parts at a time. With ``create``, completion is conditional if supported."""
        headers = attribute_headers(attributes)
        upload = f"uploadId={s3_xml.query_value(await self._tries.call_async(lambda: self._create(headers)))}"
        with self._body.upload() as whole:
            assert isinstance(whole, Spooled)
            left = iter(range(len(self._offsets)))
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(at_once, len(self._offsets))):
                        group.create_task(self._send_parts(upload, whole, left))
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
        condition = {"if-none-match": "*"} if create else {}
        return await self._tries.call_async(lambda: self._complete(upload, condition))

    async def _create(self, headers: dict[str, str]) -> str:
        """Creates an upload and returns its ID. If the response is lost, the upload remains under an unknown ID."""
        self._create_requests += 1
        reply = await self._http.control("POST", self._path, "uploads=", headers)
        self._create_requests += reply.sent_twice
        return s3_xml.upload_id(reply.body, _SIDE)

    async def _send_parts(self, upload: str, whole: Spooled, left: Iterator[int]) -> None:
        for index in left:
            offset = self._offsets[index]
            part = whole.slice(offset, min(self._offsets.step, self._size - offset))
            self._md5s[index], sha256 = await asyncio.to_thread(_digests, self._file, offset, len(part))
            query = f"partNumber={index + 1}&{upload}"

            async def once(part: Spooled = part, sha256: str = sha256, query: str = query) -> str:
                reply = await self._http.control("PUT", self._path, query, {}, part, sha256, ok=(200, 404))
                if reply.status == 404:
                    raise s3_xml.upload_missing(reply.body, _SIDE)
                return reply.headers.get("ETag", "")

            self._etags[index] = await self._tries.call_async(once)

    async def _complete(self, upload: str, condition: dict[str, str]) -> Sent:
        """Completes the upload. If the store does not support the condition (501), it is omitted.

        After a lost response the store has no such upload any more. Then the object's size and ETag decide.
        """
        self._complete_requests += 1
        document = s3_xml.complete_document(self._etags)
        digest = hashlib.sha256(document).hexdigest()
        ok = (200, 404, 412, 501) if condition else (200, 404)
        extra_read_s = self._size / COPY_BYTES_PER_S  # some stores join the parts and send nothing meanwhile
        reply = await self._http.control(
            "POST", self._path, upload, condition, document, digest, ok=ok, extra_read_s=extra_read_s
        )
        match reply.status:
            case 200:
                return self._sent(s3_xml.text(s3_xml.parse_document(reply.body, _SIDE), "ETag"))
            case 412:
                return Sent(None, exists=True, sent_twice=reply.sent_twice or self._complete_requests > 1)
            case 501:
                return await self._complete(upload, {})
        head = await self._http.control("HEAD", self._path, ok=(200, 404))
        etag = head.headers.get("ETag")
        expected, actual = composite_of(self._etags), composite_etag(etag)
        same = actual is None or expected is None or actual == expected
        if head.status != 200 or head.headers.get("Content-Length") != str(self._size) or not same:
            raise s3_xml.upload_missing(reply.body, _SIDE)
        return self._sent(etag)

    def _sent(self, etag: str | None) -> Sent:
        return Sent(
            etag or None, in_parts=True, parts_etag=composite_of(self._md5s), created_twice=self._create_requests > 1
        )


def _digests(path: Path, offset: int, size: int) -> tuple[str, str]:
    """Returns MD5 and SHA-256 of a slice of a file. It blocks, so call it in a thread."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while size and (block := file.read(min(size, BATCH_BYTES))):
            md5.update(block)
            sha256.update(block)
            size -= len(block)
    return md5.hexdigest(), sha256.hexdigest()


class UploadLog(Protocol):
    """Log of multipart uploads that have started and not ended (ferry/state/open_uploads.py)."""

    def begin(self, bucket: str, path: str) -> None: ...
    def end(self, bucket: str, path: str) -> None: ...
    def left(self, bucket: str) -> list[str]: ...


class MultipartUploads:
    """Multipart uploads to one bucket, each recorded in the log until it has ended.

    ``control`` retries requests. ``single_try`` is for aborts that an object waits for.
    """

    def __init__(
        self,
        bucket: str,
        upload_log: UploadLog | None,
        control: Callable[[], BucketControl],
        single_try: Callable[[], BucketControl],
    ) -> None:
        self._bucket = bucket
        self._upload_log = upload_log
        self._control = control
        self._single_try_control = single_try
        self._open: set[str] = set()  # keys that may have an unfinished upload of this job

    async def upload(self, path: str, work: Callable[[], Awaitable[Sent]]) -> Sent:
        """Runs an upload and aborts it if it fails. A cancelled upload keeps its log entry for the next run.

        The entry is removed when no upload can be left: neither of an earlier attempt nor one whose ID was lost.
        """
        left = path in self._open
        self._open.add(path)
        if self._upload_log is not None:
            await asyncio.to_thread(self._upload_log.begin, self._bucket, path)
        try:
            sent = await work()
        except (ObjectError, Fatal):
            with contextlib.suppress(ObjectError, Fatal):  # the error of the upload is raised instead
                await self._abort(path, self._single_try_control)
            raise
        if left or sent.exists or sent.created_twice:
            with contextlib.suppress(ObjectError, Fatal):  # the entry stays
                await self._abort(path, self._single_try_control)
        else:
            await self._remove_entry(path)
        return sent

    async def clean(self, prefix: str) -> None:
        """Aborts the uploads that earlier runs of this job left. No other run of it may be active."""
        if self._upload_log is None:
            return
        with contextlib.suppress(ObjectError, Fatal):
            await asyncio.to_thread(self._control().abort_preflight_uploads, prefix)
        for path in await asyncio.to_thread(self._upload_log.left, self._bucket):
            self._open.add(path)
            with contextlib.suppress(ObjectError, Fatal):  # the next run tries again
                await self._abort(path, self._control)

    async def _abort(self, path: str, control: Callable[[], BucketControl]) -> None:
        if await asyncio.to_thread(control().abort, path):
            await self._remove_entry(path)

    async def _remove_entry(self, path: str) -> None:
        self._open.discard(path)
        if self._upload_log is not None:
            await asyncio.to_thread(self._upload_log.end, self._bucket, path)
