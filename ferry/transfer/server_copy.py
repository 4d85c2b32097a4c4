"""Copies by the destination's server: of a row's source, and the trial whether copies keep their attributes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from uuid import uuid4

from ferry.core import Confirmed, Fatal, ObjectError, Row, Status, TransferResult, whole_body
from ferry.ratelimit import Permit
from ferry.storage import CannotCopy, Store, md5_of_etag
from ferry.transfer.attributes import Carrier
from ferry.transfer.conflict import UnconfirmedUploads
from ferry.transfer.destination import Destination
from ferry.transfer.source import Sources

TRIAL = ".ferry-trial-"  # begins the names of trial objects
TRIAL_ATTRIBUTES = {
    "Content-Type": "image/x-ferry-trial", "Cache-Control": "max-age=60", "Content-Disposition": "inline",
    "Content-Language": "en", "ferry-trial": "1",
}  # fmt: skip


class CopyTrial:
    """Whether a store copies within itself, with all attributes. It is tried once, when it is first asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._task: asyncio.Task[bool] | None = None

    async def succeeds(self) -> bool:
        if not self._store.can_copy_from(self._store):
            return False
        self._task = self._task or asyncio.create_task(copies_keep_attributes(self._store))
        return await asyncio.shield(self._task)


class ServerCopy:
    """Copies of objects in a bucket that the destination's server may read itself (docs/decisions/0012)."""

    def __init__(
        self,
        sources: Sources,
        destination: Destination,
        carrier: Carrier,
        trial: CopyTrial,
        unconfirmed: UnconfirmedUploads,
        *,
        max_bytes: int,
    ) -> None:
        self._sources = sources
        self._destination = destination
        self._carrier = carrier
        self._trial = trial
        self._unconfirmed = unconfirmed
        self._max_bytes = min(max_bytes, destination.store.capabilities.copies_up_to)

    async def copy(self, row: Row, permit: Permit) -> TransferResult | None:
        """Lets the server copy a row's object under a free key. Returns None if the bytes are to be read and written.

        The object must be listed with size and ETag, and it must be written as it is: without a digest or type from the
        manifest or a deferred key, and with the attributes that a copy has. Raises ObjectError and Fatal.
        """
        if not row.size or not row.etag or row.size > self._max_bytes or row.deferred_key:
            return None
        if row.md5 or row.sha256 or row.content_type or (attributes := self._carrier.for_copy(row)) is None:
            return None
        for root, source in self._sources.roots:
            if row.source.startswith(root):
                if self._destination.store.can_copy_from(source) and await self._trial.succeeds():
                    with contextlib.suppress(CannotCopy):
                        return await self._copy(row, source, row.source[len(root) :], attributes, permit)
                return None
        return None

    async def _copy(
        self, row: Row, source: Store, key: str, attributes: Mapping[str, str], permit: Permit
    ) -> TransferResult:
        """Raises CannotCopy if the server does not copy, or the copy has other bytes."""
        assert row.size is not None
        assert row.etag is not None
        started = time.monotonic()
        async with self._destination.permit():
            await self._destination.check_lease()
            self._unconfirmed.note_sent(row, row.key)
            how, etag = await self._destination.copy_from(
                source, key, row.key, attributes, size=row.size, etag=row.etag
            )
        self._unconfirmed.forget(row)
        permit.succeeded(time.monotonic() - started)
        md5 = None if how is Confirmed.SIZE else md5_of_etag(row.etag)
        return TransferResult(
            Status.COPIED, row.key, row.size, md5, source_etag=row.etag, source_last_modified=row.last_modified,
            dest_etag=etag, requests=1, bytes_read=row.size, confirmed=how,
        )  # fmt: skip


async def copies_keep_attributes(store: Store) -> bool:
    """Returns whether the server copies a small object of Ferry's with all its attributes. Deletes both objects."""
    name = TRIAL + uuid4().hex
    body = await whole_body(b"written by Ferry, which deletes it at once\n", None)
    try:
        sent = await store.put(name, body, TRIAL_ATTRIBUTES)
        await store.copy_from(store, name, f"{name}-copy", size=body.size, etag=sent.etag or "")
        first, second = [await _get(store, key) for key in (name, f"{name}-copy")]
    except (CannotCopy, ObjectError, Fatal):
        return False
    finally:
        for key in (name, f"{name}-copy"):
            with contextlib.suppress(ObjectError, Fatal):
                await store.delete(key)
    return first == second == (body.sha256, first[1])


async def _get(store: Store, key: str) -> tuple[str, dict[str, str]]:
    body, _, attributes = await store.get(key, max_bytes=1024, side="destination")
    body.discard()
    return body.sha256, attributes
