"""One object in parts over the short way: begun, sent a few parts at once, ended. Each request has up to five tries.

Silence is not tried again: it has lasted for `read_s` then, and the run is to hear of it. What fails is aborted by
multipart.py.
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
from ferry.storage.s3 import COPIED_BYTES_PER_S, BucketHttp, plain_headers
from ferry.storage.s3_control import BucketControl

MOST_PARTS = 10_000  # S3 API, multipart upload limits
_SIDE = "destination"


def part_bytes(size: int) -> int:
    """How large the parts of such a body are: 8 MiB, or larger where they would be too many."""
    return max(PART_BYTES, -(-size // MOST_PARTS))


class Multipart:
    """One upload of a spooled body. Raises ObjectError, Fatal and NotPlain."""

    def __init__(self, http: BucketHttp, path: str, body: Body, tries: Tries = Tries()) -> None:
        assert body.path is not None
        self._http = http
        self._path = path
        self._body = body
        self._file = body.path
        self._size = body.size
        self._tries = tries
        self._begun = 0  # uploads that the store may have begun
        self._ended = 0  # requests to end this one
        step = part_bytes(body.size)
        self._offsets = range(0, body.size, step)
        self._md5s = [""] * len(self._offsets)
        self._etags = [""] * len(self._offsets)

    async def send(self, attributes: Mapping[str, str], at_once: int, *, create: bool) -> Sent:
        """Sends ``at_once`` parts at a time. With ``create`` the end has a condition, where the store knows it."""
        headers = plain_headers(attributes)
        upload = f"uploadId={s3_xml.in_query(await self._tries.call_async(lambda: self._begin(headers)))}"
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
        return await self._tries.call_async(lambda: self._end(upload, condition))

    async def _begin(self, headers: dict[str, str]) -> str:
        """Returns the upload's ID. One whose answer was lost stays begun: its ID is not known here."""
        self._begun += 1
        reply = await self._http.control("POST", self._path, "uploads=", headers)
        self._begun += reply.sent_twice
        return s3_xml.begun(reply.body, _SIDE)

    async def _send_parts(self, upload: str, whole: Spooled, left: Iterator[int]) -> None:
        for index in left:
            offset = self._offsets[index]
            part = whole.slice(offset, min(self._offsets.step, self._size - offset))
            self._md5s[index], sha256 = await asyncio.to_thread(_digests, self._file, offset, len(part))
            query = f"partNumber={index + 1}&{upload}"

            async def once(part: Spooled = part, sha256: str = sha256, query: str = query) -> str:
                reply = await self._http.control("PUT", self._path, query, {}, part, sha256, ok=(200, 404))
                if reply.status == 404:
                    raise s3_xml.upload_gone(reply.body, _SIDE)
                return reply.headers.get("ETag", "")

            self._etags[index] = await self._tries.call_async(once)

    async def _end(self, upload: str, condition: dict[str, str]) -> Sent:
        """An answer that was lost leaves no upload to end: then the object itself decides, by its size and ETag.

        A store that does not know the condition (501) is asked without it.
        """
        self._ended += 1
        document = s3_xml.parts(self._etags)
        digest = hashlib.sha256(document).hexdigest()
        ok = (200, 404, 412, 501) if condition else (200, 404)
        patience_s = self._size / COPIED_BYTES_PER_S  # some stores put the parts together, and say nothing meanwhile
        reply = await self._http.control(
            "POST", self._path, upload, condition, document, digest, ok=ok, more_s=patience_s
        )
        match reply.status:
            case 200:
                return self._sent(s3_xml.text(s3_xml.document(reply.body, _SIDE), "ETag"))
            case 412:
                return Sent(None, exists=True, sent_twice=reply.sent_twice or self._ended > 1)
            case 501:
                return await self._end(upload, {})
        there = await self._http.control("HEAD", self._path, ok=(200, 404))
        etag = there.headers.get("ETag")
        wanted, shown = composite_of(self._etags), composite_etag(etag)
        same = shown is None or wanted is None or shown == wanted
        if there.status != 200 or there.headers.get("Content-Length") != str(self._size) or not same:
            raise s3_xml.upload_gone(reply.body, _SIDE)
        return self._sent(etag)

    def _sent(self, etag: str | None) -> Sent:
        return Sent(etag or None, in_parts=True, parts_etag=composite_of(self._md5s), begun_twice=self._begun > 1)


def _digests(path: Path, offset: int, size: int) -> tuple[str, str]:
    """MD5 and SHA-256 of a slice of a file; in a thread."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while size and (piece := file.read(min(size, BATCH_BYTES))):
            md5.update(piece)
            sha256.update(piece)
            size -= len(piece)
    return md5.hexdigest(), sha256.hexdigest()


class Notes(Protocol):
    """Notes of uploads under way (open_uploads.py)."""

    def begin(self, bucket: str, path: str) -> None: ...
    def end(self, bucket: str, path: str) -> None: ...
    def left(self, bucket: str) -> list[str]: ...


class Parts:
    """One bucket's uploads. ``control`` is patient; ``hasty`` is for aborts while an object waits."""

    def __init__(
        self,
        bucket: str,
        notes: Notes | None,
        control: Callable[[], BucketControl],
        hasty: Callable[[], BucketControl],
    ) -> None:
        self._bucket = bucket
        self._notes = notes
        self._control = control
        self._hasty = hasty
        self._open: set[str] = set()  # keys that may have an upload of ours, begun and not ended

    async def upload(self, path: str, work: Callable[[], Awaitable[Sent]]) -> Sent:
        """Has the work done. One that is broken off, cancelled too, leaves its note for the next run.

        A note goes only when no upload can be left: not one of an earlier try either, nor one whose ID was lost.
        """
        left = path in self._open
        self._open.add(path)
        if self._notes is not None:
            await asyncio.to_thread(self._notes.begin, self._bucket, path)
        try:
            sent = await work()
        except (ObjectError, Fatal):
            with contextlib.suppress(ObjectError, Fatal):  # what the upload failed of counts
                await self._abort(path, self._hasty)
            raise
        if left or sent.exists or sent.begun_twice:
            with contextlib.suppress(ObjectError, Fatal):  # the note stays
                await self._abort(path, self._hasty)
        else:
            await self._forget(path)
        return sent

    async def clean(self, prefix: str) -> None:
        """Aborts what earlier runs of this job began; while no other run of it is on."""
        if self._notes is None:
            return
        with contextlib.suppress(ObjectError, Fatal):
            await asyncio.to_thread(self._control().forget_trials, prefix)
        for path in await asyncio.to_thread(self._notes.left, self._bucket):
            self._open.add(path)
            with contextlib.suppress(ObjectError, Fatal):  # the next run tries it again
                await self._abort(path, self._control)

    async def _abort(self, path: str, control: Callable[[], BucketControl]) -> None:
        if await asyncio.to_thread(control().abort, path):
            await self._forget(path)

    async def _forget(self, path: str) -> None:
        self._open.discard(path)
        if self._notes is not None:
            await asyncio.to_thread(self._notes.end, self._bucket, path)
