"""Uploads in parts, and the log of unfinished ones.

Each request has up to five attempts, except after a timeout: the store was silent for `read_s`, and the run must learn
of that. LoggedUploads aborts an upload that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from ferry.core import (
    Body,
    Digests,
    ErrorClass,
    Fatal,
    ObjectError,
    Parts,
    Refused,
    Spooled,
    StreamedBody,
    Tries,
    file_body,
    pace,
)
from ferry.storage.object_info import Sent
from ferry.storage.provider import TRIAL, Part, Provider
from ferry.storage.unfinished import Unfinished, begun

OnBegun = Callable[[str, Parts], Awaitable[None]]  # takes the ID of an upload and the digests of its parts
Send = Callable[[Unfinished | None, OnBegun], Awaitable[Sent]]


_NO_ANSWER = (ErrorClass.TIMEOUT, ErrorClass.DNS, ErrorClass.TLS, ErrorClass.CONNECTION)
_NO_START = "the upload that had the start of this body has ended; the object is read again"


async def _not_logged(_: str, __: Parts) -> None: ...


class PartsUpload:
    """One upload of a spooled body, of the rest of one, or of a streamed one. Raises ObjectError and Fatal."""

    def __init__(
        self,
        provider: Provider,
        key: str,
        body: Body,
        tries: Tries = Tries(),
        *,
        unfinished: Unfinished | None = None,
        on_begun: OnBegun = _not_logged,
    ) -> None:
        """``unfinished`` is the upload that has the bytes before ``body.start``."""
        self._provider = provider
        self._key = key
        self._body = body
        self._tries = tries
        self._unfinished = unfinished
        self._on_begun = on_begun
        self._part_bytes = unfinished.part_bytes if unfinished else provider.part_bytes(body.size)
        if isinstance(body, StreamedBody):
            self._part_bytes = body.part_bytes
        self._offsets = range(0, body.size, self._part_bytes)
        # Those that the provider has. Parts of a streamed body are compared with them when they are read again.
        self._there: list[Part | None] = list(unfinished.kept) if unfinished else [None] * len(self._offsets)
        self._parts = [None if isinstance(body, StreamedBody) else part for part in self._there]

    async def send(self, attributes: Mapping[str, str], at_once: int, *, create: bool) -> Sent:
        """Uploads the body, ``at_once`` parts at a time. With ``create``, completion is conditional if supported."""
        attempts = 0
        completed = 0
        digests = await self._digests()

        async def begin() -> str | None:
            nonlocal attempts
            attempts += 1
            size, md5 = self._body.size, self._body.md5 or None
            return await self._provider.begin(self._key, attributes, size, md5=md5, create=create)

        async def complete() -> Sent:
            nonlocal completed
            completed += 1
            parts = [part for part in self._parts if part is not None]
            return await self._provider.complete(self._key, upload, parts, self._body, attributes, create=create)

        begun_as = self._unfinished.upload if self._unfinished else await self._tries.call_async(begin)
        if begun_as is None:
            return Sent(None, exists=True)
        upload = begun_as
        await self._on_begun(upload, digests)
        await self._send_all(upload, digests, min(at_once, self._provider.parts_at_once, len(self._offsets)))
        sent = await self._tries.call_async(complete)
        return replace(sent, sent_twice=sent.sent_twice or (sent.exists and completed > 1), created_twice=attempts > 1)

    async def _digests(self) -> Parts:
        """Returns the digests of the parts in the file. They are those of the bytes that arrived.

        A large body has them from its arrival. Of any other one the file is read again, and has the body's SHA-256.
        Those of a streamed body are not known yet.
        """
        if isinstance(self._body, StreamedBody):
            return Parts(self._part_bytes, [])
        if self._body.parts is not None and self._body.parts.size == self._part_bytes:
            return self._body.parts
        assert self._body.path is not None
        again = await asyncio.to_thread(file_body, self._body.path, self._part_bytes)
        if again.sha256 != self._body.sha256 or again.parts is None:
            text = "the spool file changed on this machine's disk before it was sent; the object is read again"
            raise ObjectError(ErrorClass.UPLOAD_UNCONFIRMED, text)
        return again.parts

    async def _send_all(self, upload: str, digests: Parts, at_once: int) -> None:
        if isinstance(self._body, StreamedBody):
            body, sending = self._body, asyncio.Semaphore(at_once)
            await _all(self._send_streamed(upload, body, sending) for _ in range(min(at_once + 1, body.at_once)))
            assert None not in self._parts
            return
        with self._body.upload() as whole:
            assert isinstance(whole, Spooled)
            left = iter([index for index, part in enumerate(self._parts) if part is None])
            await _all(self._send_parts(upload, whole, digests, left) for _ in range(at_once))

    async def _send_parts(self, upload: str, whole: Spooled, digests: Parts, left: Iterator[int]) -> None:
        first = self._body.start // self._part_bytes
        for index in left:
            offset = self._offsets[index]
            part = whole.slice(offset - self._body.start, min(self._part_bytes, self._body.size - offset))
            self._parts[index] = await self._send(upload, index, part, digests.digests[index - first])

    async def _send_streamed(self, upload: str, body: StreamedBody, sending: asyncio.Semaphore) -> None:
        """Sends one part after the other while the body is read; in order if one is sent at once (Google).

        The whole body is checked before its last part is sent, since Google makes the object when that arrives.
        """
        while (found := await body.part()) is not None:
            index, part = found
            try:
                if (there := self._there[index]) is not None and there.md5 == part.md5:
                    self._parts[index] = there
                    continue
                last = index == len(self._offsets) - 1
                digests = Digests(part.md5, part.sha256, body.md5 if last else None)
                async with sending:  # granted in the order of the parts
                    await pace(body.charge, part.size)
                    with part.upload() as data:
                        assert isinstance(data, Spooled)
                        self._parts[index] = await self._send(upload, index, data, digests)
            finally:
                part.discard()

    async def _send(self, upload: str, index: int, data: Spooled, digests: Digests) -> Part:
        offset = self._offsets[index]
        return await self._tries.call_async(
            lambda: self._provider.put_part(self._key, upload, index + 1, data, digests, offset)
        )


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Waits for all works. Cancels the others if one raises an error, which is raised then."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


class UploadLog(Protocol):
    """Log of uploads in parts that have started and not ended (ferry/state/open_uploads.py)."""

    shared: bool  # others may write to it

    def begin(self, bucket: str, path: str, upload: Mapping[str, Any] | None = None) -> None: ...
    def end(self, bucket: str, path: str) -> None: ...
    def left(self, bucket: str) -> list[str]: ...
    def upload(self, bucket: str, path: str) -> Mapping[str, Any] | None: ...


class LoggedUploads:
    """Uploads in parts to one bucket, each recorded in the log until it has ended."""

    def __init__(
        self, bucket: str, upload_log: UploadLog | None, provider: Callable[[], Provider], where: str = ""
    ) -> None:
        """``where`` is all that tells the bucket from others of its name: provider, account and endpoint."""
        self.where = hashlib.sha256(where.encode()).hexdigest()[:16]  # an endpoint's address may hold a secret
        self._bucket = bucket
        self._upload_log = upload_log
        self._provider = provider
        self._open: set[str] = set()  # keys that may have an unfinished upload of this job
        self._rows: dict[str, str] = {}  # rows that may be resumed, each with its key
        self._resumed: dict[str, Unfinished] = {}  # by key: those whose rest has been fetched

    async def upload(self, path: str, body: Body, attributes: Mapping[str, str], send: Send) -> Sent:
        """Runs an upload and aborts it if it fails. A cancelled upload keeps its log entry for the next run.

        The entry is removed when no upload can be left: neither of an earlier attempt nor one whose ID was lost.
        ``send`` takes the upload to be resumed, and a function to be called once it has begun. The rest of a body is
        sent once, to the upload that has its start; after an error its row starts afresh. Raises ObjectError if that
        upload is missing, or has other ``attributes``. Its class is not UPLOAD_UNCONFIRMED, after which a row
        overwrites what is under its key.
        """
        left = path in self._open
        self._open.add(path)
        resumed = self._resumed.pop(path, None) if body.start or body.resumes else None
        if resumed is not None and not resumed.lacks(body, attributes):
            resumed = None
        if resumed is None and not body.start:
            if left:  # Google lists no uploads: an ID that is overwritten is lost
                with contextlib.suppress(ObjectError, Fatal):
                    await self._abort_noted(path)
            await self._note(path, None)

        async def on_begun(upload: str, parts: Parts) -> None:
            if (entry := begun(path, upload, body, parts, attributes)) is not None:
                await self._note(path, entry)

        try:
            if body.start and resumed is None:
                raise ObjectError(ErrorClass.STORE_ERROR, _NO_START)
            sent = await send(resumed, on_begun)
        except Exception:
            self._start_afresh(path, body)
            with contextlib.suppress(ObjectError, Fatal):  # the error of the upload is raised instead
                await self._abort(path)
            raise
        if left or sent.exists or sent.created_twice:
            with contextlib.suppress(ObjectError, Fatal):  # the entry stays
                await self._abort_all(path, exact=True)
                await self._remove_entry(path)
        else:
            await self._remove_entry(path)
        return sent

    async def find(self) -> None:
        """Reads which rows have an upload of an earlier run that may be resumed."""
        if self._upload_log is None:
            return
        for path in await asyncio.to_thread(self._upload_log.left, self._bucket):
            if (found := await self._noted(path)) is not None and "row_id" in found.about:
                self._rows[found.about["row_id"]] = path
                self._open.add(path)

    async def unfinished(self, row_id: str) -> Unfinished | None:
        """Returns the upload of a row that an earlier run left, with the parts that the provider has, or None.

        It belongs to the next body with a ``start`` that is uploaded to its key. None is also returned for a provider
        that does not list parts, or not with these credentials: they may write all the same. ObjectError is raised if
        it does not answer.
        """
        path = self._rows.get(row_id)  # rows may share a key: the first one has ended the upload of both
        found = await self._noted(path) if path is not None else None
        if found is None:
            return None
        provider = self._provider()
        try:
            parts = await Tries().call_async(lambda: provider.parts(found.path, found.upload))
        except Refused:
            return None
        except ObjectError as error:
            if error.error_class in _NO_ANSWER:
                raise
            return None
        if parts is None:
            return None
        self._resumed[found.path] = found.keep(parts, in_order=provider.parts_at_once == 1)
        return self._resumed[found.path]

    @property
    def shared(self) -> bool:
        """Whether others may write to the log: then an entry's digests prove nothing (docs/decisions/0056)."""
        return self._upload_log is not None and self._upload_log.shared

    def may_resume(self, row_id: str) -> bool:
        """Returns whether a row has an upload that may be resumed."""
        return row_id in self._rows

    async def clean(self, prefix: str) -> None:
        """Aborts the uploads that earlier runs of this job left, but for those that :meth:`find` has found.

        No other run of it may be active.
        """
        if self._upload_log is not None:
            with contextlib.suppress(ObjectError, Fatal):
                await self._abort_all(f"{prefix}/{TRIAL}".lstrip("/"))
            await self._abort_left(except_for=set(self._rows.values()))

    async def abandon(self) -> None:
        """Aborts all uploads that are left."""
        if self._upload_log is not None:
            await self._abort_left(except_for=set())

    async def _abort_left(self, except_for: set[str]) -> None:
        assert self._upload_log is not None
        for path in set(await asyncio.to_thread(self._upload_log.left, self._bucket)) - except_for:
            self._open.add(path)
            with contextlib.suppress(ObjectError, Fatal):  # the next run tries again
                await Tries().call_async(lambda path=path: self._abort(path))  # type: ignore[misc]

    async def _abort(self, path: str) -> None:
        with contextlib.suppress(ObjectError):  # Google does not list uploads, and ends them after a week
            await self._abort_noted(path)
        await self._abort_all(path, exact=True)
        await self._remove_entry(path)

    async def _abort_noted(self, path: str) -> None:
        if (found := await self._noted(path)) is not None:
            await self._provider().abort(path, found.upload)

    async def _abort_all(self, prefix: str, *, exact: bool = False) -> None:
        provider = self._provider()
        async for key, upload in provider.uploads(prefix):
            if key == prefix or not exact:
                await provider.abort(key, upload)

    async def _note(self, path: str, entry: Unfinished | None) -> None:
        if self._upload_log is not None:
            noted = {**entry.entry(), "where": self.where} if entry else None
            await asyncio.to_thread(self._upload_log.begin, self._bucket, path, noted)

    async def _noted(self, path: str) -> Unfinished | None:
        if self._upload_log is None:
            return None
        entry = await asyncio.to_thread(self._upload_log.upload, self._bucket, path)
        if entry is None or entry.get("where") != self.where:  # a bucket of this name at another provider
            return None
        return Unfinished.of_entry(path, entry)

    def _start_afresh(self, path: str, body: Body | None = None) -> None:
        """Has the row of a body, and all of a key, not be resumed in this run."""
        row_id = body.about["row_id"] if body is not None and body.about is not None else None
        self._rows = {each: other for each, other in self._rows.items() if other != path and each != row_id}

    async def _remove_entry(self, path: str) -> None:
        self._open.discard(path)
        self._start_afresh(path)
        if self._upload_log is not None:
            await asyncio.to_thread(self._upload_log.end, self._bucket, path)
