"""Uploads in parts, and the log of unfinished ones.

Each request has up to five attempts, except after a timeout: the store was silent for `read_s`, and the run must learn
of that. LoggedUploads aborts an upload that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ferry.core import BATCH_BYTES, Body, ErrorClass, Fatal, ObjectError, Spooled, Tries
from ferry.storage.object_info import Sent
from ferry.storage.provider import TRIAL, Digests, Part, Provider


class PartsUpload:
    """One upload of a spooled body. Raises ObjectError and Fatal."""

    def __init__(self, provider: Provider, key: str, body: Body, tries: Tries = Tries()) -> None:
        assert body.path is not None
        self._provider = provider
        self._key = key
        self._body = body
        self._file = body.path
        self._tries = tries
        self._offsets = range(0, body.size, provider.part_bytes(body.size))
        self._parts: list[Part | None] = [None] * len(self._offsets)
        self._in_order = asyncio.Lock()
        self._sha256 = hashlib.sha256()  # of the bytes that are sent

    async def send(self, attributes: Mapping[str, str], at_once: int, *, create: bool) -> Sent:
        """Uploads the body, ``at_once`` parts at a time. With ``create``, completion is conditional if supported."""
        begun = 0
        completed = 0

        async def begin() -> str | None:
            nonlocal begun
            begun += 1
            size, md5 = self._body.size, self._body.md5
            return await self._provider.begin(self._key, attributes, size, md5=md5, create=create)

        async def complete() -> Sent:
            nonlocal completed
            completed += 1
            parts = [part for part in self._parts if part is not None]
            return await self._provider.complete(self._key, upload, parts, self._body, attributes, create=create)

        begun_as = await self._tries.call_async(begin)
        if begun_as is None:
            return Sent(None, exists=True)
        upload = begun_as
        await self._send_all(upload, min(at_once, self._provider.parts_at_once, len(self._offsets)))
        sent = await self._tries.call_async(complete)
        return replace(sent, sent_twice=sent.sent_twice or (sent.exists and completed > 1), created_twice=begun > 1)

    async def _send_all(self, upload: str, at_once: int) -> None:
        with self._body.upload() as whole:
            assert isinstance(whole, Spooled)
            left = iter(range(len(self._offsets)))
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(at_once):
                        group.create_task(self._send_parts(upload, whole, left))
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
        if self._sha256.hexdigest() != self._body.sha256:
            text = "the spool file changed on this machine's disk before it was sent; the object is read again"
            raise ObjectError(ErrorClass.UPLOAD_UNCONFIRMED, text)

    async def _send_parts(self, upload: str, whole: Spooled, left: Iterator[int]) -> None:
        for index in left:
            offset = self._offsets[index]
            part = whole.slice(offset, min(self._offsets.step, self._body.size - offset))
            async with self._in_order:  # asyncio's lock is fair: the parts are hashed in their order
                digests = await asyncio.to_thread(_digests, self._file, offset, len(part), self._sha256)

            async def once(
                number: int = index + 1, part: Spooled = part, digests: Digests = digests, offset: int = offset
            ) -> Part:
                return await self._provider.put_part(self._key, upload, number, part, digests, offset)

            self._parts[index] = await self._tries.call_async(once)


def _digests(path: Path, offset: int, size: int, whole: hashlib._Hash) -> Digests:
    """Returns the digests of a slice of a file, which is also added to ``whole``. Blocks, so call it in a thread."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while size and (block := file.read(min(size, BATCH_BYTES))):
            md5.update(block)
            sha256.update(block)
            whole.update(block)
            size -= len(block)
    return Digests(md5.hexdigest(), sha256.hexdigest())


class UploadLog(Protocol):
    """Log of uploads in parts that have started and not ended (ferry/state/open_uploads.py)."""

    def begin(self, bucket: str, path: str) -> None: ...
    def end(self, bucket: str, path: str) -> None: ...
    def left(self, bucket: str) -> list[str]: ...


class LoggedUploads:
    """Uploads in parts to one bucket, each recorded in the log until it has ended."""

    def __init__(self, bucket: str, upload_log: UploadLog | None, provider: Callable[[], Provider]) -> None:
        self._bucket = bucket
        self._upload_log = upload_log
        self._provider = provider
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
                await self._abort(path)
            raise
        if left or sent.exists or sent.created_twice:
            with contextlib.suppress(ObjectError, Fatal):  # the entry stays
                await self._abort(path)
        else:
            await self._remove_entry(path)
        return sent

    async def clean(self, prefix: str) -> None:
        """Aborts the uploads that earlier runs of this job left. No other run of it may be active."""
        if self._upload_log is None:
            return
        with contextlib.suppress(ObjectError, Fatal):
            await self._abort_all(f"{prefix}/{TRIAL}".lstrip("/"))
        for path in await asyncio.to_thread(self._upload_log.left, self._bucket):
            self._open.add(path)
            with contextlib.suppress(ObjectError, Fatal):  # the next run tries again
                await Tries().call_async(lambda path=path: self._abort(path))  # type: ignore[misc]

    async def _abort(self, path: str) -> None:
        await self._abort_all(path, exact=True)
        await self._remove_entry(path)

    async def _abort_all(self, prefix: str, *, exact: bool = False) -> None:
        provider = self._provider()
        async for key, upload in provider.uploads(prefix):
            if key == prefix or not exact:
                await provider.abort(key, upload)

    async def _remove_entry(self, path: str) -> None:
        self._open.discard(path)
        if self._upload_log is not None:
            await asyncio.to_thread(self._upload_log.end, self._bucket, path)
