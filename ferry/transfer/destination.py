"""Requests to the destination, each reported to its limit and to the watch for an outage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from ferry.core import Body, Confirmed, ObjectError, Row, StreamedBody, pace
from ferry.ratelimit import DESTINATION, HostLimit, Limiter, record_failure
from ferry.storage import Confirmation, ObjectInfo, Store, Unfinished
from ferry.transfer.destination_outage import Kind, Outage
from ferry.transfer.stall import TURN, Waits

DESTINATION_PERMIT = "a permit for the destination"


class Destination:
    """The destination's store. Its methods raise ObjectError, and Fatal in an outage; callers hold a permit."""

    def __init__(self, store: Store, limiter: Limiter, may_write: Callable[[], Awaitable[None]], waits: Waits) -> None:
        """``may_write`` raises Fatal once another run may be working on this job's rows."""
        self.store = store
        self._limiter = limiter
        self._may_write = may_write
        self._waits = waits
        self._outage = Outage(time.monotonic)

    def permit(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """Returns a block that waits for a permit, and holds it until its end."""
        self._waits.on(DESTINATION_PERMIT)
        return self._limit.slot()

    async def head(self, key: str) -> ObjectInfo | None:
        """Returns the object under the key, if there is one."""
        self._waits.on("the destination's response to HEAD")
        with self._reporting(key, "read"):
            return await self.store.head(key)

    async def unfinished(self, row: Row) -> Unfinished | None:
        """Returns the row's upload that an earlier run left, with its parts, if the store still has it."""
        async with self.permit():
            self._waits.on("the destination's list of an upload's parts")
            with self._reporting(row.key, "read"):
                return await self.store.uploads.unfinished(row.row_id)

    async def put(
        self, key: str, body: Body, attributes: Mapping[str, str], *, create: bool, may_lose: bool
    ) -> tuple[Confirmation, tuple[str, ...]]:
        """Uploads the object, and returns how the store has confirmed it, and the attributes that it has refused.

        ``create``: only if the key is free; ``may_lose`` is that of :meth:`ferry.storage.Store.put`.
        """
        if isinstance(body, StreamedBody):
            body.charge = self._limit.charge
        else:
            self._waits.on(TURN)
            await pace(self._limit.charge, body.size - body.start)
        self._waits.on("the destination's response to PUT")
        await self._may_write()  # after a suspension another run may have written a newer object
        with self._reporting(key, "write", body):
            sent = await self.store.put(key, body, attributes, create=create, may_lose=may_lose)
            return await self.store.confirm(key, body, sent), sent.lost

    async def copy_from(
        self, source: Store, source_key: str, key: str, attributes: Mapping[str, str], *, size: int, etag: str
    ) -> tuple[Confirmed, str | None]:
        """Lets the server copy the object, as :meth:`ferry.storage.Store.copy_from` does."""
        self._waits.on("the destination's response to a copy")
        with self._reporting(key, "write"):
            return await self.store.copy_from(
                source, source_key, key, size=size, etag=etag, attributes=attributes, moved=self._waits.moved
            )

    async def check_lease(self) -> None:
        """Raises Fatal once another run may be working on this job's rows."""
        await self._may_write()

    async def equal(self, key: str, body: Body, found: ObjectInfo) -> Confirmation | None:
        """Compares the existing object with the body: by MD5 if its ETag is one, else by reading it.

        Returns the proof that the bytes are equal, or None. The proof has the ETag of the object that was read, since a
        directory's listing has none.
        """
        if found.size != body.size:
            return None
        if found.known_md5 == body.md5:
            return Confirmation(Confirmed.DIGEST, found.etag)
        with self._reporting(key, "read"):
            sha256, read = await self.store.digest(key, max_bytes=found.size, moved=self._waits.moved)
        return Confirmation(Confirmed.READ_BACK, read.etag) if sha256 == body.sha256 else None

    @property
    def _limit(self) -> HostLimit:
        return self._limiter.host(DESTINATION)

    @contextlib.contextmanager
    def _reporting(self, key: str, kind: Kind, body: Body | None = None) -> Iterator[None]:
        """Reports the block's duration or error to the limit, and marks the error as the destination's.

        An error of reading a streamed body is not. Raises Fatal when the destination has not responded for too long.
        """
        limit, started = self._limit, time.monotonic()
        try:
            yield
        except ObjectError as error:
            if isinstance(body, StreamedBody) and error is body.error:
                raise
            record_failure(limit, error, time.monotonic() - started)
            error.at_destination = True
            if self._outage.failed(key, error, kind):
                error.outage = True
                limit.rest(error.message)
            raise
        if kind == "write":
            limit.ok(time.monotonic() - started)
        self._outage.answered(kind)
